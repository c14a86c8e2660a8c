//! What a process has used: processor time, memory, descriptors, as proc(5) tells.

use std::time::Duration;

/// Clock ticks a second in `/proc/PID/stat`; 100 on every Linux that is not built by hand (proc(5), sysconf(3)).
const TICKS: u32 = 100;

/// User and system time so far.
#[must_use]
pub fn cpu(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name may have spaces; what follows it does not.
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<u32>().ok()).unwrap_or_default();
    Duration::from_secs(1) * (ticks(11) + ticks(12)) / TICKS
}

/// A line of `/proc/PID/smaps_rollup`, in bytes.
///
/// # Errors
/// The process or the line is not there.
pub fn memory(pid: u32, key: &str) -> Result<u64, String> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let rollup = std::fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
    let kib =
        rollup.lines().find_map(|line| line.strip_prefix(key)?.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    kib.map(|kib| kib * 1024).ok_or_else(|| format!("no {key} in {path}"))
}

/// Open descriptors.
#[must_use]
pub fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}
