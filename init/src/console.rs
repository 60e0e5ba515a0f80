//! One line at a time on the console, with the seconds since the kernel started.

use std::io::Write as _;

pub(crate) fn say(text: &str) {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME)
        .map(std::time::Duration::from)
        .unwrap_or_default();
    // A console that cannot be written to is no reason to stop.
    let _ = writeln!(std::io::stdout(), "basalt[{:8.3}] {text}", now.as_secs_f64());
}

/// A line of a service.
pub(crate) fn relay(service: &str, line: &str) {
    let _ = writeln!(std::io::stdout(), "{service}: {line}");
}
