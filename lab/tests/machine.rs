//! Machines do what the tests of the agent rely on; skipped by name where there is no root.

#![expect(clippy::unwrap_used, reason = "in a test the error is the report")]

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bamf_lab::machine::{Down, Error, Machine, Options, or_skip, report_skipped};
use nix::sys::signal::Signal;

const TEN_SECONDS: Duration = Duration::from_secs(10);

/// A machine with a service `sleeper` that systemd restarts.
fn with_sleeper() -> Machine {
    let machine = Machine::boot(Options::default()).unwrap();
    let unit = "[Service]\nExecStart=/bin/sleep infinity\nRestart=always\nRestartSec=0\n[Install]\nWantedBy=multi-user.target\n";
    machine.write("/etc/systemd/system/sleeper.service", unit, 0o644, "root:root").unwrap();
    machine.check(["systemctl", "enable", "--now", "sleeper"]).unwrap();
    machine
}

#[test]
fn a_machine_runs_systemd_and_nothing_of_the_host() {
    if or_skip("a_machine_runs_systemd_and_nothing_of_the_host") {
        return;
    }
    let machine = Machine::boot(Options { hostname: "lonely".to_owned(), ..Options::default() }).unwrap();
    assert_eq!(machine.check(["systemctl", "is-system-running"]).unwrap(), "running\n");
    assert_eq!(machine.check(["cat", "/proc/1/comm"]).unwrap(), "systemd\n");
    assert_eq!(machine.check(["hostname"]).unwrap(), "lonely\n");
    assert_eq!(machine.read("/etc/machine-id").unwrap().len(), 33);
    assert_ne!(machine.read("/etc/machine-id").unwrap(), std::fs::read("/etc/machine-id").unwrap_or_default());
    // Ours is the only thing in /var/tmp, and no other network interface than the loopback exists.
    assert_eq!(machine.check(["sh", "-c", "ls /var/tmp | grep -v systemd-private || true"]).unwrap(), "");
    assert_eq!(machine.check(["ls", "/sys/class/net"]).unwrap(), "lo\n");
    let services =
        machine.check(["systemctl", "list-units", "--type=service", "--state=running", "--plain", "--no-legend"]);
    let services = services.unwrap();
    for line in services.lines() {
        assert!(line.starts_with("dbus") || line.starts_with("systemd-journald"), "unexpected service: {line}");
    }
}

#[test]
fn machines_side_by_side_do_not_see_each_other() {
    if or_skip("machines_side_by_side_do_not_see_each_other") {
        return;
    }
    let machines: Vec<_> = std::thread::scope(|scope| {
        let booting: Vec<_> = (0..3).map(|_| scope.spawn(|| Machine::boot(Options::default()).unwrap())).collect();
        booting.into_iter().map(|machine| machine.join().unwrap()).collect()
    });
    machines[0].write("/etc/marker", "first", 0o600, "root:root").unwrap();
    assert_eq!(machines[0].read("/etc/marker").unwrap(), b"first");
    assert!(machines[1].read("/etc/marker").is_err());
    let ids: std::collections::BTreeSet<_> = machines.iter().map(|m| m.read("/etc/machine-id").unwrap()).collect();
    assert_eq!(ids.len(), 3);
    assert!(!Path::new("/etc/marker").exists());
}

#[test]
fn commands_report_status_output_user_environment_and_input() {
    if or_skip("commands_report_status_output_user_environment_and_input") {
        return;
    }
    let machine = Machine::boot(Options::default()).unwrap();
    let output = machine.exec(["sh", "-c", "echo out; echo err >&2; exit 7"]).unwrap();
    assert_eq!((output.code(), output.stdout.as_str(), output.stderr.as_str()), (Some(7), "out\n", "err\n"));
    let failed = machine.check(["sh", "-c", "echo why >&2; exit 3"]).unwrap_err();
    assert!(failed.to_string().contains("why") && failed.to_string().contains("exit status: 3"), "{failed}");
    assert_eq!(machine.exec_as("nobody", ["id", "-un"]).unwrap().stdout, "nobody\n");
    let environment = machine.exec_with_env(&[("BAMF_X", "y")], ["env"]).unwrap().stdout;
    assert!(environment.contains("BAMF_X=y\n") && !environment.contains("CARGO"), "{environment}");
    assert_eq!(machine.command(["cat"]).input("through").check().unwrap(), "through");
}

