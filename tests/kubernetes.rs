//! The identity in a Secret: pods that share one, lose one, race for one, and may not have one.
//!
//! The agent is the real one, in a mount namespace where the service account lies as Kubernetes mounts it, so that nothing in
//! it needs to know of tests. That takes root.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use bamf_lab::agent::{Agent, Home, LIMIT, NAME, identity, until};
use bamf_lab::kubernetes::{Cluster, Fault, NAMESPACE, Seen, Verb};
use bamf_lab::machine::{or_skip, report_skipped};
use bamf_lab::plane::{CertificateAuthority, ControlPlane, Endpoint, Fault as PlaneFault, IssuedIdentity, Options};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

const BINARY: &str = env!("CARGO_BIN_EXE_bamf-agent");
/// The default name.
const SECRET: &str = "bamf-agent-certs";

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Starts the agent where `account` is mounted as the service account, in a mount namespace of its own.
fn into_pod(home: &mut Home, cluster: &Cluster) {
    let mount = format!(
        "mount -t tmpfs tmpfs /run && mkdir -p /run/secrets/kubernetes.io/serviceaccount && \
         mount --bind '{}' /run/secrets/kubernetes.io/serviceaccount && exec \"$@\"",
        cluster.mount().display()
    );
    home.launch_by(&["unshare", "--mount", "sh", "-c", &mount, "sh"]);
    home.set("KUBERNETES_SERVICE_HOST", "127.0.0.1");
    home.set("KUBERNETES_SERVICE_PORT", &cluster.port().to_string());
    // Whatever proxy the pod is given, the cluster's API is asked directly.
    home.set("HTTPS_PROXY", "http://127.0.0.1:9");
    home.set("NO_PROXY", "localhost");
}

struct Scene {
    plane: ControlPlane,
    cluster: Cluster,
    token: String,
}

impl Scene {
    fn new() -> Self {
        Self::with(Options::default())
    }

    fn with(options: Options) -> Self {
        let plane = ControlPlane::start(options).unwrap();
        let token = plane.issue_token(1);
        Self { plane, cluster: Cluster::start().unwrap(), token }
    }

    /// A pod with nothing in its data directory.
    fn pod(&self) -> Home {
        let mut home = Home::of(BINARY, &self.plane, &format!("agent_name: {NAME}\njoin_token: {}\n", self.token));
        into_pod(&mut home, &self.cluster);
        home
    }

    /// A pod whose data directory holds this identity.
    fn pod_with(&self, identity: &IssuedIdentity) -> Home {
        let home = self.pod();
        home.store(identity);
        home
    }

    /// An identity that the platform knows.
    fn known(&self, before: u64, after: u64) -> IssuedIdentity {
        let now = SystemTime::now();
        let identity = self.plane.ca().identity(NAME, now - seconds(before), now + seconds(after)).unwrap();
        self.plane.register(&identity);
        identity
    }

    fn put(&self, identity: &IssuedIdentity) {
        self.cluster.create(secret("kubernetes.io/tls", &data(identity))).unwrap();
    }

    /// What the Secret holds is what this pod has, or soon will be.
    fn expect_secret(&self, home: &Home) {
        for (key, file) in [("tls.crt", "agent.crt"), ("tls.key", "agent.key"), ("ca.crt", "ca.crt")] {
            let text = || std::fs::read_to_string(home.data_dir().join(file)).unwrap();
            assert!(until(LIMIT, || self.cluster.value(SECRET, key) == text()), "{key}");
        }
    }

    fn waits_for_secret(&self, condition: impl Fn(&Value) -> bool) -> bool {
        self.cluster.wait_for(SECRET, LIMIT, |secret, _| secret.is_some_and(&condition))
    }
}

fn data(identity: &IssuedIdentity) -> Value {
    json!({
        "tls.crt": STANDARD.encode(&identity.certificate_pem),
        "tls.key": STANDARD.encode(&identity.private_key_pem),
        "ca.crt": STANDARD.encode(&identity.ca_pem),
    })
}

