//! Replicas whose certificate is due.

use bamf_lab::agent::{Agent, Home, LIMIT, until};
use bamf_lab::kubernetes::Verb;
use bamf_lab::machine::or_skip;
use bamf_lab::plane::{Endpoint, Fault as PlaneFault};
use serde_json::Value;

use super::scene::{SECRET, Scene, holds, seconds};

/// Pods of one agent whose certificate is past half of its life.
fn due(scene: &Scene, pods: usize, before: u64, after: u64) -> Vec<(Home, Agent)> {
    scene.put(&scene.known(before, after));
    let homes: Vec<Home> = (0..pods).map(|_| scene.pod()).collect();
    homes.into_iter().map(|home| (home.start(), home)).map(|(agent, home)| (home, agent)).collect()
}

#[test]
fn of_replicas_whose_certificate_is_due_one_renews_and_the_others_follow() {
    if or_skip("of_replicas_whose_certificate_is_due_one_renews_and_the_others_follow") {
        return;
    }
    let scene = Scene::new();
    // Slow enough for all three to want it at the same time.
    scene.plane.inject(Endpoint::Renew, PlaneFault::Delay(seconds(1)), 10);
    let pods = due(&scene, 3, 60, 55);
    let renewed = || scene.plane.renewals().last().map(|renewal| renewal.issued_sha256.clone());
    assert!(scene.plane.wait_for_renewals(1, LIMIT));
    for (home, agent) in &pods {
        assert!(until(LIMIT, || Some(home.fingerprint()) == renewed()), "{}", agent.log());
        agent.expect_ready(200);
        scene.expect_secret(home);
    }
    assert_eq!(scene.plane.renewals().len(), 1, "the platform records the last one only");
    let secret = scene.cluster.secret(SECRET).unwrap();
    assert_eq!(
        secret["metadata"]["annotations"].as_object().map_or(0, serde_json::Map::len),
        0,
        "nobody renews any more"
    );
    assert_eq!(scene.plane.join_attempts(), 0);
    drop(pods);
    // And it is what the next pod finds.
    let next = scene.pod();
    drop(next.connect(&scene.plane));
    assert_eq!(Some(next.fingerprint()), renewed());
}

#[test]
fn a_replica_that_dies_while_it_renews_is_replaced_by_another() {
    if or_skip("a_replica_that_dies_while_it_renews_is_replaced_by_another") {
        return;
    }
    let scene = Scene::new();
    scene.plane.inject(Endpoint::Renew, PlaneFault::Hang, 1);
    let mut pods = due(&scene, 1, 40, 36);
    let claimed = |secret: &Value| secret["metadata"]["annotations"].get("bamf-agent/renewing").is_some();
    assert!(scene.waits_for_secret(claimed), "{}", pods[0].1.log());
    let other = scene.pod();
    let survivor = other.start();
    survivor.expect("the platform accepts the agent's heartbeat");
    pods.pop().unwrap().1.kill();
    survivor.expect("the certificate was renewed");
    assert!(scene.waits_for_secret(|secret| !claimed(secret)), "{}", survivor.log());
    scene.expect_secret(&other);
}

#[test]
fn a_renewal_that_cannot_be_shared_waits_and_is_made_all_the_same_before_it_is_too_late() {
    if or_skip("a_renewal_that_cannot_be_shared_waits_and_is_made_all_the_same_before_it_is_too_late") {
        return;
    }
    let scene = Scene::new();
    let old = scene.known(22, 18);
    scene.put(&old);
    let home = scene.pod();
    scene.cluster.allow(&[Verb::Get]);
    let agent = home.start();
    agent.expect("it could not be kept for the other replicas: the pod's service account may not update");
    assert!(home.problem().contains("verbs: [get, update]"), "{}", home.problem());
    assert_eq!(scene.plane.renewals().len(), 0);
    agent.expect("renewing although it cannot be shared");
    agent.expect("the certificate was renewed");
    let renewed = home.fingerprint();
    scene.cluster.allow(&[Verb::Get, Verb::Create, Verb::Update]);
    assert!(scene.waits_for_secret(|secret| !holds(&old)(secret)), "{}", agent.log());
    assert_eq!(home.fingerprint(), renewed);
    scene.expect_secret(&home);
}

#[test]
fn a_renewed_certificate_that_the_platform_refuses_does_not_get_into_the_secret() {
    if or_skip("a_renewed_certificate_that_the_platform_refuses_does_not_get_into_the_secret") {
        return;
    }
    let scene = Scene::new();
    let old = scene.known(60, 55);
    scene.put(&old);
    let home = scene.pod();
    // The heartbeat after the renewal is the first one with the new certificate.
    scene.plane.inject(Endpoint::Renew, PlaneFault::Delay(seconds(1)), 1);
    let agent = home.connect(&scene.plane);
    scene.plane.inject(Endpoint::Heartbeat, PlaneFault::Status(401), 1000);
    assert!(scene.plane.wait_for_renewals(1, LIMIT), "{}", agent.log());
    agent.expect("the renewed certificate is refused, going back to the one before");
    assert!(holds(&old)(&scene.cluster.secret(SECRET).unwrap()));
    scene.plane.clear_faults();
}
