//! An agent that looks right until it runs; how it fails is chosen when it is built.
//!
//! It passes what an updater checks before the swap (`--version`, `selftest`), so that what comes after the swap can be
//! tried: waiting for health, and the way back. It is a program and no shell script, because the updater reads the ELF
//! header first. See `bamf_lab::binaries`.

use std::env;
use std::io::{self, Write as _};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process::ExitCode;
use std::time::Duration;

use bamf_lab::binaries::Defect;

/// Exit codes of contract section 1.
const UNEXPECTED: u8 = 1;
const USAGE: u8 = 2;
const CONFIGURATION: u8 = 78;

/// Well below any `WatchdogSec=` in use.
const WATCHDOG: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let Some(defect) = option_env!("BAMF_DEFECT").and_then(Defect::named) else {
        complain("built without BAMF_DEFECT, so there is nothing wrong that it could do");
        return USAGE.into();
    };
    let arguments: Vec<String> = env::args().skip(1).collect();
    let has = |word: &str| arguments.iter().any(|argument| argument == word);
    if has("--version") || has("version") {
        return match writeln!(io::stdout(), "{}", version()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => UNEXPECTED.into(),
        };
    }
    if has("selftest") {
        return if defect == Defect::FailsSelftest { CONFIGURATION.into() } else { ExitCode::SUCCESS };
    }
    run(defect)
}

/// What every other command line means, with or without the word `run`.
fn run(defect: Defect) -> ExitCode {
    match defect {
        Defect::ExitsAtOnce | Defect::FailsSelftest => {}
        Defect::NeverReady => loop {
            std::thread::park();
        },
        Defect::NoControlSocket => {
            notify("READY=1");
            loop {
                notify("WATCHDOG=1");
                std::thread::sleep(WATCHDOG);
            }
        }
        Defect::CrashesWhenReady => notify("READY=1"),
    }
    complain(defect.name());
    UNEXPECTED.into()
}

fn version() -> String {
    let version = option_env!("BAMF_VERSION").unwrap_or(concat!(env!("CARGO_PKG_VERSION"), "-dev"));
    let arch = match env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    format!("bamf-agent {version} (linux/{arch}, rustc unknown, commit unknown)")
}

/// Tells systemd (sd_notify(3)); without one, nobody.
fn notify(state: &str) {
    let Ok(name) = env::var("NOTIFY_SOCKET") else { return };
    let told = match name.strip_prefix('@') {
        Some(abstract_name) => SocketAddr::from_abstract_name(abstract_name),
        None => SocketAddr::from_pathname(&name),
    }
    .and_then(|address| UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address));
    if let Err(error) = told {
        complain(&format!("cannot tell systemd {state}: {error}"));
    }
}

/// To the journal. Where nobody reads it, nobody misses it.
fn complain(text: &str) {
    drop(writeln!(io::stderr(), "defective agent: {text}"));
}