fn secret(kind: &str, data: &Value) -> Value {
    json!({"kind": "Secret", "apiVersion": "v1", "type": kind, "metadata": {"name": SECRET}, "data": data})
}

fn count(seen: &[Seen], verb: Verb) -> usize {
    seen.iter().filter(|seen| seen.verb == verb && !seen.rehearsal).count()
}

fn holds(identity: &IssuedIdentity) -> impl Fn(&Value) -> bool {
    let wanted = data(identity)["tls.crt"].clone();
    move |secret| secret["data"]["tls.crt"] == wanted
}

#[test]
fn the_first_pod_joins_and_keeps_its_identity_in_the_secret_that_the_protocol_describes() {
    if or_skip("the_first_pod_joins_and_keeps_its_identity_in_the_secret_that_the_protocol_describes") {
        return;
    }
    let scene = Scene::new();
    let home = scene.pod();
    let agent = home.connect(&scene.plane);
    agent.expect("the identity is kept in the Secret");
    let secret = scene.cluster.secret(SECRET).unwrap();
    assert_eq!((&secret["type"], &secret["metadata"]["namespace"]), (&"kubernetes.io/tls".into(), &NAMESPACE.into()));
    let labels = json!({"app.kubernetes.io/name": "bamf", "app.kubernetes.io/component": "agent",
        "app.kubernetes.io/managed-by": "bamf-agent"});
    assert_eq!(secret["metadata"]["labels"], labels);
    assert_eq!(secret["metadata"].get("annotations"), None);
    assert_eq!(secret["data"].as_object().unwrap().len(), 3);
    scene.expect_secret(&home);
    // That it could be stored was known before the join.
    let seen = scene.cluster.seen();
    let rehearsal = Seen { verb: Verb::Create, rehearsal: true, status: 201 };
    assert!(seen.contains(&rehearsal) && count(&seen, Verb::Create) == 1, "{seen:?}");
    let place = format!("{NAMESPACE}/{SECRET}");
    let kept = json!({"kept_in": "secret", "secret": place, "problem": null});
    assert_eq!(home.status()["identity"], kept);
    assert!(home.run(&["status"]).stdout.contains(&format!("in the Secret {place}")));
    let tested = home.run(&["selftest"]);
    assert!(tested.code == 0 && tested.stdout.contains(&place), "{tested:?}");
    assert_eq!(agent.terminate(LIMIT).code, 0);
}

#[test]
fn a_second_pod_and_one_that_has_lost_its_disk_are_the_same_agent_without_a_join() {
    if or_skip("a_second_pod_and_one_that_has_lost_its_disk_are_the_same_agent_without_a_join") {
        return;
    }
    let scene = Scene::new();
    let (first, second) = (scene.pod(), scene.pod());
    let _first = first.connect(&scene.plane);
    assert!(scene.waits_for_secret(|_| true));
    scene.cluster.rotate_token().unwrap();
    let agent = second.connect(&scene.plane);
    agent.expect("the identity in the Secret is used");
    scene.expect_secret(&second);
    assert_eq!(first.fingerprint(), second.fingerprint());
    let instances = scene.plane.agent(NAME).unwrap().instances;
    assert_eq!(instances.len(), 2, "one agent, two instances: {instances:?}");
    agent.kill();
    std::fs::remove_dir_all(second.data_dir()).unwrap();
    drop(second.connect(&scene.plane));
    assert_eq!((scene.plane.join_attempts(), scene.cluster.writes()), (1, 1));
}

