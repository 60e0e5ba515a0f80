//! Named moments at which the tests end this process, as a power cut would.

/// Does nothing, but in the tests of kills, which name the moment in `BASALT_FAILPOINT`.
pub fn fail_point(name: &str) {
    #[cfg(feature = "engine-tests")]
    if std::env::var("BASALT_FAILPOINT").is_ok_and(|at| at == name) {
        std::process::abort();
    }
    let _ = name;
}
