//! What one process writes for the next: the same bytes as ever, read by earlier and later versions, and harmless whatever
//! it says.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "handoff/golden.rs"]
mod golden;
#[path = "handoff/impossible.rs"]
mod impossible;
#[path = "handoff/relay.rs"]
mod relay;
#[path = "driver/reluctant.rs"]
mod reluctant;
#[path = "handoff/samples.rs"]
mod samples;
#[path = "handoff/versions.rs"]
mod versions;
#[path = "handoff/web.rs"]
mod web;

use std::fs::File;
use std::os::fd::AsFd as _;

use bamf_agent::handoff::snapshot::{Error, Kind};
use bamf_agent::handoff::{self, Arrival, Departure};
use bamf_agent::relay::carry;
use bamf_agent::tunnel::table;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use serde::Serialize;
use serde_json::Value;

/// What the agent reads in a record of this kind, as text.
fn understood(kind: Kind, payload: &[u8]) -> Result<Value, Error> {
    let value = match kind {
        Kind::PROCESS => serde_json::to_value(handoff::parse::<handoff::Process>(payload)?),
        Kind::SESSION => serde_json::to_value(handoff::parse::<table::Record>(payload)?),
        Kind::RELAY => serde_json::to_value(handoff::parse::<carry::Record>(payload)?),
        other => panic!("{other:?}"),
    };
    Ok(value.unwrap())
}

/// A snapshot with this record and no other.
fn snapshot_of(kind: Kind, record: &impl Serialize) -> Arrival {
    let mut departure = Departure::new().unwrap();
    departure.put(kind, record).unwrap();
    departure.seal(1).unwrap().take_back()
}

/// What is understood of a record that was written from text, by this version or one of another mind.
fn carried(kind: Kind, record: &Value) -> Result<Value, Error> {
    let arrival = snapshot_of(kind, record);
    let mut reader = arrival.read().unwrap();
    let (found, payload) = reader.record().unwrap().unwrap();
    assert_eq!(found, kind);
    understood(kind, payload)
}

fn sealed(bytes: &[u8]) -> File {
    let file = File::from(memfd_create("snapshot", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap());
    rustix::io::pwrite(&file, bytes, 0).unwrap();
    fcntl_add_seals(&file, SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE).unwrap();
    file
}

#[test]
fn a_snapshot_over_which_three_processes_have_died_is_left_alone() {
    let mut departure = Departure::new().unwrap();
    departure.put(Kind::PROCESS, &handoff::Process::default()).unwrap();
    let arrival = departure.seal(7).unwrap().take_back();
    for _ in 0..3 {
        assert_eq!(arrival.read().unwrap().record().unwrap().unwrap().0, Kind::PROCESS);
    }
    for _ in 0..3 {
        assert!(matches!(arrival.read(), Err(Error::Abandoned { attempts: 3 })));
    }
    assert_eq!(arrival.sessions(), 7);
}

#[test]
fn a_socket_is_given_away_once_and_those_that_nobody_speaks_of_are_closed() {
    use std::io::Read as _;
    use std::os::unix::net::UnixStream;

    let mut departure = Departure::new().unwrap();
    let (first, mut first_far) = UnixStream::pair().unwrap();
    let (second, mut second_far) = UnixStream::pair().unwrap();
    let numbers = [first, second].map(|socket| departure.take(socket.into()));
    let mut arrival = departure.seal(0).unwrap().take_back();
    let taken = arrival.socket(numbers[0]).unwrap();
    assert!(arrival.socket(numbers[0]).is_none());
    assert!(arrival.socket(2).is_none() && arrival.socket(u32::MAX).is_none());
    arrival.settle();
    assert_eq!(second_far.read(&mut [0]).unwrap(), 0, "closed");
    rustix::net::send(taken.as_fd(), b"x", rustix::net::SendFlags::empty()).unwrap();
    assert_eq!(first_far.read(&mut [0]).unwrap(), 1);
}

#[test]
fn a_snapshot_that_came_without_its_sockets_is_read_and_has_none() {
    let bytes = std::fs::read(golden::directory().join("v1-session-framed.bin")).unwrap();
    let mut arrival = Arrival::without_sockets(sealed(&bytes));
    assert_eq!(arrival.read().unwrap().record().unwrap().unwrap().0, Kind::SESSION);
    assert!(arrival.socket(0).is_none());
}
