//! The one join of an agent that has several replicas.

use std::time::Duration;

use bamf_lab::agent::{Home, LIMIT, NAME};
use bamf_lab::kubernetes::{Fault, NAMESPACE, Seen, Verb};
use bamf_lab::machine::or_skip;
use bamf_lab::plane::{Endpoint, Fault as PlaneFault};
use serde_json::json;

use super::scene::{SECRET, Scene, count, seconds};

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