#[test]
fn nothing_in_a_machine_can_set_the_hosts_clock_or_load_modules() {
    if or_skip("nothing_in_a_machine_can_set_the_hosts_clock_or_load_modules") {
        return;
    }
    // capability.h: CAP_SYS_MODULE is bit 16, CAP_SYS_TIME bit 25. Looked up, not tried: a test that fails should not
    // take the host's clock along.
    const FORBIDDEN: u64 = 1 << 16 | 1 << 25;
    let machine = Machine::boot(Options::default()).unwrap();
    let show = ["grep", "^Cap", "/proc/self/status"];
    let by_systemd = machine.check(["systemd-run", "--quiet", "--wait", "--pipe"].iter().chain(&show)).unwrap();
    for capabilities in [machine.check(show).unwrap(), by_systemd] {
        let sets: Vec<_> = capabilities
            .lines()
            .map(|line| u64::from_str_radix(line.split_once(":\t").unwrap().1, 16).unwrap())
            .collect();
        assert_eq!(sets.len(), 5, "{capabilities}");
        assert!(sets.iter().all(|set| set & FORBIDDEN == 0), "{capabilities}");
        // Root all the same.
        assert!(sets.iter().any(|set| *set != 0), "{capabilities}");
    }
}

#[test]
fn a_command_that_hangs_is_killed_inside_too() {
    if or_skip("a_command_that_hangs_is_killed_inside_too") {
        return;
    }
    let machine = Machine::boot(Options::default()).unwrap();
    let slow = machine.command(["sh", "-c", "echo begun; sleep 4711"]).limit(Duration::from_millis(300)).run();
    let Err(Error::TooSlow { output, .. }) = slow else { panic!("{slow:?}") };
    assert_eq!(output.stdout, "begun\n");
    machine
        .wait_until("the killed sleep to be gone", TEN_SECONDS, |m| {
            !m.exec(["pgrep", "-f", "sleep 4711"]).unwrap().success()
        })
        .unwrap();
    // Something left behind with our output open holds nobody up.
    let left = machine.command(["sh", "-c", "setsid sleep 4712 & echo done"]).limit(TEN_SECONDS).check().unwrap();
    assert_eq!(left, "done\n");
}

#[test]
fn a_background_command_runs_until_it_is_ended() {
    if or_skip("a_background_command_runs_until_it_is_ended") {
        return;
    }
    let machine = Machine::boot(Options::default()).unwrap();
    let mut running =
        machine.spawn(["sh", "-c", "trap 'echo bye; exit 5' TERM; echo up; while :; do sleep 0.05; done"]).unwrap();
    machine.wait_until("the first line", TEN_SECONDS, |_| running.printed().0 == "up\n").unwrap();
    assert!(running.is_running());
    let output = running.end(Signal::SIGTERM, TEN_SECONDS).unwrap();
    assert!(output.stdout.ends_with("bye\n"), "{output:?}");
}

#[test]
fn a_killed_service_comes_back_with_another_pid() {
    if or_skip("a_killed_service_comes_back_with_another_pid") {
        return;
    }
    let machine = with_sleeper();
    let before = machine.main_pid("sleeper").unwrap().unwrap();
    machine.kill("sleeper", Signal::SIGKILL).unwrap();
    let came_back = |m: &Machine| m.main_pid("sleeper").unwrap().is_some_and(|pid| pid != before);
    machine.wait_until("the restart", TEN_SECONDS, came_back).unwrap();
    assert_eq!(machine.property("sleeper", "NRestarts").unwrap(), "1");
    assert!(machine.journal("sleeper").unwrap().contains("code=killed, status=9/KILL"));
    machine.check(["systemctl", "stop", "sleeper"]).unwrap();
    assert_eq!(machine.main_pid("sleeper").unwrap(), None);
}

#[test]
fn a_reboot_keeps_disk_journal_and_network_and_nothing_else() {
    if or_skip("a_reboot_keeps_disk_journal_and_network_and_nothing_else") {
        return;
    }
    let mut machine = with_sleeper();
    machine.write("/var/lib/kept", "x", 0o600, "root:root").unwrap();
    machine.write("/run/lost", "x", 0o600, "root:root").unwrap();
    let server = machine.network().bind(0).unwrap();
    let reach = format!("exec 3<>/dev/tcp/127.0.0.1/{}", server.local_addr().unwrap().port());
    let boot_id = |m: &Machine| m.check(["cat", "/proc/sys/kernel/random/boot_id"]).unwrap();
    let mut ids = vec![boot_id(&machine)];
    for down in [Down::Clean, Down::PowerCut] {
        machine.reboot(down).unwrap();
        ids.push(boot_id(&machine));
        assert_eq!(machine.read("/var/lib/kept").unwrap(), b"x", "{down:?}");
        assert!(machine.read("/run/lost").is_err(), "{down:?}");
        assert!(machine.main_pid("sleeper").unwrap().is_some(), "{down:?}");
        machine.check(["bash", "-c", &reach]).unwrap();
        let uptime = machine.check(["cut", "-d.", "-f1", "/proc/uptime"]).unwrap();
        assert!(uptime.trim().parse::<u32>().unwrap() < 60, "{down:?}: {uptime}");
    }
    ids.dedup();
    assert_eq!(ids.len(), 3, "{ids:?}");
    let journal = machine.journal("sleeper").unwrap();
    assert_eq!(journal.matches("Started").count(), 3, "{journal}");
    // The clean reboot stopped the service; the power cut said nothing.
    assert_eq!(journal.matches("Stopped").count(), 1, "{journal}");
}

