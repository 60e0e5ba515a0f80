use std::process::ExitCode;

use basalt_trustd::settings::Settings;

fn main() -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("no runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(basalt_trustd::run(Settings::node())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("trustd stops and the gate is closed: {error:#}");
            ExitCode::FAILURE
        }
    }
}
