//! Snapshots that are whole, cut off anywhere, damaged anywhere, of other versions, and not what they should be.

use std::collections::BTreeMap;

use super::*;

/// A record with everything that records have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Sample {
    name: String,
    #[serde(with = "serde_bytes")]
    bytes: Vec<u8>,
    number: u64,
    #[serde(default)]
    nested: Option<Box<Sample>>,
}

fn sample(number: u64) -> Sample {
    let nested = Sample { name: "inner".into(), bytes: vec![0xc0; 3], number: u64::MAX, nested: None };
    let len = usize::try_from(number).unwrap() * 7 % 40;
    Sample { name: format!("sample {number}"), bytes: vec![7; len], number, nested: Some(Box::new(nested)) }
}

const KINDS: [Kind; 5] = [Kind::PROCESS, Kind::SESSION, Kind::SESSION, Kind::RELAY, Kind(4711)];

fn written() -> File {
    let mut writer = Writer::new().unwrap();
    for (kind, number) in KINDS.into_iter().zip(0..) {
        writer.put(kind, &sample(number)).unwrap();
    }
    writer.finish().unwrap()
}

fn bytes_of(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

fn sealed(bytes: &[u8]) -> File {
    let file = memory::create().unwrap();
    file.write_all_at(bytes, 0).unwrap();
    memory::seal(&file).unwrap();
    file
}

type Records = Vec<(Kind, Sample)>;

/// What a reader gets of it: the records that are whole, and the errors, to the end.
fn read(bytes: &[u8]) -> Result<(Records, Vec<Error>), Error> {
    let file = sealed(bytes);
    let mut reader = Reader::new(&file)?;
    let (mut records, mut errors) = (Vec::new(), Vec::new());
    for _ in 0..20 {
        match reader.record() {
            Ok(None) => return Ok((records, errors)),
            Ok(Some((kind, payload))) => records.push((kind, parse(payload).unwrap())),
            Err(error) => errors.push(error),
        }
    }
    panic!("it does not end");
}

fn all() -> Records {
    KINDS.into_iter().zip((0..).map(sample)).collect()
}

/// Where each record begins, its header included, the end among them, and where the file ends.
fn places(bytes: &[u8]) -> Vec<usize> {
    let mut places = vec![FILE_HEADER];
    while let Some(at) = places.last().copied().filter(|at| *at < bytes.len()) {
        places.push(at + RECORD_HEADER + number(&bytes[at + 4..at + 8]) as usize);
    }
    places
}

#[test]
fn what_was_written_is_read_in_order_and_the_kinds_that_nobody_knows_among_it() {
    let (records, errors) = read(&bytes_of(&written())).unwrap();
    assert_eq!(records, all());
    assert!(errors.is_empty(), "{errors:?}");
    assert_eq!(read(&bytes_of(&Writer::new().unwrap().finish().unwrap())).unwrap().0, []);
}

#[test]
fn records_longer_than_the_buffers_are_read_as_they_were_written() {
    let lens = [BUFFER - 40, BUFFER, BUFFER + 1, 5 * BUFFER + 17, 0, 3];
    let mut writer = Writer::new().unwrap();
    let large = |len: usize| serde_bytes::ByteBuf::from((0..len).map(|at| (at % 251) as u8).collect::<Vec<_>>());
    for len in lens {
        writer.put(Kind::SESSION, &large(len)).unwrap();
    }
    let file = writer.finish().unwrap();
    let mut reader = Reader::new(&file).unwrap();
    for len in lens {
        let (_, payload) = reader.record().unwrap().unwrap();
        assert!(parse::<serde_bytes::ByteBuf>(payload).unwrap() == large(len), "{len}");
    }
    assert!(reader.record().unwrap().is_none());
}

#[test]
fn a_snapshot_that_is_cut_off_anywhere_has_what_came_whole_and_says_that_it_is_cut_off() {
    let whole = bytes_of(&written());
    let places = places(&whole);
    for len in 0..whole.len() {
        let outcome = read(&whole[..len]);
        if len < FILE_HEADER {
            assert!(matches!(outcome, Err(Error::NotASnapshot)), "{len}: {outcome:?}");
            continue;
        }
        let (records, errors) = outcome.unwrap();
        let complete = places.iter().filter(|place| **place <= len).count() - 1;
        assert_eq!(records, all()[..complete], "{len}");
        assert!(matches!(errors[..], [Error::Truncated]), "{len}: {errors:?}");
    }
}

#[test]
fn a_bit_that_is_flipped_anywhere_costs_its_record_or_what_is_behind_it_and_nothing_is_read_wrong() {
    let whole = bytes_of(&written());
    let places = places(&whole);
    for (at, bit) in (0..whole.len()).flat_map(|at| (0..8).map(move |bit| (at, bit))) {
        let mut damaged = whole.clone();
        damaged[at] ^= 1 << bit;
        let outcome = read(&damaged);
        match at {
            0..8 => assert!(matches!(outcome, Err(Error::NotASnapshot)), "{at}: {outcome:?}"),
            8..12 => assert!(matches!(outcome, Err(Error::Format { .. })), "{at}: {outcome:?}"),
            12..FILE_HEADER => assert_eq!(outcome.unwrap().0, all(), "what is reserved is for later"),
            _ => {
                let (records, errors) = outcome.unwrap();
                let hit = places.iter().filter(|place| **place <= at).count() - 1;
                let in_header = at - places[hit] < 12;
                let mut expected = all();
                if in_header {
                    expected.truncate(hit);
                } else if hit < KINDS.len() {
                    expected.remove(hit);
                }
                assert_eq!(records, expected, "{at} {bit}");
                let damage = matches!(errors[..], [Error::Damaged]) && !in_header && hit < KINDS.len();
                assert!(damage || matches!(errors[..], [Error::Truncated]), "{at} {bit}: {errors:?}");
            }
        }
    }
}

#[test]
fn any_byte_in_the_place_of_another_is_found_out() {
    let whole = bytes_of(&written());
    let places = places(&whole);
    // The headers, in which a wrong value would do most: a session read as a process, or as the end.
    for at in places[..places.len() - 1].iter().flat_map(|place| (*place..place + RECORD_HEADER).step_by(4)) {
        for byte in (0..=u8::MAX).filter(|byte| *byte != whole[at]) {
            let mut damaged = whole.clone();
            damaged[at] = byte;
            let (records, errors) = read(&damaged).unwrap();
            assert!(records.iter().all(|record| all().contains(record)) && !errors.is_empty(), "{at} {byte}");
        }
    }
}

#[test]
fn a_length_that_lies_costs_no_memory_and_ends_the_reading() {
    for len in [1, 200, LONGEST, LONGEST + 1, u32::MAX] {
        let mut lying = bytes_of(&written());
        lying[FILE_HEADER..FILE_HEADER + RECORD_HEADER].copy_from_slice(&header(Kind::SESSION, len, 0));
        let (records, errors) = read(&lying).unwrap();
        let is_there = u64::from(len) < lying.len() as u64 - 32;
        assert!(is_there || records.is_empty() && matches!(errors[..], [Error::Truncated]), "{len}: {errors:?}");
    }
}

#[test]
fn an_end_that_counts_other_records_is_no_end() {
    let whole = bytes_of(&written());
    let places = places(&whole);
    let [before, second] = [&whole[..places[1]], &whole[places[1]..places[2]]];
    for (copies, count) in [(0, 4), (2, 6)] {
        let changed = [before, &second.repeat(copies), &whole[places[2]..]].concat();
        let (records, errors) = read(&changed).unwrap();
        assert_eq!(records.len(), count);
        assert!(matches!(errors[..], [Error::Truncated]), "{errors:?}");
    }
}

#[test]
fn what_is_no_snapshot_or_of_a_later_format_is_refused() {
    for format in [0, 2, 3, u32::MAX] {
        let mut other = bytes_of(&written());
        other[8..12].copy_from_slice(&format.to_le_bytes());
        assert!(matches!(read(&other), Err(Error::Format { found }) if found == format));
    }
    for bytes in [&b""[..], b"BAMFHAND", b"BAMFFDS1________", b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x03\0"] {
        assert!(matches!(read(bytes), Err(Error::NotASnapshot)), "{bytes:?}");
    }
    let null = File::open("/dev/null").unwrap();
    assert!(matches!(Reader::new(&null), Err(Error::NotSealed)));
}

#[test]
fn a_file_that_somebody_could_still_change_is_not_believed() {
    use rustix::fs::{SealFlags, fcntl_add_seals};

    let bytes = bytes_of(&written());
    let all = [SealFlags::SEAL, SealFlags::SHRINK, SealFlags::GROW, SealFlags::WRITE];
    for missing in all {
        let file = memory::create().unwrap();
        file.write_all_at(&bytes, 0).unwrap();
        let seals = all.into_iter().filter(|seal| *seal != missing).fold(SealFlags::empty(), SealFlags::union);
        // Without it, others can be added: the one that forbids that goes last.
        fcntl_add_seals(&file, seals).unwrap();
        assert!(matches!(Reader::new(&file), Err(Error::NotSealed)), "{missing:?}");
    }
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&bytes, 0).unwrap();
    assert!(matches!(Reader::new(&file), Err(Error::NotSealed)));
    let finished = written();
    finished.write_all_at(b"x", 0).unwrap_err();
    finished.set_len(0).unwrap_err();
}

