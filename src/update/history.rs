//! `history.jsonl`: one line per finished update or rollback, for `history`, `status`, and whoever asks why.
//!
//! Lines are appended and synced; a power cut leaves at most one torn line, at the end, which readers skip and the next
//! writer closes. A record carries the transaction's id, so that finishing the same transaction twice (a crash between the
//! history and the journal) writes it once.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::durable::{self, Context};

/// Records that stay when the file is cut.
pub const KEEP_RECORDS: usize = 500;
/// The file is cut when it has grown beyond this, not at every line.
const CUT_AT_BYTES: u64 = 512 * 1024;
/// Only the end of a file beyond this is read; nobody but a hand can make one.
const READ_LIMIT_BYTES: u64 = 4 * 1024 * 1024;
/// A message is a sentence or the output of a selftest, not a log.
const MESSAGE_LIMIT_CHARS: usize = 2000;

/// One finished update or rollback.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    /// The transaction's id; empty for refusals that never began one.
    pub id: String,
    /// When it ended, RFC 3339.
    pub at: String,
    /// `update` or `rollback`.
    pub action: String,
    /// The version before, where it was known.
    pub from: Option<String>,
    /// The version it was about.
    pub to: Option<String>,
    /// Where the release came from.
    pub source: String,
    /// Who asked for it: a user name, or `timer`.
    pub by: String,
    /// The word of `update --json`: `updated`, `rolled_back`, `failed`.
    pub outcome: String,
    /// The stable reason word, where something went wrong.
    pub reason: Option<String>,
    /// A sentence for people.
    pub message: String,
    /// The whole of it, in milliseconds.
    pub duration_ms: u64,
    /// From asking systemd until the new process was connected, in milliseconds.
    pub restart_ms: Option<u64>,
    /// What was fetched.
    pub downloaded_bytes: Option<u64>,
    /// Sessions open before.
    pub sessions_before: Option<u64>,
    /// Of those, carried over.
    pub sessions_after: Option<u64>,
    /// What a newer updater wrote.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

/// The history file.
#[derive(Clone, Debug)]
pub struct History {
    path: PathBuf,
}

impl History {
    /// The history at `path`; it need not exist.
    #[must_use]
    pub const fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// Appends a record, unless the newest one is of the same transaction.
    ///
    /// # Errors
    /// The disk's.
    pub fn append(&self, record: &Record) -> durable::Result<()> {
        let records = self.read()?;
        if !record.id.is_empty() && records.last().is_some_and(|last| last.id == record.id) {
            return Ok(());
        }
        let record = Record { message: record.message.chars().take(MESSAGE_LIMIT_CHARS).collect(), ..record.clone() };
        if self.size()? > CUT_AT_BYTES {
            return self.rewrite(&records, &record);
        }
        let line = line(&record, &self.path)?;
        let start = if ends_torn(&self.path)? { "\n" } else { "" };
        durable::append_line(&self.path, &format!("{start}{line}"), 0o600)
    }

    /// All records that can be read, oldest first.
    ///
    /// # Errors
    /// The disk's; a missing file is an empty history.
    pub fn read(&self) -> durable::Result<Vec<Record>> {
        let Some(mut file) = open(&self.path)? else { return Ok(Vec::new()) };
        let length = file.metadata().on("look at", &self.path)?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(READ_LIMIT_BYTES))).on("read", &self.path)?;
        let mut text = Vec::new();
        file.take(READ_LIMIT_BYTES).read_to_end(&mut text).on("read", &self.path)?;
        Ok(text.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect())
    }

    fn size(&self) -> durable::Result<u64> {
        open(&self.path)?.map_or(Ok(0), |file| file.metadata().map(|about| about.len()).on("look at", &self.path))
    }

    fn rewrite(&self, records: &[Record], newest: &Record) -> durable::Result<()> {
        let skip = (records.len() + 1).saturating_sub(KEEP_RECORDS);
        let mut text = String::new();
        for record in records.iter().skip(skip).chain([newest]) {
            text.push_str(&line(record, &self.path)?);
            text.push('\n');
        }
        durable::write(&self.path, text.as_bytes(), 0o600)
    }
}

