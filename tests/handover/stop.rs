//! A stop is no restart: sessions are waited for, and the platform is told.

use std::time::{Duration, Instant};

use bamf_lab::crowd::Mix;
use bamf_lab::machine::or_skip;
use bamf_lab::site::{Site, UNIT};
use serde_json::Value;

use super::scene::{LIMIT, Scene, stopping};

/// Sessions alone: what a stop means to web requests is not what is asked here.
fn few() -> Mix {
    Mix::sessions(20)
}

/// After a stop the unit starts afresh: it carries nothing over, and is somebody else to the platform.
#[track_caller]
fn starts_afresh(site: &Site, instance: &Value) {
    assert_eq!(site.machine.property(UNIT, "ActiveState").unwrap(), "inactive");
    assert_eq!(site.machine.property(UNIT, "Result").unwrap(), "success");
    for reports in [site.plane.drains(), site.plane.offlines()] {
        assert!(reports.len() == 1 && reports[0].instance_id == *instance, "{reports:?} of {instance}");
    }
    site.start().unwrap();
    let status = site.status();
    assert_ne!(&status["instance_id"], instance, "{status}");
    for count in ["active", "adopted", "lost"] {
        assert_eq!(status["sessions"][count], 0, "{status}");
    }
}

#[test]
fn a_stop_waits_for_sessions_and_tells_the_platform() {
    if or_skip("a_stop_waits_for_sessions_and_tells_the_platform") {
        return;
    }
    let scene = Scene::configured(few(), |text| text.replace("drain_timeout: 2s", "drain_timeout: 50s"));
    let instance = scene.site.status()["instance_id"].clone();
    let mut stop = stopping(&scene.site);
    assert!(scene.site.plane.wait_for(LIMIT, |seen| seen.drains.total() == 1), "no word of a drain");
    scene.crowd.goes_on(LIMIT).unwrap();
    assert_eq!(scene.crowd.faults(), [""; 0], "while it drains");
    assert!(stop.is_running(), "it does not wait");
    assert_eq!(scene.site.plane.offlines().len(), 0, "it is still there");
    let site = scene.leave();
    let begun = Instant::now();
    assert!(stop.wait(LIMIT).unwrap().success());
    assert!(begun.elapsed() < Duration::from_secs(20), "it did not wait for the timeout");
    starts_afresh(&site, &instance);
}

#[test]
fn a_stop_ends_sessions_that_do_not_end_by_themselves() {
    if or_skip("a_stop_ends_sessions_that_do_not_end_by_themselves") {
        return;
    }
    let scene = Scene::configured(few(), |text| text.replace("drain_timeout: 2s", "drain_timeout: 3s"));
    let instance = scene.site.status()["instance_id"].clone();
    let begun = Instant::now();
    assert!(stopping(&scene.site).wait(LIMIT).unwrap().success());
    assert!(begun.elapsed() >= Duration::from_secs(3), "they had {:?}", begun.elapsed());
    let faults = scene.crowd.faults();
    let ended = faults.iter().filter(|fault| fault.contains("ClosedByPeer")).count();
    assert!(ended > 0 && ended == faults.len(), "{faults:#?}");
    starts_afresh(&scene.site, &instance);
}