#[test]
fn of_three_pods_that_start_at_once_one_joins_and_the_others_take_over_what_it_has_written() {
    if or_skip("of_three_pods_that_start_at_once_one_joins_and_the_others_take_over_what_it_has_written") {
        return;
    }
    // A token for one join: the others are told that it is used up. One for three: that the name is taken.
    for uses in [1, 3] {
        let mut scene = Scene::new();
        scene.token = scene.plane.issue_token(uses);
        // Long enough for all to have seen no Secret before anybody has joined, and the winner is slow to write.
        scene.plane.inject(Endpoint::Join, PlaneFault::Delay(seconds(1)), 3);
        scene.cluster.inject(Some(Verb::Create), Fault::Delay(Duration::from_millis(300)), 6);
        let homes = [scene.pod(), scene.pod(), scene.pod()];
        let agents = homes.each_ref().map(Home::start);
        for agent in &agents {
            agent.expect("the platform accepts the agent's heartbeat");
        }
        assert_eq!(scene.plane.joins().len(), 1);
        assert_eq!(scene.plane.join_attempts(), 3, "they did race");
        let refused = agents.iter().filter(|agent| agent.log().contains("the join was refused"));
        assert_eq!(refused.count(), 2);
        for home in &homes {
            assert_eq!(home.fingerprint(), homes[0].fingerprint());
            scene.expect_secret(home);
            assert!(!home.data_dir().join("join.json").exists(), "nothing looks like an interrupted join");
        }
        assert_eq!(scene.cluster.writes(), 1);
    }
}

#[test]
fn a_pod_that_is_told_to_go_before_it_has_joined_goes_and_does_not_join() {
    if or_skip("a_pod_that_is_told_to_go_before_it_has_joined_goes_and_does_not_join") {
        return;
    }
    let scene = Scene::new();
    let home = scene.pod();
    scene.cluster.inject(Some(Verb::Get), Fault::Status(500), 1000);
    let agent = home.start();
    agent.expect("trying again");
    assert_eq!(agent.terminate(LIMIT).code, 0);
    scene.cluster.clear_faults();
    // In the middle of the rehearsal, which then says that everything is fine.
    scene.cluster.inject(Some(Verb::Create), Fault::Delay(seconds(2)), 1);
    let agent = home.start();
    let rehearses = |seen: &[Seen]| seen.iter().any(|seen| seen.rehearsal);
    assert!(scene.cluster.wait_for(SECRET, LIMIT, |_, seen| rehearses(seen)), "{}", agent.log());
    assert_eq!(agent.terminate(LIMIT).code, 0);
    assert_eq!((scene.plane.join_attempts(), scene.cluster.writes()), (0, 0));
}

#[test]
fn a_refused_join_ends_a_pod_only_when_no_other_replica_has_joined() {
    if or_skip("a_refused_join_ends_a_pod_only_when_no_other_replica_has_joined") {
        return;
    }
    let scene = Scene::new();
    scene.plane.revoke_token(&scene.token);
    let home = scene.pod();
    let finished = home.start().wait(LIMIT);
    finished.expect(78, &["looking whether another replica has joined", "does not accept the join token"]);
    assert_eq!((scene.plane.join_attempts(), scene.cluster.writes()), (1, 0));
}

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
fn what_was_cut_off_between_the_join_and_the_secret_is_carried_on_by_the_next_start() {
    if or_skip("what_was_cut_off_between_the_join_and_the_secret_is_carried_on_by_the_next_start") {
        return;
    }
    let scene = Scene::new();
    let home = scene.pod();
    // Rehearsed, then joined, then the write hangs and the container is killed.
    scene.cluster.inject(Some(Verb::Create), Fault::Delay(Duration::ZERO), 1);
    scene.cluster.inject(Some(Verb::Create), Fault::Hang, 1);
    let agent = home.start();
    let hangs = scene
        .cluster
        .wait_for(SECRET, LIMIT, |_, seen| seen.iter().any(|seen| seen.verb == Verb::Create && !seen.rehearsal));
    assert!(hangs, "{}", agent.log());
    agent.kill();
    scene.cluster.clear_faults();
    let agent = home.connect(&scene.plane);
    agent.expect("the identity is kept in the Secret");
    scene.expect_secret(&home);
    assert_eq!(scene.plane.join_attempts(), 1);
}

