//! The supervisor: it starts services in order, restarts them, reaps all child processes, and shuts
//! the node down.

use std::convert::Infallible;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use config::{Ready, Service};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::absence::{Absence, Overdue};
use crate::control::{self, ControlRequest};
use crate::error::{CgroupError, InitError};
use crate::output::OutputStream;
use crate::{cgroup, launch};

/// Delay before the first restart of a service. It doubles with each further restart.
const BACKOFF_INITIAL: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// Running time after which the delay of a service is reset.
const STABLE_AFTER: Duration = Duration::from_secs(30);
/// Time between SIGTERM and SIGKILL when the node shuts down.
const STOP_TIMEOUT: Duration = Duration::from_secs(25);
/// Time that the kernel gets to end a killed process. A process that waits for a disk can take
/// longer, and is not waited for.
const KILL_TIMEOUT: Duration = Duration::from_secs(3);
/// Interval between two checks for readiness while a service is starting.
const READY_POLL_INTERVAL_MS: u16 = 50;
/// Longest wait for an event while all services are ready.
const IDLE_POLL_INTERVAL_MS: u16 = 1000;

/// Starts and supervises the services. It returns only if the setup fails.
pub(crate) fn run(services: Vec<(String, Service)>) -> Result<Infallible, InitError> {
    let mut mask = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT] {
        mask.add(signal);
    }
    mask.thread_block().map_err(InitError::io("block signals"))?;
    let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
        .map_err(InitError::io("open a signal descriptor"))?;
    let control = control::open()?;
    let services = services.into_iter().map(|(name, c)| SupervisedService::new(name, c)).collect();
    let mut supervisor = Supervisor { services, announced_ready: false };
    supervisor.check_watched_groups()?;
    loop {
        supervisor.wait(&signals, &control);
        while let Ok(Some(info)) = signals.read_signal() {
            match Signal::try_from(info.ssi_signo as i32) {
                Ok(Signal::SIGTERM) => supervisor.shut_down(RebootMode::RB_POWER_OFF),
                Ok(Signal::SIGINT) => supervisor.shut_down(RebootMode::RB_AUTOBOOT),
                _ => {}
            }
        }
        while let Some(request) = control::receive(&control) {
            match request {
                Ok(request) => supervisor.handle(request),
                Err(error) => logging::warn!("invalid control request: {error}"),
            }
        }
        // Reaping after the signals are read loses no exit: a child that exits from here on raises
        // the signal again.
        reap(&mut supervisor);
        supervisor.advance();
        supervisor.end_unwatched();
    }
}

/// Collects every child that has exited, a service or an orphan.
fn reap(supervisor: &mut Supervisor) {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) => {
                supervisor.record_exit(pid, &format!("exit code {code}"))
            }
            Ok(WaitStatus::Signaled(pid, signal, _)) => {
                supervisor.record_exit(pid, signal.as_str())
            }
            Ok(WaitStatus::StillAlive) | Err(_) => return,
            Ok(_) => {}
        }
    }
}

struct Supervisor {
    services: Vec<SupervisedService>,
    /// Whether the console has the line that all services run.
    announced_ready: bool,
}

impl Supervisor {
    fn all_ready(&self) -> bool {
        self.services.iter().all(|s| matches!(s.state, State::Ready { .. }))
    }

    /// Waits for a signal, a control request, output of a service, or the next check for readiness.
    fn wait(&mut self, signals: &SignalFd, control: &UnixDatagram) {
        let interval_ms =
            if self.all_ready() { IDLE_POLL_INTERVAL_MS } else { READY_POLL_INTERVAL_MS };
        self.forward_output(PollTimeout::from(interval_ms), &[signals.as_fd(), control.as_fd()]);
    }

    /// Waits until a service has output, one of `others` can be read, or the timeout is over, and
    /// forwards the output of all services.
    fn forward_output(&mut self, timeout: PollTimeout, others: &[BorrowedFd<'_>]) {
        let outputs = self.services.iter().flat_map(|s| &s.output).map(OutputStream::as_fd);
        let mut fds: Vec<PollFd<'_>> = others
            .iter()
            .copied()
            .chain(outputs)
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
            .collect();
        if poll(&mut fds, timeout).is_err() {
            return;
        }
        let readable: Vec<bool> = fds[others.len()..]
            .iter()
            .map(|fd| fd.revents().is_some_and(|events| !events.is_empty()))
            .collect();
        let mut readable = readable.into_iter();
        for SupervisedService { name, output, .. } in &mut self.services {
            output.retain_mut(|stream| !readable.next().unwrap_or(false) || stream.forward(name));
        }
    }

    /// Moves every service to its next state, if it is time.
    fn advance(&mut self) {
        for n in 0..self.services.len() {
            let needs_met = self.services[n].config.needs.iter().all(|need| {
                self.services
                    .iter()
                    .any(|s| s.name == *need && matches!(s.state, State::Ready { .. }))
            });
            self.services[n].advance(needs_met);
        }
        if !self.announced_ready && self.all_ready() {
            self.announced_ready = true;
            logging::info!("ready: all services run");
        }
    }

    fn record_exit(&mut self, pid: Pid, reason: &str) {
        if let Some(service) = self.services.iter_mut().find(|s| s.pid == Some(pid)) {
            service.record_exit(reason);
        }
    }

    /// Waits for a child to exit. Meanwhile it forwards the output of all services, because a full
    /// pipe would block them. Returns `false` if the child still runs at the end.
    fn wait_for_exit(&mut self, pid: Pid, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        loop {
            match waitpid(pid, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) | Err(_) => return true,
                Ok(_) if Instant::now() >= deadline => return false,
                Ok(_) => self.forward_output(PollTimeout::from(10u16), &[]),
            }
        }
    }

