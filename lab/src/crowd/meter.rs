//! What is measured of a member: how long it waited for what it wanted, how much it got done, and what went wrong.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Faults that are kept of one member; a visitor whose every request fails says the same again and again.
const MOST_FAULTS: usize = 3;

/// How a member spends its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// In a session.
    Session(Habit),
    /// Through the relay.
    Relay(Errand),
}

/// What is done in a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Habit {
    /// Sends, and waits for the echo.
    Talks,
    /// Receives all the time.
    Downloads,
    /// Sends all the time, and hears what has arrived.
    Uploads,
    /// Talks once in a while.
    Idles,
    /// Takes less than it is offered.
    ReadsSlowly,
    /// Has not said a word.
    IsSilent,
}

/// What is done through the relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Errand {
    /// A WebSocket that echoes.
    WebSocket,
    /// A stream of numbered events.
    EventStream,
    /// One web request after the other.
    Browses,
    /// One long answer after the other.
    Downloads,
}

impl Way {
    const ALL: [Self; 10] = [
        Self::Session(Habit::Talks),
        Self::Session(Habit::Downloads),
        Self::Session(Habit::Uploads),
        Self::Session(Habit::Idles),
        Self::Session(Habit::ReadsSlowly),
        Self::Session(Habit::IsSilent),
        Self::Relay(Errand::WebSocket),
        Self::Relay(Errand::EventStream),
        Self::Relay(Errand::Browses),
        Self::Relay(Errand::Downloads),
    ];

    /// Whether it gets something done several times a second.
    #[must_use]
    pub const fn is_busy(self) -> bool {
        !matches!(self, Self::Session(Habit::Idles | Habit::ReadsSlowly | Habit::IsSilent))
    }

    /// Whether it wants something all the time, so that it feels every stall in its whole length.
    #[must_use]
    pub const fn is_steady(self) -> bool {
        matches!(
            self,
            Self::Session(Habit::Downloads | Habit::Uploads) | Self::Relay(Errand::EventStream | Errand::Downloads)
        )
    }

    /// Whether it has a relay connection for itself.
    #[must_use]
    pub const fn is_stream(self) -> bool {
        matches!(self, Self::Relay(Errand::WebSocket | Errand::EventStream))
    }
}

impl fmt::Display for Way {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Session(Habit::Talks) => "talks",
            Self::Session(Habit::Downloads) => "downloads",
            Self::Session(Habit::Uploads) => "uploads",
            Self::Session(Habit::Idles) => "idles",
            Self::Session(Habit::ReadsSlowly) => "reads slowly",
            Self::Session(Habit::IsSilent) => "was silent",
            Self::Relay(Errand::WebSocket) => "websocket",
            Self::Relay(Errand::EventStream) => "event stream",
            Self::Relay(Errand::Browses) => "browses",
            Self::Relay(Errand::Downloads) => "web download",
        })
    }
}

#[derive(Debug, Default)]
struct Core {
    /// Since when it waits for the next progress.
    waiting: Option<Instant>,
    /// The longest wait since the mark; none if it wanted nothing.
    longest: Option<Duration>,
    turns: u64,
    bytes: u64,
    faults: Vec<String>,
    more_faults: usize,
}

/// The measurements of one member.
#[derive(Debug)]
pub(super) struct Meter {
    name: String,
    way: Way,
    core: Mutex<Core>,
}

impl Meter {
    pub(super) fn new(name: String, way: Way) -> Self {
        Self { name, way, core: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) const fn way(&self) -> Way {
        self.way
    }

    /// From here on the member waits for progress.
    pub(super) fn wants(&self) {
        self.lock().waiting.get_or_insert_with(Instant::now);
    }

    /// Some of what it wants has come; it goes on waiting for the rest.
    pub(super) fn progress(&self, bytes: usize) {
        let mut core = self.lock();
        core.bytes += bytes as u64;
        let waited = core.waiting.is_some();
        core.settle();
        if waited {
            core.waiting = Some(Instant::now());
        }
    }

    /// All that it wanted has come.
    pub(super) fn content(&self) {
        self.lock().settle();
    }

    /// The same, and something is complete.
    pub(super) fn turn(&self) {
        let mut core = self.lock();
        core.settle();
        core.turns += 1;
    }

    /// Something is wrong.
    pub(super) fn fault(&self, what: String) {
        let mut core = self.lock();
        core.settle();
        if core.faults.len() < MOST_FAULTS {
            core.faults.push(what);
        } else {
            core.more_faults += 1;
        }
    }

    pub(super) fn mark(&self) {
        let mut core = self.lock();
        core.longest = None;
        if core.waiting.is_some() {
            core.waiting = Some(Instant::now());
        }
    }

    /// Turns and bytes so far.
    pub(super) fn done(&self) -> (u64, u64) {
        let core = self.lock();
        (core.turns, core.bytes)
    }

    pub(super) fn faults(&self) -> Vec<String> {
        let core = self.lock();
        let mut faults: Vec<_> = core.faults.iter().map(|fault| format!("{}: {fault}", self.name)).collect();
        if core.more_faults > 0 {
            faults.push(format!("{}: and {} more", self.name, core.more_faults));
        }
        faults
    }

    fn longest(&self) -> Option<Duration> {
        let core = self.lock();
        core.longest.max(core.waiting.map(|since| since.elapsed()))
    }
}

impl Core {
    fn settle(&mut self) {
        if let Some(since) = self.waiting.take() {
            self.longest = self.longest.max(Some(since.elapsed()));
        }
    }
}

/// The longest stall of a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stall {
    /// The member's number, what it does, and at which resource.
    pub who: String,
    /// What it does.
    pub way: Way,
    /// How long it made no progress although it wanted some.
    pub longest: Duration,
}

