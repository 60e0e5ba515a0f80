//! Checking what comes must not slow down what runs, nor the engine while it unpacks.

use std::io;

/// Less than what has no priority of its own gets by a factor of ten (sched(7), "The nice value").
const NICE: i32 = 10;

/// Runs `work` on a thread of its own, behind all that wants the processor at the same time. It
/// begins at once, and goes on to its end even if nobody waits for it.
///
/// # Errors
/// That there is no thread for it, or that it ended without an answer.
pub(crate) fn run<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> impl Future<Output = io::Result<T>> + Send {
    let (tell, told) = tokio::sync::oneshot::channel();
    let thread = std::thread::Builder::new().name("background".into()).spawn(move || {
        // On Linux it is the calling thread's (setpriority(2), "C library/kernel differences");
        // without it the work is done all the same.
        let _ = rustix::process::setpriority_process(None, NICE);
        let _ = tell.send(work());
    });
    async move {
        thread?;
        told.await.map_err(|_| io::Error::other("a task in the background ended without an answer"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_that_thread_steps_back() {
        let nice = || rustix::process::getpriority_process(None).unwrap();
        let before = nice();
        assert_eq!(run(nice).await.unwrap(), before.saturating_add(NICE).min(19));
        assert_eq!(nice(), before);
        assert!(run(|| panic!("on purpose")).await.is_err());
    }
}
