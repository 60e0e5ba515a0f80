//! The log facade of the programs that run on a node: init, netd and trustd.
//!
//! Invariants:
//! - A record is one line of at most [`MAX_LINE_BYTES`] bytes: control characters are escaped and
//!   the rest of a longer message is cut off. No more of a message than that is held in memory.
//! - The crate has no clock and does no I/O. A program installs a [`Logger`], which supplies both.
//!
//! A line has the form `[  12.345] INFO trustd::audit: module-started …`: seconds since the kernel
//! started, level, target, message. A service writes such lines to its standard output. init reads
//! them with [`Line::parse`], adds the service's name where the target lacks it, and prints them on
//! the console with the prefix `basalt`; it gives every other line of a service a time, a level and
//! a target of its own. So each line on the console has exactly one prefix.
//!
//! The macros [`error!`], [`warn!`], [`info!`] and [`debug!`] have the syntax of the crate `log`.
//! The target defaults to the path of the calling module.
//!
//! ```
//! # use basalt_logging as logging;
//! use std::time::Duration;
//!
//! logging::install(logging::Logger {
//!     now: || Duration::from_millis(12_345),
//!     write: |line| println!("{line}"),
//!     max_level: logging::Level::Info,
//! });
//! logging::info!("the clock was set from {}", "192.0.2.1");
//! logging::warn!(target: "audit", "cannot write {}", "/data/audit.log");
//! ```

#![forbid(unsafe_code)]
#![deny(missing_docs)]

use std::fmt::{self, Write as _};
use std::str::FromStr;
use std::sync::OnceLock;
use std::time::Duration;

/// Longest line in bytes, without its newline.
pub const MAX_LINE_BYTES: usize = 2048;

/// Longest target in bytes that [`Line::parse`] accepts.
pub const MAX_TARGET_BYTES: usize = 128;

/// Mark at the end of a line that was cut off.
const TRUNCATED: &str = " [truncated]";

static LOGGER: OnceLock<Logger> = OnceLock::new();

/// Importance of a line, most important first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Failure that an operator has to act on.
    Error,
    /// Unexpected condition that the program handles by itself.
    Warn,
    /// Normal event that an operator wants to see.
    Info,
    /// Detail for debugging.
    Debug,
}

impl Level {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "ERROR",
            Self::Warn => "WARN",
            Self::Info => "INFO",
            Self::Debug => "DEBUG",
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Error of parsing a [`Level`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParseLevelError;

impl fmt::Display for ParseLevelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("expected a log level: ERROR, WARN, INFO or DEBUG")
    }
}

impl std::error::Error for ParseLevelError {}

impl FromStr for Level {
    type Err = ParseLevelError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [Self::Error, Self::Warn, Self::Info, Self::Debug]
            .into_iter()
            .find(|level| level.as_str() == text)
            .ok_or(ParseLevelError)
    }
}

/// One line of the log. Its `Display` form is escaped and bounded, and has no newline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line<'a> {
    /// Time since the kernel started.
    pub time: Duration,
    /// Importance of the line.
    pub level: Level,
    /// Part of the program that reports, such as `netd::clock`.
    pub target: &'a str,
    /// The message itself.
    pub message: &'a str,
}

impl<'a> Line<'a> {
    /// Parses a line in the form that `Display` writes; returns `None` for any other text.
    #[must_use]
    pub fn parse(text: &'a str) -> Option<Self> {
        let (time, rest) = text.strip_prefix('[')?.split_once("] ")?;
        let (level, rest) = rest.split_once(' ')?;
        let (target, message) = rest.split_once(": ")?;
        let target_char = |c: char| c.is_ascii_alphanumeric() || "_-:.".contains(c);
        let target_ok =
            (1..=MAX_TARGET_BYTES).contains(&target.len()) && target.chars().all(target_char);
        target_ok.then_some(())?;
        Some(Self { time: parse_time(time)?, level: level.parse().ok()?, target, message })
    }
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { time, level, target, message } = self;
        let (seconds, millis) = (time.as_secs(), time.subsec_millis());
        let left = MAX_LINE_BYTES - TRUNCATED.len();
        let mut out = BoundedWriter { out: f, left, truncated: false };
        write!(out, "[{seconds:4}.{millis:03}] {level} {target}: {message}")
    }
}

/// Parses seconds with three decimals, such as `  12.345`.
fn parse_time(text: &str) -> Option<Duration> {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let (seconds, millis) = text.trim_start().split_once('.')?;
    (digits(seconds) && digits(millis) && millis.len() == 3).then_some(())?;
    let millis: u32 = millis.parse().ok()?;
    Some(Duration::new(seconds.parse().ok()?, millis * 1_000_000))
}

