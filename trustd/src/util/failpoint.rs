//! Fail points: named places at which a test ends the process, as a power cut would (fail(9) of
//! FreeBSD).

/// Aborts the process if the variable `BASALT_FAILPOINT` names this place. Does nothing outside of
/// the engine tests.
pub fn fail_point(name: &str) {
    #[cfg(feature = "engine-tests")]
    if std::env::var("BASALT_FAILPOINT").is_ok_and(|at| at == name) {
        std::process::abort();
    }
    let _ = name;
}
