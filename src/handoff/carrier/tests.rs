//! Descriptors go through carriers in order, whole, and once.

use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;

use super::*;

/// Pairs of sockets: the cargo, and the ends that tell which is which.
fn pairs(count: usize) -> (Vec<OwnedFd>, Vec<UnixStream>) {
    let pairs = (0..count).map(|_| UnixStream::pair().unwrap());
    pairs.map(|(cargo, witness)| (OwnedFd::from(cargo), witness)).unzip()
}

fn ends_of(carriers: &[Carrier]) -> Vec<OwnedFd> {
    // What a manager passes on are duplicates.
    carriers.iter().flat_map(Carrier::ends).map(|end| end.try_clone_to_owned().unwrap()).collect()
}

fn packed(cargo: &[OwnedFd]) -> Vec<Carrier> {
    pack(&cargo.iter().map(std::os::fd::AsFd::as_fd).collect::<Vec<_>>(), 42).unwrap()
}

/// Asserts that a descriptor is the peer of this witness.
fn assert_peer(descriptor: OwnedFd, witness: &mut UnixStream, mark: u8) {
    UnixStream::from(descriptor).write_all(&[mark]).unwrap();
    let mut seen = [0];
    witness.read_exact(&mut seen).unwrap();
    assert_eq!(seen, [mark]);
}

#[test]
fn descriptors_come_out_in_the_order_in_which_they_went_in_however_many_there_are() {
    for count in [1, 2, PER_MESSAGE - 1, PER_MESSAGE, PER_MESSAGE + 1, 3 * PER_MESSAGE + 7] {
        let (cargo, mut witnesses) = pairs(count);
        let carriers = packed(&cargo);
        drop(cargo);
        let mut ends = ends_of(&carriers);
        drop(carriers);
        // systemd passes them on in the opposite order.
        ends.reverse();
        let mut loads = unpack(ends);
        assert_eq!(loads.len(), 1);
        let load = loads.remove(0);
        assert_eq!((load.cargo.len(), load.note), (count, 42));
        for (index, (descriptor, witness)) in load.cargo.into_iter().zip(&mut witnesses).enumerate() {
            assert_peer(descriptor.unwrap(), witness, u8::try_from(index % 251).unwrap());
        }
    }
}

#[test]
fn who_only_looks_leaves_everything_to_the_next() {
    let (cargo, mut witnesses) = pairs(3);
    let carriers = packed(&cargo);
    drop(cargo);
    for _dies in 0..5 {
        drop(unpack(ends_of(&carriers)));
    }
    let load = unpack(ends_of(&carriers)).remove(0);
    for (descriptor, witness) in load.cargo.into_iter().zip(&mut witnesses) {
        assert_peer(descriptor.unwrap(), witness, 7);
    }
}

#[test]
fn what_was_taken_is_there_for_nobody_else_and_a_closed_socket_is_closed_for_its_peer() {
    let (cargo, mut witnesses) = pairs(2);
    let carriers = packed(&cargo);
    drop(cargo);
    let load = unpack(ends_of(&carriers)).remove(0);
    empty(&load.ends);
    assert!(unpack(ends_of(&carriers)).is_empty());
    // The carriers still exist, as they do in systemd until it has heard that they may go.
    drop(load.cargo);
    for witness in &mut witnesses {
        assert_eq!(witness.read(&mut [0]).unwrap(), 0);
    }
}

#[test]
fn a_missing_carrier_costs_what_it_carried() {
    let (cargo, mut witnesses) = pairs(2 * PER_MESSAGE);
    let carriers = packed(&cargo);
    let load = unpack(ends_of(&carriers[1..])).remove(0);
    assert!(load.cargo[..PER_MESSAGE].iter().all(Option::is_none));
    let last = load.cargo.into_iter().next_back().flatten().unwrap();
    assert_peer(last, witnesses.last_mut().unwrap(), 3);
}

#[test]
fn two_loads_are_kept_apart_and_strangers_are_closed() {
    let ((first, mut of_first), (second, mut of_second)) = (pairs(1), pairs(2));
    let mut ends = ends_of(&packed(&first));
    let (stranger, mut peer) = UnixStream::pair().unwrap();
    stranger.as_fd().try_clone_to_owned().map(drop).unwrap();
    ends.push(stranger.into());
    ends.extend(ends_of(&packed(&second)));
    let mut loads = unpack(ends);
    assert_eq!(peer.read(&mut [0]).unwrap(), 0);
    loads.sort_by_key(|load| load.cargo.len());
    assert_peer(loads.remove(0).cargo.remove(0).unwrap(), &mut of_first[0], 1);
    assert_peer(loads.remove(0).cargo.remove(1).unwrap(), &mut of_second[1], 2);
}

#[test]
fn a_message_that_is_not_ours_is_no_load() {
    for message in [&b""[..], b"BAMFFDS1", &[0xff; MESSAGE], &[0; MESSAGE + 1]] {
        let (full, other) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        rustix::net::send(&other, message, SendFlags::empty()).unwrap();
        assert!(unpack(vec![full]).is_empty(), "{message:?}");
    }
}
