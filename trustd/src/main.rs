//! The program `trustd`: logging, the runtime, and [`basalt_trustd::run`].

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use basalt_trustd::settings::Settings;
use basalt_trustd::util::error_chain::error_chain;
use rustix::time::{ClockId, clock_gettime};

fn main() -> ExitCode {
    logging::install(logging::Logger {
        now: uptime,
        write: |line| {
            let _ = writeln!(std::io::stdout(), "{line}");
        },
        max_level: logging::Level::Info,
    });
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            logging::error!("cannot start the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(basalt_trustd::run(Settings::on_node())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let problem = error_chain(&*error);
            logging::error!("trustd stops; the engine denies every request: {problem}");
            ExitCode::FAILURE
        }
    }
}

/// Returns the time since the boot.
fn uptime() -> Duration {
    let time = clock_gettime(ClockId::Boottime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or_default())
}
