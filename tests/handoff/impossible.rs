//! Well-formed records that nobody can have written: they are refused, or the session ends. No panic, no spinning, no
//! session that stays for ever.
//!
//! Time is virtual: it goes on when nothing moves any more, so that a session that spins stops it.

use std::collections::BTreeMap;
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Once, mpsc};
use std::time::Duration;

use bamf_agent::config::{Dial as When, Resource};
use bamf_agent::relay::dial::{BridgeAddress, Dial};
use bamf_agent::relay::exchange::Limits;
use bamf_agent::tasks::Tasks;
use bamf_agent::telemetry::metrics::SessionMetrics;
use bamf_agent::tunnel::{Link, Tunnels};
use proptest::prelude::*;
use serde_json::json;

use super::*;

/// In real time: nothing here takes longer unless it spins.
const LIMIT: Duration = Duration::from_secs(60);
/// Virtual time goes on in such steps, so that the kernel's news get their turn.
const STEP: Duration = Duration::from_secs(60);
/// Longer than anything that a session waits for.
const STEPS: usize = 200;

async fn hours() {
    for _ in 0..STEPS {
        tokio::time::sleep(STEP).await;
    }
}

static PANICS: AtomicUsize = AtomicUsize::new(0);

/// Runs in virtual time. A panic in any task is one of the test.
fn run(test: impl AsyncFnOnce() + Send + 'static) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            PANICS.fetch_add(1, Ordering::SeqCst);
            hook(panic);
        }));
    });
    PANICS.store(0, Ordering::SeqCst);
    let (done, outcome) = mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(test());
        done.send(()).unwrap();
    });
    outcome.recv_timeout(LIMIT).expect("it panicked, or does not come to rest");
    assert_eq!(PANICS.swap(0, Ordering::SeqCst), 0, "a task panicked");
}

/// Connections, and their far ends.
fn pairs(count: usize) -> (Vec<TcpStream>, Vec<TcpStream>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let pair = |_| {
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (near, listener.accept().unwrap().0)
    };
    (0..count).map(pair).unzip()
}

/// A record with three sockets that it may speak of, as another process gets it.
fn arrival(kind: Kind, record: &Value, sockets: Vec<TcpStream>) -> Arrival {
    let mut departure = Departure::new().unwrap();
    for socket in sockets {
        departure.take(socket.into());
    }
    departure.put(kind, record).unwrap();
    departure.seal(1).unwrap().take_back()
}

fn parsed<T: serde::de::DeserializeOwned>(arrival: &Arrival) -> Option<T> {
    let mut reader = arrival.read().unwrap();
    let (_, payload) = reader.record().unwrap().unwrap();
    handoff::parse(payload).ok()
}

/// Adopts a session, whose peers are gone or silent, and watches it to its end. Says whether there was one.
async fn adopt_session(record: Value, are_gone: bool) -> bool {
    let text = record.to_string();
    let tunnels = Tunnels::new(Vec::new(), SessionMetrics::unregistered(), Tasks::new());
    let (near, far) = pairs(3);
    let far = (!are_gone).then_some(far);
    let mut arrival = arrival(Kind::SESSION, &record, near);
    let Some(record) = parsed(&arrival) else { return false };
    let adopted = tunnels.adopt(record, &mut arrival);
    arrival.settle();
    hours().await;
    if are_gone {
        assert_eq!(tunnels.active(), 0, "its peers are gone, and it stays: {text}");
    }
    tunnels.end_all();
    hours().await;
    assert_eq!(tunnels.active(), 0, "it does not end when it is told to");
    drop(far);
    adopted
}

/// Nobody is there to be dialled.
struct Nobody;

impl Dial for Nobody {
    type Link = Link;
    type Error = std::io::Error;

    fn agent_name(&self) -> String {
        "agent".into()
    }

    async fn dial(&self, _: &BridgeAddress, _: Option<&str>) -> std::io::Result<(Link, Duration)> {
        Err(std::io::ErrorKind::ConnectionRefused.into())
    }
}

async fn adopt_relay(record: Value, are_gone: bool) -> bool {
    let data = tempfile::tempdir().unwrap();
    let relay = bamf_agent::relay::start(bamf_agent::relay::Config {
        dial: Nobody,
        resources: vec![wiki()],
        network: Default::default(),
        data_dir: data.path().to_owned(),
        service_account: "/nonexistent".into(),
        limits: Limits::default(),
    });
    let (near, far) = pairs(3);
    let far = (!are_gone).then_some(far);
    let mut arrival = arrival(Kind::RELAY, &record, near);
    let Some(record) = parsed::<carry::Record>(&arrival) else { return false };
    let Ok(carried) = record.revive(&mut arrival) else { return false };
    arrival.settle();
    relay.adopt(vec![carried]);
    hours().await;
    if are_gone {
        assert_eq!(relay.open(), 0, "its peers are gone, and it stays");
    }
    relay.drain(Duration::ZERO).await;
    hours().await;
    assert_eq!(relay.open(), 0, "it does not end when it is told to");
    drop(far);
    true
}