    fn handle(&mut self, request: ControlRequest) {
        match request {
            ControlRequest::Reboot => self.shut_down(RebootMode::RB_AUTOBOOT),
            ControlRequest::PowerOff => self.shut_down(RebootMode::RB_POWER_OFF),
            ControlRequest::Restart(name) => self.signal_on_request(&name, Signal::SIGTERM),
            ControlRequest::Kill(name) => self.signal_on_request(&name, Signal::SIGKILL),
            ControlRequest::KillGroup(group) => self.kill_group_on_request(&group),
            ControlRequest::Watching(name) => self.note_report(&name),
        }
    }

    /// Returns the control groups of the services.
    fn service_groups(&self) -> Vec<String> {
        self.services.iter().map(|s| launch::group(&s.name, &s.config)).collect()
    }

    /// Checks that init may kill every group that a service watches.
    fn check_watched_groups(&self) -> Result<(), InitError> {
        let groups = self.service_groups();
        let protected: Vec<&str> = groups.iter().map(String::as_str).collect();
        let watched = self.services.iter().flat_map(|s| &s.config.watches);
        for group in watched {
            cgroup::check_killable(group, &protected)?;
        }
        Ok(())
    }

    fn note_report(&mut self, name: &str) {
        match self.services.iter_mut().find(|s| s.name == *name) {
            Some(service) => service.absence.report(Instant::now()),
            None => logging::warn!("{name:?} cannot watch control groups: no such service"),
        }
    }

    /// Kills the processes in groups whose service has not reported for too long.
    fn end_unwatched(&mut self) {
        let (now, mut unwatched) = (Instant::now(), Vec::new());
        for SupervisedService { name, config, absence, .. } in &mut self.services {
            if !config.watches.iter().any(|group| cgroup::is_populated(group)) {
                if absence.note_empty() {
                    logging::info!("{name}: all that it watches has ended");
                }
            } else if let Some(Overdue { absent, is_first }) = absence.check(now) {
                if is_first {
                    let seconds = absent.as_secs();
                    logging::error!("{name} is absent for {seconds} s: ending what it watches");
                }
                unwatched.extend(config.watches.clone());
            }
        }
        for group in unwatched {
            if let Err(error) = self.kill_group(&group) {
                logging::error!("cannot end {group:?}: {}", logging::Chain(&error));
            }
        }
    }

    fn signal_on_request(&self, name: &str, signal: Signal) {
        match self.services.iter().find(|s| s.name == name) {
            Some(service) => {
                logging::info!("{name}: sending {signal}, requested by the owner");
                service.signal(signal);
            }
            None => logging::warn!("cannot send {signal} to {name:?}: no such service"),
        }
    }

    fn kill_group(&self, group: &str) -> Result<(), CgroupError> {
        let groups = self.service_groups();
        let protected: Vec<&str> = groups.iter().map(String::as_str).collect();
        cgroup::kill_group(group, &protected)
    }

    fn kill_group_on_request(&self, group: &str) {
        match self.kill_group(group) {
            Ok(()) => logging::info!("{group}: killed all processes, requested by trustd"),
            Err(error) => {
                logging::warn!("cannot kill the group {group:?}: {}", logging::Chain(&error));
            }
        }
    }

