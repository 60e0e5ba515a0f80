//! Facts about the running system, from `/proc`.

use api::owner::Memory;

/// Returns the seconds since the boot.
pub(super) fn uptime_seconds() -> Option<f64> {
    std::fs::read_to_string("/proc/uptime").ok()?.split(' ').next()?.parse().ok()
}

/// Returns the host name, or an empty text if it is unknown.
pub(super) fn hostname() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned()
}

/// Returns the memory of the node (proc_meminfo(5)).
pub(super) fn memory() -> Memory {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    Memory {
        total_kib: find_kib(&text, "MemTotal:"),
        available_kib: find_kib(&text, "MemAvailable:"),
    }
}

/// Returns the resident memory of this process in bytes (proc_pid_status(5), VmRSS).
pub(super) fn resident_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    Some(find_kib(&text, "VmRSS:")? * 1024)
}

/// Returns the number of processes. Threads of the kernel have no command line and do not count.
pub(super) fn process_count() -> usize {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_name().to_string_lossy().bytes().all(|b| b.is_ascii_digit()))
        .filter(|entry| {
            std::fs::read(entry.path().join("cmdline")).is_ok_and(|line| !line.is_empty())
        })
        .count()
}

/// Returns the value of a line such as `MemTotal:  1024 kB`. The kernel's `kB` are KiB.
fn find_kib(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().strip_suffix(" kB")?.parse().ok())
}
