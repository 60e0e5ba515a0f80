//! The console: all lines of init and of its services, each with one prefix.

use std::io::Write as _;
use std::time::Duration;

use logging::{Level, Line, Logger};

/// Longest part of a plain text on one line. With its prefix it stays below the limit of a line.
const MAX_PLAIN_BYTES: usize = 1024;

/// Installs the logger of PID 1, which writes to the console.
pub(crate) fn install_logger() {
    logging::install(Logger { now: uptime, write: write_line, max_level: Level::Info });
}

/// Installs the logger of a service that is about to start. PID 1 reads its lines.
pub(crate) fn install_service_logger() {
    let write = |line: &Line<'_>| {
        let _ = writeln!(std::io::stderr(), "{line}");
    };
    logging::install(Logger { now: uptime, write, max_level: Level::Info });
}

/// Writes a line of a service to the console.
///
/// A line in the form of the crate `logging` keeps its time and level. Its target is prefixed by
/// the name of the service unless it begins with it, so that a service cannot write lines of
/// another. Every other line gets the current time, the level INFO, and the service as target. If
/// it is long, it is split into several lines, so that nothing is cut off.
pub(crate) fn forward(service: &str, text: &str) {
    match Line::parse(text) {
        Some(line) if is_target_of(service, line.target) => write_line(&line),
        Some(line) => {
            let target = format!("{service}::{}", line.target);
            write_line(&Line { target: &target, ..line });
        }
        None => {
            let (time, level) = (uptime(), Level::Info);
            for message in split(text) {
                write_line(&Line { time, level, target: service, message });
            }
        }
    }
}

/// Splits a text into parts of at most [`MAX_PLAIN_BYTES`]. An empty text is one empty part.
fn split(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest.take()?;
        if text.len() <= MAX_PLAIN_BYTES {
            return Some(text);
        }
        let end = (1..=MAX_PLAIN_BYTES).rev().find(|end| text.is_char_boundary(*end))?;
        let (part, tail) = text.split_at(end);
        rest = Some(tail);
        Some(part)
    })
}

fn is_target_of(service: &str, target: &str) -> bool {
    let rest = target.strip_prefix(service);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// Returns the time since the kernel started.
fn uptime() -> Duration {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME)
        .map(Duration::from)
        .unwrap_or_default()
}

fn write_line(line: &Line<'_>) {
    // A console that cannot be written to must not stop the node.
    let _ = writeln!(std::io::stdout(), "basalt{line}");
}

#[cfg(test)]
mod tests {
    use super::{MAX_PLAIN_BYTES, is_target_of, split};

    #[test]
    fn a_target_belongs_to_the_service_that_it_begins_with() {
        assert!(is_target_of("trustd", "trustd"));
        assert!(is_target_of("trustd", "trustd::audit"));
        assert!(!is_target_of("trustd", "trustdx::audit"));
        assert!(!is_target_of("dockerd", "trustd::audit"));
    }

    #[test]
    fn long_texts_are_split_and_complete() {
        assert_eq!(split("").collect::<Vec<_>>(), [""]);
        assert_eq!(split("short").collect::<Vec<_>>(), ["short"]);
        for text in ["x".repeat(2048), "\u{fffd}".repeat(2048)] {
            let parts: Vec<_> = split(&text).collect();
            assert!(parts.iter().all(|part| (1..=MAX_PLAIN_BYTES).contains(&part.len())));
            assert_eq!(parts.concat(), text);
        }
    }
}