    /// Stops the services in reverse order, then all other processes, and then the machine.
    fn shut_down(&mut self, mode: RebootMode) -> ! {
        logging::info!("shutting down: stopping services");
        for n in (0..self.services.len()).rev() {
            // Without its process ID, a service that exits now is not restarted.
            let Some(pid) = self.services[n].pid.take() else { continue };
            let _ = kill(pid, Signal::SIGTERM);
            if !self.wait_for_exit(pid, STOP_TIMEOUT) {
                let name = &self.services[n].name;
                logging::warn!("{name} did not stop within {} s, killing", STOP_TIMEOUT.as_secs());
                let _ = kill(pid, Signal::SIGKILL);
                self.wait_for_exit(pid, KILL_TIMEOUT);
            }
        }
        let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
        let deadline = Instant::now() + KILL_TIMEOUT;
        while waitpid(None, Some(WaitPidFlag::WNOHANG)).is_ok() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        nix::unistd::sync();
        if let Err(error) = unmount_data() {
            logging::warn!(
                "/data cannot be unmounted ({error}); the next boot replays its journal"
            );
        }
        logging::info!("down");
        let _ = reboot(mode);
        crate::sys::halt()
    }
}

/// Unmounts /data. Killed containers leave mounts below it, which are detached first.
fn unmount_data() -> nix::Result<()> {
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
    let below: Vec<&str> = mounts
        .lines()
        .filter_map(|l| l.split(' ').nth(1))
        .filter(|m| m.starts_with("/data/"))
        .collect();
    for mount in below.into_iter().rev() {
        let _ = nix::mount::umount2(mount, nix::mount::MntFlags::MNT_DETACH);
    }
    nix::mount::umount2("/data", nix::mount::MntFlags::empty())
}

enum State {
    /// A service that it needs is not ready.
    Waiting,
    /// The process runs and is not ready; `killed` if it took too long.
    Starting {
        since: Instant,
        killed: bool,
    },
    Ready {
        since: Instant,
    },
    /// The process exited and is restarted later.
    Backoff {
        until: Instant,
    },
}

struct SupervisedService {
    name: String,
    config: Service,
    state: State,
    pid: Option<Pid>,
    output: Vec<OutputStream>,
    /// Delay before the next restart.
    backoff: Duration,
    absence: Absence,
}

impl SupervisedService {
    fn new(name: String, config: Service) -> Self {
        let max_absence = Duration::from_secs(config.max_absence_s.into());
        Self {
            name,
            config,
            state: State::Waiting,
            pid: None,
            output: Vec::new(),
            backoff: BACKOFF_INITIAL,
            absence: Absence::new(max_absence, Instant::now()),
        }
    }

    fn advance(&mut self, needs_met: bool) {
        match self.state {
            State::Waiting if needs_met => self.start(),
            State::Backoff { until } if Instant::now() >= until => self.start(),
            State::Starting { since, .. } if self.is_ready() => {
                self.state = State::Ready { since };
                let seconds = since.elapsed().as_secs_f64();
                logging::info!("{} is ready after {seconds:.2} s", self.name);
            }
            State::Starting { since, killed: false }
                if since.elapsed().as_secs() >= self.config.ready_within_s =>
            {
                self.state = State::Starting { since, killed: true };
                let Self { name, config: Service { ready_within_s, .. }, .. } = self;
                logging::warn!("{name} is not ready after {ready_within_s} s, killing");
                self.signal(Signal::SIGKILL);
            }
            _ => {}
        }
    }

    fn start(&mut self) {
        for stale in &self.config.stale_files {
            let _ = std::fs::remove_file(stale);
        }
        let group = format!("{}/{}", cgroup::ROOT, launch::group(&self.name, &self.config));
        let _ = std::fs::create_dir(group);
        let spawned = Command::new("/proc/self/exe")
            .arg("launch")
            .arg(&self.name)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        match spawned {
            Ok(child) => self.supervise(child),
            Err(error) => {
                logging::error!("cannot start {}: {error}", self.name);
                self.back_off();
            }
        }
    }

    fn supervise(&mut self, mut child: Child) {
        self.pid = Some(Pid::from_raw(child.id() as i32));
        self.state = State::Starting { since: Instant::now(), killed: false };
        self.output.extend(OutputStream::take_from(&mut child));
    }

    fn record_exit(&mut self, reason: &str) {
        let runtime = match self.state {
            State::Starting { since, .. } | State::Ready { since } => since.elapsed(),
            State::Waiting | State::Backoff { .. } => Duration::ZERO,
        };
        if runtime >= STABLE_AFTER {
            self.backoff = BACKOFF_INITIAL;
        }
        let seconds = self.backoff.as_secs_f64();
        logging::warn!("{} exited ({reason}) and restarts in {seconds:.1} s", self.name);
        self.pid = None;
        self.back_off();
    }

    /// Schedules a restart and doubles the delay of the next one.
    fn back_off(&mut self) {
        self.state = State::Backoff { until: Instant::now() + self.backoff };
        self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
    }

    fn is_ready(&self) -> bool {
        match &self.config.ready {
            Ready::Socket(path) => UnixStream::connect(path).is_ok(),
            Ready::File(path) => std::path::Path::new(path).exists(),
        }
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = self.pid {
            let _ = kill(pid, signal);
        }
    }
}
