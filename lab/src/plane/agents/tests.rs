//! Instances and lifetimes as tables: who gets a command, and when somebody is gone.

use super::*;

fn beat(instance: &str, tunnels: u64) -> HeartbeatBody {
    HeartbeatBody { instance_id: Some(instance.into()), active_tunnels: tunnels, ..HeartbeatBody::default() }
}

fn agent() -> Registry {
    let mut registry = Registry::default();
    registry.add("edge", BTreeMap::from([("site".into(), "ams".into())]), "ab".into());
    registry
}

fn after(start: Instant, seconds: u64) -> Instant {
    start + Duration::from_secs(seconds)
}

#[test]
fn a_token_is_good_as_often_as_it_was_issued_for() {
    let mut tokens = Tokens::default();
    let token = tokens.issue(2);
    let (prefix, digits) = token.split_at(5);
    assert_eq!((prefix, digits.len()), ("bamf_", 32));
    assert!(digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
    tokens.spend(&token);
    assert!(tokens.is_good(&token));
    tokens.spend(&token);
    assert!(!tokens.is_good(&token), "used up");
    let other = tokens.issue(5);
    tokens.revoke(&other);
    assert!(!tokens.is_good(&other), "revoked");
    assert!(!tokens.is_good("bamf_00112233445566778899aabbccddeeff"), "unknown");
}

#[test]
fn the_fewest_tunnels_win_whoever_owns_the_session() {
    let (mut registry, now) = (agent(), Instant::now());
    let edge = registry.get_mut("edge").unwrap();
    assert_eq!(edge.choose(now), None);
    edge.heartbeat(&beat("owner", 3), now);
    edge.heartbeat(&beat("idle", 0), now);
    assert_eq!(edge.choose(now).as_deref(), Some("idle"));
    edge.heartbeat(&beat("idle", 4), now);
    assert_eq!(edge.choose(now).as_deref(), Some("owner"));
}

#[test]
fn draining_is_for_ever_and_offline_at_once() {
    let (mut registry, now) = (agent(), Instant::now());
    let edge = registry.get_mut("edge").unwrap();
    edge.heartbeat(&beat("one", 0), now);
    edge.drain("one");
    edge.drain("nobody");
    edge.heartbeat(&beat("one", 0), now);
    assert_eq!(edge.choose(now), None, "a heartbeat does not make it active again");
    edge.heartbeat(&beat("two", 9), now);
    assert_eq!(edge.choose(now).as_deref(), Some("two"));
    edge.offline("two");
    assert_eq!(edge.choose(now), None);
    assert!(registry.view("edge", now).unwrap().online, "the agent outlives its instances");
}

#[test]
fn a_dead_instance_is_chosen_until_its_heartbeat_is_180_seconds_old() {
    let (mut registry, start) = (agent(), Instant::now());
    let edge = registry.get_mut("edge").unwrap();
    edge.heartbeat(&beat("dead", 0), start);
    edge.heartbeat(&beat("alive", 1), after(start, 170));
    assert_eq!(edge.choose(after(start, 180)).as_deref(), Some("dead"));
    assert_eq!(edge.choose(after(start, 181)).as_deref(), Some("alive"));
    assert_eq!(edge.known_instances(), ["alive", "dead"], "stale entries stay until the next heartbeat");
    edge.heartbeat(&beat("alive", 1), after(start, 181));
    assert_eq!(edge.known_instances(), ["alive"]);
}

#[test]
fn a_relay_goes_to_an_instance_without_one_first() {
    let (mut registry, now) = (agent(), Instant::now());
    let edge = registry.get_mut("edge").unwrap();
    edge.heartbeat(&beat("a", 0), now);
    edge.heartbeat(&beat("b", 5), now);
    assert_eq!(edge.choose_for_relay(now).as_deref(), Some("a"));
    assert_eq!(edge.choose_for_relay(now).as_deref(), Some("b"), "busier, but not yet flagged");
    edge.heartbeat(&beat("a", 0), now);
    assert_eq!(edge.choose_for_relay(now).as_deref(), Some("a"), "flagged both: tunnels decide again");
}

#[test]
fn empty_lists_change_nothing_and_silence_forgets_everything() {
    let (mut registry, start) = (agent(), Instant::now());
    let labels = BTreeMap::from([("env".to_owned(), "prod".to_owned())]);
    let full = HeartbeatBody {
        resources: vec!["db".into()],
        labels: labels.clone(),
        zone: Some("internal".into()),
        cluster_internal: true,
        ..HeartbeatBody::default()
    };
    assert!(!registry.view("edge", start).unwrap().online);
    registry.get_mut("edge").unwrap().heartbeat(&HeartbeatBody::default(), start);
    assert_eq!(registry.view("edge", start).unwrap().labels["site"], "ams", "labels of the join");
    registry.get_mut("edge").unwrap().heartbeat(&full, start);
    registry.get_mut("edge").unwrap().heartbeat(&beat("i", 0), after(start, 100));
    let view = registry.view("edge", after(start, 280)).unwrap();
    assert_eq!((view.online, &view.labels, view.resources.len()), (true, &labels, 1));
    assert_eq!((view.zone, view.cluster_internal), (None, false), "absent means deleted for these two");
    let gone = registry.view("edge", after(start, 281)).unwrap();
    assert_eq!((gone.online, gone.labels.len(), gone.resources.len(), gone.instances.len()), (false, 0, 0, 0));
    registry.get_mut("edge").unwrap().heartbeat(&beat("i", 0), after(start, 300));
    let back = registry.view("edge", after(start, 300)).unwrap();
    assert_eq!((back.labels.len(), back.resources.len()), (0, 0), "expired state does not come back");
}

#[test]
fn an_unknown_zone_is_dropped() {
    let (mut registry, now) = (agent(), Instant::now());
    for (zone, kept) in [("public", true), ("in-cluster", true), ("moon", false), ("", false)] {
        let body = HeartbeatBody { zone: Some(zone.into()), ..HeartbeatBody::default() };
        registry.get_mut("edge").unwrap().heartbeat(&body, now);
        assert_eq!(registry.view("edge", now).unwrap().zone.is_some(), kept, "{zone}");
    }
}

#[test]
fn an_agent_is_found_by_name_and_by_uuid() {
    let registry = agent();
    let (_, edge) = registry.find("edge").unwrap();
    let id = edge.id.clone();
    assert_eq!(registry.find(&id).unwrap().0, "edge");
    assert!(registry.find("other").is_none());
    assert_eq!(registry.holding("ab").unwrap().id, id);
}