/// The longest stall of each member that wanted something.
#[derive(Clone, Debug, Default)]
pub struct Stalls(Vec<Stall>);

impl Stalls {
    pub(super) fn of(meters: &[Arc<Meter>]) -> Self {
        let stall =
            |meter: &Arc<Meter>| Some(Stall { who: meter.name.clone(), way: meter.way, longest: meter.longest()? });
        let mut stalls: Vec<_> = meters.iter().filter_map(stall).collect();
        stalls.sort_by_key(|stall| stall.longest);
        Self(stalls)
    }

    /// All of them, the shortest first.
    #[must_use]
    pub fn all(&self) -> &[Stall] {
        &self.0
    }

    /// The longest of all.
    #[must_use]
    pub fn worst(&self) -> Duration {
        self.0.last().map(|stall| stall.longest).unwrap_or_default()
    }

    /// Half of the steady members had a shorter one. The others may be just thinking when everything stands still, so that
    /// their median would flatter.
    #[must_use]
    pub fn median(&self) -> Duration {
        let steady: Vec<_> = self.0.iter().filter(|stall| stall.way.is_steady()).collect();
        steady.get(steady.len() / 2).map(|stall| stall.longest).unwrap_or_default()
    }

    /// A line for each way of spending time, and who had the worst.
    #[must_use]
    pub fn table(&self) -> String {
        let mut table = String::new();
        for way in Way::ALL {
            let of_way: Vec<_> = self.0.iter().filter(|stall| stall.way == way).collect();
            if let (Some(worst), Some(median)) = (of_way.last(), of_way.get(of_way.len() / 2)) {
                let (count, milliseconds) = (of_way.len(), |stall: &Stall| stall.longest.as_millis());
                table.push_str(&format!(
                    "  {:<13} {count:>4}   median {:>5} ms   worst {:>5} ms   {}\n",
                    way,
                    milliseconds(median),
                    milliseconds(worst),
                    worst.who
                ));
            }
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pause() -> Duration {
        let begun = Instant::now();
        std::thread::sleep(Duration::from_millis(20));
        begun.elapsed()
    }

    #[test]
    fn a_wait_counts_only_while_something_is_wanted_and_from_the_mark_on() {
        let meter = Meter::new("m".into(), Way::Session(Habit::Talks));
        pause();
        assert_eq!(meter.longest(), None, "it wanted nothing");
        meter.wants();
        pause();
        assert!(meter.longest() >= Some(Duration::from_millis(20)), "a wait that is under way counts");
        meter.mark();
        assert!(meter.longest() < Some(Duration::from_millis(20)), "what was before the mark does not");
        meter.progress(3);
        pause();
        meter.turn();
        let longest = meter.longest();
        assert!(longest >= Some(Duration::from_millis(20)), "progress is no end of the wait for the rest");
        pause();
        assert_eq!(meter.longest(), longest, "whoever is content does not wait");
        assert_eq!(meter.done(), (1, 3));
    }

    #[test]
    fn those_who_think_in_between_have_no_part_in_the_median() {
        let waits = [(Habit::Downloads, 30), (Habit::Talks, 0), (Habit::Idles, 0), (Habit::ReadsSlowly, 60)];
        let stalls = Stalls::of(&waits.map(|(habit, wait)| {
            let meter = Arc::new(Meter::new("m".into(), Way::Session(habit)));
            meter.wants();
            std::thread::sleep(Duration::from_millis(wait));
            meter.content();
            meter
        }));
        assert!(stalls.median() >= Duration::from_millis(30), "{}", stalls.table());
        assert!(stalls.worst() >= Duration::from_millis(60), "{}", stalls.table());
        assert_eq!(stalls.all().len(), 4);
    }

    #[test]
    fn a_member_that_fails_for_ever_says_so_a_few_times() {
        let meter = Meter::new("m".into(), Way::Relay(Errand::Browses));
        (0..10).for_each(|number| meter.fault(number.to_string()));
        assert_eq!(meter.faults(), ["m: 0", "m: 1", "m: 2", "m: and 7 more"]);
    }
}
