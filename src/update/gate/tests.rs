//! The gate's table, minute by minute, and the promise that every trial ends.

use proptest::prelude::*;

use super::*;

const HEALTH: Duration = Duration::from_secs(90);
/// The trial begins an hour after boot.
const BEGAN: Duration = Duration::from_secs(3600);

fn identity() -> Identity {
    Identity {
        agent_name: "web-1".into(),
        agent_id: Some("agent-7".into()),
        certificate_sha256: "aa".into(),
        certificate_not_before: Some(1000),
    }
}

fn gate(health_timeout: Duration) -> Gate {
    Gate::new(Expected { version: "1.2.0".into(), identity: Some(identity()), health_timeout }, Some(BEFORE), BEGAN)
}

/// The version before was started and got ready at these times.
const BEFORE: Marks = Marks { main_started: 10, entered_active: 20 };
/// The new version was started and is not ready.
const STARTED: Marks = Marks { main_started: 30, ..BEFORE };
/// The new version was started and got ready.
const READY: Marks = Marks { main_started: 30, entered_active: 40 };

/// All is well, `second` seconds into the trial.
fn well(second: u64) -> Observation {
    Observation {
        now: BEGAN + Duration::from_secs(second),
        active: Active::Active,
        result: "success".into(),
        process: Some((100, 1)),
        runs_new_file: true,
        restarts: 0,
        waits_for_restart: false,
        stored: 0,
        marks: Some(READY),
        agent: Some(Report { version: "1.2.0".into(), connected: true, identity: identity(), last_error: None }),
        api_reachable: true,
    }
}

fn unconnected(second: u64) -> Observation {
    let mut seen = well(second);
    let report = seen.agent.as_mut().unwrap();
    (report.connected, report.last_error) = (false, Some("401 Unauthorized".into()));
    seen
}

fn outage(second: u64) -> Observation {
    Observation { api_reachable: false, ..unconnected(second) }
}

/// Feeds one observation per second until a verdict; returns it with the second.
fn run(at: impl FnMut(u64) -> Observation) -> (u64, Verdict) {
    run_within(HEALTH, at)
}

fn run_within(health_timeout: Duration, mut at: impl FnMut(u64) -> Observation) -> (u64, Verdict) {
    let mut gate = gate(health_timeout);
    for second in 0..3000 {
        match gate.observe(&at(second)) {
            Verdict::Wait { until } => assert!(until > at(second).now, "a deadline in the past at {second} s"),
            verdict @ (Verdict::Healthy | Verdict::Unhealthy { .. } | Verdict::KeepUnproven { .. }) => {
                return (second, verdict);
            }
        }
    }
    panic!("no verdict");
}

fn unhealthy(verdict: &Verdict) -> &Symptom {
    match verdict {
        Verdict::Unhealthy { why } => why,
        Verdict::Wait { .. } | Verdict::Healthy | Verdict::KeepUnproven { .. } => panic!("{verdict:?}"),
    }
}

#[test]
fn a_version_that_is_well_for_a_moment_is_healthy() {
    assert_eq!(run(well), (SETTLE.as_secs(), Verdict::Healthy));
}

#[test]
fn a_slow_start_within_the_limit_is_healthy() {
    let slow = |second| match second {
        0..20 => Observation { active: Active::Activating, agent: None, process: None, ..well(second) },
        20..60 => unconnected(second),
        _ => well(second),
    };
    assert_eq!(run(slow), (63, Verdict::Healthy));
}

#[test]
fn each_local_trouble_ends_at_the_health_timeout_and_is_named() {
    let reports = |second, version: &str| {
        let mut seen = well(second);
        seen.agent.as_mut().unwrap().version = version.into();
        seen
    };
    type At = Box<dyn FnMut(u64) -> Observation>;
    let cases: Vec<(At, &str)> = vec![
        (Box::new(|s| Observation { active: Active::Activating, ..well(s) }), "the unit is activating, not active"),
        (Box::new(|s| Observation { active: Active::Inactive, ..well(s) }), "the unit is inactive, not active"),
        (Box::new(|s| Observation { runs_new_file: false, ..well(s) }), "does not run the new binary"),
        (Box::new(|s| Observation { process: None, ..well(s) }), "does not run the new binary"),
        (Box::new(|s| Observation { agent: None, ..well(s) }), "does not answer on its control socket"),
        (Box::new(move |s| reports(s, "1.1.0")), "says that it is version 1.1.0, not 1.2.0"),
    ];
    for (at, text) in cases {
        let (second, verdict) = run(at);
        assert_eq!(second, HEALTH.as_secs(), "{text}");
        assert!(unhealthy(&verdict).to_string().contains(text), "{verdict:?}");
    }
}

