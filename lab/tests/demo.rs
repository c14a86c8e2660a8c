//! The demo as a person without root sees it, on a machine where that person has a service manager.

use std::ffi::OsStr;
use std::path::Path;
use std::time::Duration;

use bamf_lab::binaries::{self, Defect};
use bamf_lab::machine::{Machine, Options, or_skip};

/// Hands out agents that were built outside, where the real cargo would have to build them again.
const CARGO: &str = r#"#!/bin/sh
set -eu
while [ "$1" != --target-dir ]; do shift; done
mkdir -p "$2/debug"
if [ -n "${BAMF_DEFECT:-}" ]; then
    cp "/opt/agents/$BAMF_VERSION-$BAMF_DEFECT" "$2/debug/defective-agent"
else
    cp "/opt/agents/$BAMF_VERSION" "$2/debug/bamf-agent"
fi
"#;

#[test]
fn without_root_the_demo_uses_the_persons_own_service_manager() {
    if or_skip("without_root_the_demo_uses_the_persons_own_service_manager") {
        return;
    }
    let machine = Machine::boot(Options::default()).unwrap();
    machine.check(["useradd", "--create-home", "--uid", "4242", "dora"]).unwrap();
    machine.check(["mkdir", "-p", "/opt/agents", "/run/user/4242"]).unwrap();
    machine.check(["chown", "dora:", "/run/user/4242"]).unwrap();
    machine.check(["chmod", "0700", "/run/user/4242"]).unwrap();
    machine.write("/opt/cargo", CARGO, 0o755, "root").unwrap();
    machine.copy_in(env!("CARGO_BIN_EXE_bamf-lab"), "/opt/bamf-lab", 0o755).unwrap();
    for version in ["1.0.0", "1.1.0"] {
        machine.copy_in(binaries::agent_binary(version), format!("/opt/agents/{version}"), 0o755).unwrap();
    }
    let broken = binaries::defective_binary("1.2.0", Defect::CrashesWhenReady);
    machine.copy_in(broken, "/opt/agents/1.2.0-crashes-when-ready", 0o755).unwrap();
    // Where the workspace lies outside, cargo is run here too; it need not be visible in the machine, nor open to dora.
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    machine.check([OsStr::new("mkdir"), OsStr::new("-p"), workspace.as_os_str()]).unwrap();
    for directory in workspace.ancestors() {
        machine.check([OsStr::new("chmod"), OsStr::new("o+x"), directory.as_os_str()]).unwrap();
    }
    // Logins start it on an ordinary machine; this one has none.
    machine
        .check([
            "systemd-run",
            "--unit=manager",
            "--uid=dora",
            "--setenv=XDG_RUNTIME_DIR=/run/user/4242",
            "--property=Delegate=yes",
            "--property=Type=notify",
            "/lib/systemd/systemd",
            "--user",
        ])
        .unwrap();

    let output = machine
        .command(["/opt/bamf-lab", "demo"])
        .user("dora")
        .env("HOME", "/home/dora")
        .env("XDG_RUNTIME_DIR", "/run/user/4242")
        .env("CARGO", "/opt/cargo")
        .env("CARGO_TARGET_DIR", "/home/dora/target")
        .limit(Duration::from_secs(120))
        .run()
        .unwrap();
    assert!(output.success(), "{}\n{}", output.stdout, output.stderr);
    assert!(output.stdout.contains("exactly one"), "{}", output.stdout);
    assert!(!machine.path("/run/user/4242/systemd/user/bamf-agent-demo.service").exists(), "nothing stays");
    let left = machine.check(["ls", "-A", "/home/dora"]).unwrap();
    assert!(!left.contains("bamf-agent-demo"), "{left}");
}
