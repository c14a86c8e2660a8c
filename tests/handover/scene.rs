//! A site whose agent has a crowd to serve, and what can be asked of it from outside.

use std::cell::RefCell;
use std::time::Duration;

use bamf_lab::crowd::{Crowd, Mix, Surroundings};
use bamf_lab::machine::Running;
use bamf_lab::site::{Site, UNIT};
use serde_json::Value;

/// Only a failure waits this long.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// No session may stand still for longer in a restart.
const WORST: Duration = Duration::from_secs(1);
/// Half of the members that want something all the time stand still for less.
const MEDIAN: Duration = Duration::from_millis(300);

/// A site, and the crowd that its agent serves in 1.0.0.
pub(crate) struct Scene {
    pub(crate) crowd: Crowd,
    pub(crate) site: Site,
    /// What the agent called itself at first.
    instance: Value,
    /// How long busy members stood still, half of them less: one for each replacement that went well.
    medians: RefCell<Vec<Duration>>,
}

/// How long members may stand still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stalls {
    /// As briefly as the project promises.
    Bounded,
    /// Two restarts, and what it takes to see that the first one went wrong.
    OfAFailure,
}

impl Scene {
    pub(crate) fn with(mix: Mix) -> Self {
        Self::configured(mix, |text| text.to_owned())
    }

    /// The same after a change to the configuration.
    pub(crate) fn configured(mix: Mix, edit: impl FnOnce(&str) -> String) -> Self {
        Self::at(Site::install("1.0.0").unwrap(), mix, edit)
    }

    /// The same at a site that is installed already.
    pub(crate) fn at(site: Site, mix: Mix, edit: impl FnOnce(&str) -> String) -> Self {
        site.plane.set_version(Some("1.0.0"));
        let surroundings = Surroundings::set_up(&site).unwrap();
        site.edit_config(edit).unwrap();
        site.start().unwrap();
        let crowd = surroundings.gather(mix).unwrap_or_else(|why| panic!("{why}\n{}", journal(&site)));
        let instance = site.status()["instance_id"].clone();
        assert!(instance.is_string(), "{instance}");
        Self { crowd, site, instance, medians: RefCell::default() }
    }

    /// Lets `act` replace the process, by one of `version` in the end, and holds it against what users, targets, bridge and
    /// platform have noticed of it: nothing.
    #[track_caller]
    pub(crate) fn unnoticed<T>(&self, what: &str, version: &str, stalls: Stalls, act: impl FnOnce(&Site) -> T) -> T {
        let before = self.site.status()["pid"].clone();
        self.crowd.begin_measuring();
        let done = act(&self.site);
        self.site.connected().unwrap();
        let goes_on = self.crowd.goes_on(LIMIT);
        let measured = self.crowd.stalls();
        let (worst, median) = (measured.worst(), measured.median());
        eprintln!("{what}: worst {} ms, median {} ms\n{}", worst.as_millis(), median.as_millis(), measured.table());

        let log = || journal(&self.site);
        let status = self.site.status();
        assert_ne!(status["pid"], before, "{what}: another process");
        assert_eq!(status["version"], version, "{what}");
        let faults = self.crowd.faults();
        assert!(
            faults.is_empty(),
            "{what}: {} faults, such as {:#?}\n{}",
            faults.len(),
            &faults[..faults.len().min(20)],
            log()
        );
        goes_on.unwrap_or_else(|who| panic!("{what}: stand still: {who:#?}\n{}", log()));
        assert_eq!(self.crowd.dialled_again(), [""; 0], "{what}\n{}", log());
        let sessions = self.crowd.sessions();
        assert_eq!(status["sessions"]["active"], sessions, "{what}: {status}\n{}", log());
        assert_eq!(status["sessions"]["adopted"], sessions, "{what}: {status}\n{}", log());
        assert_eq!(status["sessions"]["lost"], 0, "{what}: {status}\n{}", log());
        assert_eq!(status["instance_id"], self.instance, "{what}");
        self.platform_heard_nothing(what);
        assert!(worst < WORST, "{what}: {worst:?}\n{}", measured.table());
        if stalls == Stalls::Bounded {
            self.medians.borrow_mut().push(median);
        }
        done
    }

    /// To the platform it is one instance that has never drained nor left, and whose sessions and relay have never ended.
    #[track_caller]
    pub(crate) fn platform_heard_nothing(&self, what: &str) {
        let plane = &self.site.plane;
        assert_eq!((plane.drains().len(), plane.offlines().len()), (0, 0), "{what}: drains and farewells");
        let known = plane.agent("edge-1").unwrap().instances;
        let known: Vec<Value> = known.into_iter().map(|instance| instance.id.into()).collect();
        assert_eq!(known, std::slice::from_ref(&self.instance), "{what}: instances");
        let closed = plane.wait_for(Duration::ZERO, |seen| seen.closed.total() > 0);
        assert!(!closed, "{what}: the bridge has reported sessions closed");
        assert_eq!(plane.sessions().len(), self.crowd.sessions(), "{what}: records of sessions");
    }

    /// As briefly as the project promises. Of one replacement the machine may be to blame, of half of them not.
    #[track_caller]
    pub(crate) fn stood_still_briefly(&self) {
        let mut medians = self.medians.borrow().clone();
        medians.sort_unstable();
        assert!(medians[medians.len() / 2] < MEDIAN, "{medians:?}");
    }

    /// What the agent says of its sessions.
    pub(crate) fn sessions(&self) -> Value {
        self.site.status()["sessions"].clone()
    }

    /// Everybody finishes and goes; all that was sent has arrived.
    #[track_caller]
    pub(crate) fn leave(self) -> Site {
        let Self { crowd, site, .. } = self;
        let farewell = crowd.leave();
        eprintln!("{} turns, {} bytes, every one compared", farewell.turns, farewell.bytes);
        assert_eq!(farewell.faults, [""; 0], "{}", journal(&site));
        site
    }
}

pub(crate) fn restart(site: &Site) {
    site.machine.check(["systemctl", "restart", UNIT]).unwrap();
}

/// `systemctl stop`, which takes its time.
pub(crate) fn stopping(site: &Site) -> Running {
    site.machine.spawn(["systemctl", "stop", UNIT]).unwrap()
}

/// The end of what the unit has written, without the lines that every session has.
pub(crate) fn journal(site: &Site) -> String {
    let journal = site.machine.journal(UNIT).unwrap();
    let of_sessions = [r#""message":"session opened""#, r#""message":"session closed""#];
    let lines = journal.lines().filter(|line| !of_sessions.iter().any(|message| line.contains(message)));
    let lines: Vec<&str> = lines.collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}