#[test]
fn local_trouble_is_not_excused_by_an_api_outage() {
    let (second, verdict) = run(|s| Observation { agent: None, api_reachable: false, ..well(s) });
    assert_eq!((second, unhealthy(&verdict)), (HEALTH.as_secs(), &Symptom::NoSocket));
}

#[test]
fn an_unconnected_agent_is_blamed_while_the_api_answers() {
    let (second, verdict) = run(unconnected);
    assert_eq!(second, HEALTH.as_secs());
    let text = unhealthy(&verdict).to_string();
    assert_eq!(text, "the new version is not connected although the API answers; it says: 401 Unauthorized");
}

#[test]
fn during_an_api_outage_the_new_version_is_kept_after_ten_minutes() {
    let (second, verdict) = run(outage);
    assert_eq!(second, OUTAGE_LIMIT.as_secs());
    assert_eq!(verdict, Verdict::KeepUnproven { why: Symptom::ApiUnreachable });
}

#[test]
fn after_an_outage_the_agent_has_the_whole_health_timeout_to_connect() {
    let comes_back = |connects| {
        move |second| match second {
            0..400 => outage(second),
            _ if second < connects => unconnected(second),
            _ => well(second),
        }
    };
    assert_eq!(run(comes_back(480)), (483, Verdict::Healthy));
    let (second, verdict) = run(comes_back(9999));
    assert_eq!(second, 400 + HEALTH.as_secs());
    assert!(matches!(unhealthy(&verdict), Symptom::NotConnected { .. }));
}

#[test]
fn a_short_health_timeout_does_not_blame_an_agent_that_pauses_between_two_tries_after_an_outage() {
    let short = Duration::from_secs(10);
    let after = |connects: u64| {
        move |second| match second {
            0..300 => outage(second),
            _ if second < connects => unconnected(second),
            _ => well(second),
        }
    };
    assert_eq!(run_within(short, after(360)).1, Verdict::Healthy);
    let (second, verdict) = run_within(short, after(u64::MAX));
    assert_eq!(second, 300 + RECONNECT_LIMIT.as_secs());
    assert!(matches!(unhealthy(&verdict), Symptom::NotConnected { .. }));
    assert_eq!(run_within(short, unconnected).0, 10, "there was no outage");
}

#[test]
fn a_start_that_hangs_is_told_from_a_unit_that_is_not_running() {
    let told = |active: Active| unhealthy(&run(|s| Observation { active: active.clone(), ..well(s) }).1).to_string();
    let hangs = "the unit is activating, not active: the new version never said that it is ready";
    assert_eq!(told(Active::Activating), hangs);
    assert_eq!(told(Active::Inactive), "the unit is inactive, not active");
}

#[test]
fn an_outage_at_the_last_moment_before_the_deadline_saves_the_new_version() {
    let (second, verdict) = run(|second| if second < 89 { unconnected(second) } else { outage(second) });
    assert_eq!((second, verdict), (89 + 600, Verdict::KeepUnproven { why: Symptom::ApiUnreachable }));
}

#[test]
fn an_api_that_flaps_does_not_make_the_trial_endless_or_blame_the_version() {
    let (second, verdict) = run(|second| if second % 20 < 10 { outage(second) } else { unconnected(second) });
    assert!(second >= OUTAGE_LIMIT.as_secs(), "{second}");
    assert_eq!(verdict, Verdict::KeepUnproven { why: Symptom::ApiUnreachable });
}

#[test]
fn an_agent_that_is_connected_is_healthy_even_if_the_updater_cannot_reach_the_api() {
    assert_eq!(run(|s| Observation { api_reachable: false, ..well(s) }), (3, Verdict::Healthy));
}

