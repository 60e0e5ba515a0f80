//! Runs programs in a sandbox: the tools sysroot as root, with separate mount, PID, IPC, UTS and
//! (by default) network namespaces; see namespaces(7).
//!
//! Invariants:
//! - The sysroot is read-only.
//! - Only bound files and folders of the host are visible.
//! - The environment has only the variables that the caller sets.
//!
//! The sandbox is entered in two stages, so that xtask needs no fork: `xtask enter` leaves the
//! host's namespaces and runs `xtask enter-second` as the first process of the new ones. That
//! process mounts the file systems, changes the root and executes the program.

use std::os::unix::fs::symlink;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context as _, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::{prctl, signal::Signal};
use serde::{Deserialize, Serialize};

/// Environment of every program in the sandbox; an input of every sandboxed step.
pub const ENVIRONMENT: [(&str, &str); 5] = [
    ("PATH", "/usr/sbin:/usr/bin"),
    ("HOME", "/tmp"),
    ("LC_ALL", "C.UTF-8"),
    ("TZ", "UTC"),
    ("SSL_CERT_FILE", "/etc/ssl/certs/ca-certificates.crt"),
];

/// Context of errors from creating namespaces.
const NO_NAMESPACES: &str = "the host does not allow new namespaces: run as root, or allow them \
    to users (Debian: sysctl kernel.unprivileged_userns_clone=1; Ubuntu: sysctl \
    kernel.apparmor_restrict_unprivileged_userns=0)";

/// Number of lines of a log that an error contains.
const LOG_TAIL_LINES: usize = 25;

/// User and group id of commands that run without privileges: not root, and unlikely to be the
/// caller's.
const UNPRIVILEGED_ID: u32 = 4242;

/// Network of a sandbox.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Net {
    /// A network namespace without any interface that is up.
    None,
    /// A network namespace whose `lo` is up.
    Loopback,
    /// The host's network, used only for QEMU's port forwarding.
    Host,
}

/// Description of a sandbox, which `xtask enter` receives as JSON.
#[derive(Serialize, Deserialize, Clone)]
pub struct Sandbox {
    /// Folder of the sysroot.
    sysroot: PathBuf,
    /// Bind mounts: path on the host, path in the sandbox, whether it is writable.
    binds: Vec<(PathBuf, PathBuf, bool)>,
    env: Vec<(String, String)>,
    cwd: PathBuf,
    net: Net,
    /// Folder on the host for /var/lib/docker and /var/lib/containerd. If it is set, sysfs and the
    /// control groups are mounted too. The engine tests use it.
    engine: Option<PathBuf>,
    argv: Vec<String>,
}

impl Sandbox {
    /// Returns a sandbox in a sysroot, with the default environment and no network.
    pub fn new(sysroot: &Path) -> Self {
        Self {
            sysroot: sysroot.to_owned(),
            binds: Vec::new(),
            env: ENVIRONMENT.map(|(k, v)| (k.to_owned(), v.to_owned())).to_vec(),
            cwd: "/".into(),
            net: Net::None,
            engine: None,
            argv: Vec::new(),
        }
    }

    /// Binds a file or folder of the host into the sandbox, read-only.
    pub fn read(mut self, host: &Path, inside: &str) -> Self {
        self.binds.push((host.to_owned(), inside.into(), false));
        self
    }

    /// Binds a file or folder of the host into the sandbox, writable.
    pub fn write(mut self, host: &Path, inside: &str) -> Self {
        self.binds.push((host.to_owned(), inside.into(), true));
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.env.push((name.to_owned(), value.into()));
        self
    }

    /// Sets the working folder, a path in the sandbox.
    pub fn cwd(mut self, inside: &str) -> Self {
        self.cwd = inside.into();
        self
    }

    /// Selects the network.
    pub fn net(mut self, net: Net) -> Self {
        self.net = net;
        self
    }

    /// Mounts the file systems that Docker Engine requires. Its state is stored in the folder
    /// `state` of the host.
    pub fn engine(mut self, state: &Path) -> Self {
        self.engine = Some(state.to_owned());
        self
    }

    /// Returns the command that runs `argv` in the sandbox. The caller can set its standard output
    /// and error; its standard input is empty by default.
    ///
    /// # Errors
    ///
    /// Fails if a path is not valid UTF-8.
    pub fn command<S: AsRef<str>>(&self, argv: impl IntoIterator<Item = S>) -> Result<Command> {
        let mut spec = self.clone();
        spec.argv = argv.into_iter().map(|a| a.as_ref().to_owned()).collect();
        // The boot tests, which are another program, set BASALT_XTASK. The default is not the path
        // of the executable, because cargo may have replaced the file.
        let xtask = std::env::var_os("BASALT_XTASK").unwrap_or("/proc/self/exe".into());
        let mut command = Command::new(xtask);
        command.arg("enter").arg(serde_json::to_string(&spec)?).stdin(Stdio::null());
        Ok(command)
    }

