//! Command queues: one per instance, first in first out, delivered at most once (protocol 5.3).
//!
//! A stream pops a command and only then writes it, so a command popped for a connection that is already dead is lost. A
//! blocking pop is served when a command arrives, whoever has waited longest first: two streams of one instance take turns.
//! The whole list lives for 60 s, counted from the last command that entered it: single commands can get older.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

/// Lifetime of a whole list after the last enqueue.
pub(crate) const QUEUE_LIFETIME: Duration = Duration::from_secs(60);

/// A command on its way: the SSE event's name and its data, one line of JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Command {
    pub(crate) event: String,
    pub(crate) data: String,
}

/// Which process of which agent; the agent's UUID, because a name can be used again after a deletion.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Address {
    pub(crate) agent_id: String,
    pub(crate) instance_id: String,
}

#[derive(Debug, Default)]
struct Queue {
    commands: VecDeque<Command>,
    enqueued_at: Option<Instant>,
    /// Pops that block, the longest first. One that was given up is a closed channel.
    waiting: VecDeque<oneshot::Sender<Command>>,
}

/// What a pop gets.
#[derive(Debug)]
pub(crate) enum Popped {
    /// The oldest command, gone from the list for good.
    Command(Command),
    /// The next command that arrives, unless another pop has waited longer.
    Later(oneshot::Receiver<Command>),
}

/// All queues.
#[derive(Debug, Default)]
pub(crate) struct Queues(BTreeMap<Address, Queue>);

impl Queues {
    /// Serves the pop that has waited longest, or appends to the list; that prolongs the life of the whole list.
    pub(crate) fn enqueue(&mut self, address: &Address, mut command: Command, now: Instant) {
        let queue = self.0.entry(address.clone()).or_default();
        while let Some(waiting) = queue.waiting.pop_front() {
            match waiting.send(command) {
                Ok(()) => return,
                Err(given_up) => command = given_up,
            }
        }
        queue.expire(now);
        queue.commands.push_back(command);
        queue.enqueued_at = Some(now);
    }

    /// Takes the oldest command out, or queues up for the next.
    pub(crate) fn pop(&mut self, address: &Address, now: Instant) -> Popped {
        let queue = self.0.entry(address.clone()).or_default();
        queue.expire(now);
        if let Some(command) = queue.commands.pop_front() {
            return Popped::Command(command);
        }
        queue.waiting.retain(|waiting| !waiting.is_closed());
        let (waiting, later) = oneshot::channel();
        queue.waiting.push_back(waiting);
        Popped::Later(later)
    }
}

impl Queue {
    fn expire(&mut self, now: Instant) {
        if self.enqueued_at.is_some_and(|at| now.saturating_duration_since(at) > QUEUE_LIFETIME) {
            self.commands.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(instance: &str) -> Address {
        Address { agent_id: "a".into(), instance_id: instance.into() }
    }

    fn command(event: &str) -> Command {
        Command { event: event.into(), data: "{}".into() }
    }

    fn popped(queues: &mut Queues, now: Instant) -> Option<String> {
        match queues.pop(&address("i"), now) {
            Popped::Command(command) => Some(command.event),
            Popped::Later(_) => None,
        }
    }

    #[test]
    fn commands_leave_in_the_order_of_their_arrival_and_only_once() {
        let (mut queues, now) = (Queues::default(), Instant::now());
        queues.enqueue(&address("i"), command("one"), now);
        queues.enqueue(&address("other"), command("theirs"), now);
        queues.enqueue(&address("i"), command("two"), now);
        assert_eq!(popped(&mut queues, now).as_deref(), Some("one"));
        assert_eq!(popped(&mut queues, now).as_deref(), Some("two"));
        assert_eq!(popped(&mut queues, now), None);
    }

    #[test]
    fn the_whole_list_dies_60_seconds_after_the_last_enqueue() {
        let (mut queues, start) = (Queues::default(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        queues.enqueue(&address("i"), command("one"), start);
        queues.enqueue(&address("i"), command("two"), after(50));
        assert_eq!(popped(&mut queues, after(110)).as_deref(), Some("one"), "110 s old and still there");
        assert_eq!(popped(&mut queues, after(111)), None);
        queues.enqueue(&address("i"), command("three"), after(112));
        assert_eq!(popped(&mut queues, after(112)).as_deref(), Some("three"), "a dead list takes nothing with it");
    }

    #[test]
    fn pops_that_block_are_served_in_turn_and_those_given_up_lose_nothing() {
        let (mut queues, now) = (Queues::default(), Instant::now());
        let mut wait = || match queues.pop(&address("i"), now) {
            Popped::Later(later) => later,
            Popped::Command(command) => panic!("{command:?}"),
        };
        let (mut one, gone, mut two) = (wait(), wait(), wait());
        drop(gone);
        for event in ["first", "second", "third"] {
            queues.enqueue(&address("i"), command(event), now);
        }
        assert_eq!((one.try_recv().unwrap().event, two.try_recv().unwrap().event), ("first".into(), "second".into()));
        assert_eq!(popped(&mut queues, now).as_deref(), Some("third"));
    }
}
