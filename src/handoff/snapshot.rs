//! The format of what is handed over. A rollback makes an old version read what a new one wrote, so it is made to last.
//!
//! ```text
//!   "BAMFHAND"  format u32  reserved u32
//!   kind u32  length u32  CRC-32 of these 8 bytes u32  CRC-32 of the payload u32  payload      once for each record
//!   kind 0    …                                                                   {records}
//! ```
//!
//! Numbers are little-endian. A payload is MessagePack; structures are maps from names to values, so that a field that is
//! not known is passed over, and one that is missing has its default. A record of an unknown kind is passed over as well. So
//! a new version adds fields and kinds freely; it raises `format` only when an old reader would do wrong with what it
//! understands. What an old reader cannot pass over is a new variant of an `enum`: it costs the record, so that it is for
//! states that an old version could not go on from anyway. Golden files in `tests/handoff` keep every format that was ever
//! released.
//!
//! Each record stands for itself: one that is damaged or cannot be understood costs what it says, not the others. Only
//! where kind or length are damaged nothing behind them is believed, since payloads hold bytes that strangers chose.

use std::fs::File;
use std::io::{self, Seek as _, SeekFrom, Write};
use std::os::unix::fs::FileExt as _;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::memory::{self, Buffer};

/// What every snapshot begins with.
pub const MAGIC: [u8; 8] = *b"BAMFHAND";
/// The format that is written, and the newest that is read.
pub const FORMAT: u32 = 1;

const FILE_HEADER: usize = 16;
const RECORD_HEADER: usize = 16;
/// Bytes that are written to the file at once.
const BUFFER: usize = 256 * 1024;
/// No honest record is longer: a session's window and its backlog, twice.
const LONGEST: u32 = 256 * 1024 * 1024;
/// How deep a record may be nested; ours are a dozen. Each level takes stack, and what overflows it takes the process along.
const DEPTH: usize = 100;

/// What a record is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind(pub u32);

impl Kind {
    const END: Self = Self(0);
    /// The process that left: one record, the first.
    pub const PROCESS: Self = Self(1);
    /// A session.
    pub const SESSION: Self = Self(2);
    /// A relay connection.
    pub const RELAY: Self = Self(3);
}

/// Why a snapshot, or a part of it, is of no use.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Reading or writing failed.
    #[error("the memory of the hand-over cannot be used")]
    Io(#[from] io::Error),
    /// Somebody else could change it while it is read.
    #[error("what was inherited is not sealed")]
    NotSealed,
    /// It is something else.
    #[error("what was inherited is no snapshot")]
    NotASnapshot,
    /// A later version wrote it, and says that this one would misunderstand it.
    #[error("the snapshot has format {found}, this version reads up to {FORMAT}")]
    Format {
        /// Its format.
        found: u32,
    },
    /// Processes died while they read it.
    #[error("{attempts} processes died over the snapshot")]
    Abandoned {
        /// How many.
        attempts: u64,
    },
    /// It ends too early, or from here on nothing in it can be believed.
    #[error("the snapshot is cut off")]
    Truncated,
    /// A record's bytes are not those that were written.
    #[error("a record is damaged")]
    Damaged,
    /// A record is longer than it can be.
    #[error("a record is longer than {LONGEST} bytes")]
    TooLong,
    /// A record cannot be written.
    #[error("a record cannot be written")]
    Encode(#[from] rmp_serde::encode::Error),
    /// A record does not say what its kind should.
    #[error("a record cannot be understood")]
    Decode(#[from] rmp_serde::decode::Error),
}

#[derive(Serialize, Deserialize)]
struct Ending {
    records: u64,
}

/// Writes a snapshot.
pub struct Writer {
    file: File,
    buffer: Buffer,
    /// Bytes of the buffer that are not in the file yet.
    filled: usize,
    /// Where the buffer's first byte belongs.
    position: u64,
    records: u64,
}

impl Writer {
    /// A snapshot without records.
    ///
    /// # Errors
    /// There is no memory.
    pub fn new() -> io::Result<Self> {
        let mut writer =
            Self { file: memory::create()?, buffer: Buffer::new(BUFFER)?, filled: 0, position: 0, records: 0 };
        writer.write_all(&MAGIC)?;
        writer.write_all(&FORMAT.to_le_bytes())?;
        writer.write_all(&0_u32.to_le_bytes())?;
        Ok(writer)
    }

    /// Appends a record.
    ///
    /// # Errors
    /// It cannot be written; what was written of it is taken back.
    pub fn put(&mut self, kind: Kind, record: &impl Serialize) -> Result<(), Error> {
        self.append(kind, record)?;
        self.records += 1;
        Ok(())
    }

    fn append(&mut self, kind: Kind, record: &impl Serialize) -> Result<(), Error> {
        self.flush()?;
        let start = self.position;
        self.write_all(&[0; RECORD_HEADER])?;
        let outcome = self.append_payload(record).and_then(|(len, crc)| {
            self.flush()?;
            Ok(self.file.write_all_at(&header(kind, len, crc), start)?)
        });
        if outcome.is_err() {
            (self.filled, self.position) = (0, start);
            self.file.set_len(start)?;
        }
        outcome
    }

    /// Its length and its checksum.
    fn append_payload(&mut self, record: &impl Serialize) -> Result<(u32, u32), Error> {
        let mut payload = Payload { writer: self, crc: crc32fast::Hasher::new(), len: 0 };
        let written = record.serialize(&mut rmp_serde::Serializer::new(&mut payload).with_struct_map());
        let (crc, len) = (payload.crc.clone().finalize(), payload.len);
        let len = u32::try_from(len).ok().filter(|len| *len <= LONGEST).ok_or(Error::TooLong)?;
        written?;
        Ok((len, crc))
    }

    /// Ends and seals it.
    ///
    /// # Errors
    /// The end cannot be written.
    pub fn finish(mut self) -> Result<File, Error> {
        let records = self.records;
        self.append(Kind::END, &Ending { records })?;
        memory::seal(&self.file)?;
        Ok(self.file)
    }
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.filled == self.buffer.len() {
            self.flush()?;
        }
        let count = bytes.len().min(self.buffer.len() - self.filled);
        self.buffer[self.filled..self.filled + count].copy_from_slice(&bytes[..count]);
        self.filled += count;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.write_all_at(&self.buffer[..self.filled], self.position)?;
        self.position += self.filled as u64;
        self.filled = 0;
        Ok(())
    }
}

fn header(kind: Kind, len: u32, crc: u32) -> [u8; RECORD_HEADER] {
    let mut header = [0; RECORD_HEADER];
    header[..4].copy_from_slice(&kind.0.to_le_bytes());
    header[4..8].copy_from_slice(&len.to_le_bytes());
    let own = crc32fast::hash(&header[..8]);
    header[8..12].copy_from_slice(&own.to_le_bytes());
    header[12..].copy_from_slice(&crc.to_le_bytes());
    header
}

/// Counts and sums what a record consists of.
struct Payload<'a> {
    writer: &'a mut Writer,
    crc: crc32fast::Hasher,
    len: u64,
}