/// Writes much of itself, and fails.
struct Failing;

impl Serialize for Failing {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::{Error as _, SerializeSeq as _};
        let mut list = serializer.serialize_seq(Some(3 * BUFFER))?;
        for _ in 0..2 * BUFFER {
            list.serialize_element(&1_u8)?;
        }
        Err(S::Error::custom("it fails"))
    }
}

#[test]
fn a_record_that_cannot_be_written_leaves_no_trace() {
    let mut writer = Writer::new().unwrap();
    writer.put(Kind::SESSION, &sample(1)).unwrap();
    assert!(matches!(writer.put(Kind::SESSION, &Failing), Err(Error::Encode(_))));
    writer.put(Kind::RELAY, &sample(2)).unwrap();
    assert!(matches!(writer.put(Kind::SESSION, &Failing), Err(Error::Encode(_))));
    let (records, errors) = read(&bytes_of(&writer.finish().unwrap())).unwrap();
    assert_eq!(records, [(Kind::SESSION, sample(1)), (Kind::RELAY, sample(2))]);
    assert!(errors.is_empty(), "{errors:?}");
}

#[test]
fn a_later_writers_fields_are_passed_over_and_what_an_earlier_one_left_out_has_its_default() {
    let later = BTreeMap::from([
        ("name", serde_json::json!("x")),
        ("bytes", serde_json::json!([1, 2])),
        ("number", serde_json::json!(5)),
        ("colour", serde_json::json!({"deep": [1.5, null, {"deeper": [[[]]]}]})),
    ]);
    let mut writer = Writer::new().unwrap();
    writer.put(Kind::SESSION, &later).unwrap();
    let (records, _) = read(&bytes_of(&writer.finish().unwrap())).unwrap();
    let expected = Sample { name: "x".into(), bytes: vec![1, 2], number: 5, nested: None };
    assert_eq!(records, [(Kind::SESSION, expected)]);
}

#[test]
fn what_is_not_what_its_kind_says_is_an_error_however_deep_it_is() {
    let mut deep = vec![0x91; 100_000];
    deep.push(0xc0);
    let field = |value: &[u8]| [&[0x81, 0xa5][..], b"other", value].concat();
    let lies =
        [&[0xc6, 0xff, 0xff, 0xff, 0xff, 1][..], &[0xdd, 0xff, 0xff, 0xff, 0xff], &[0xdf, 0xff, 0xff, 0xff, 0xff], &[]];
    for lie in lies.into_iter().chain([&deep[..]]) {
        parse::<Sample>(lie).unwrap_err();
        parse::<Sample>(&field(lie)).unwrap_err();
    }
}

#[test]
fn every_reader_is_counted_by_whoever_holds_the_file() {
    let file = written();
    let other = file.try_clone().unwrap();
    assert_eq!([1, 2].map(|_| begin_attempt(&file).unwrap()), [1, 2]);
    assert_eq!([3, 4].map(|_| begin_attempt(&other).unwrap()), [3, 4]);
    assert_eq!(read(&bytes_of(&file)).unwrap().0, all(), "counting changes nothing");
}
