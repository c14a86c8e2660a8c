//! Sessions through the real agent: from a client over a bridge to a target, with everything that breaks on the way.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "sessions/breaking.rs"]
mod breaking;
#[path = "sessions/carrying.rs"]
mod carrying;
#[path = "sessions/dialling.rs"]
mod dialling;
#[path = "sessions/hostile.rs"]
mod hostile;
#[path = "sessions/leaving.rs"]
mod leaving;
#[path = "sessions/trust.rs"]
mod trust;

use std::io::{Read as _, Write as _};
use std::time::Duration;

use bamf_lab::client::{AckPolicy, BlockingWire, Options, Pipe, Received};
use bamf_lab::pattern::Pattern;
use bamf_lab::scene::{Scene, Setting};
use bamf_lab::targets::Tcp;

const BINARY: &str = env!("CARGO_BIN_EXE_bamf-agent");

const MIB: u64 = 1 << 20;

fn scene(behaviour: Tcp) -> Scene {
    Scene::new(BINARY, behaviour)
}

fn scene_of(behaviour: Tcp, setting: Setting) -> Scene {
    Scene::of(BINARY, behaviour, setting)
}

/// The platform's habit of acknowledging, without its deadly window.
fn lazy_acks() -> Options {
    Options { acks: AckPolicy::EveryMs(50), ..Options::robust() }
}

/// Writes this much of the pattern.
fn write_pattern(mut pipe: &Pipe, total: u64) {
    let (mut pattern, mut buffer) = (Pattern::default(), vec![0; 256 * 1024]);
    while pattern.position() < total {
        let count = usize::try_from(total - pattern.position()).unwrap().min(buffer.len());
        pattern.fill(&mut buffer[..count]);
        pipe.write_all(&buffer[..count]).unwrap();
    }
}

/// Reads until so much of the pattern has come.
fn read_pattern(pipe: &Pipe, total: u64) {
    read_on(pipe, &mut Pattern::default(), total);
}

/// The same from where `pattern` is.
fn read_on(mut pipe: &Pipe, pattern: &mut Pattern, total: u64) {
    let mut buffer = vec![0; 256 * 1024];
    while pattern.position() < total {
        let room = usize::try_from(total - pattern.position()).unwrap().min(buffer.len());
        match pipe.read(&mut buffer[..room]) {
            Ok(count @ 1..) => pattern.check(&buffer[..count]).unwrap(),
            ended => panic!("{ended:?} at byte {}: {:?}", pattern.position(), pipe.tunnel.status()),
        }
    }
}

/// Sends this much of the pattern to an echo and reads it back at the same time.
fn echo(pipe: &Pipe, total: u64) {
    std::thread::scope(|scope| {
        scope.spawn(|| write_pattern(pipe, total));
        read_pattern(pipe, total);
    });
}

/// Says something to an echo and hears it.
fn ping(mut pipe: &Pipe, word: &[u8]) {
    pipe.write_all(word).unwrap();
    let mut answer = vec![0; word.len()];
    pipe.read_exact(&mut answer).unwrap();
    assert_eq!(answer, word);
}

/// The id of a session.
fn id(pipe: &Pipe) -> String {
    pipe.tunnel.session().unwrap().session_id.clone()
}

/// Payload frames of an echo until so many bytes have come.
fn hear(wire: &mut BlockingWire, length: usize) -> Vec<u8> {
    let mut heard = Vec::new();
    while heard.len() < length {
        let received = wire.next_but_acks(Duration::from_secs(20)).unwrap();
        let Received::Data { payload, .. } = received else { panic!("{received:?} after {} bytes", heard.len()) };
        heard.extend(payload);
    }
    heard
}