#[test]
fn a_write_whose_answer_is_lost_is_found_to_have_been_carried_out() {
    if or_skip("a_write_whose_answer_is_lost_is_found_to_have_been_carried_out") {
        return;
    }
    let scene = Scene::new();
    scene.cluster.inject(Some(Verb::Create), Fault::Delay(Duration::ZERO), 1);
    scene.cluster.inject(Some(Verb::Create), Fault::CutBeforeAnswer, 1);
    let home = scene.pod();
    let agent = home.connect(&scene.plane);
    agent.expect("the new identity is not in the Secret yet");
    agent.expect("the identity is kept in the Secret");
    scene.expect_secret(&home);
    assert_eq!((scene.plane.join_attempts(), count(&scene.cluster.seen(), Verb::Create)), (1, 1));
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
fn a_secret_that_was_made_empty_is_filled_and_what_others_keep_in_it_stays() {
    if or_skip("a_secret_that_was_made_empty_is_filled_and_what_others_keep_in_it_stays") {
        return;
    }
    let scene = Scene::new();
    let mut empty = secret("kubernetes.io/tls", &json!({"tls.crt": "", "tls.key": "", "note": "aGk="}));
    empty["metadata"]["labels"] = json!({"team": "edge"});
    empty["metadata"]["annotations"] = json!({"example.com/x": "y"});
    scene.cluster.create(empty).unwrap();
    // The permission to make Secrets is not needed then.
    scene.cluster.allow(&[Verb::Get, Verb::Update]);
    let home = scene.pod();
    drop(home.connect(&scene.plane));
    scene.expect_secret(&home);
    let filled = scene.cluster.secret(SECRET).unwrap();
    assert_eq!((&filled["data"]["note"], &filled["metadata"]["labels"]["team"]), (&"aGk=".into(), &"edge".into()));
    assert_eq!(filled["metadata"]["annotations"], json!({"example.com/x": "y"}));
    assert_eq!(filled["metadata"]["labels"]["app.kubernetes.io/managed-by"], "bamf-agent");
}

#[test]
fn the_secret_wins_over_another_agents_directory_and_the_younger_certificate_over_the_older() {
    if or_skip("the_secret_wins_over_another_agents_directory_and_the_younger_certificate_over_the_older") {
        return;
    }
    // Another agent's.
    let scene = Scene::new();
    let theirs = scene.known(60, 86400);
    scene.put(&theirs);
    let home = scene.pod_with(&identity(&scene.plane, "another"));
    let agent = home.connect(&scene.plane);
    agent.expect("the Secret holds the identity of another agent");
    scene.expect_secret(&home);
    assert!(!home.data_dir().join(".previous").exists(), "nobody goes back to being another agent");
    drop(agent);
    // A damaged directory.
    bamf_lab::agent::write(home.data_dir().join("agent.key"), "x");
    drop(home.connect(&scene.plane));
    scene.expect_secret(&home);
    assert_eq!(scene.cluster.writes(), 0);
    // A renewal that did not get into the Secret any more.
    let younger = scene.known(10, 86400);
    let home = scene.pod_with(&younger);
    let agent = home.connect(&scene.plane);
    assert!(scene.waits_for_secret(holds(&younger)), "{}", agent.log());
    scene.expect_secret(&home);
    assert_eq!(scene.plane.join_attempts(), 0);
}

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

#[test]
fn a_secret_that_was_deleted_is_written_again_and_a_pod_that_runs_adopts_what_is_younger() {
    if or_skip("a_secret_that_was_deleted_is_written_again_and_a_pod_that_runs_adopts_what_is_younger") {
        return;
    }
    let scene = Scene::new();
    // Lives of two minutes have replicas look every six seconds or so.
    let first = scene.known(5, 115);
    scene.put(&first);
    let home = scene.pod();
    let agent = home.connect(&scene.plane);
    assert!(scene.cluster.delete(SECRET));
    assert!(scene.waits_for_secret(holds(&first)), "{}", agent.log());
    let second = scene.known(2, 118);
    scene.cluster.edit(SECRET, |secret| secret["data"] = data(&second)).unwrap();
    assert!(until(LIMIT, || home.fingerprint() == second.sha256), "{}", agent.log());
    scene.expect_secret(&home);
    // Another agent's is not taken over by one that runs.
    let another = identity(&scene.plane, "another");
    scene.cluster.edit(SECRET, |secret| secret["data"] = data(&another)).unwrap();
    let problem = "holds the identity of agent another, and this one is edge-1: give each agent a Secret of its own";
    assert!(until(LIMIT, || home.problem().contains(problem)), "{}", home.problem());
    assert_eq!(home.fingerprint(), second.sha256);
    agent.expect_ready(200);
    assert_eq!(scene.plane.join_attempts(), 0);
}

#[test]
fn a_token_that_was_used_up_may_be_gone_and_without_identity_and_token_both_places_are_named() {
    if or_skip("a_token_that_was_used_up_may_be_gone_and_without_identity_and_token_both_places_are_named") {
        return;
    }
    let scene = Scene::new();
    let home = scene.pod();
    home.configure(&format!("platform_url: {}\njoin_token: ${{EDGE_TOKEN}}\n", scene.plane.url()));
    let place = format!("{NAMESPACE}/{SECRET}");
    let words = ["holds no certificate", &place, "EDGE_TOKEN", &home.data_dir().display().to_string()];
    home.start().wait(LIMIT).expect(78, &words);
    scene.put(&scene.known(60, 86400));
    for command in [&["config", "check"][..], &["selftest"]] {
        home.run(command).expect(0, &[]);
    }
    drop(home.connect(&scene.plane));
    assert_eq!(scene.plane.join_attempts(), 0);
}

#[test]
fn an_agent_that_was_revoked_says_what_to_do_in_a_cluster_and_leaves_the_secret() {
    if or_skip("an_agent_that_was_revoked_says_what_to_do_in_a_cluster_and_leaves_the_secret") {
        return;
    }
    let scene = Scene::new();
    let home = scene.pod();
    let agent = home.connect(&scene.plane);
    assert!(scene.waits_for_secret(|_| true));
    assert!(scene.plane.delete_agent(NAME));
    let advice = "stop all replicas, delete the Secret bamf/bamf-agent-certs and start them again";
    agent.wait(LIMIT).expect(78, &["revoked agent edge-1", advice]);
    // Kubernetes starts it again, and again: it waits instead of burning through restarts.
    let agent = home.start();
    assert!(until(LIMIT, || home.problem().contains(advice)), "{}", agent.log());
    assert_eq!((scene.cluster.writes(), scene.plane.join_attempts()), (1, 1));
    // What that advice leads to.
    assert_eq!(agent.terminate(LIMIT).code, 0);
    assert!(scene.cluster.delete(SECRET));
    let token = scene.plane.issue_token(1);
    let anew = scene.pod();
    anew.configure(&format!("platform_url: {}\nagent_name: {NAME}\njoin_token: {token}\n", scene.plane.url()));
    drop(anew.connect(&scene.plane));
    scene.expect_secret(&anew);
    assert_eq!(scene.plane.joins().len(), 2);
}

#[test]
fn a_join_by_hand_looks_at_the_secret_and_with_force_replaces_what_is_in_it() {
    if or_skip("a_join_by_hand_looks_at_the_secret_and_with_force_replaces_what_is_in_it") {
        return;
    }
    let scene = Scene::new();
    let first = scene.pod();
    first.run(&["join"]).expect(0, &[]);
    scene.expect_secret(&first);
    let second = scene.pod();
    let found = second.run(&["join"]);
    assert!(found.code == 0 && found.stdout.contains("already joined as edge-1"), "{found:?}");
    scene.expect_secret(&second);
    assert!(scene.plane.delete_agent(NAME));
    let token = scene.plane.issue_token(1);
    second.run(&["join", "--force", "--token", &token]).expect(0, &[]);
    scene.expect_secret(&second);
    assert_ne!(first.fingerprint(), second.fingerprint());
    scene.cluster.stop_listening();
    second.run(&["join", "--token", &token]).expect(0, &[]);
    let third = scene.pod();
    third.run(&["join"]).expect(69, &["did not answer"]);
    assert_eq!(scene.plane.join_attempts(), 2);
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

#[test]
fn a_build_without_the_feature_says_in_a_pod_that_the_identity_ends_with_it_and_goes_on() {
    let plane = ControlPlane::start(Options::default()).unwrap();
    // The version of the update tests, which is built already.
    let binary = bamf_lab::binaries::agent_binary("1.0.0");
    let mut home = Home::joining(binary, &plane);
    home.set("KUBERNETES_SERVICE_HOST", "127.0.0.1");
    let sentence = "no Kubernetes support";
    let tested = home.run(&["selftest"]);
    tested.expect(0, &[sentence, "unless that is a volume"]);
    let agent = home.connect(&plane);
    agent.expect(sentence);
    let status = home.status();
    assert_eq!(status["identity"]["kept_in"], "data_dir");
    assert!(status["identity"]["problem"].as_str().unwrap().contains(sentence), "{status}");
    let shown = home.run(&["status"]).stdout;
    assert!(shown.contains(sentence) && shown.contains(&home.data_dir().display().to_string()), "{shown}");
    agent.expect_ready(200);
    assert!(Path::new(&home.data_dir()).join("agent.crt").exists());
}

/// As [`into_pod`], and as the chart has it: nobody in particular, without any privilege, on a root that is read-only. False
/// where the binary lies in a place that only root may enter.
fn into_locked_pod(home: &mut Home, cluster: &Cluster) -> bool {
    for (path, mode) in [(cluster.mount(), 0o755), (&home.path(""), 0o755)] {
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    }
    // As volumes of a pod with an `fsGroup` are.
    for volume in [home.data_dir(), home.runtime_dir()] {
        std::fs::create_dir_all(&volume).unwrap();
        std::os::unix::fs::chown(&volume, None, Some(65532)).unwrap();
        std::fs::set_permissions(&volume, PermissionsExt::from_mode(0o2777)).unwrap();
    }
    into_pod(home, cluster);
    let mut mount = "mount -t tmpfs tmpfs /run && mkdir -p /run/secrets/kubernetes.io/serviceaccount && ".to_owned();
    mount += &format!("mount --bind '{}' /run/secrets/kubernetes.io/serviceaccount && ", cluster.mount().display());
    for volume in [home.data_dir(), home.runtime_dir()] {
        mount += &format!("mount --bind '{0}' '{0}' && ", volume.display());
    }
    mount += "mount -o remount,ro /run && for at in / /tmp; do mountpoint -q $at && mount -o remount,ro,bind $at; done; \
              exec setpriv --reuid=65532 --regid=65532 --clear-groups --no-new-privs --bounding-set=-all \"$@\"";
    home.launch_by(&["unshare", "--mount", "sh", "-c", &mount, "sh"]);
    home.run(&["version"]).code == 0
}

#[test]
fn a_pod_as_the_chart_has_it_needs_neither_root_nor_a_writable_root_directory() {
    let test = "a_pod_as_the_chart_has_it_needs_neither_root_nor_a_writable_root_directory";
    if or_skip(test) {
        return;
    }
    let scene = Scene::new();
    let mut home = scene.pod();
    if !into_locked_pod(&mut home, &scene.cluster) {
        report_skipped(test, "the binary lies where others than root may not go");
        return;
    }
    let agent = home.connect(&scene.plane);
    agent.expect("the identity is kept in the Secret");
    scene.expect_secret(&home);
    let log = agent.log();
    assert!(!log.contains("\"WARN\"") && !log.contains("\"ERROR\""), "{log}");
    assert_eq!(home.status()["identity"]["problem"], Value::Null);
    let mounts = std::fs::read_to_string(format!("/proc/{}/mountinfo", agent.pid())).unwrap();
    let root = mounts.lines().find(|line| line.split(' ').nth(4) == Some("/")).unwrap();
    assert!(root.split(' ').nth(5).unwrap().split(',').any(|option| option == "ro"), "{root}");
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    assert!(
        status.contains("Uid:\t65532\t65532\t65532\t65532") && status.contains("CapBnd:\t0000000000000000"),
        "{status}"
    );
    assert_eq!(agent.terminate(LIMIT).code, 0);
    assert_eq!(scene.plane.offlines().len(), 1, "a pod that is stopped says good-bye");
}