#[test]
fn the_third_crash_and_a_failed_unit_end_the_trial_at_once_even_in_an_outage() {
    let (second, verdict) = run(|s| Observation { restarts: u32::try_from(s).unwrap(), ..outage(s) });
    assert_eq!((second, unhealthy(&verdict)), (3, &Symptom::CrashLoop { restarts: 3 }));
    let failed = |s| Observation { active: Active::Failed, result: "exit-code".into(), ..outage(s) };
    let (second, verdict) = run(failed);
    assert_eq!((second, unhealthy(&verdict)), (0, &Symptom::UnitFailed { result: "exit-code".into() }));
}

/// The main process has ended with an error, and systemd will start it again by itself.
fn died(marks: Marks) -> Observation {
    Observation {
        active: Active::Activating,
        result: "exit-code".into(),
        process: None,
        runs_new_file: false,
        waits_for_restart: true,
        marks: Some(marks),
        agent: None,
        ..well(0)
    }
}

#[test]
fn a_version_that_dies_before_it_is_ready_is_given_up_at_once_even_in_an_outage() {
    for api_reachable in [true, false] {
        let (second, verdict) = run(|_| Observation { api_reachable, ..died(STARTED) });
        let why = Symptom::DiedUnready { result: "exit-code".into() };
        assert_eq!((second, unhealthy(&verdict)), (0, &why));
        assert_eq!(why.to_string(), "the new version ended before it was ready (result `exit-code`)");
    }
}

#[test]
fn a_crash_is_waited_out_where_it_may_be_another_versions_or_the_version_was_ready() {
    let never_active = Marks { entered_active: 0, ..STARTED };
    let cases = [
        ("the version before died during its own stop", died(BEFORE)),
        ("it was ready, if only between two looks", died(READY)),
        ("it ended as it should", Observation { result: "success".into(), ..died(STARTED) }),
        ("systemd does not start it again, it ends it", Observation { waits_for_restart: false, ..died(STARTED) }),
        ("the unit cannot be looked at", Observation { marks: None, ..died(STARTED) }),
        ("it is the second start", Observation { waits_for_restart: false, restarts: 1, ..died(STARTED) }),
    ];
    for (what, seen) in cases {
        assert!(matches!(gate(HEALTH).observe(&seen), Verdict::Wait { .. }), "{what}");
    }
    let unknown = |before| Gate::new(gate(HEALTH).expected, before, BEGAN).observe(&died(never_active));
    assert!(matches!(unknown(None), Verdict::Wait { .. }), "nobody looked before the restart");
    let never = unknown(Some(Marks { entered_active: 0, ..BEFORE }));
    assert!(matches!(never, Verdict::Unhealthy { .. }), "no version was ever ready since the boot");
}

#[test]
fn a_version_that_was_sound_and_then_crashes_has_three_tries() {
    let mut gate = gate(HEALTH);
    assert!(matches!(gate.observe(&well(0)), Verdict::Wait { .. }));
    assert!(matches!(gate.observe(&died(READY)), Verdict::Wait { .. }));
    // Its second process dies before it is ready; the first one was.
    let again = Marks { main_started: 50, ..READY };
    assert!(matches!(gate.observe(&Observation { restarts: 1, ..died(again) }), Verdict::Wait { .. }));
    let third = gate.observe(&Observation { restarts: 3, ..died(again) });
    assert_eq!(unhealthy(&third), &Symptom::CrashLoop { restarts: 3 });
}

#[test]
fn a_process_that_connects_and_dies_is_not_committed() {
    // Two seconds of health, then another process, by other hands than systemd's.
    let (_, verdict) = run(|s| Observation { process: Some((100, s / 2)), ..well(s) });
    assert!(matches!(verdict, Verdict::Unhealthy { .. }), "{verdict:?}");
}

#[test]
fn a_pid_that_comes_again_is_another_process() {
    let mut gate = gate(HEALTH);
    gate.observe(&well(0));
    let again = Observation { process: Some((100, 2)), ..well(4) };
    assert!(matches!(gate.observe(&again), Verdict::Wait { .. }));
}

