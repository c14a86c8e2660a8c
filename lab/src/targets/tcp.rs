//! TCP services, each as simple as can be said in one sentence.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use super::Shared;
use crate::pattern::Pattern;

const BUFFER: usize = 256 << 10;
/// The size of a request and of its answer in [`Tcp::PingPong`].
pub(super) const PING: usize = 64;

/// What a service does after its last byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// Close the connection.
    Close,
    /// Keep it, and wait for the peer to close.
    Hold,
}

/// How a TCP service behaves.
#[derive(Clone, Debug)]
pub enum Tcp {
    /// Sends back what comes.
    Echo,
    /// Sends this much of the pattern, after the first byte has come.
    Source(u64, Then),
    /// Sends this much of the pattern as soon as it is connected to.
    EagerSource(u64, Then),
    /// Reads everything and compares it with the pattern; a mismatch is a complaint and ends the connection.
    Sink,
    /// The same, at most this many bytes a second.
    SlowSink(u64),
    /// The same, but reads nothing before the target is resumed.
    StalledSink,
    /// Says this at once, then echoes.
    Banner(Vec<u8>),
    /// Says this when the first bytes have come, closes its sending side, and reads on.
    HalfClose(Vec<u8>),
    /// Answers every 64 bytes with the same 64 bytes, and never with part of them.
    PingPong,
    /// Accepts, reads, and says nothing.
    Silent,
    /// Resets the connection when the first bytes have come.
    Reset,
    /// Reads everything and compares it with the pattern, at most this many bytes a second, and says a few bytes all the
    /// while, to the very end.
    Grumble(u64),
    /// Sends this much of the pattern before it reads anything, then reads everything.
    Stubborn(u64),
    /// Sends as much more of the pattern as each eight bytes ask for (big endian), at most this many bytes a second.
    Portions(u64),
    /// Reads everything and compares it with the pattern, and says after every read how much there was in all: eight bytes,
    /// big endian.
    Receipts,
}

pub(super) fn serve(behaviour: &Tcp, mut stream: TcpStream, shared: &Shared) -> io::Result<()> {
    match behaviour {
        Tcp::Echo => echo(stream, shared),
        Tcp::Source(total, then) => {
            let count = stream.read(&mut [0; 4096])?;
            shared.note(|seen| seen.received += count as u64);
            source(stream, *total, *then, shared)
        }
        Tcp::EagerSource(total, then) => source(stream, *total, *then, shared),
        Tcp::Sink => sink(stream, u64::MAX, shared),
        Tcp::SlowSink(rate) => sink(stream, *rate, shared),
        Tcp::StalledSink => {
            shared.wait_resumed(1);
            sink(stream, u64::MAX, shared)
        }
        Tcp::Banner(text) => {
            stream.write_all(text)?;
            echo(stream, shared)
        }
        Tcp::HalfClose(text) => {
            let count = stream.read(&mut [0; 4096])?;
            shared.note(|seen| seen.received += count as u64);
            stream.write_all(text)?;
            stream.shutdown(Shutdown::Write)?;
            drain(stream, shared)
        }
        Tcp::PingPong => ping_pong(stream, shared),
        Tcp::Silent => drain(stream, shared),
        Tcp::Reset => {
            stream.read_exact(&mut [0])?;
            reset(&stream)
        }
        Tcp::Grumble(rate) => {
            let mut voice = stream.try_clone()?;
            // It ends with the first word that nobody takes.
            std::thread::spawn(move || {
                while voice.write_all(b"grumble ").is_ok() {
                    std::thread::sleep(Duration::from_millis(2));
                }
            });
            sink(stream, *rate, shared)
        }
        Tcp::Stubborn(total) => {
            send_pattern(&mut stream, *total, shared)?;
            drain(stream, shared)
        }
        Tcp::Portions(rate) => portions(stream, *rate, shared),
        Tcp::Receipts => receipts(stream, shared),
    }
}

/// Makes the end of the connection a reset instead of a FIN.
pub(super) fn reset(stream: &TcpStream) -> io::Result<()> {
    // Waiting for zero seconds makes close(2) throw away what is unsent and reset the connection (socket(7), SO_LINGER).
    tokio::net::TcpSocket::from_std_stream(stream.try_clone()?).set_zero_linger()
}

fn echo(mut stream: TcpStream, shared: &Shared) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            count => {
                shared.note(|seen| seen.received += count as u64);
                stream.write_all(&buffer[..count])?;
                shared.note(|seen| seen.sent += count as u64);
            }
        }
    }
}

