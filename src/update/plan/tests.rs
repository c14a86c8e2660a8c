//! Every reason to install, to do nothing and to refuse, as tables.

use super::*;

fn version(text: &str) -> Version {
    text.parse().unwrap()
}

/// Facts with an installed and an API version; the source has the API's release.
fn facts(installed: &str, api: &str) -> Facts {
    Facts {
        installed: version(installed),
        api: Some(version(api)),
        requested: None,
        pinned: None,
        known_bad: Vec::new(),
        allow: Allow::default(),
        probed: Some(true),
        listing: None,
    }
}

fn allow(letters: &str) -> Allow {
    Allow { downgrade: letters.contains('d'), prerelease: letters.contains('p'), force: letters.contains('f') }
}

/// `up 1.2.0`, `up_to_date`, or the reason word.
fn outcome(facts: &Facts) -> String {
    match next(facts) {
        Step::Done(Plan::UpToDate { .. }) => "up_to_date".into(),
        Step::Done(Plan::Update { version, direction: Direction::Up }) => format!("up {version}"),
        Step::Done(Plan::Update { version, direction: Direction::Down }) => format!("down {version}"),
        Step::Done(Plan::Update { version, direction: Direction::Again }) => format!("again {version}"),
        Step::Done(Plan::Refuse(refusal)) => refusal.reason.word().into(),
        step @ (Step::Probe(_) | Step::List) => format!("{step:?}"),
    }
}

fn message(facts: &Facts) -> String {
    let Step::Done(Plan::Refuse(refusal)) = next(facts) else { panic!("{} is no refusal", outcome(facts)) };
    refusal.to_string()
}

#[test]
fn without_a_request_the_apis_version_is_installed() {
    for (installed, api, flags, expected) in [
        ("1.1.0", "1.2.0", "", "up 1.2.0"),
        ("1.2.0", "1.2.0", "", "up_to_date"),
        ("1.2.0", "1.2.0", "f", "again 1.2.0"),
        ("1.2.0-rc.1", "1.2.0", "", "up 1.2.0"),
        // Development builds lead to their release.
        ("1.2.0-dev", "1.2.0", "", "up 1.2.0"),
        ("0.1.0-dev", "1.2.0", "", "up 1.2.0"),
        // The API was rolled back.
        ("1.3.0", "1.2.0", "", "older_than_installed"),
        ("1.3.0", "1.2.0", "f", "older_than_installed"),
        ("1.3.0", "1.2.0", "d", "down 1.2.0"),
        ("1.3.0-dev", "1.2.0", "", "older_than_installed"),
        ("1.3.0-dev", "1.2.0", "d", "down 1.2.0"),
        // Build metadata never counts.
        ("1.2.0+local", "1.2.0", "", "up_to_date"),
    ] {
        let facts = Facts { allow: allow(flags), ..facts(installed, api) };
        assert_eq!(outcome(&facts), expected, "{installed} under {api} with {flags:?}");
    }
}

#[test]
fn a_request_is_judged_against_api_and_installed_version() {
    for (installed, api, requested, flags, expected) in [
        ("1.1.0", "1.3.0", "1.2.0", "", "up 1.2.0"),
        ("1.1.0", "1.2.0", "1.1.0", "", "up_to_date"),
        ("1.1.0", "1.2.0", "1.1.0", "f", "again 1.1.0"),
        ("1.1.0", "1.2.0", "1.0.0", "", "older_than_installed"),
        ("1.1.0", "1.2.0", "1.0.0", "f", "older_than_installed"),
        ("1.1.0", "1.2.0", "1.0.0", "d", "down 1.0.0"),
        ("1.1.0", "1.2.0", "1.2.0-rc.1", "", "prerelease"),
        ("1.1.0", "1.2.0", "1.2.0-rc.1", "f", "prerelease"),
        ("1.1.0", "1.2.0", "1.2.0-rc.1", "p", "up 1.2.0-rc.1"),
        // Newer than the API: nothing helps.
        ("1.1.0", "1.2.0", "1.3.0", "", "newer_than_api"),
        ("1.1.0", "1.2.0", "1.3.0", "dpf", "newer_than_api"),
        ("1.1.0", "1.2.0", "1.2.1-rc.1", "dpf", "newer_than_api"),
        ("1.1.0", "1.2.0-rc.1", "1.2.0", "dpf", "newer_than_api"),
        ("1.3.0", "1.2.0", "1.3.0", "dpf", "newer_than_api"),
    ] {
        let facts = Facts { requested: Some(version(requested)), allow: allow(flags), ..facts(installed, api) };
        assert_eq!(outcome(&facts), expected, "{requested} over {installed} under {api} with {flags:?}");
    }
}

#[test]
fn an_unknown_api_version_refuses_everything() {
    for requested in [None, Some(version("1.0.0"))] {
        let facts = Facts { api: None, requested, allow: allow("dpf"), ..facts("1.1.0", "1.2.0") };
        assert_eq!(outcome(&facts), "api_version_unknown");
        assert!(message(&facts).contains("update.assume_api_version"));
    }
}

