//! What lies in the Secret and what does not, and how a pod lives with it.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use bamf_lab::agent::{Home, LIMIT, NAME, identity, until};
use bamf_lab::kubernetes::{Cluster, Verb};
use bamf_lab::machine::{or_skip, report_skipped};
use bamf_lab::plane::{ControlPlane, Options};
use serde_json::{Value, json};

use super::scene::{SECRET, Scene, data, holds, into_pod, secret};

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
