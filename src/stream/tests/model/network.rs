//! A model of two streams and the connections between them: what was pushed is what arrives, in order and once.
//!
//! After every step what was delivered must be a prefix of what was pushed; when the schedule is over and the network
//! behaves, all of it. The property test and the fuzz target `stream_pair` bring the schedules.

use std::collections::VecDeque;

use super::{Connection, Stream};

/// One thing that happens. Sides are 0 and 1.
#[derive(Clone, Debug)]
pub(super) enum Step {
    /// An application writes this many bytes.
    Push(usize, usize),
    /// A side sends at most this many bytes into the network.
    Send(usize, usize),
    /// The network gives a side at most this many bytes.
    Arrive(usize, usize),
    Acknowledge(usize),
    /// The bridge connection breaks; what is in the network is lost. Both sides will resume.
    Break,
    /// A second connection is made while the first one lives (protocol 7.6).
    Redial,
    /// The second connection fails before or during its handshake.
    RedialFails,
    /// Another process goes on with a side: it gets the stream and its connections as bytes, nothing else.
    HandOver(usize),
}

/// The same in another process.
pub(crate) fn carried<T: serde::Serialize + serde::de::DeserializeOwned>(value: &T) -> T {
    let mut bytes = Vec::new();
    value.serialize(&mut rmp_serde::Serializer::new(&mut bytes).with_struct_map()).expect("it is plain data");
    rmp_serde::from_slice(&bytes).expect("it was written a moment ago")
}

/// A bridge connection, and what is on its way to each side.
struct Wire {
    ends: [Connection; 2],
    towards: [VecDeque<u8>; 2],
}

impl Wire {
    fn resuming(streams: &[Stream; 2]) -> Self {
        Self { ends: [streams[0].resume(), streams[1].resume()], towards: Default::default() }
    }
}

pub(super) struct Network {
    streams: [Stream; 2],
    /// Each side's connection in use. A side may have moved on to the new one when the other has not.
    wires: Vec<Wire>,
    /// For each side, the index of the wire that it takes for the session's connection; absent while broken.
    current: [usize; 2],
    pushed: [Vec<u8>; 2],
    delivered: [Vec<u8>; 2],
}

impl Network {
    pub(super) fn new() -> Self {
        let streams = [Stream::new(), Stream::new()];
        let wire = Wire { ends: [streams[0].first(), streams[1].first()], towards: Default::default() };
        Self { streams, wires: vec![wire], current: [0, 0], pushed: Default::default(), delivered: Default::default() }
    }

    pub(super) fn take(&mut self, step: &Step) {
        match *step {
            Step::Push(side, len) => {
                let from = self.pushed[side].len();
                let bytes: Vec<u8> = (from..from + len).map(|at| u8::try_from(at * 7 % 251).unwrap()).collect();
                self.streams[side].push(&bytes);
                self.pushed[side].extend(bytes);
            }
            Step::Send(side, len) => (self.current[side]..self.wires.len()).for_each(|wire| self.send(side, wire, len)),
            Step::Arrive(side, len) => {
                for wire in self.current[side]..self.wires.len() {
                    if wire >= self.current[side] {
                        self.arrive(side, wire, len);
                    }
                }
            }
            Step::Acknowledge(side) => self.acknowledge(side),
            Step::Break => {
                let fresh = Wire::resuming(&self.streams);
                self.wires.clear();
                self.wires.push(fresh);
                self.current = [0, 0];
            }
            Step::Redial => {
                // The newest wins: an older one that is still shaking hands is given up.
                if self.current == [self.wires.len() - 1; 2] {
                    self.wires.push(Wire::resuming(&self.streams));
                }
            }
            Step::RedialFails => {
                if self.current.iter().all(|current| *current < self.wires.len() - 1) {
                    self.wires.pop();
                }
            }
            Step::HandOver(side) => self.hand_over(side),
        }
        for side in 0..2 {
            let delivered = &self.delivered[side];
            assert!(self.pushed[1 - side].starts_with(delivered), "side {side} got something else");
        }
    }

    fn send(&mut self, side: usize, wire: usize, mut len: usize) {
        let Wire { ends, towards } = &mut self.wires[wire];
        while len > 0 {
            let piece = self.streams[side].transmit(&mut ends[side]);
            let piece = &piece[..piece.len().min(len)];
            if piece.is_empty() {
                return;
            }
            towards[1 - side].extend(piece);
            let count = piece.len();
            self.streams[side].sent(&mut ends[side], count);
            len -= count;
        }
    }

    fn arrive(&mut self, side: usize, wire: usize, len: usize) {
        let Wire { ends, towards } = &mut self.wires[wire];
        let count = len.min(towards[side].len());
        let input: Vec<u8> = towards[side].drain(..count).collect();
        let delivered = &mut self.delivered[side];
        let received = self.streams[side]
            .receive(&mut ends[side], &input, &mut |piece| delivered.extend_from_slice(piece))
            .unwrap_or_else(|violation| panic!("between two honest ends: {violation}"));
        if received.resumed {
            self.current[side] = wire;
        }
    }

    fn acknowledge(&mut self, side: usize) {
        let current = self.current[side];
        // While another connection resumes, none is sent.
        if current + 1 == self.wires.len() && !self.wires[current].ends[side].awaits_handshake() {
            self.streams[side].acknowledge(&mut self.wires[current].ends[side]);
        }
    }

    fn hand_over(&mut self, side: usize) {
        let stream = carried(&self.streams[side]).checked().expect("a stream is possible");
        assert!(stream == self.streams[side], "a stream changes on its way");
        // What was before the current wire is closed.
        for wire in &mut self.wires[self.current[side]..] {
            let connection: Connection = carried(&wire.ends[side]);
            stream.check(&connection).expect("a connection is possible");
            assert!(connection == wire.ends[side], "a connection changes on its way");
            wire.ends[side] = connection;
        }
        self.streams[side] = stream;
    }

    /// The network behaves until nothing moves any more.
    pub(super) fn settle(&mut self) {
        for _ in 0..10_000 {
            let before = self.progress();
            for side in 0..2 {
                self.take(&Step::Send(side, usize::MAX));
                self.take(&Step::Arrive(side, usize::MAX));
                self.take(&Step::Acknowledge(side));
            }
            if self.progress() == before {
                return;
            }
        }
        panic!("it never comes to rest");
    }

    fn progress(&self) -> ([Stream; 2], [usize; 2], Vec<Connection>) {
        (self.streams.clone(), self.current, self.wires.iter().flat_map(|wire| wire.ends.clone()).collect())
    }

    /// After [`Self::settle`]: everything has arrived, and nothing is kept.
    pub(super) fn check_completeness(&self) {
        for side in 0..2 {
            assert!(self.delivered[side] == self.pushed[1 - side], "side {side} did not get everything");
            assert!(self.streams[side].all_acknowledged() && self.streams[side].held() == 0);
        }
    }
}
