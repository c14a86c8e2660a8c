//! One conversation, cut and carried to another process at every byte of it.

use proptest::prelude::*;

use super::*;

/// One end and its socket.
struct End {
    records: Option<Records>,
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
    heard: Vec<u8>,
    said: Vec<u8>,
    ended: bool,
}

impl End {
    fn new(records: Records) -> Self {
        Self {
            records: Some(records),
            incoming: Vec::new(),
            outgoing: Vec::new(),
            heard: Vec::new(),
            said: Vec::new(),
            ended: false,
        }
    }

    fn records(&mut self) -> &mut Records {
        self.records.as_mut().unwrap()
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Say(len) => {
                let plain = noise(len);
                self.said.extend_from_slice(&plain);
                let wire = sealed(self.records(), &plain);
                self.outgoing.extend(wire);
            }
            Step::Refresh => self.records().refresh(),
            Step::Ticket => {
                let ticket = [&[4, 0, 0, 50][..], &[9; 50]].concat();
                for piece in ticket.chunks(23) {
                    let wire = record(self.records(), Kind::Handshake, piece);
                    self.outgoing.extend(wire);
                }
            }
            Step::Close => {
                let mut bye = Vec::new();
                self.records().close_notify(&mut bye).unwrap();
                self.outgoing.extend(bye);
            }
        }
    }

    fn hear(&mut self, bytes: &[u8]) {
        self.incoming.extend_from_slice(bytes);
        let mut answer = Vec::new();
        let (heard, records) = (&mut self.heard, self.records.as_mut().unwrap());
        let opened =
            records.open(&mut self.incoming, &mut answer, &mut |piece| heard.extend_from_slice(piece)).unwrap();
        self.incoming.drain(..opened.consumed);
        self.ended |= opened.ended;
        self.outgoing.extend(answer);
    }

    fn hand_over(&mut self) {
        let records = self.records.take().unwrap();
        self.records = Some(carried(records));
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Say(usize),
    Refresh,
    Ticket,
    Close,
}

/// What client and server do at the same time.
const SCRIPT: [(Step, Step); 8] = [
    (Step::Say(40), Step::Ticket),
    (Step::Refresh, Step::Say(1)),
    (Step::Say(70), Step::Say(100)),
    (Step::Say(0), Step::Refresh),
    (Step::Say(3), Step::Say(33)),
    (Step::Ticket, Step::Refresh),
    (Step::Say(9), Step::Say(90)),
    (Step::Close, Step::Close),
];

/// Moves everything that was said, `piece` bytes a time each way, so that both are in the middle of records together.
/// `hand_over` is asked at every byte boundary which ends change their process there.
fn converse(suite: Suite, pieces: &mut dyn FnMut() -> usize, hand_over: &mut dyn FnMut(usize) -> [bool; 2]) -> usize {
    let mut ends = pair(suite).map(End::new);
    let mut moved = 0;
    for (client, server) in SCRIPT {
        ends[0].step(client);
        ends[1].step(server);
        while ends.iter().any(|end| !end.outgoing.is_empty()) {
            for from in 0..2 {
                let count = pieces().min(ends[from].outgoing.len());
                let bytes: Vec<u8> = ends[from].outgoing.drain(..count).collect();
                ends[1 - from].hear(&bytes);
                moved += count;
            }
            let changes = hand_over(moved);
            for (end, _) in ends.iter_mut().zip(changes).filter(|(_, change)| *change) {
                end.hand_over();
            }
        }
    }
    let [client, server] = ends;
    assert!(client.heard == server.said && server.heard == client.said, "every byte, in order, once");
    assert!(client.ended && server.ended && client.incoming.is_empty() && server.incoming.is_empty());
    moved
}

#[test]
fn a_connection_goes_on_after_a_hand_over_at_any_byte() {
    for suite in SUITES {
        let whole = converse(suite, &mut || 1, &mut |_| [false, false]);
        for at in 0..=whole {
            converse(suite, &mut || 1, &mut |moved| [moved / 2 == at / 2, moved / 2 == at / 2]);
        }
    }
}

#[test]
fn a_connection_goes_on_after_a_hand_over_at_every_byte() {
    for suite in SUITES {
        converse(suite, &mut || 1, &mut |_| [true, true]);
    }
}

proptest! {
    #[test]
    fn how_the_bytes_are_cut_and_where_the_process_changes_never_matters(
        pieces in prop::collection::vec(0..120_usize, 1..40),
        changes in prop::collection::vec(any::<[bool; 2]>(), 1..40),
        suite in 0..3_usize,
    ) {
        // One for each way, which take turns: with nothing but zeros for one of them it would never end.
        let (mut pieces, mut changes) = (pieces.into_iter().chain([1, 1]).cycle(), changes.into_iter().cycle());
        converse(SUITES[suite], &mut || pieces.next().unwrap(), &mut |_| changes.next().unwrap());
    }
}
