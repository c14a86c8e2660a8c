//! The bytes of an answer, at the pace and with the ends that a fault asks for.
//!
//! A task reads ahead by one chunk and the connection takes from it. The assets are never read into memory as a whole:
//! an oversize one is a sparse file of more bytes than the machine has.

use std::fs::File;
use std::io::{self, Cursor, Read, Seek as _, SeekFrom};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::Frame;
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::super::faults::Fault;
use crate::serve::Body;

const CHUNK_BYTES: u64 = 1 << 16;

/// The beat of a slow body: often enough that nobody takes the pauses for a stall.
const BEATS_PER_SECOND: u64 = 10;
const BEAT: Duration = Duration::from_millis(1000 / BEATS_PER_SECOND);

/// Lets the connection hand its buffer to the kernel before it is cut; a cut drops what is still in it.
const FLUSH: Duration = Duration::from_millis(20);

/// Where the bytes come from.
pub(super) type Source = Box<dyn Read + Send>;

/// `length` bytes of a file from `first` on.
pub(super) fn slice(mut file: File, first: u64, length: u64) -> io::Result<Source> {
    file.seek(SeekFrom::Start(first))?;
    Ok(Box::new(file.take(length)))
}

/// These bytes.
pub(super) fn bytes(content: impl Into<Vec<u8>>) -> Source {
    Box::new(Cursor::new(content.into()))
}

/// A body of `source`, shaped by `fault`; `sent` counts what the connection took.
pub(super) fn body(source: Source, fault: Option<&Fault>, sent: &Arc<AtomicU64>) -> Body {
    let (sender, receiver) = mpsc::channel(1);
    let endless = matches!(fault, Some(Fault::Endless));
    let source: Source = if endless { Box::new(source.chain(io::repeat(0))) } else { source };
    tokio::spawn(pump(source, Course::of(fault), sender, Arc::clone(sent)));
    Piped(receiver).boxed()
}

/// When the bytes come, and how they end.
struct Course {
    /// Here it pauses, or is cut.
    stop_at: u64,
    pause: Duration,
    is_cut: bool,
    /// Bytes between two beats.
    pace: Option<u64>,
    /// The source ends before the promised length.
    ends_early: bool,
}

impl Course {
    fn of(fault: Option<&Fault>) -> Self {
        let even = Self { stop_at: u64::MAX, pause: Duration::ZERO, is_cut: false, pace: None, ends_early: false };
        if let Some(Fault::CutAfter(bytes)) = fault {
            Self { stop_at: *bytes, is_cut: true, ..even }
        } else if let Some(Fault::StallAfter(bytes, pause)) = fault {
            Self { stop_at: *bytes, pause: *pause, ..even }
        } else if let Some(Fault::Slow(bytes_per_second)) = fault {
            Self { pace: Some((bytes_per_second / BEATS_PER_SECOND).max(1)), ..even }
        } else {
            Self { ends_early: matches!(fault, Some(Fault::ContentLength(_))), ..even }
        }
    }
}

/// Ends when the source does, when the course says so, or when the connection is gone.
async fn pump(mut source: Source, mut course: Course, sender: mpsc::Sender<io::Result<Bytes>>, sent: Arc<AtomicU64>) {
    let mut done = 0;
    loop {
        if done == course.stop_at {
            if course.is_cut {
                sleep(FLUSH).await;
                return drop(sender.send(Err(io::Error::other("cut on purpose"))).await);
            }
            sleep(course.pause).await;
            course.stop_at = u64::MAX;
        }
        if course.pace.is_some() {
            sleep(BEAT).await;
        }
        let room = course.pace.unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES).min(course.stop_at - done);
        let chunk = match read(&mut source, room) {
            Ok(chunk) => chunk,
            Err(error) => return drop(sender.send(Err(error)).await),
        };
        let length = chunk.len() as u64;
        if length == 0 {
            if course.ends_early {
                sleep(FLUSH).await;
            }
            return;
        }
        if sender.send(Ok(chunk)).await.is_err() {
            return;
        }
        done += length;
        sent.fetch_add(length, Ordering::Relaxed);
    }
}

fn read(source: &mut Source, room: u64) -> io::Result<Bytes> {
    let mut chunk = Vec::new();
    source.by_ref().take(room).read_to_end(&mut chunk)?;
    Ok(chunk.into())
}

/// What the task sends. Its size is unknown to hyper on purpose: then `Content-Length` may say what it likes.
struct Piped(mpsc::Receiver<io::Result<Bytes>>);

impl hyper::body::Body for Piped {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.0.poll_recv(context).map(|chunk| chunk.map(|chunk| chunk.map(Frame::data)))
    }
}
