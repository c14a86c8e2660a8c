//! Whatever a process before has left: read to the end, and every record of it put together as far as it goes, without a
//! panic. What is understood is written as it was.
//!
//! The first byte says whether the rest is a snapshot as it is, or with checksums that fit (`m`): nobody guesses those, and
//! behind them lies what another version could have written.

#![no_main]

use std::fs::File;

use bamf_agent::handoff::snapshot::Kind;
use bamf_agent::handoff::{self, Arrival, Process};
use bamf_agent::relay::carry;
use bamf_agent::tasks::Tasks;
use bamf_agent::telemetry::metrics::SessionMetrics;
use bamf_agent::tunnel::{Tunnels, table};
use libfuzzer_sys::fuzz_target;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Length of the file's header, and of a record's.
const HEADER: usize = 16;

fuzz_target!(|data: &[u8]| {
    let Some((&kind, snapshot)) = data.split_first() else { return };
    let mut snapshot = snapshot.to_vec();
    if kind == b'm' {
        mend(&mut snapshot);
    }
    let mut arrival = Arrival::without_sockets(sealed(&snapshot));
    let Ok((sessions, relays)) = records(&arrival, snapshot.len()) else { return };
    // Nothing is ever polled on it: an address in a record is not dialled.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("there is memory");
    let _context = runtime.enter();
    let tunnels = Tunnels::new(Vec::new(), SessionMetrics::unregistered(), Tasks::new());
    for session in sessions {
        let before = tunnels.active();
        let adopted = tunnels.adopt(session, &mut arrival);
        assert_eq!(tunnels.active(), before + usize::from(adopted));
    }
    for relay in relays {
        assert!(relay.revive(&mut arrival).is_err(), "there is no socket");
    }
});

/// All records that say what their kinds promise.
fn records(
    arrival: &Arrival,
    len: usize,
) -> Result<(Vec<table::Record>, Vec<carry::Record>), handoff::snapshot::Error> {
    let mut reader = arrival.read()?;
    let (mut sessions, mut relays) = (Vec::new(), Vec::new());
    for _ in 0..=len {
        match reader.record() {
            Ok(None) => return Ok((sessions, relays)),
            Ok(Some((Kind::PROCESS, payload))) => drop(understood::<Process>(payload)),
            Ok(Some((Kind::SESSION, payload))) => sessions.extend(understood(payload)),
            Ok(Some((Kind::RELAY, payload))) => relays.extend(understood(payload)),
            Ok(Some(_)) | Err(_) => {}
        }
    }
    panic!("it does not end");
}

/// Parses a record, writes it, and parses it again.
fn understood<T: Serialize + DeserializeOwned>(payload: &[u8]) -> Option<T> {
    let record: T = handoff::parse(payload).ok()?;
    let mut written = Vec::new();
    record.serialize(&mut rmp_serde::Serializer::new(&mut written).with_struct_map()).expect("it is plain data");
    let again: T = handoff::parse(&written).expect("it was written a moment ago");
    let mut same = Vec::new();
    again.serialize(&mut rmp_serde::Serializer::new(&mut same).with_struct_map()).expect("it is plain data");
    assert!(written == same, "it says something else in another process");
    Some(record)
}

/// Makes every checksum fit, of records whose length does.
fn mend(snapshot: &mut [u8]) {
    let mut at = HEADER;
    while let Some(record) = snapshot.get_mut(at..).filter(|record| record.len() >= HEADER) {
        let (header, rest) = record.split_at_mut(HEADER);
        let len = header[4..].first_chunk().map_or(0, |len| u32::from_le_bytes(*len) as usize);
        let Some(payload) = rest.get(..len) else { return };
        let checksums = [crc32fast::hash(&header[..8]), crc32fast::hash(payload)].map(u32::to_le_bytes);
        header[8..].copy_from_slice(&checksums.concat());
        at += HEADER + len;
    }
}

fn sealed(bytes: &[u8]) -> File {
    let file = memfd_create("snapshot", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).expect("there is memory");
    rustix::io::pwrite(&file, bytes, 0).expect("there is memory");
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    fcntl_add_seals(&file, seals).expect("nobody has sealed it");
    file.into()
}