impl Write for Payload<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.len > u64::from(LONGEST) {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let count = self.writer.write(bytes)?;
        self.crc.update(&bytes[..count]);
        self.len += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Notes on the file itself that another process begins to read it; says how many did, this one included. A crash does not
/// undo it, because systemd's descriptor shares the note.
pub(super) fn begin_attempt(mut file: &File) -> io::Result<u64> {
    file.seek(SeekFrom::Current(1))
}

/// Reads a snapshot.
pub struct Reader<'a> {
    file: &'a File,
    position: u64,
    len: u64,
    buffer: Buffer,
    /// Records that were there, damaged ones included.
    seen: u64,
    /// Nothing more can be read.
    over: bool,
}

impl std::fmt::Debug for Reader<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").field("position", &self.position).field("len", &self.len).finish_non_exhaustive()
    }
}

impl<'a> Reader<'a> {
    /// Reads from a sealed file.
    ///
    /// # Errors
    /// It is no snapshot that this version can read.
    pub fn new(file: &'a File) -> Result<Self, Error> {
        if !memory::is_sealed(file) {
            return Err(Error::NotSealed);
        }
        let len = file.metadata()?.len();
        let mut header = [0; FILE_HEADER];
        if len < FILE_HEADER as u64 {
            return Err(Error::NotASnapshot);
        }
        file.read_exact_at(&mut header, 0)?;
        if header[..8] != MAGIC {
            return Err(Error::NotASnapshot);
        }
        match number(&header[8..12]) {
            FORMAT => {}
            found => return Err(Error::Format { found }),
        }
        Ok(Self { file, position: FILE_HEADER as u64, len, buffer: Buffer::new(BUFFER)?, seen: 0, over: false })
    }

    /// The next record; `None` at the end. A damaged one is an error, after which the next can be read; after any other
    /// error there is none.
    ///
    /// # Errors
    /// It is damaged, or the snapshot is cut off.
    pub fn record(&mut self) -> Result<Option<(Kind, &[u8])>, Error> {
        if self.over {
            return Ok(None);
        }
        // Until it is known where the next one begins.
        self.over = true;
        let (kind, len, crc) = self.header()?;
        if self.buffer.len() < len {
            self.buffer = Buffer::new(len)?;
        }
        self.file.read_exact_at(&mut self.buffer[..len], self.position)?;
        self.position += len as u64;
        let payload = &self.buffer[..len];
        let whole = crc32fast::hash(payload) == crc;
        if kind == Kind::END {
            let complete = whole && parse::<Ending>(payload).is_ok_and(|end| end.records == self.seen);
            return if complete { Ok(None) } else { Err(Error::Truncated) };
        }
        self.over = false;
        self.seen += 1;
        if whole { Ok(Some((kind, payload))) } else { Err(Error::Damaged) }
    }

    /// Reads the header of a record: its kind, its length, and the checksum of its payload, which is there.
    fn header(&mut self) -> Result<(Kind, usize, u32), Error> {
        let mut header = [0; RECORD_HEADER];
        let left = self.len.saturating_sub(self.position).checked_sub(RECORD_HEADER as u64).ok_or(Error::Truncated)?;
        self.file.read_exact_at(&mut header, self.position)?;
        self.position += RECORD_HEADER as u64;
        let (kind, len) = (number(&header[..4]), number(&header[4..8]));
        if crc32fast::hash(&header[..8]) != number(&header[8..12]) || u64::from(len) > left || len > LONGEST {
            return Err(Error::Truncated);
        }
        let len = usize::try_from(len).map_err(|_| Error::TooLong)?;
        Ok((Kind(kind), len, number(&header[12..])))
    }
}

fn number(bytes: &[u8]) -> u32 {
    bytes.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

/// Reads what a record says.
pub(super) fn parse<T: DeserializeOwned>(payload: &[u8]) -> Result<T, Error> {
    let mut deserializer = rmp_serde::Deserializer::from_read_ref(payload);
    deserializer.set_max_depth(DEPTH);
    Ok(T::deserialize(&mut deserializer)?)
}

#[cfg(test)]
mod tests;
