//! The agent's unit file under real systemd: what the sandbox lets a program do, and what it refuses.
//!
//! A stand-in takes the agent's place, so that a failure here is the unit file's and nobody else's. It is this very test
//! program, copied into the machine, running its `stand_in`.

use std::io::Write as _;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::time::Duration;

use bamf_lab::machine::{Machine, Options, or_skip};
use nix::sys::signal::Signal;

const TEN_SECONDS: Duration = Duration::from_secs(10);

#[test]
#[ignore = "runs inside a machine, as the service"]
fn stand_in() {
    let name =
        |result: std::io::Result<()>| result.map_or_else(|error| format!("{:?}", error.kind()), |()| "fine".to_owned());
    let report = [
        ("state", name(std::fs::write("/var/lib/bamf-agent/agent.key", "x"))),
        ("control socket", name(UnixListener::bind("/run/bamf-agent/agent.sock").map(drop))),
        ("bus", name(UnixStream::connect("/run/dbus/system_bus_socket").map(drop))),
        ("name", name(std::net::TcpListener::bind("localhost:0").map(drop))),
        ("thread", name(std::thread::Builder::new().spawn(|| ()).map(|thread| thread.join().unwrap()))),
        ("trust store", name(std::fs::read("/etc/ssl/certs/ca-certificates.crt").map(drop))),
        ("machine id", name(std::fs::read("/etc/machine-id").map(drop))),
        ("own binary", name(std::fs::write("/usr/local/bin/bamf-agent", "x"))),
        ("updater's state", name(std::fs::read_dir("/var/lib/bamf-agent-updater").map(drop))),
        ("other processes", name(std::fs::read("/proc/1/cmdline").map(drop))),
    ];
    let report: String = report.iter().map(|(what, how)| format!("{what}: {how}\n")).collect();
    std::fs::File::create("/var/lib/bamf-agent/report").unwrap().write_all(report.as_bytes()).unwrap();
    let notify = UnixDatagram::unbound().unwrap();
    notify.send_to(b"READY=1", std::env::var("NOTIFY_SOCKET").unwrap()).unwrap();
    loop {
        std::thread::park();
    }
}

/// A machine where the agent's unit runs the stand-in.
fn installed() -> Machine {
    let machine = Machine::boot(Options::default()).expect("machines are available");
    install(&machine).expect("the unit starts");
    machine
}

fn install(machine: &Machine) -> Result<(), bamf_lab::machine::Error> {
    let units = concat!(env!("CARGO_MANIFEST_DIR"), "/../systemd");
    machine.copy_in(format!("{units}/bamf-agent.service"), "/etc/systemd/system/bamf-agent.service", 0o644)?;
    machine.copy_in(format!("{units}/bamf-agent.sysusers"), "/usr/lib/sysusers.d/bamf-agent.conf", 0o644)?;
    machine.check(["systemd-sysusers"])?;
    machine.check(["install", "-d", "-m", "0700", "/var/lib/bamf-agent-updater"])?;
    machine.copy_in(std::env::current_exe().unwrap_or_default(), "/usr/local/bin/bamf-agent", 0o755)?;
    let only_the_program =
        "[Service]\nExecStart=\nExecStart=/usr/local/bin/bamf-agent --ignored --exact stand_in --nocapture\n";
    machine.write("/etc/systemd/system/bamf-agent.service.d/stand-in.conf", only_the_program, 0o644, "root:root")?;
    machine.check(["systemctl", "daemon-reload"])?;
    machine.check(["systemctl", "start", "bamf-agent"])?;
    Ok(())
}

#[test]
fn the_sandbox_allows_what_the_agent_does_and_nothing_else() {
    if or_skip("the_sandbox_allows_what_the_agent_does_and_nothing_else") {
        return;
    }
    let machine = installed();
    let report = String::from_utf8(machine.read("/var/lib/bamf-agent/report").unwrap()).unwrap();
    let expected = "state: fine\n\
        control socket: fine\n\
        bus: fine\n\
        name: fine\n\
        thread: fine\n\
        trust store: fine\n\
        machine id: fine\n\
        own binary: ReadOnlyFilesystem\n\
        updater's state: PermissionDenied\n\
        other processes: NotFound\n";
    assert_eq!(report, expected);
    let stat = machine.check(["stat", "-c", "%a %U:%G", "/var/lib/bamf-agent", "/run/bamf-agent"]).unwrap();
    assert_eq!(stat, "700 bamf:bamf\n755 bamf:bamf\n");
    // Other users cannot read the key.
    assert!(!machine.exec_as("nobody", ["cat", "/var/lib/bamf-agent/agent.key"]).unwrap().success());
}

#[test]
fn the_agent_comes_back_however_often_it_is_killed() {
    if or_skip("the_agent_comes_back_however_often_it_is_killed") {
        return;
    }
    let machine = installed();
    // More often than systemd's default start limit (5 in 10 s) would forgive.
    for round in 1..=8 {
        let before = machine.main_pid("bamf-agent").unwrap();
        machine.kill("bamf-agent", Signal::SIGKILL).unwrap();
        let back = |m: &Machine| {
            m.main_pid("bamf-agent").unwrap() != before && m.property("bamf-agent", "ActiveState").unwrap() == "active"
        };
        machine.wait_until(&format!("start number {round}"), TEN_SECONDS, back).unwrap();
    }
}

#[test]
fn an_invalid_configuration_is_not_tried_again() {
    if or_skip("an_invalid_configuration_is_not_tried_again") {
        return;
    }
    let machine = installed();
    let wrong = "[Service]\nExecStart=\nExecStart=/bin/sh -c 'exit 78'\n";
    machine.write("/etc/systemd/system/bamf-agent.service.d/wrong.conf", wrong, 0o644, "root:root").unwrap();
    machine.check(["systemctl", "daemon-reload"]).unwrap();
    assert!(!machine.exec(["systemctl", "restart", "bamf-agent"]).unwrap().success());
    machine
        .wait_until("the failed state", TEN_SECONDS, |m| m.property("bamf-agent", "ActiveState").unwrap() == "failed")
        .unwrap();
    assert_eq!(machine.property("bamf-agent", "ExecMainStatus").unwrap(), "78");
}