#[test]
fn a_process_that_is_never_stable_is_not_kept_in_an_outage() {
    let (_, verdict) = run(|s| Observation { process: Some((100, s / 20)), ..outage(s) });
    assert_eq!(unhealthy(&verdict), &Symptom::Unstable);
}

#[test]
fn another_agent_is_noticed_at_once() {
    type Change = fn(&mut Identity);
    let cases: [(Change, &str); 4] = [
        (|identity| identity.agent_name = "web-2".into(), "the name is web-2, it was web-1"),
        (|identity| identity.agent_id = Some("agent-8".into()), "the agent id is agent-8, it was agent-7"),
        (|identity| identity.certificate_sha256 = "bb".into(), "the certificate is bb, it was aa"),
        (
            |identity| (identity.certificate_sha256, identity.certificate_not_before) = ("bb".into(), Some(999)),
            "the certificate is bb, it was aa",
        ),
    ];
    for (change, text) in cases {
        let (second, verdict) = run(|second| {
            let mut seen = well(second);
            change(&mut seen.agent.as_mut().unwrap().identity);
            seen
        });
        assert_eq!(second, 0);
        assert!(unhealthy(&verdict).to_string().contains(text), "{verdict:?}");
    }
}

#[test]
fn a_certificate_renewed_during_the_trial_is_the_same_agent() {
    let renewed = |second| {
        let mut seen = well(second);
        let identity = &mut seen.agent.as_mut().unwrap().identity;
        (identity.certificate_sha256, identity.certificate_not_before) = ("bb".into(), Some(2000));
        seen
    };
    assert_eq!(run(renewed).1, Verdict::Healthy);
}

#[test]
fn the_old_process_is_not_judged_as_the_new_one() {
    // Until the restart is through, the old process answers, perhaps as somebody else.
    let (second, verdict) = run(|second| {
        let mut seen = well(second);
        if second < 5 {
            seen.runs_new_file = false;
            seen.agent.as_mut().unwrap().identity.agent_name = "web-0".into();
        }
        seen
    });
    assert_eq!((second, verdict), (8, Verdict::Healthy));
}

#[test]
fn an_identity_that_was_not_known_before_is_not_compared() {
    let mut gate = gate(HEALTH);
    gate.expected.identity = None;
    gate.observe(&well(0));
    assert_eq!(gate.observe(&well(3)), Verdict::Healthy);
}

fn waiting(millisecond: u64, active: Active) -> Observation {
    Observation { now: BEGAN + Duration::from_millis(millisecond), active, stored: 2, agent: None, ..well(0) }
}

#[test]
fn a_version_that_is_ready_and_leaves_open_sessions_waiting_is_unhealthy_at_the_second_look() {
    let mut gate = gate(HEALTH);
    assert!(
        matches!(gate.observe(&waiting(50, Active::Active)), Verdict::Wait { .. }),
        "it may have been read in between"
    );
    assert_eq!(gate.observe(&waiting(100, Active::Active)), Verdict::Unhealthy { why: Symptom::NotTakenOver });
}

#[test]
fn a_version_that_is_ready_for_an_instant_and_dies_without_taking_over_is_unhealthy_at_its_first_death() {
    let dead = |stored| Observation {
        active: Active::Activating,
        result: "exit-code".into(),
        process: None,
        runs_new_file: false,
        waits_for_restart: true,
        stored,
        ..waiting(50, Active::Activating)
    };
    assert!(matches!(gate(HEALTH).observe(&dead(2)), Verdict::Unhealthy { why: Symptom::DiedUnready { .. } }));
    assert!(matches!(gate(HEALTH).observe(&dead(0)), Verdict::Wait { .. }), "it had taken over, and may do better");
}

