//! What comes next after a cut-off update: a pure function of the journal, the files and the running process.
//!
//! Contract section 4: "the next `update` (or boot) finishes or undoes the rest." The journal says what was meant, the
//! hashes of the files say what has happened, and where they disagree the files win. The executor carries out one step,
//! records it and asks again, so every answer must lead to a state that asks for less; [`STEPS_LIMIT`] breaks a circle that
//! a failing disk could still make.
//!
//! ```text
//! installed →  old file                      new file                        another file          nothing
//! before swap  DiscardStaging                DiscardStaging                  Abandon               Restore
//! swapping     DiscardStaging                FinishSwap | as swapped         Abandon               Restore
//! swapped …    FinishRestore                 Restart | AwaitStart | Gate …   Abandon               Restore
//! committing   FinishRestore                 Commit                          Abandon               Restore
//! restoring …  FinishRestore                 Restore                         Abandon               Restore
//! ```
//! Restore turns into `AskOperator` where no copy of the old file is left.

use super::digest::Sha256;
use super::journal::{STARTS_LIMIT, STEPS_LIMIT, Step, Transaction};

/// The files at the updater's names, by content.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Disk {
    /// At the installed path.
    pub installed: Option<Sha256>,
    /// At `.bamf-agent.new`.
    pub staged: Option<Sha256>,
    /// At `.bamf-agent.old`, in the middle of a swap by link and rename.
    pub aside: Option<Sha256>,
    /// At `.bamf-agent.previous`.
    pub kept: Option<Sha256>,
}

/// What the service's main process runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Running {
    /// The file at the installed path.
    Installed,
    /// A file that is not at the installed path any more.
    Other,
    /// There is no main process.
    Nothing,
}

/// The next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing is unfinished.
    Nothing,
    /// Nothing was changed: remove the staged file, end the transaction.
    DiscardStaging,
    /// The new file is in place; give the old one its name.
    FinishSwap,
    /// The new file is in place and the service does not run it yet.
    Restart,
    /// As `Restart`, but the operator restarts: leave everything as it is.
    AwaitStart,
    /// The new version runs: watch it.
    ResumeGate,
    /// The new version has been found healthy, or there was nothing to watch: write history, remove leftovers.
    Commit,
    /// Put the old file back.
    Restore,
    /// The old file is back: give the new one its name, restart the service if it runs anything else, write history.
    FinishRestore,
    /// Somebody else has replaced the installed file: end the transaction and touch nothing.
    Abandon,
    /// Only a person can help.
    AskOperator(Trouble),
}

/// What only a person can solve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// The old file is nowhere.
    #[error("the version to go back to is not on the disk any more; install a release with install.sh")]
    OldFileLost,
    /// The installed file is gone and no transaction explains it.
    #[error("the installed binary is missing; install a release with install.sh")]
    InstalledMissing,
}

/// Decides the next step of `transaction`, if there is one.
#[must_use]
pub fn next(transaction: Option<&Transaction>, disk: &Disk, running: Running) -> Next {
    let Some(transaction) = transaction else { return without_transaction(disk) };
    let restore = if is_old_left(transaction, disk) { Next::Restore } else { Next::AskOperator(Trouble::OldFileLost) };
    let Some(installed) = disk.installed else { return restore };
    let (old, new) = (transaction.old.sha256, transaction.new.sha256);
    if installed != old && installed != new {
        return Next::Abandon;
    }
    let new_installed = installed == new;
    match transaction.step {
        Step::Fetched | Step::Tried => Next::DiscardStaging,
        Step::Swapping if !new_installed => Next::DiscardStaging,
        Step::Swapping if disk.kept != Some(old) && (disk.staged == Some(old) || disk.aside == Some(old)) => {
            Next::FinishSwap
        }
        Step::Committing if new_installed => Next::Commit,
        Step::Restoring | Step::Restored if new_installed => restore,
        Step::Swapping | Step::Swapped | Step::Restarting | Step::Trial | Step::Unknown if new_installed => {
            on_trial(transaction, running, restore)
        }
        Step::Swapping
        | Step::Swapped
        | Step::Restarting
        | Step::Trial
        | Step::Committing
        | Step::Restoring
        | Step::Restored
        | Step::Unknown => Next::FinishRestore,
    }
}

/// The new file is installed and not committed.
fn on_trial(transaction: &Transaction, running: Running, restore: Next) -> Next {
    let given_up = transaction.starts >= STARTS_LIMIT || transaction.steps >= STEPS_LIMIT;
    match running {
        _ if given_up => restore,
        Running::Installed => Next::ResumeGate,
        // A trial whose process is gone has a verdict to be given: the gate asks systemd why.
        Running::Nothing | Running::Other if transaction.step == Step::Trial => Next::ResumeGate,
        Running::Nothing | Running::Other if transaction.service.no_restart => Next::AwaitStart,
        Running::Nothing if !transaction.service.was_running => Next::Commit,
        Running::Nothing | Running::Other => Next::Restart,
    }
}

const fn without_transaction(disk: &Disk) -> Next {
    if disk.installed.is_none() {
        return Next::AskOperator(Trouble::InstalledMissing);
    }
    if disk.staged.is_some() || disk.aside.is_some() {
        return Next::DiscardStaging;
    }
    Next::Nothing
}

fn is_old_left(transaction: &Transaction, disk: &Disk) -> bool {
    [disk.kept, disk.aside, disk.staged].contains(&Some(transaction.old.sha256))
}

#[cfg(test)]
mod tests;