fn source(mut stream: TcpStream, total: u64, then: Then, shared: &Shared) -> io::Result<()> {
    send_pattern(&mut stream, total, shared)?;
    match then {
        Then::Close => stream.shutdown(Shutdown::Write),
        Then::Hold => drain(stream, shared),
    }
}

/// Writes the first `total` bytes of the pattern.
pub(super) fn send_pattern(stream: &mut TcpStream, total: u64, shared: &Shared) -> io::Result<()> {
    let (mut pattern, mut buffer) = (Pattern::default(), vec![0; BUFFER]);
    while pattern.position() < total {
        let length = usize::try_from(total - pattern.position()).unwrap_or(BUFFER).min(BUFFER);
        pattern.fill(&mut buffer[..length]);
        stream.write_all(&buffer[..length])?;
        shared.note(|seen| seen.sent += length as u64);
    }
    Ok(())
}

fn sink(mut stream: TcpStream, rate: u64, shared: &Shared) -> io::Result<()> {
    let (mut pattern, began) = (Pattern::default(), Instant::now());
    // A slow reader takes small bites, so that it is slow evenly.
    let mut buffer = vec![0; usize::try_from(rate / 20).unwrap_or(BUFFER).clamp(1, BUFFER)];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            count => {
                if let Err(mismatch) = pattern.check(&buffer[..count]) {
                    shared.note(|seen| seen.complaints.push(mismatch.to_string()));
                    return Ok(());
                }
                shared.note(|seen| seen.received += count as u64);
            }
        }
        if rate != u64::MAX {
            let due = Duration::from_secs_f64(pattern.position() as f64 / rate as f64);
            std::thread::sleep(due.saturating_sub(began.elapsed()));
        }
    }
}

fn portions(mut stream: TcpStream, rate: u64, shared: &Shared) -> io::Result<()> {
    let (mut pattern, mut asked) = (Pattern::default(), [0; 8]);
    loop {
        match stream.read_exact(&mut asked) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            read => read?,
        }
        shared.note(|seen| seen.received += asked.len() as u64);
        send_slowly(&mut stream, &mut pattern, u64::from_be_bytes(asked), rate, shared)?;
    }
}

/// Writes the next `length` bytes of the pattern, evenly, at most `rate` of them a second.
pub(super) fn send_slowly(
    stream: &mut TcpStream,
    pattern: &mut Pattern,
    length: u64,
    rate: u64,
    shared: &Shared,
) -> io::Result<()> {
    let (first, began) = (pattern.position(), Instant::now());
    let mut buffer = vec![0; usize::try_from(rate / 20).unwrap_or(BUFFER).clamp(1, BUFFER)];
    while pattern.position() < first + length {
        let left = usize::try_from(first + length - pattern.position()).unwrap_or(BUFFER);
        let piece = left.min(buffer.len());
        pattern.fill(&mut buffer[..piece]);
        stream.write_all(&buffer[..piece])?;
        shared.note(|seen| seen.sent += piece as u64);
        let due = Duration::from_secs_f64((pattern.position() - first) as f64 / rate as f64);
        std::thread::sleep(due.saturating_sub(began.elapsed()));
    }
    Ok(())
}

fn receipts(mut stream: TcpStream, shared: &Shared) -> io::Result<()> {
    let (mut pattern, mut buffer) = (Pattern::default(), vec![0; BUFFER]);
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            count => {
                if let Err(mismatch) = pattern.check(&buffer[..count]) {
                    shared.note(|seen| seen.complaints.push(mismatch.to_string()));
                    return Ok(());
                }
                shared.note(|seen| seen.received += count as u64);
                stream.write_all(&pattern.position().to_be_bytes())?;
            }
        }
    }
}

/// Reads to the end.
pub(super) fn drain(mut stream: TcpStream, shared: &Shared) -> io::Result<()> {
    let mut buffer = vec![0; 16 << 10];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            count => shared.note(|seen| seen.received += count as u64),
        }
    }
}

fn ping_pong(mut stream: TcpStream, shared: &Shared) -> io::Result<()> {
    let mut ball = [0; PING];
    loop {
        match stream.read_exact(&mut ball) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            read => read?,
        }
        stream.write_all(&ball)?;
        shared.note(|seen| {
            seen.received += PING as u64;
            seen.sent += PING as u64;
        });
    }
}