#[test]
fn a_version_that_starts_has_five_seconds_to_take_over_open_sessions() {
    let mut first = gate(HEALTH);
    for millisecond in (50..5000).step_by(50) {
        let seen = first.observe(&waiting(millisecond, Active::Activating));
        assert!(matches!(seen, Verdict::Wait { .. }), "{millisecond}");
    }
    let late = first.observe(&waiting(5050, Active::Activating));
    assert_eq!(late, Verdict::Unhealthy { why: Symptom::NotTakenOver });
    // Another process has its own time, and one that took over is not late.
    let mut gate = gate(HEALTH);
    gate.observe(&waiting(50, Active::Activating));
    let other = Observation { process: Some((200, 2)), ..waiting(5100, Active::Activating) };
    assert!(matches!(gate.observe(&other), Verdict::Wait { .. }));
    assert!(matches!(gate.observe(&well(6)), Verdict::Wait { .. }));
    assert_eq!(gate.observe(&well(9)), Verdict::Healthy);
}

#[test]
fn what_waits_for_a_process_of_the_old_file_is_not_the_new_versions_doing() {
    let mut gate = gate(HEALTH);
    for millisecond in [50, 100, 9000] {
        let seen = Observation { runs_new_file: false, ..waiting(millisecond, Active::Active) };
        assert!(matches!(gate.observe(&seen), Verdict::Wait { .. }), "{millisecond}");
    }
}

fn any_active() -> impl Strategy<Value = Active> {
    prop::sample::select(vec![Active::Active, Active::Active, Active::Activating, Active::Inactive, Active::Reloading])
}

prop_compose! {
    fn any_observation()(
        active in any_active(),
        process in prop::option::weighted(0.9, (1_u32..4, 0_u64..3)),
        runs_new_file in prop::bool::weighted(0.9),
        restarts in 0_u32..3,
        main_started in prop::sample::select(vec![10_u64, 30, 50]),
        entered_active in prop::sample::select(vec![20_u64, 40]),
        waits_for_restart in prop::bool::weighted(0.1),
        stored in prop_oneof![9 => Just(0_u32), 1 => Just(2)],
        answers in prop::bool::weighted(0.9),
        connected in any::<bool>(),
        right_version in prop::bool::weighted(0.9),
        api_reachable in any::<bool>(),
        step_ms in 1_u64..30_000,
    ) -> (u64, Observation) {
        let version = if right_version { "1.2.0" } else { "1.1.0" };
        let report = Report { version: version.into(), connected, identity: identity(), last_error: None };
        let agent = answers.then_some(report);
        let marks = Some(Marks { main_started, entered_active });
        let result = if waits_for_restart { "exit-code" } else { "success" }.to_owned();
        let seen = Observation {
            active,
            result,
            process,
            runs_new_file,
            restarts,
            waits_for_restart,
            stored,
            marks,
            agent,
            api_reachable,
            ..well(0)
        };
        (step_ms, seen)
    }
}

proptest! {
    #[test]
    fn whatever_is_observed_the_verdict_comes_in_time_and_is_deserved(
        observations in prop::collection::vec(any_observation(), 1..60),
    ) {
        let mut gate = gate(HEALTH);
        let last = gate.last_deadline();
        let mut now = BEGAN;
        for (step_ms, seen) in observations.iter().cycle() {
            now += Duration::from_millis(*step_ms);
            let seen = Observation { now, ..seen.clone() };
            let connected = seen.agent.as_ref().is_some_and(|report| report.connected && report.version == "1.2.0");
            match gate.observe(&seen) {
                Verdict::Wait { until } => {
                    prop_assert!(now < last, "still waiting after the last deadline");
                    prop_assert!(until > now);
                    continue;
                }
                Verdict::Healthy => prop_assert!(connected && seen.runs_new_file && seen.active.is_running()),
                Verdict::KeepUnproven { .. } => {
                    prop_assert!(seen.runs_new_file && seen.active.is_running() && seen.agent.is_some());
                }
                Verdict::Unhealthy { why: Symptom::DiedUnready { .. } } => {
                    prop_assert!(seen.waits_for_restart && seen.marks.is_some_and(|marks| marks.main_started != 10));
                }
                Verdict::Unhealthy { why: Symptom::NotTakenOver } => prop_assert!(seen.stored > 0 && seen.runs_new_file),
                Verdict::Unhealthy { .. } => prop_assert!(now - BEGAN >= HEALTH, "blamed before its time"),
            }
            break;
        }
    }
}