    /// Runs `argv` and appends its standard output and error to `log`.
    ///
    /// # Errors
    ///
    /// Fails if `argv` cannot be run or does not succeed. The error contains the end of the log.
    pub fn run<S: AsRef<str>>(&self, log: &Path, argv: impl IntoIterator<Item = S>) -> Result<()> {
        let argv: Vec<String> = argv.into_iter().map(|a| a.as_ref().to_owned()).collect();
        let file = std::fs::OpenOptions::new().create(true).append(true).open(log)?;
        let status = self.command(&argv)?.stdout(file.try_clone()?).stderr(file).status()?;
        check(&argv, status, log)
    }

    /// Runs `argv` and returns its standard output. Its standard error is appended to `log`.
    ///
    /// # Errors
    ///
    /// Fails if `argv` cannot be run or does not succeed. The error contains the end of the log.
    pub fn output<S: AsRef<str>>(
        &self,
        log: &Path,
        argv: impl IntoIterator<Item = S>,
    ) -> Result<Vec<u8>> {
        let argv: Vec<String> = argv.into_iter().map(|a| a.as_ref().to_owned()).collect();
        let file = std::fs::OpenOptions::new().create(true).append(true).open(log)?;
        let output = self.command(&argv)?.stderr(file).output()?;
        check(&argv, output.status, log)?;
        Ok(output.stdout)
    }
}

/// Returns an error with the end of the log if a command failed.
fn check(argv: &[String], status: ExitStatus, log: &Path) -> Result<()> {
    if status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&std::fs::read(log).unwrap_or_default()).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    let tail = lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n");
    bail!("`{}` failed ({status}); the end of {}:\n{tail}", argv.join(" "), log.display())
}

/// Implements `xtask enter SPEC`: leaves the host's namespaces, runs the second stage and exits
/// with its exit code.
///
/// # Errors
///
/// Fails if `spec` is invalid, if the host does not allow new namespaces, or if the second stage
/// cannot be started.
pub fn enter(spec: &str) -> Result<()> {
    let sandbox: Sandbox = serde_json::from_str(spec)?;
    // If the build is killed, the kernel kills this process and with it the sandbox.
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    let mut flags = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS;
    if sandbox.net != Net::Host {
        flags |= CloneFlags::CLONE_NEWNET;
    }
    if sandbox.engine.is_some() {
        flags |= CloneFlags::CLONE_NEWCGROUP;
    }
    if !uid.is_root() {
        flags |= CloneFlags::CLONE_NEWUSER;
    }
    unshare(flags).context(NO_NAMESPACES)?;
    if !uid.is_root() {
        map_user(0, uid, gid)?;
    }
    let status = Command::new("/proc/self/exe").arg("enter-second").arg(spec).status()?;
    std::process::exit(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)))
}

/// Maps this user of the host to the id `inside` in a new user namespace, which has no other user.
fn map_user(inside: u32, uid: nix::unistd::Uid, gid: nix::unistd::Gid) -> Result<()> {
    std::fs::write("/proc/self/setgroups", "deny")?;
    std::fs::write("/proc/self/uid_map", format!("{inside} {uid} 1"))?;
    std::fs::write("/proc/self/gid_map", format!("{inside} {gid} 1"))?;
    Ok(())
}

/// Implements `xtask as-user COMMAND...`: executes a command as a user without privileges, which
/// has access to the caller's files.
///
/// # Errors
///
/// Fails if the host does not allow new namespaces or the command cannot be executed.
pub fn as_user(argv: &[String]) -> Result<()> {
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    unshare(CloneFlags::CLONE_NEWUSER).context(NO_NAMESPACES)?;
    map_user(UNPRIVILEGED_ID, uid, gid)?;
    let (program, args) = argv.split_first().context("the command is empty")?;
    // The first process of the new namespace has capabilities. exec drops them, because the user
    // is not root there.
    let error = Command::new(program).args(args).exec();
    bail!("cannot run {program}: {error}")
}

