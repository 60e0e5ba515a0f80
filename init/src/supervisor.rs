//! Starts services in order, watches them, starts them again, reaps everything, and ends it all in
//! order.

use std::convert::Infallible;
use std::io::Read as _;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::process::{Child, ChildStderr, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use config::{Ready, Service};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::control::{self, Wish};
use crate::{Fatal, cgroup, console, launch};

const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// A service that ran this long starts again without the pauses that it earned before.
const STABLE: Duration = Duration::from_secs(30);
/// How long a service may take to end when the node stops.
const STOP_WITHIN: Duration = Duration::from_secs(25);
/// How long the kernel may take to end what was killed; a process that waits for a disk cannot be
/// waited for.
const KILL_WITHIN: Duration = Duration::from_secs(3);
const TICK_MS: u16 = 50;
const KEPT_LOG: u64 = 256 * 1024;

enum State {
    Waiting,
    Starting { since: Instant, late: bool },
    Ready { since: Instant },
    Pause { until: Instant },
}

struct Unit {
    name: String,
    service: Service,
    state: State,
    pid: Option<Pid>,
    output: Vec<Output>,
    pause: Duration,
    started: u32,
}

/// One of a service's two streams.
struct Output {
    source: Source,
    line: Vec<u8>,
}

enum Source {
    Out(ChildStdout),
    Err(ChildStderr),
}

pub(crate) fn run(services: Vec<(String, Service)>) -> Result<Infallible, Fatal> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT] {
        signals.add(signal);
    }
    signals.thread_block().map_err(|e| Fatal::io("block signals")(e.into()))?;
    let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
        .map_err(|e| Fatal::io("open a signal descriptor")(e.into()))?;
    let control = control::open()?;
    let units = services
        .into_iter()
        .map(|(name, service)| Unit {
            name,
            service,
            state: State::Waiting,
            pid: None,
            output: Vec::new(),
            pause: FIRST_PAUSE,
            started: 0,
        })
        .collect();
    let mut supervisor = Supervisor { units, announced: false };
    loop {
        supervisor.wait(&signals, &control);
        while let Ok(Some(info)) = signals.read_signal() {
            match Signal::try_from(info.ssi_signo as i32) {
                Ok(Signal::SIGTERM) => supervisor.end(RebootMode::RB_POWER_OFF),
                Ok(Signal::SIGINT) => supervisor.end(RebootMode::RB_AUTOBOOT),
                _ => {}
            }
        }
        while let Some(wish) = control::receive(&control) {
            match wish {
                Ok(wish) => supervisor.fulfil(wish),
                Err(problem) => console::say(&format!("a wish that is not understood: {problem}")),
            }
        }
        // After the signals are read: a child that ends from here on makes a new one.
        reap(&mut supervisor);
        supervisor.step();
    }
}

/// Collects every child that has ended, ours or an orphan's.
fn reap(supervisor: &mut Supervisor) {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) => {
                supervisor.ended(pid, &format!("exit code {code}"))
            }
            Ok(WaitStatus::Signaled(pid, signal, _)) => supervisor.ended(pid, signal.as_str()),
            Ok(WaitStatus::StillAlive) | Err(_) => return,
            Ok(_) => {}
        }
    }
}

struct Supervisor {
    units: Vec<Unit>,
    /// That the node is ready is said once.
    announced: bool,
}

impl Supervisor {
    /// Sleeps until something happens, a tick at most while something is still to start.
    fn wait(&mut self, signals: &SignalFd, control: &UnixDatagram) {
        let settled = self.units.iter().all(|u| matches!(u.state, State::Ready { .. }));
        let timeout = PollTimeout::from(if settled { 1000 } else { TICK_MS });
        self.relay(timeout, &[signals.as_fd(), control.as_fd()]);
    }

