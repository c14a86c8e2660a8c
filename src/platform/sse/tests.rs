//! The vectors of the platform, every split of them, and hostile streams.

use proptest::prelude::*;

use super::*;

fn decode(pieces: &[&[u8]]) -> Vec<Item> {
    let (mut decoder, mut items) = (Decoder::new(), Vec::new());
    for piece in pieces {
        decoder.feed(piece, &mut items).unwrap();
    }
    items
}

fn events(items: Vec<Item>) -> Vec<Event> {
    items.into_iter().filter_map(|item| if let Item::Event(event) = item { Some(event) } else { None }).collect()
}

fn vectors() -> Vec<Value> {
    let all: Value = serde_json::from_str(include_str!("../../../tests/vectors.json")).unwrap();
    all["sse"].as_array().unwrap().clone()
}

#[test]
fn every_vector_of_the_platform_is_decoded_at_every_split() {
    for case in vectors() {
        let text = case["text"].as_str().unwrap().as_bytes();
        let expected = case["parsed"].as_object().map(|parsed| Event {
            name: parsed["event"].as_str().unwrap().into(),
            data: parsed["data"].as_object().unwrap().clone(),
        });
        for split in 0..=text.len() {
            let (before, after) = text.split_at(split);
            let found = events(decode(&[before, after]));
            assert_eq!(found, expected.clone().into_iter().collect::<Vec<_>>(), "{} at {split}", case["name"]);
        }
    }
}

#[test]
fn an_event_over_the_limit_is_dropped_and_the_next_one_arrives() {
    let mut text = b"event: tunnel_request\ndata: {\"x\":\"".to_vec();
    text.extend(std::iter::repeat_n(b'y', 2 * MAX_EVENT_BYTES));
    text.extend(b"\"}\n\nevent: heartbeat\ndata: {}\n\n");
    let items = decode(&[&text]);
    assert_eq!(items.len(), 2, "{items:?}");
    assert_eq!(items[0], Item::Dropped("larger than 1 MiB"));
    assert_eq!(events(items)[0].name, "heartbeat");
}

#[test]
fn many_small_lines_cannot_grow_an_event_without_bound() {
    let mut text = b"event: revoke\n".to_vec();
    for _ in 0..2 * MAX_EVENT_BYTES / 1024 {
        text.extend(b"data: ");
        text.extend(std::iter::repeat_n(b' ', 1024));
        text.push(b'\n');
    }
    text.extend(b"\nevent: heartbeat\ndata: {}\n\n");
    let items = decode(&[&text]);
    assert_eq!(items[0], Item::Dropped("larger than 1 MiB"));
    assert_eq!(events(items).len(), 1);
}

#[test]
fn a_line_without_end_is_given_up() {
    let (mut decoder, mut items) = (Decoder::new(), Vec::new());
    let piece = vec![b'x'; MAX_EVENT_BYTES];
    let fed = (0..20).map(|_| decoder.feed(&piece, &mut items)).find(Result::is_err);
    assert_eq!(fed, Some(Err(Runaway)));
    assert!(decoder.line.capacity() <= 2 * MAX_EVENT_BYTES);
}

#[test]
fn debug_output_shows_no_key() {
    let event = Event {
        name: "tunnel_request".into(),
        data: Map::from_iter([("session_key".into(), Value::String("PRIVATE".into()))]),
    };
    assert!(!format!("{event:?}").contains("PRIVATE"));
}

proptest! {
    #[test]
    fn no_bytes_panic_and_the_split_never_matters(
        bytes in proptest::collection::vec(prop_oneof![Just(b'\n'), Just(b'\r'), Just(b':'), any::<u8>()], 0..300),
        split in 0_usize..300,
    ) {
        let split = split.min(bytes.len());
        prop_assert_eq!(decode(&[&bytes]), decode(&[&bytes[..split], &bytes[split..]]));
    }
}
