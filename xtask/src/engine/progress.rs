//! Progress output on standard error: a spinner or bar on a terminal, plain lines on a pipe.

use std::io::{IsTerminal as _, Write as _};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Number of lines that [`report`] has printed.
static REPORTS: AtomicUsize = AtomicUsize::new(0);

/// A task whose start and end are reported.
pub struct Task {
    name: String,
    started: Instant,
    bar: ProgressBar,
}

/// Returns whether standard error is a terminal.
fn is_terminal() -> bool {
    std::io::stderr().is_terminal()
}

/// Prints a line to standard error.
pub fn line(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

impl Task {
    /// Starts a task and reports it. `doing` describes the work.
    pub fn begin(name: &str, doing: &str) -> Self {
        let bar = if is_terminal() {
            let bar = ProgressBar::new_spinner();
            bar.set_style(
                ProgressStyle::with_template("{spinner} {prefix:16} {elapsed:>5} {wide_msg}")
                    .unwrap_or(ProgressStyle::default_spinner()),
            );
            bar.set_prefix(name.to_owned());
            bar.set_message(doing.to_owned());
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        } else {
            line(&format!("  ...  {name:16} {doing}"));
            ProgressBar::hidden()
        };
        Self { name: name.to_owned(), started: Instant::now(), bar }
    }

    /// Turns the spinner into a bar over `total` bytes.
    pub fn bytes(&self, total: u64) {
        self.bar.set_length(total);
        if is_terminal() {
            let style = "{spinner} {prefix:16} [{bar:24}] {bytes}/{total_bytes} {bytes_per_sec} \
                         {eta} {wide_msg}";
            self.bar.set_style(
                ProgressStyle::with_template(style).unwrap_or(ProgressStyle::default_bar()),
            );
        }
    }

    /// Advances the bar by `n` bytes.
    pub fn advance(&self, n: u64) {
        self.bar.inc(n);
    }

    /// Replaces the message next to the spinner or bar.
    pub fn message(&self, text: &str) {
        self.bar.set_message(text.to_owned());
    }

    /// Ends the task and reports it with a remark and the elapsed time.
    pub fn done(self, remark: &str) {
        self.bar.finish_and_clear();
        report(&self.name, "built", &format!("{remark} ({})", seconds(self.started.elapsed())));
    }
}

/// Prints the line of a finished step: its number, name, outcome and a remark.
pub fn report(name: &str, outcome: &str, remark: &str) {
    let n = REPORTS.fetch_add(1, Ordering::Relaxed) + 1;
    line(&format!("[{n:>3}] {name:16} {outcome:6} {remark}"));
}

/// Formats a duration in seconds, or in minutes and seconds from one minute on.
pub fn seconds(time: Duration) -> String {
    let s = time.as_secs_f64();
    if s < 60.0 {
        format!("{s:.1} s")
    } else {
        format!("{} min {:02} s", s as u64 / 60, s as u64 % 60)
    }
}

/// Formats a size in B, kB or MB (decimal).
pub fn size(bytes: u64) -> String {
    match bytes {
        0..=9_999 => format!("{bytes} B"),
        10_000..=999_999 => format!("{:.1} kB", bytes as f64 / 1e3),
        _ => format!("{:.1} MB", bytes as f64 / 1e6),
    }
}