/// Implements `xtask enter-second SPEC`: mounts the file systems of the sandbox, changes the root
/// and executes the program.
///
/// # Errors
///
/// Fails if `spec` is invalid, or if a mount or the program fails.
pub fn enter_second(spec: &str) -> Result<()> {
    let sandbox: Sandbox = serde_json::from_str(spec)?;
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    nix::unistd::sethostname("basalt-build")?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    let root = sandbox.sysroot.as_path();
    bind(root, root, false)
        .with_context(|| format!("cannot bind the sysroot {}", root.display()))?;
    for (host, inside, writable) in &sandbox.binds {
        let target = root.join(inside.strip_prefix("/")?);
        bind(host, &target, *writable)
            .with_context(|| format!("cannot bind {} at {}", host.display(), inside.display()))?;
    }
    mount(Some("proc"), &root.join("proc"), Some("proc"), MsFlags::empty(), None::<&str>)
        .context("cannot mount /proc")?;
    tmpfs(&root.join("tmp"))?;
    tmpfs(&root.join("run"))?;
    devices(&root.join("dev"))?;
    if let Some(state) = &sandbox.engine {
        engine_mounts(root, state)?;
    }
    std::env::set_current_dir(root)?;
    nix::unistd::pivot_root(".", "old").context("cannot change the root")?;
    umount2("/old", MntFlags::MNT_DETACH)?;
    std::env::set_current_dir(&sandbox.cwd)
        .with_context(|| format!("the sandbox has no folder {}", sandbox.cwd.display()))?;
    if sandbox.net == Net::Loopback {
        let status = Command::new("/usr/sbin/ip").args(["link", "set", "lo", "up"]).status()?;
        if !status.success() {
            bail!("cannot bring up the loopback interface of the sandbox ({status})");
        }
    }
    let (program, args) = sandbox.argv.split_first().context("the command is empty")?;
    let error = Command::new(program).args(args).env_clear().envs(sandbox.env).exec();
    bail!("cannot run {program} in the sandbox: {error}")
}

/// Binds a file or folder of the host to `target`.
fn bind(host: &Path, target: &Path, writable: bool) -> Result<()> {
    mount(Some(host), target, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)?;
    if !writable {
        // In a user namespace, a remount must preserve flags of the host's mount; see
        // mount_namespaces(7).
        let locked = nix::sys::statvfs::statvfs(target)?.flags();
        let mut flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        for (present, flag) in [
            (nix::sys::statvfs::FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
            (nix::sys::statvfs::FsFlags::ST_NODEV, MsFlags::MS_NODEV),
            (nix::sys::statvfs::FsFlags::ST_RELATIME, MsFlags::MS_RELATIME),
        ] {
            if locked.contains(present) {
                flags |= flag;
            }
        }
        mount(None::<&str>, target, None::<&str>, flags, None::<&str>)?;
    }
    Ok(())
}

/// Mounts an empty tmpfs.
fn tmpfs(target: &Path) -> Result<()> {
    mount(Some("tmpfs"), target, Some("tmpfs"), MsFlags::MS_NOSUID, Some("mode=1777"))
        .with_context(|| format!("cannot mount a tmpfs at {}", target.display()))
}

/// Creates the devices of /dev: those without state, pseudo-terminals and shared memory.
fn devices(dev: &Path) -> Result<()> {
    tmpfs(dev)?;
    for name in ["null", "zero", "full", "random", "urandom", "tty"] {
        let node = dev.join(name);
        std::fs::write(&node, "")?;
        mount(
            Some(&Path::new("/dev").join(name)),
            &node,
            None::<&str>,
            MsFlags::MS_BIND,
            None::<&str>,
        )?;
    }
    std::fs::create_dir_all(dev.join("shm"))?;
    tmpfs(&dev.join("shm"))?;
    std::fs::create_dir_all(dev.join("pts"))?;
    mount(
        Some("devpts"),
        &dev.join("pts"),
        Some("devpts"),
        MsFlags::empty(),
        Some("newinstance,ptmxmode=0666"),
    )?;
    symlink("pts/ptmx", dev.join("ptmx"))?;
    for (name, fd) in [("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")] {
        symlink(format!("/proc/self/fd{fd}"), dev.join(name))?;
    }
    Ok(())
}

/// Mounts the file systems that Docker Engine expects from its host.
fn engine_mounts(root: &Path, state: &Path) -> Result<()> {
    for name in ["docker", "containerd"] {
        let dir = state.join(name);
        std::fs::create_dir_all(&dir)?;
        bind(&dir, &root.join("var/lib").join(name), true)?;
    }
    mount(Some("sysfs"), &root.join("sys"), Some("sysfs"), MsFlags::empty(), None::<&str>)
        .context("cannot mount /sys")?;
    let cgroups = root.join("sys/fs/cgroup");
    let unified = std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").is_ok();
    if unified {
        mount(Some("cgroup2"), &cgroups, Some("cgroup2"), MsFlags::empty(), None::<&str>)
            .context("cannot mount control groups")?;
        return Ok(());
    }
    // The host uses the hierarchies of cgroups version 1.
    tmpfs(&cgroups)?;
    for controller in ["cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids"]
    {
        let dir = cgroups.join(controller);
        std::fs::create_dir_all(&dir)?;
        mount(Some("cgroup"), &dir, Some("cgroup"), MsFlags::empty(), Some(controller))
            .with_context(|| format!("cannot mount the cgroup controller {controller}"))?;
    }
    Ok(())
}