#[test]
fn descriptors_stored_by_a_service_survive_its_death() {
    if or_skip("descriptors_stored_by_a_service_survive_its_death") {
        return;
    }
    let machine = Machine::boot(Options::default()).unwrap();
    let store = "import os, socket, array, time\n\
        n = int(os.environ.get('LISTEN_FDS', '0'))\n\
        print('inherited', n, os.environ.get('LISTEN_FDNAMES'), flush=True)\n\
        s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n\
        a = os.environ['NOTIFY_SOCKET']\n\
        s.connect('\\0' + a[1:] if a[0] == '@' else a)\n\
        if n == 0:\n    s.sendmsg([b'FDSTORE=1\\nFDNAME=kept'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [os.memfd_create('x')]))])\n\
        s.send(b'READY=1')\n\
        time.sleep(10000)\n";
    if !machine.exec(["python3", "--version"]).unwrap().success() {
        report_skipped("descriptors_stored_by_a_service_survive_its_death", "needs python3");
        return;
    }
    machine.write("/usr/local/bin/keep.py", store, 0o755, "root:root").unwrap();
    let unit = "[Service]\nType=notify\nExecStart=/usr/bin/env python3 /usr/local/bin/keep.py\nRestart=always\nRestartSec=0\n\
        FileDescriptorStoreMax=4\nDynamicUser=yes\nProtectSystem=strict\nPrivateUsers=yes\nPrivateTmp=yes\n";
    machine.write("/etc/systemd/system/keep.service", unit, 0o644, "root:root").unwrap();
    machine.check(["systemctl", "start", "keep"]).unwrap();
    machine.check(["systemctl", "restart", "keep"]).unwrap();
    let pid = machine.main_pid("keep").unwrap();
    machine.kill("keep", Signal::SIGKILL).unwrap();
    let back = |m: &Machine| m.property("keep", "SubState").unwrap() == "running" && m.main_pid("keep").unwrap() != pid;
    machine.wait_until("the restart", TEN_SECONDS, back).unwrap();
    let journal = machine.journal("keep").unwrap();
    assert_eq!(journal.matches("inherited 1 kept").count(), 2, "{journal}");
}

#[test]
fn files_have_the_mode_and_owner_asked_for_and_replace_a_running_binary() {
    if or_skip("files_have_the_mode_and_owner_asked_for_and_replace_a_running_binary") {
        return;
    }
    let machine = Machine::boot(Options::default()).unwrap();
    machine.write("/etc/deep/er/file", "secret", 0o640, "root:daemon").unwrap();
    assert_eq!(machine.check(["stat", "-c", "%a %U %G", "/etc/deep/er/file"]).unwrap(), "640 root daemon\n");
    machine.copy_in("/bin/sleep", "/usr/local/bin/nap", 0o755).unwrap();
    let nap = machine.spawn(["/usr/local/bin/nap", "1000"]).unwrap();
    machine.copy_in("/bin/true", "/usr/local/bin/nap", 0o755).unwrap();
    machine.check(["/usr/local/bin/nap"]).unwrap();
    drop(nap);
    // /var/run is a link to /run, an absolute one on some systems.
    machine.check(["ln", "-sfn", "/run", "/var/absolute"]).unwrap();
    machine.write("/var/absolute/lab-marker", "x", 0o600, "root:root").unwrap();
    assert_eq!(machine.check(["cat", "/run/lab-marker"]).unwrap(), "x");
    assert!(!Path::new("/run/lab-marker").exists());
}