/// Escapes control characters and stops after a number of bytes.
struct BoundedWriter<'a, 'b> {
    out: &'a mut fmt::Formatter<'b>,
    left: usize,
    truncated: bool,
}

impl BoundedWriter<'_, '_> {
    fn push(&mut self, c: char) -> fmt::Result {
        if self.truncated {
            return Ok(());
        }
        let escaped = is_control(c).then(|| c.escape_default());
        let len = escaped.as_ref().map_or(c.len_utf8(), ExactSizeIterator::len);
        if len > self.left {
            self.truncated = true;
            return self.out.write_str(TRUNCATED);
        }
        self.left -= len;
        match escaped {
            Some(escaped) => write!(self.out, "{escaped}"),
            None => self.out.write_char(c),
        }
    }
}

impl fmt::Write for BoundedWriter<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.chars().try_for_each(|c| self.push(c))
    }
}

/// Reports whether a character can break a line or change the order in which a terminal shows it:
/// control characters, line and paragraph separators, bidirectional formatting (UAX #9).
fn is_control(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}')
        || matches!(c, '\u{2066}'..='\u{2069}')
}

/// Clock, output and filter of a program.
#[derive(Debug, Clone, Copy)]
pub struct Logger {
    /// Returns the time since the kernel started (`CLOCK_BOOTTIME`), so that the lines of all
    /// programs can be compared.
    pub now: fn() -> Duration,
    /// Writes one line and a newline. It ignores errors: a full console must not stop a program.
    pub write: fn(&Line<'_>),
    /// Least important level that is written.
    pub max_level: Level,
}

/// Installs the program's logger. Lines that are logged before are dropped. Only the first call has
/// an effect.
pub fn install(logger: Logger) {
    let _ = LOGGER.set(logger);
}

/// Logs one line through the installed logger. Programs call the macros instead.
///
/// The prefix `basalt_`, which the crates of this workspace have in module paths, is left out of
/// the target.
pub fn log(level: Level, target: &str, message: fmt::Arguments<'_>) {
    let Some(logger) = LOGGER.get().filter(|logger| level <= logger.max_level) else { return };
    let target = target.strip_prefix("basalt_").unwrap_or(target);
    let time = (logger.now)();
    let mut text = BoundedText::default();
    // An error means that the text is full. The line then ends with the mark of a cut-off line.
    let _ = text.write_fmt(message);
    (logger.write)(&Line { time, level, target, message: &text.0 });
}

/// Text of at most [`MAX_LINE_BYTES`] bytes. Writing more is an error and keeps the start.
#[derive(Default)]
struct BoundedText(String);

impl fmt::Write for BoundedText {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let left = MAX_LINE_BYTES - self.0.len();
        if text.len() <= left {
            self.0.push_str(text);
            return Ok(());
        }
        let end = (0..=left).rev().find(|end| text.is_char_boundary(*end)).unwrap_or_default();
        self.0.push_str(&text[..end]);
        Err(fmt::Error)
    }
}

/// Logs a line at a level given as an expression: `log!(target: TARGET, LEVEL, FORMAT, ARGS…)`.
#[macro_export]
macro_rules! log {
    (target: $target:expr, $level:expr, $($message:tt)+) => {
        $crate::log($level, $target, ::core::format_args!($($message)+))
    };
    ($level:expr, $($message:tt)+) => {
        $crate::log($level, ::core::module_path!(), ::core::format_args!($($message)+))
    };
}

/// Logs a line at [`Level::Error`].
#[macro_export]
macro_rules! error {
    (target: $target:expr, $($message:tt)+) => {
        $crate::log!(target: $target, $crate::Level::Error, $($message)+)
    };
    ($($message:tt)+) => { $crate::log!($crate::Level::Error, $($message)+) };
}

/// Logs a line at [`Level::Warn`].
#[macro_export]
macro_rules! warn {
    (target: $target:expr, $($message:tt)+) => {
        $crate::log!(target: $target, $crate::Level::Warn, $($message)+)
    };
    ($($message:tt)+) => { $crate::log!($crate::Level::Warn, $($message)+) };
}

/// Logs a line at [`Level::Info`].
#[macro_export]
macro_rules! info {
    (target: $target:expr, $($message:tt)+) => {
        $crate::log!(target: $target, $crate::Level::Info, $($message)+)
    };
    ($($message:tt)+) => { $crate::log!($crate::Level::Info, $($message)+) };
}

