//! Two streams against each other under arbitrary schedules of cuts, partial reads, stalls, redials and hand-overs.

use proptest::prelude::*;

use self::network::{Network, Step};
use super::super::{Connection, Stream};

pub(super) mod network;

fn step() -> impl Strategy<Value = Step> {
    let side = 0..2usize;
    prop_oneof![
        4 => (side.clone(), prop_oneof![1..200usize, 30_000..140_000usize]).prop_map(|(side, len)| Step::Push(side, len)),
        8 => (side.clone(), prop_oneof![1..60usize, 1_000..200_000usize]).prop_map(|(side, len)| Step::Send(side, len)),
        8 => (side.clone(), prop_oneof![1..60usize, 1_000..200_000usize]).prop_map(|(side, len)| Step::Arrive(side, len)),
        3 => side.prop_map(Step::Acknowledge),
        1 => Just(Step::Break),
        1 => Just(Step::Redial),
        1 => Just(Step::RedialFails),
        3 => (0..2usize).prop_map(Step::HandOver),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_to_the_connections_every_byte_arrives_in_order_and_once(steps in prop::collection::vec(step(), 1..150)) {
        let mut network = Network::new();
        for step in &steps {
            network.take(step);
        }
        network.settle();
        network.check_completeness();
    }
}
