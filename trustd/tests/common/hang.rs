//! Processes that hang.

use rustix::process::{Pid, Signal, kill_process};

/// Processes that hang: they are stopped by SIGSTOP and continue on drop.
pub(crate) struct Hang(Vec<u32>);

impl Hang {
    pub(crate) fn start(processes: Vec<u32>) -> Self {
        send_signal(&processes, Signal::STOP);
        Self(processes)
    }
}

impl Drop for Hang {
    fn drop(&mut self) {
        send_signal(&self.0, Signal::CONT);
    }
}

fn send_signal(processes: &[u32], signal: Signal) {
    for process in processes {
        // A process that has ended does not hang.
        let _ = kill_process(Pid::from_raw(*process as i32).unwrap(), signal);
    }
}