    /// Passes on what services say, until one does, one of `others` can be read, or the time is
    /// over.
    fn relay(&mut self, timeout: PollTimeout, others: &[BorrowedFd<'_>]) {
        let mut sources: Vec<PollFd<'_>> =
            others.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
        for output in self.units.iter().flat_map(|u| &u.output) {
            let fd = match &output.source {
                Source::Out(out) => out.as_fd(),
                Source::Err(err) => err.as_fd(),
            };
            sources.push(PollFd::new(fd, PollFlags::POLLIN));
        }
        if poll(&mut sources, timeout).is_err() {
            return;
        }
        let speaking: Vec<bool> = sources[others.len()..]
            .iter()
            .map(|s| s.revents().is_some_and(|r| !r.is_empty()))
            .collect();
        let mut speaking = speaking.into_iter();
        for unit in &mut self.units {
            let name = unit.name.clone();
            unit.output
                .retain_mut(|output| !speaking.next().unwrap_or(false) || output.relay(&name));
        }
    }

    /// Moves every service one step further.
    fn step(&mut self) {
        for n in 0..self.units.len() {
            let needs_met = self.units[n].service.needs.iter().all(|need| {
                self.units.iter().any(|u| u.name == *need && matches!(u.state, State::Ready { .. }))
            });
            let unit = &mut self.units[n];
            match unit.state {
                State::Waiting if needs_met => unit.start(),
                State::Pause { until } if Instant::now() >= until => unit.start(),
                State::Starting { since, .. } if unit.is_ready() => {
                    unit.state = State::Ready { since };
                    console::say(&format!(
                        "{} is ready after {:.2} s",
                        unit.name,
                        since.elapsed().as_secs_f64()
                    ));
                }
                State::Starting { since, late: false }
                    if since.elapsed().as_secs() >= unit.service.ready_within_s =>
                {
                    unit.state = State::Starting { since, late: true };
                    console::say(&format!(
                        "{} is not ready after {} s and is ended",
                        unit.name, unit.service.ready_within_s
                    ));
                    unit.signal(Signal::SIGKILL);
                }
                _ => {}
            }
        }
        if !self.announced && self.units.iter().all(|u| matches!(u.state, State::Ready { .. })) {
            self.announced = true;
            console::say("ready: all services run");
        }
    }

    fn ended(&mut self, pid: Pid, how: &str) {
        let Some(unit) = self.units.iter_mut().find(|u| u.pid == Some(pid)) else { return };
        let ran = match unit.state {
            State::Starting { since, .. } | State::Ready { since } => since.elapsed(),
            _ => Duration::ZERO,
        };
        if ran >= STABLE {
            unit.pause = FIRST_PAUSE;
        }
        console::say(&format!(
            "{} ended ({how}) and starts again in {:.1} s",
            unit.name,
            unit.pause.as_secs_f64()
        ));
        unit.pid = None;
        unit.state = State::Pause { until: Instant::now() + unit.pause };
        unit.pause = (unit.pause * 2).min(LONGEST_PAUSE);
    }

    /// Waits for a child to end, and reads meanwhile what all of them say: a full pipe would hold
    /// them up.
    fn gone_within(&mut self, pid: Pid, within: Duration) -> bool {
        let deadline = Instant::now() + within;
        loop {
            match waitpid(pid, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) | Err(_) => return true,
                Ok(_) if Instant::now() >= deadline => return false,
                Ok(_) => self.relay(PollTimeout::from(10u16), &[]),
            }
        }
    }

    fn fulfil(&mut self, wish: Wish) {
        let (name, signal) = match wish {
            Wish::Reboot => self.end(RebootMode::RB_AUTOBOOT),
            Wish::PowerOff => self.end(RebootMode::RB_POWER_OFF),
            Wish::Restart(name) => (name, Signal::SIGTERM),
            Wish::Kill(name) => (name, Signal::SIGKILL),
            Wish::End(group) => {
                let services: Vec<String> =
                    self.units.iter().map(|u| launch::group(&u.name, &u.service)).collect();
                let services: Vec<&str> = services.iter().map(String::as_str).collect();
                match cgroup::end(&group, &services) {
                    Ok(()) => console::say(&format!(
                        "{group}: everything in it was killed, as trustd wished"
                    )),
                    Err(problem) => console::say(&format!("a wish to end {group:?}: {problem}")),
                }
                return;
            }
        };
        match self.units.iter().find(|u| u.name == name) {
            Some(unit) => {
                console::say(&format!("{name}: {signal} as the owner wished"));
                unit.signal(signal);
            }
            None => console::say(&format!("a wish for {name:?}, which is no service")),
        }
    }