fn wiki() -> Resource {
    Resource {
        name: "wiki".into(),
        resource_type: "http".into(),
        hostname: "127.0.0.1".into(),
        port: 8080,
        labels: BTreeMap::new(),
        tunnel_hostname: None,
        webhooks: Vec::new(),
        forward_session_token: false,
        dial: When::Auto,
    }
}

fn sample(name: &str) -> Value {
    samples::all().into_iter().find(|(found, ..)| *found == name).unwrap().2
}

/// The framed session as it could be: without what excludes something else.
fn possible() -> Value {
    let mut record = sample("session-framed");
    let session = &mut record["session"];
    for field in ["next", "next_left_ms", "doubt", "dialling", "redial_left_ms", "end"] {
        session[field] = Value::Null;
    }
    session["link"]["deaf"] = json!(false);
    record
}

/// Something that is changed in a record.
#[derive(Clone, Debug)]
enum Change {
    Number(u64),
    Flip,
    Null,
    Cut(usize),
    Phase(&'static str, u64),
}

fn change() -> impl Strategy<Value = Change> {
    let number = prop_oneof![
        0..4_u64,
        0..100_u64,
        Just(u64::from(u8::MAX)),
        Just(u64::from(u32::MAX)),
        Just(u64::MAX),
        Just(u64::MAX - 1),
        Just(1 << 63),
        any::<u64>(),
    ];
    const PHASES: &[&str] =
        &["running", "finishing", "delivering", "lingering", "waiting", "connecting", "gone", "leaving"];
    prop_oneof![
        6 => number.clone().prop_map(Change::Number),
        3 => Just(Change::Flip),
        1 => Just(Change::Null),
        2 => (0..60_usize).prop_map(Change::Cut),
        2 => (prop::sample::select(PHASES), number).prop_map(|(phase, left)| Change::Phase(phase, left)),
    ]
}

/// Where something can be changed. Bytes are one place.
fn places(value: &Value, path: String, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            map.iter().for_each(|(key, value)| places(value, format!("{path}/{key}"), found));
            found.push(path);
        }
        Value::Array(list) => {
            let lists = list.iter().enumerate().filter(|(_, value)| value.is_object());
            lists.for_each(|(at, value)| places(value, format!("{path}/{at}"), found));
            found.push(path);
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => found.push(path),
    }
}

fn apply(record: &mut Value, place: usize, change: &Change) {
    let mut found = Vec::new();
    places(record, String::new(), &mut found);
    let value = record.pointer_mut(&found[place % found.len()]).unwrap();
    match (change, &mut *value) {
        (Change::Number(number), Value::Array(list)) if !list.is_empty() => {
            let at = place % list.len();
            if list[at].is_number() {
                list[at] = json!(number % 256);
            }
        }
        (Change::Number(number), Value::Number(_)) => *value = json!(number),
        (Change::Flip, Value::Bool(flag)) => *flag = !*flag,
        (Change::Cut(len), Value::Array(list)) => list.truncate(*len),
        (Change::Null, Value::Object(_) | Value::Array(_)) => *value = Value::Null,
        _ => change_state(record, change),
    }
}

/// Where a session, or its target, stands.
fn change_state(record: &mut Value, change: &Change) {
    let Change::Phase(name, number) = change else { return };
    let Some(session) = record.get_mut("session") else { return };
    match *name {
        "running" => session["phase"] = json!("running"),
        "finishing" => session["phase"] = json!({"finishing": {"left_ms": number, "late": number % 2 == 0}}),
        "delivering" | "lingering" => session["phase"] = json!({*name: {"left_ms": number}}),
        "leaving" => session["target"]["state"] = json!({"leaving": {"socket": number % 4}}),
        state => session["target"]["state"] = json!(state),
    }
}

fn changes() -> impl Strategy<Value = Vec<(usize, Change)>> {
    prop::collection::vec((any::<usize>(), change()), 1..5)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn whatever_a_record_says_of_a_session_it_is_refused_or_ends(
        which in 0..3_usize, changes in changes(), are_gone in any::<bool>(),
    ) {
        let mut record = [possible(), sample("session-framed"), sample("session-raw")][which].clone();
        for (place, change) in &changes {
            apply(&mut record, *place, change);
        }
        run(async move || { adopt_session(record, are_gone).await; });
    }

    #[test]
    fn whatever_a_record_says_of_a_relay_connection_it_is_refused_or_ends(
        changes in changes(), are_gone in any::<bool>(),
    ) {
        let mut record = sample("relay");
        for (place, change) in &changes {
            apply(&mut record, *place, change);
        }
        run(async move || { adopt_relay(record, are_gone).await; });
    }
}

