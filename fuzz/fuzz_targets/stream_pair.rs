//! Two streams against each other: whatever happens to their connections, every byte arrives, in order and once.
//!
//! The model is the one of the property test in `src/stream/tests`; here the schedule comes from the fuzzer, which sees
//! what each step reaches.

#![no_main]

use arbitrary::Arbitrary;
use bamf_agent::stream::{Connection, Stream};
use libfuzzer_sys::fuzz_target;

#[path = "../../src/stream/tests/model/network.rs"]
mod network;

use self::network::{Network, Step};

/// Longer schedules are combinations of shorter ones.
const MAX_STEPS: usize = 150;

#[derive(Debug, Arbitrary)]
enum Operation {
    Push { side: bool, len: u16 },
    Send { side: bool, len: u16, much: bool },
    Arrive { side: bool, len: u16, much: bool },
    Acknowledge { side: bool },
    Break,
    Redial,
    RedialFails,
    HandOver { side: bool },
}

impl Operation {
    fn step(&self) -> Step {
        // Frames are 32 KiB: some steps take several.
        let length = |len: u16, much: bool| usize::from(len) * if much { 4 } else { 1 };
        match *self {
            Self::Push { side, len } => Step::Push(side.into(), usize::from(len) + 1),
            Self::Send { side, len, much } => Step::Send(side.into(), length(len, much)),
            Self::Arrive { side, len, much } => Step::Arrive(side.into(), length(len, much)),
            Self::Acknowledge { side } => Step::Acknowledge(side.into()),
            Self::Break => Step::Break,
            Self::Redial => Step::Redial,
            Self::RedialFails => Step::RedialFails,
            Self::HandOver { side } => Step::HandOver(side.into()),
        }
    }
}

fuzz_target!(|operations: Vec<Operation>| {
    let mut network = Network::new();
    for operation in operations.iter().take(MAX_STEPS) {
        network.take(&operation.step());
    }
    network.settle();
    network.check_completeness();
});