/// Logs a line at [`Level::Debug`].
#[macro_export]
macro_rules! debug {
    (target: $target:expr, $($message:tt)+) => {
        $crate::log!(target: $target, $crate::Level::Debug, $($message)+)
    };
    ($($message:tt)+) => { $crate::log!($crate::Level::Debug, $($message)+) };
}

/// Formats an error and its causes, joined by `: `.
#[derive(Debug, Clone, Copy)]
pub struct Chain<'a>(pub &'a dyn std::error::Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    fn line(message: &str) -> Line<'_> {
        let time = Duration::from_millis(12_345);
        Line { time, level: Level::Info, target: "trustd::audit", message }
    }

    #[test]
    fn a_line_has_time_level_target_and_message() {
        let text = line("module-started: demo").to_string();
        assert_eq!(text, "[  12.345] INFO trustd::audit: module-started: demo");
        assert_eq!(Line::parse(&text), Some(line("module-started: demo")));
        let late = Line { time: Duration::from_secs(u64::MAX), ..line("x") }.to_string();
        assert_eq!(late, "[18446744073709551615.000] INFO trustd::audit: x");
        assert_eq!(Line::parse(&late).unwrap().time, Duration::from_secs(u64::MAX));
    }

    #[test]
    fn control_characters_are_escaped() {
        let text = line("a\nb\x1b[2J\u{85}\u{202e}ö\\").to_string();
        assert_eq!(text.split_once("audit: ").unwrap().1, "a\\nb\\u{1b}[2J\\u{85}\\u{202e}ö\\");
    }

    #[test]
    fn long_lines_are_cut_off_at_a_character() {
        for message in ["x".repeat(5000), "ö".repeat(5000), "\n".repeat(5000)] {
            let text = line(&message).to_string();
            assert!(text.len() <= MAX_LINE_BYTES, "{} bytes", text.len());
            assert!(text.len() > MAX_LINE_BYTES - 4, "{} bytes", text.len());
            assert!(text.ends_with(TRUNCATED), "{text}");
        }
    }

    #[test]
    fn a_long_message_is_not_held_in_memory() {
        for part in ["x", "ö", "\u{1f600}"] {
            let mut text = BoundedText::default();
            assert!(write!(text, "a{}", part.repeat(5000)).is_err());
            assert!((MAX_LINE_BYTES - 3..=MAX_LINE_BYTES).contains(&text.0.len()));
            assert!(line(&text.0).to_string().ends_with(TRUNCATED), "{part}");
        }
        let mut text = BoundedText::default();
        write!(text, "{}", "x".repeat(MAX_LINE_BYTES)).unwrap();
        assert_eq!(text.0.len(), MAX_LINE_BYTES);
    }

    #[test]
    fn other_texts_are_not_lines() {
        for text in [
            "",
            "plain text",
            "[12.345] INFO target",
            "[12.345] INFO : message",
            "[12.345] INFO a b: message",
            "[12.345] NOTICE a: message",
            "[12.34] INFO a: message",
            "[+12.345] INFO a: message",
            "[12] INFO a: message",
            "[.345] INFO a: message",
            "[99999999999999999999.000] INFO a: message",
            " [12.345] INFO a: message",
        ] {
            assert_eq!(Line::parse(text), None, "{text:?}");
        }
        let long = format!("[12.345] INFO {}: message", "a".repeat(MAX_TARGET_BYTES + 1));
        assert_eq!(Line::parse(&long), None);
    }

    #[test]
    fn macros_log_up_to_the_maximum_level() {
        static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());
        info!("dropped: no logger is installed");
        install(Logger {
            now: || Duration::from_millis(1),
            write: |line| LINES.lock().unwrap().push(line.to_string()),
            max_level: Level::Info,
        });
        let name = "demo";
        error!("module {name} exited");
        warn!(target: "audit", "{}", 1);
        info!(target: name, "x");
        debug!("dropped: below the maximum level");
        assert_eq!(
            *LINES.lock().unwrap(),
            [
                "[   0.001] ERROR logging::tests: module demo exited",
                "[   0.001] WARN audit: 1",
                "[   0.001] INFO demo: x",
            ]
        );
    }

    #[test]
    fn a_chain_prints_each_cause_once() {
        #[derive(Debug)]
        struct Outer(ParseLevelError);
        impl fmt::Display for Outer {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("cannot read the settings")
            }
        }
        impl std::error::Error for Outer {
            fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
                Some(&self.0)
            }
        }
        assert_eq!(
            Chain(&Outer(ParseLevelError)).to_string(),
            "cannot read the settings: expected a log level: ERROR, WARN, INFO or DEBUG"
        );
    }
}