fn line(record: &Record, path: &Path) -> durable::Result<String> {
    serde_json::to_string(record).map_err(std::io::Error::other).on("encode a record for", path)
}

fn open(path: &Path) -> durable::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(durable::Error::new("open", path, error)),
    }
}

fn ends_torn(path: &Path) -> durable::Result<bool> {
    let Some(mut file) = open(path)? else { return Ok(false) };
    if file.metadata().on("look at", path)?.len() == 0 {
        return Ok(false);
    }
    let mut last = [0];
    file.seek(SeekFrom::End(-1)).and_then(|_| file.read_exact(&mut last)).on("read", path)?;
    Ok(last != *b"\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: &str) -> Record {
        Record { id: id.into(), action: "update".into(), outcome: "updated".into(), ..Record::default() }
    }

    fn history() -> (tempfile::TempDir, History) {
        let directory = tempfile::tempdir().unwrap();
        let history = History::new(directory.path().join("history.jsonl"));
        (directory, history)
    }

    fn ids(history: &History) -> Vec<String> {
        history.read().unwrap().into_iter().map(|record| record.id).collect()
    }

    #[test]
    fn records_are_read_back_in_order_and_a_missing_file_is_empty() {
        let (_directory, history) = history();
        assert_eq!(history.read().unwrap(), []);
        for id in ["a", "b"] {
            history.append(&record(id)).unwrap();
        }
        assert_eq!(history.read().unwrap(), [record("a"), record("b")]);
    }

    #[test]
    fn a_transaction_that_is_finished_twice_is_recorded_once() {
        let (_directory, history) = history();
        for id in ["a", "a", "", ""] {
            history.append(&record(id)).unwrap();
        }
        assert_eq!(ids(&history), ["a", "", ""]);
    }

    #[test]
    fn a_torn_last_line_is_skipped_and_does_not_swallow_the_next_record() {
        let (_directory, history) = history();
        for id in ["a", "b"] {
            history.append(&record(id)).unwrap();
        }
        let text = std::fs::read(&history.path).unwrap();
        durable::write(&history.path, &text[..text.len() - 9], 0o600).unwrap();
        assert_eq!(ids(&history), ["a"]);
        history.append(&record("c")).unwrap();
        assert_eq!(ids(&history), ["a", "c"]);
    }

    #[test]
    fn a_file_that_has_grown_is_cut_to_the_newest_records() {
        let (_directory, history) = history();
        let old = Record { message: "m".repeat(1000), ..record("old") };
        let text: String = (0..600).map(|_| line(&old, &history.path).unwrap() + "\n").collect();
        assert!(text.len() as u64 > CUT_AT_BYTES);
        durable::write(&history.path, text.as_bytes(), 0o600).unwrap();
        for id in ["a", "b"] {
            history.append(&record(id)).unwrap();
        }
        let ids = ids(&history);
        assert!((KEEP_RECORDS..=KEEP_RECORDS + 1).contains(&ids.len()), "{}", ids.len());
        assert_eq!(ids[ids.len() - 2..], ["a", "b"]);
    }

    #[test]
    fn the_file_stays_bounded_even_if_every_message_is_as_long_as_it_may_be() {
        let (_directory, history) = history();
        let long = Record { message: "é".repeat(MESSAGE_LIMIT_CHARS * 2), ..record("old") };
        history.append(&long).unwrap();
        let written = history.size().unwrap();
        assert!(written < 5000, "a message is cut: {written}");
        assert!(written * KEEP_RECORDS as u64 + CUT_AT_BYTES < READ_LIMIT_BYTES, "what is kept is also read");
    }

    #[test]
    fn what_a_newer_updater_wrote_is_read_and_kept() {
        let (_directory, history) = history();
        durable::append_line(&history.path, r#"{"id":"z","outcome":"teleported","ring":3}"#, 0o600).unwrap();
        let read = history.read().unwrap();
        assert_eq!((read[0].outcome.as_str(), &read[0].unknown["ring"]), ("teleported", &3.into()));
    }
}