/// What a record says with one value changed, and whether a session comes of it.
fn adopts(mut record: Value, path: &str, value: Value) -> bool {
    *record.pointer_mut(path).unwrap_or_else(|| panic!("{path} is not there")) = value;
    let (told, outcome) = mpsc::channel();
    run(async move || {
        for are_gone in [true, false] {
            told.send(adopt_session(record.clone(), are_gone).await).unwrap();
        }
    });
    let outcomes: Vec<bool> = outcome.iter().collect();
    assert_eq!(outcomes[0], outcomes[1]);
    outcomes[0]
}

#[test]
fn the_samples_are_sessions() {
    for record in [possible(), sample("session-framed"), sample("session-raw")] {
        assert!(adopts(record, "/session/was_connected", json!(true)));
    }
    run(async || assert!(adopt_relay(sample("relay"), true).await && adopt_relay(sample("relay"), false).await));
}

#[test]
fn a_stream_that_is_over_in_a_session_that_runs_is_refused() {
    for (flag, phase) in [
        ("closing", json!("running")),
        ("closed_by_peer", json!("running")),
        ("closed_by_peer", json!({"finishing": {"left_ms": 1, "late": false}})),
    ] {
        let mut record = possible();
        record["session"]["phase"] = phase;
        assert!(!adopts(record, &format!("/session/stream/{flag}"), json!(true)), "{flag}");
    }
}

#[test]
fn keys_that_are_used_up_cost_the_connection() {
    for half in ["inbound", "outbound"] {
        for record in [possible(), sample("session-raw")] {
            assert!(adopts(record, &format!("/session/link/link/records/{half}/sequence"), json!(u64::MAX)));
        }
    }
}

#[test]
fn what_is_no_key_or_no_suite_costs_the_connection() {
    let records = "/session/link/link/records";
    for (path, value) in [
        ("suite", json!(0x1304)),
        ("suite", json!(0x1302)),
        ("inbound/secret", json!([])),
        ("standing/fragment/skip", json!(u32::MAX)),
    ] {
        assert!(adopts(possible(), &format!("{records}/{path}"), value), "{path}");
    }
    assert!(!adopts(possible(), &format!("{records}/inbound/secret"), json!(vec![0; 49])), "it is too long to be read");
}

#[test]
fn a_session_of_which_nothing_is_left_but_its_name_ends() {
    for record in [possible(), sample("session-raw")] {
        for phase in [json!("running"), json!({"finishing": {"left_ms": u64::MAX, "late": false}})] {
            let mut record = record.clone();
            record["session"]["phase"] = phase;
            record["session"]["target"]["state"] = json!("gone");
            assert!(adopts(record, "/session/link", Value::Null));
        }
    }
}

#[test]
fn a_socket_that_two_speak_of_is_given_to_one() {
    let mut record = sample("session-framed");
    record["session"]["next"]["socket"] = json!(0);
    assert!(adopts(record, "/session/target/state/open/socket", json!(0)));
}

#[test]
fn a_dial_with_impossible_credentials_is_no_dial() {
    for first in [true, false] {
        for record in [possible(), sample("session-raw")] {
            let mut record = record;
            record["session"]["link"] = Value::Null;
            record["session"]["phase"] = json!("running");
            let material = json!({"certificate_pem": "x", "private_key_pem": "y", "ca_pem": "z"});
            let dialling = json!({"bridge": {"host": "127.0.0.1", "port": 1}, "material": material, "first": first});
            assert!(adopts(record, "/session/dialling", dialling));
        }
    }
}

#[test]
fn a_conversation_that_has_sent_or_searched_more_than_there_is_is_refused() {
    let waiting = || {
        let mut record = sample("relay");
        record["conversation"]["phase"] = json!("waiting");
        record["conversation"]["bridge_in"] = json!(b"GET");
        record
    };
    let cases = [
        (sample("relay"), "bridge_out/sent", 1000, false),
        (sample("relay"), "target_out/sent", u64::MAX, false),
        (waiting(), "searched", 3, true),
        (waiting(), "searched", 4, false),
        (waiting(), "searched", u64::MAX, false),
    ];
    for (mut record, path, number, is_possible) in cases {
        *record.pointer_mut(&format!("/conversation/{path}")).unwrap() = json!(number);
        run(async move || assert_eq!(adopt_relay(record, true).await, is_possible, "{path} {number}"));
    }
}

#[test]
fn a_session_that_is_there_already_is_not_adopted_again() {
    run(async || {
        let metrics = SessionMetrics::unregistered();
        let tunnels = Tunnels::new(Vec::new(), metrics.clone(), Tasks::new());
        for is_first in [true, false] {
            let (near, _far) = pairs(3);
            let mut arrival = arrival(Kind::SESSION, &possible(), near);
            let record: table::Record = parsed(&arrival).unwrap();
            assert_eq!(tunnels.adopt(record, &mut arrival), is_first);
        }
        assert_eq!((metrics.adopted.get(), metrics.lost.get(), tunnels.active()), (1, 1, 1));
    });
}