#[test]
fn disks_fill_up_and_turn_read_only() {
    if or_skip("disks_fill_up_and_turn_read_only") {
        return;
    }
    let machine = Machine::boot(Options::default()).unwrap();
    machine.mount_small_tmpfs("/mnt/small", 64 * 1024).unwrap();
    let full = machine.exec(["dd", "if=/dev/zero", "of=/mnt/small/x", "bs=4096", "count=100"]).unwrap();
    assert!(full.stderr.contains("No space left"), "{full:?}");
    machine.unmount("/mnt/small").unwrap();
    machine.remount_read_only("/opt").unwrap();
    let refused = machine.exec(["touch", "/opt/x"]).unwrap();
    assert!(refused.stderr.contains("Read-only"), "{refused:?}");
    machine.unmount("/opt").unwrap();
    machine.check(["touch", "/opt/x"]).unwrap();
}

#[test]
fn a_trusted_authority_is_added_to_the_store() {
    if or_skip("a_trusted_authority_is_added_to_the_store") {
        return;
    }
    let machine = Machine::boot(Options::default()).unwrap();
    let before = machine.read("/etc/ssl/certs/ca-certificates.crt").unwrap_or_default();
    machine.trust("-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n").unwrap();
    let after = machine.read("/etc/ssl/certs/ca-certificates.crt").unwrap();
    assert!(after.starts_with(&before) && after.len() > before.len());
}

#[test]
fn a_dropped_machine_leaves_nothing_behind() {
    if or_skip("a_dropped_machine_leaves_nothing_behind") {
        return;
    }
    let machine = with_sleeper();
    let root = machine.path("/");
    let pid = root.components().nth(2).unwrap().as_os_str().to_owned();
    let directory = disk_of(&machine);
    assert!(directory.join("upper").exists());
    drop(machine);
    assert!(!directory.exists());
    assert!(!Path::new("/proc").join(pid).exists());
    assert_eq!(cgroups_of(&directory), "");
}

/// The cgroups on the host of the machine with this disk, one per line.
fn cgroups_of(disk: &Path) -> String {
    let name = disk.file_name().unwrap_or_default();
    let found = std::process::Command::new("find").args(["/sys/fs/cgroup", "-name"]).arg(name).output();
    String::from_utf8_lossy(&found.expect("find exists").stdout).into_owned()
}

/// Where the host keeps a machine's disk, from the machine's own mount table.
fn disk_of(machine: &Machine) -> PathBuf {
    let mounts = machine.check(["cat", "/proc/mounts"]).unwrap();
    let upper = mounts.split(['(', ',', ' ']).find_map(|option| option.strip_prefix("upperdir=")).unwrap();
    Path::new(upper).parent().unwrap().to_owned()
}

/// Not a test of its own: the process that the next test kills. It boots a machine, says where, and waits.
#[test]
#[ignore = "run by a_machine_dies_with_a_killed_test"]
fn victim() {
    let machine = Machine::boot(Options::default()).unwrap();
    println!("disk={}", disk_of(&machine).display());
    loop {
        std::thread::park();
    }
}

/// Starts the victim and waits until its machine runs; returns it and where the machine's disk is.
fn victim_with_disk() -> (std::process::Child, PathBuf) {
    let mut victim = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "victim", "--nocapture"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(victim.stdout.take().unwrap()).lines();
    let disk = lines.map_while(Result::ok).find_map(|line| line.split_once("disk=").map(|(_, disk)| disk.to_owned()));
    let disk = PathBuf::from(disk.expect("the victim says where its disk is"));
    assert!(disk.exists());
    (victim, disk)
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + TEN_SECONDS;
    while !condition() {
        assert!(std::time::Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The host's processes whose command line names this path.
fn processes_of(disk: &Path) -> Vec<i32> {
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    all.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(disk.to_str().unwrap())
        })
        .collect()
}

#[test]
fn a_machine_dies_with_a_killed_test() {
    if or_skip("a_machine_dies_with_a_killed_test") {
        return;
    }
    let (mut victim, disk) = victim_with_disk();
    victim.kill().unwrap();
    victim.wait().unwrap();
    wait_until("the disk to be removed", || !disk.exists());
}

#[test]
fn what_a_killed_keeper_left_is_removed_by_the_next_machine() {
    if or_skip("what_a_killed_keeper_left_is_removed_by_the_next_machine") {
        return;
    }
    let (mut victim, disk) = victim_with_disk();
    let [keeper] = processes_of(&disk.join("keeper.sh"))[..] else { panic!("not one keeper") };
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(keeper), Signal::SIGKILL).unwrap();
    victim.kill().unwrap();
    victim.wait().unwrap();
    wait_until("the machine's processes to die", || processes_of(&disk).is_empty());
    drop(Machine::boot(Options::default()).unwrap());
    assert!(!disk.exists());
    assert_eq!(cgroups_of(&disk), "");
}
