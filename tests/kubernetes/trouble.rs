//! A Secret that cannot be read, written or understood: waited for, told of, and never a reason to join.

use bamf_lab::agent::{LIMIT, until};
use bamf_lab::kubernetes::{Fault, Verb};
use bamf_lab::machine::or_skip;
use bamf_lab::plane::CertificateAuthority;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::scene::{SECRET, Scene, data, holds, secret};

/// Starts a pod without an identity while something is wrong with the Secret; nothing must be asked of the platform until
/// `mend`, and everything must work after it.
fn waits_without_joining(scene: &Scene, words: &[&str], mend: impl FnOnce()) {
    let home = scene.pod();
    let agent = home.start();
    for word in words {
        agent.expect(word);
    }
    assert!(until(LIMIT, || words.iter().all(|word| home.problem().contains(word))), "{}", home.problem());
    agent.expect_ready(503);
    assert_eq!(agent.get("/health").0, 200);
    // Asked again and again, and each time the same.
    let before = scene.cluster.seen().len();
    let asked_again = || scene.cluster.seen().len() > before + 2 || agent.log().matches("trying again").count() > 3;
    assert!(until(LIMIT, asked_again), "{}", agent.log());
    assert_eq!((scene.plane.join_attempts(), scene.cluster.writes()), (0, 0), "{}", agent.log());
    mend();
    agent.expect("the platform accepts the agent's heartbeat");
    assert_eq!(scene.plane.joins().len(), 1);
    scene.expect_secret(&home);
}

#[test]
fn a_pod_that_may_not_read_or_write_the_secret_names_the_rule_and_does_not_join() {
    if or_skip("a_pod_that_may_not_read_or_write_the_secret_names_the_rule_and_does_not_join") {
        return;
    }
    let cases: [(&[Verb], &str); 2] = [
        (&[], "may not get the Secret bamf/bamf-agent-certs: its Role in the namespace bamf needs the rule"),
        (&[Verb::Get, Verb::Update], "resources: [secrets], verbs: [create]}"),
    ];
    for (allowed, words) in cases {
        let scene = Scene::new();
        scene.cluster.allow(allowed);
        waits_without_joining(&scene, &[words], || scene.cluster.allow(&[Verb::Get, Verb::Create, Verb::Update]));
    }
}

#[test]
fn whatever_the_api_server_answers_instead_of_none_a_pod_does_not_join() {
    if or_skip("whatever_the_api_server_answers_instead_of_none_a_pod_does_not_join") {
        return;
    }
    let faults = [
        (Fault::Status(500), "cannot get the Secret"),
        (Fault::Status(429), "cannot get the Secret"),
        (Fault::Html(404), "something else than the cluster's API answered"),
        (Fault::Html(503), "cannot get the Secret"),
        (Fault::Garbage, "no Secret"),
        (Fault::AnotherObject, "another object"),
        (Fault::Huge, "more than 4 MiB"),
        (Fault::CutBeforeAnswer, "did not answer"),
    ];
    std::thread::scope(|scope| {
        for (fault, words) in faults {
            scope.spawn(move || {
                let scene = Scene::new();
                scene.cluster.inject(Some(Verb::Get), fault, 1000);
                waits_without_joining(&scene, &[words], || scene.cluster.clear_faults());
            });
        }
    });
}

#[test]
fn an_api_server_that_is_away_or_hangs_is_waited_for() {
    if or_skip("an_api_server_that_is_away_or_hangs_is_waited_for") {
        return;
    }
    let scene = Scene::new();
    scene.cluster.stop_listening();
    waits_without_joining(&scene, &["did not answer"], || scene.cluster.resume().unwrap());

    let scene = Scene::new();
    scene.cluster.inject(Some(Verb::Get), Fault::Hang, 1);
    let home = scene.pod();
    let agent = home.start();
    agent.expect("did not answer");
    agent.expect("the identity is kept in the Secret");
    assert_eq!(scene.plane.join_attempts(), 1);
}

#[test]
fn a_pod_that_has_an_identity_works_without_the_api_server_and_stores_it_later() {
    if or_skip("a_pod_that_has_an_identity_works_without_the_api_server_and_stores_it_later") {
        return;
    }
    let scene = Scene::new();
    let stored = scene.known(60, 86400);
    let home = scene.pod_with(&stored);
    scene.cluster.stop_listening();
    let agent = home.connect(&scene.plane);
    agent.expect("going on with the identity in the data directory");
    assert!(until(LIMIT, || home.status()["identity"]["problem"].as_str().unwrap_or("").contains("did not answer")));
    agent.expect_ready(200);
    scene.cluster.resume().unwrap();
    assert!(scene.waits_for_secret(holds(&stored)), "{}", agent.log());
    assert!(until(LIMIT, || home.problem().is_empty()), "{}", home.problem());
    assert_eq!(scene.plane.join_attempts(), 0);
}

#[test]
fn a_secret_of_another_type_or_with_something_else_in_it_is_left_alone_and_no_reason_to_join() {
    if or_skip("a_secret_of_another_type_or_with_something_else_in_it_is_left_alone_and_no_reason_to_join") {
        return;
    }
    let pem = |text: &str| STANDARD.encode(text);
    let other = CertificateAuthority::new();
    let scene = Scene::new();
    let sound = scene.known(60, 86400);
    let mut foreign = data(&sound);
    foreign["ca.crt"] = pem(other.pem()).into();
    let mut partial = data(&sound);
    partial.as_object_mut().unwrap().remove("ca.crt");
    let cases = [
        // The Go agent's documentation describes this one.
        ("Opaque", json!({"agent.crt": pem("x"), "agent.key": pem("x")}), "is of the type Opaque"),
        (
            "kubernetes.io/tls",
            json!({"tls.crt": pem("x"), "tls.key": pem("y"), "ca.crt": pem("z")}),
            "tls.crt is not a PEM",
        ),
        ("kubernetes.io/tls", json!({"tls.crt": pem("x"), "tls.key": ""}), "tls.key is missing"),
        ("kubernetes.io/tls", foreign, "tls.crt was not signed by the authority in ca.crt"),
        ("kubernetes.io/tls", partial, "ca.crt is missing"),
    ];
    std::thread::scope(|scope| {
        for (kind, data, words) in cases {
            scope.spawn(move || {
                let scene = Scene::new();
                let made = scene.cluster.create(secret(kind, &data)).unwrap();
                waits_without_joining(&scene, &[words], || {
                    assert_eq!(scene.cluster.secret(SECRET), Some(made));
                    scene.cluster.delete(SECRET);
                });
            });
        }
    });
}

#[test]
fn a_pod_without_a_token_in_its_mount_says_what_is_switched_off() {
    if or_skip("a_pod_without_a_token_in_its_mount_says_what_is_switched_off") {
        return;
    }
    let scene = Scene::new();
    std::fs::remove_file(scene.cluster.mount().join("token")).unwrap();
    waits_without_joining(&scene, &["automountServiceAccountToken"], || scene.cluster.rotate_token().unwrap());
}
