//! Background work that must not slow down modules, nor the engine while it unpacks images.

use std::io;

/// Increment of the nice value. A thread gets about a tenth of the processor time that a thread of
/// normal priority gets (sched(7), "The nice value").
const NICE_INCREMENT: i32 = 10;

/// Runs `work` on a new thread with a low priority.
///
/// The thread starts at once, and finishes even if the returned future is dropped.
///
/// # Errors
/// The thread cannot be started, or it panicked.
pub(crate) fn run<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> impl Future<Output = io::Result<T>> + Send {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let thread = std::thread::Builder::new().name("background".into()).spawn(move || {
        // On Linux this applies to the calling thread only (setpriority(2), "C library/kernel
        // differences"). If it fails, the work runs with normal priority.
        let _ = rustix::process::setpriority_process(None, NICE_INCREMENT);
        let _ = sender.send(work());
    });
    async move {
        thread?;
        receiver.await.map_err(|_| io::Error::other("a background thread panicked"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_new_thread_gets_a_low_priority() {
        let nice = || rustix::process::getpriority_process(None).unwrap();
        let before = nice();
        assert_eq!(run(nice).await.unwrap(), before.saturating_add(NICE_INCREMENT).min(19));
        assert_eq!(nice(), before);
        assert!(run(|| panic!("on purpose")).await.is_err());
    }
}
