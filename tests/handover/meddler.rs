//! Stands between two processes of the agent, and changes what the one leaves to the other.
//!
//! `meddler FILE PROGRAM ARGUMENTS...` runs in the agent's place. Where FILE says how to meddle, it takes what systemd has
//! kept, changes that, gives it back and ends; systemd starts it again. Otherwise it becomes the program, which finds
//! everything as it would without it.

#![expect(clippy::disallowed_methods, reason = "no disk holds what is written here")]
#![expect(clippy::unwrap_used, reason = "whoever meddles may fail loudly")]

use std::fs::File;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use bamf_agent::handoff::carrier::{self, Carrier};
use bamf_agent::handoff::snapshot::{FORMAT, MAGIC};
use bamf_agent::service::fds;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [file, program, rest @ ..] = arguments.as_slice() else { panic!("meddler FILE PROGRAM ARGUMENTS...") };
    let order = std::fs::read_to_string(file).unwrap_or_default();
    let _nothing_more = std::fs::remove_file(file);
    match order.split_whitespace().collect::<Vec<_>>().as_slice() {
        [] => panic!("{}", Command::new(program).args(rest).exec()),
        ["crash", times] => {
            let left = times.parse::<u32>().unwrap() - 1;
            if left > 0 {
                std::fs::write(file, format!("crash {left}")).unwrap();
            }
            return ExitCode::FAILURE;
        }
        [how] => meddle(how),
        other => panic!("{other:?}"),
    }
    ExitCode::SUCCESS
}

fn meddle(how: &str) {
    let (ends, names): (Vec<OwnedFd>, Vec<String>) = fds::inherited().into_iter().unzip();
    let load = carrier::unpack(ends).pop().expect("the process before left something");
    let mut cargo: Vec<OwnedFd> = load.cargo.into_iter().flatten().collect();
    let memory = File::from(cargo.remove(0));
    let mut bytes = vec![0; usize::try_from(memory.metadata().unwrap().len()).unwrap()];
    memory.read_exact_at(&mut bytes, 0).unwrap();
    let bytes = match how {
        "empty" => Vec::new(),
        "garbage" => (0..bytes.len()).map(|at| (at * 7919) as u8).collect(),
        "truncated" => bytes[..bytes.len() / 2].to_vec(),
        "flipped" => {
            let (at, len) = *records(&bytes).iter().filter(|(at, _)| kind(&bytes, *at) == 2).nth(1).unwrap();
            bytes[at + len / 2] ^= 0x10;
            bytes
        }
        "format" => {
            bytes[8..12].copy_from_slice(&(FORMAT + 1).to_le_bytes());
            bytes
        }
        "later" => of_a_later_version(&bytes),
        "unsealed" | "sockets" => bytes,
        other => panic!("{other}?"),
    };
    if how == "sockets" {
        cargo.clear();
    }
    let changed = File::from(memfd_create("meddled", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap());
    changed.write_all_at(&bytes, 0).unwrap();
    if how != "unsealed" {
        let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
        fcntl_add_seals(&changed, seals).unwrap();
    }
    let mut all: Vec<BorrowedFd<'_>> = vec![changed.as_fd()];
    all.extend(cargo.iter().map(std::os::fd::AsFd::as_fd));
    let carriers = carrier::pack(&all, load.note).unwrap();
    fds::store(&fds::fresh_name(), &carriers.iter().flat_map(Carrier::ends).collect::<Vec<_>>()).unwrap();
    carrier::empty(&load.ends);
    for name in names {
        fds::forget(&name);
    }
}

const HEADER: usize = 16;

fn kind(bytes: &[u8], payload: usize) -> u32 {
    u32::from_le_bytes(*bytes[payload - HEADER..].first_chunk().unwrap())
}

/// Begin and length of each record's payload.
fn records(bytes: &[u8]) -> Vec<(usize, usize)> {
    assert!(bytes.starts_with(&MAGIC));
    let (mut at, mut records) = (HEADER, Vec::new());
    while at < bytes.len() {
        let len = usize::try_from(u32::from_le_bytes(*bytes[at + 4..].first_chunk().unwrap())).unwrap();
        records.push((at + HEADER, len));
        at += HEADER + len;
    }
    records
}

/// What a later version could write: a field more in every record, and records of a kind that nobody knows yet.
fn of_a_later_version(bytes: &[u8]) -> Vec<u8> {
    let mut later = bytes[..HEADER].to_vec();
    for (at, len) in records(bytes) {
        let payload = &bytes[at..at + len];
        // A map of at most 14 entries (MessagePack): one more, at its end.
        assert_eq!(payload[0] & 0xf0, 0x80, "a record is a small map");
        assert!(payload[0] & 0x0f < 15);
        let mut more = payload.to_vec();
        more[0] += 1;
        more.extend(rmp_serde::to_vec("added_later").unwrap());
        more.extend(rmp_serde::to_vec(&(1, "deep", [2.5, 3.5], Some(b"bytes"))).unwrap());
        if kind(bytes, at) == 0 {
            append(&mut later, 4711, &[0xc0]);
            let records = records(bytes).len();
            more = rmp_serde::encode::to_vec_named(&std::collections::BTreeMap::from([("records", records)])).unwrap();
        }
        append(&mut later, kind(bytes, at), &more);
    }
    later
}

fn append(snapshot: &mut Vec<u8>, kind: u32, payload: &[u8]) {
    let header = [kind, u32::try_from(payload.len()).unwrap()].map(u32::to_le_bytes).concat();
    snapshot.extend(&header);
    snapshot.extend(crc32fast::hash(&header).to_le_bytes());
    snapshot.extend(crc32fast::hash(payload).to_le_bytes());
    snapshot.extend(payload);
}
