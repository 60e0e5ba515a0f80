//! The program `trustd`: a reader of images (`trustd reader`), or the trust engine with its
//! confinement, logging and runtime.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use basalt_trustd::reader;
use basalt_trustd::sandbox::confine_trustd;
use basalt_trustd::settings::Settings;
use basalt_trustd::util::error_chain::error_chain;
use rustix::time::{ClockId, clock_gettime};

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() == Some(reader::ARGUMENT) {
        return reader::run(arguments.next());
    }
    logging::install(logging::Logger {
        now: uptime,
        write: |line| {
            let _ = writeln!(std::io::stdout(), "{line}");
        },
        max_level: logging::Level::Info,
    });
    let settings = Settings::on_node();
    // Before the first thread starts: threads inherit the confinement.
    if let Err(error) = confine_trustd(&settings, settings.landlock) {
        logging::error!("cannot confine trustd: {}", error_chain(&error));
        return ExitCode::FAILURE;
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            logging::error!("cannot start the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(basalt_trustd::run(settings)) {
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