    /// Stops services in reverse order, then everything, then the machine.
    fn end(&mut self, mode: RebootMode) -> ! {
        console::say("going down: stopping services");
        for n in (0..self.units.len()).rev() {
            // A service that ends now is not started again.
            let Some(pid) = self.units[n].pid.take() else { continue };
            let _ = kill(pid, Signal::SIGTERM);
            if !self.gone_within(pid, STOP_WITHIN) {
                console::say(&format!("{} does not end and is killed", self.units[n].name));
                let _ = kill(pid, Signal::SIGKILL);
                self.gone_within(pid, KILL_WITHIN);
            }
        }
        let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
        let deadline = Instant::now() + KILL_WITHIN;
        while waitpid(None, Some(WaitPidFlag::WNOHANG)).is_ok() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        nix::unistd::sync();
        if let Err(error) = unmount_data() {
            console::say(&format!(
                "/data cannot be unmounted ({error}); its journal is replayed at the next boot"
            ));
        }
        console::say("down");
        let _ = reboot(mode);
        crate::sys::halt()
    }
}

/// Containers leave mounts below /data behind when they are killed.
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

impl Unit {
    fn start(&mut self) {
        for stale in &self.service.stale_files {
            let _ = std::fs::remove_file(stale);
        }
        let group = format!("{}/{}", cgroup::ROOT, launch::group(&self.name, &self.service));
        let _ = std::fs::create_dir(group);
        let spawned = Command::new("/proc/self/exe")
            .arg("launch")
            .arg(&self.name)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        self.started += 1;
        match spawned {
            Ok(child) => self.adopt(child),
            Err(error) => {
                console::say(&format!("{} cannot be started: {error}", self.name));
                self.state = State::Pause { until: Instant::now() + self.pause };
                self.pause = (self.pause * 2).min(LONGEST_PAUSE);
            }
        }
    }

    fn adopt(&mut self, mut child: Child) {
        self.pid = Some(Pid::from_raw(child.id() as i32));
        self.state = State::Starting { since: Instant::now(), late: false };
        self.output.extend(
            child.stdout.take().map(|out| Output { source: Source::Out(out), line: Vec::new() }),
        );
        self.output.extend(
            child.stderr.take().map(|err| Output { source: Source::Err(err), line: Vec::new() }),
        );
    }

    fn is_ready(&self) -> bool {
        match &self.service.ready {
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

impl Output {
    /// Passes on what there is to read; `false` when the stream has ended.
    fn relay(&mut self, name: &str) -> bool {
        let mut buffer = [0; 4096];
        let read = match &mut self.source {
            Source::Out(out) => out.read(&mut buffer),
            Source::Err(err) => err.read(&mut buffer),
        };
        let n = read.unwrap_or(0);
        for byte in &buffer[..n] {
            if *byte == b'\n' || self.line.len() >= 1024 {
                let line = String::from_utf8_lossy(&self.line).into_owned();
                console::relay(name, &line);
                keep(name, &line);
                self.line.clear();
            }
            if *byte != b'\n' {
                self.line.push(*byte);
            }
        }
        n > 0
    }
}

/// Appends to the service's log; the last two stretches are kept.
fn keep(name: &str, line: &str) {
    use std::io::Write as _;
    let path = format!("/run/log/{name}.log");
    if std::fs::metadata(&path).is_ok_and(|m| m.len() > KEPT_LOG) {
        let _ = std::fs::rename(&path, format!("{path}.1"));
    }
    if let Ok(mut file) = std::fs::File::options().create(true).append(true).open(&path) {
        let _ = writeln!(file, "{line}");
    }
}