#[test]
fn the_tag_of_the_apis_version_is_tried_before_releases_are_listed() {
    let mut facts = Facts { probed: None, ..facts("1.0.0", "1.2.0") };
    assert_eq!(next(&facts), Step::Probe(version("1.2.0")));
    facts.probed = Some(false);
    assert_eq!(next(&facts), Step::List);
    facts.listing = Some(["1.0.0", "1.1.0", "1.1.10", "1.1.9", "1.2.0-rc.1", "1.3.0"].map(version).to_vec());
    assert_eq!(outcome(&facts), "up 1.1.10");
    facts.allow.prerelease = true;
    assert_eq!(outcome(&facts), "up 1.2.0-rc.1");
}

#[test]
fn neither_probe_nor_list_is_asked_for_where_the_answer_is_certain() {
    let unasked = |installed| Facts { probed: None, ..facts(installed, "1.2.0") };
    assert_eq!(outcome(&unasked("1.3.0")), "older_than_installed");
    let requested = Facts { requested: Some(version("1.1.0")), ..unasked("1.0.0") };
    assert_eq!(outcome(&requested), "up 1.1.0");
}

#[test]
fn a_prerelease_api_is_followed_to_its_prerelease_only_with_the_flag() {
    let mut facts = Facts { probed: None, ..facts("1.1.0", "1.3.0-rc.2") };
    assert_eq!(next(&facts), Step::List);
    facts.listing = Some(["1.2.0", "1.3.0-rc.1", "1.3.0-rc.2", "1.3.0"].map(version).to_vec());
    assert_eq!(outcome(&facts), "up 1.2.0");
    let facts = Facts { allow: allow("p"), listing: None, ..facts };
    assert_eq!(next(&facts), Step::Probe(version("1.3.0-rc.2")));
    assert_eq!(outcome(&Facts { probed: Some(true), ..facts }), "up 1.3.0-rc.2");
}

#[test]
fn a_source_without_a_fitting_release_is_not_found() {
    let listing = |versions: &[&str]| Facts {
        probed: Some(false),
        listing: Some(versions.iter().map(|text| version(text)).collect()),
        ..facts("1.0.0", "1.2.0")
    };
    assert_eq!(outcome(&listing(&[])), "not_found");
    assert_eq!(outcome(&listing(&["1.3.0", "2.0.0"])), "not_found");
    assert!(message(&listing(&["1.2.0-rc.1"])).contains("--allow-prerelease"));
}

#[test]
fn what_runs_is_not_replaced_by_something_older_just_because_that_is_the_newest_release() {
    let facts = Facts {
        allow: allow("d"),
        probed: Some(false),
        listing: Some(vec![version("1.1.0")]),
        ..facts("1.2.0-rc.1", "1.2.0")
    };
    assert_eq!(outcome(&facts), "up_to_date");
}

#[test]
fn a_pin_holds_the_agent_where_it_is_or_leads_it_there() {
    for (installed, requested, pin, flags, expected) in [
        ("1.1.0", None, "1.1.0", "", "pinned"),
        ("1.2.0", None, "1.2.0", "", "up_to_date"),
        ("1.1.0", Some("1.2.0"), "1.1.0", "", "pinned"),
        ("1.1.0", Some("1.2.0"), "1.1.0", "dp", "pinned"),
        ("1.1.0", Some("1.2.0"), "1.1.0", "f", "up 1.2.0"),
        ("1.1.0", None, "1.1.0", "f", "up 1.2.0"),
        ("1.0.0", None, "1.1.0", "", "up 1.1.0"),
        ("1.2.0", None, "1.1.0", "", "older_than_installed"),
        ("1.2.0", None, "1.1.0", "d", "down 1.1.0"),
        ("1.1.0", None, "1.3.0", "", "newer_than_api"),
    ] {
        let facts = Facts {
            requested: requested.map(version),
            pinned: Some(version(pin)),
            allow: allow(flags),
            ..facts(installed, "1.2.0")
        };
        assert_eq!(outcome(&facts), expected, "{installed} pinned to {pin}, {requested:?} with {flags:?}");
    }
}

#[test]
fn a_version_that_was_rolled_back_here_is_not_tried_again_by_itself() {
    for (requested, flags, expected) in [
        (None, "", "known_bad"),
        (Some("1.2.0"), "dp", "known_bad"),
        (None, "f", "up 1.2.0"),
        (Some("1.1.1"), "", "up 1.1.1"),
    ] {
        let facts = Facts {
            requested: requested.map(version),
            known_bad: vec![version("1.2.0"), version("1.0.9")],
            allow: allow(flags),
            ..facts("1.1.0", "1.2.0")
        };
        assert_eq!(outcome(&facts), expected, "{requested:?} with {flags:?}");
    }
    // It runs well enough to be called installed.
    let running = Facts { known_bad: vec![version("1.2.0")], ..facts("1.2.0", "1.2.0") };
    assert_eq!(outcome(&running), "up_to_date");
}

#[test]
fn a_refusal_beyond_the_api_names_both_versions_and_the_order() {
    let facts = Facts { requested: Some(version("1.3.0")), ..facts("1.1.0", "1.2.0") };
    let message = message(&facts);
    assert!(
        message.contains("1.3.0") && message.contains("1.2.0") && message.contains("API → agents → CLI"),
        "{message}"
    );
}
