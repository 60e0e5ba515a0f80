//! Runs a program inside the tools tree: its own mounts, processes, names and (unless told
//! otherwise) no network.
//!
//! Invariants: the tree is read-only; only what is bound in is seen; the environment is only what
//! is given. Two stages, so that no fork of ours is needed: `xtask enter` leaves the host's
//! namespaces and starts itself again as the first process of the new ones, which mounts, changes
//! root and becomes the program.

use std::os::unix::fs::symlink;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context as _, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::{prctl, signal::Signal};
use serde::{Deserialize, Serialize};

use crate::paths;

/// What every program inside finds in its environment; part of every step's inputs.
pub const ENVIRONMENT: [(&str, &str); 5] = [
    ("PATH", "/usr/sbin:/usr/bin"),
    ("HOME", "/tmp"),
    ("LC_ALL", "C.UTF-8"),
    ("TZ", "UTC"),
    ("SSL_CERT_FILE", "/etc/ssl/certs/ca-certificates.crt"),
];

const NO_NAMESPACES: &str = "the host does not allow new namespaces: run as root, or allow them to users \
    (Debian: sysctl kernel.unprivileged_userns_clone=1; Ubuntu: sysctl kernel.apparmor_restrict_unprivileged_userns=0)";

/// Neither root nor a number that the caller is likely to have.
const ORDINARY_USER: u32 = 4242;

#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Net {
    /// Not even a loopback interface that is up.
    None,
    /// A network of its own with `lo` up.
    Loopback,
    /// The host's: only for QEMU's port forwarding.
    Host,
}

#[derive(Serialize, Deserialize, Clone)]
pub struct Sandbox {
    tree: PathBuf,
    binds: Vec<(PathBuf, PathBuf, bool)>,
    env: Vec<(String, String)>,
    cwd: PathBuf,
    net: Net,
    /// Mount control groups and give /run, /var/lib/docker and /var/lib/containerd a place: for the
    /// engine tests.
    engine: Option<PathBuf>,
    argv: Vec<String>,
}

impl Sandbox {
    pub fn new(tree: &Path) -> Self {
        Self {
            tree: tree.to_owned(),
            binds: Vec::new(),
            env: ENVIRONMENT.map(|(k, v)| (k.to_owned(), v.to_owned())).to_vec(),
            cwd: "/".into(),
            net: Net::None,
            engine: None,
            argv: Vec::new(),
        }
    }

    pub fn read(mut self, host: &Path, inside: &str) -> Self {
        self.binds.push((host.to_owned(), inside.into(), false));
        self
    }

    pub fn write(mut self, host: &Path, inside: &str) -> Self {
        self.binds.push((host.to_owned(), inside.into(), true));
        self
    }

    pub fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.env.push((name.to_owned(), value.into()));
        self
    }

    pub fn cwd(mut self, inside: &str) -> Self {
        self.cwd = inside.into();
        self
    }

    pub fn net(mut self, net: Net) -> Self {
        self.net = net;
        self
    }

    pub fn engine(mut self, state: &Path) -> Self {
        self.engine = Some(state.to_owned());
        self
    }

    /// The command that runs `argv` inside; the caller may still set its standard streams.
    pub fn command<S: AsRef<str>>(&self, argv: impl IntoIterator<Item = S>) -> Result<Command> {
        let mut spec = self.clone();
        spec.argv = argv.into_iter().map(|a| a.as_ref().to_owned()).collect();
        // The boot tests use this module too, and are another program.
        // Not by its path: cargo may have put a newer one there.
        let xtask = std::env::var_os("BASALT_XTASK").unwrap_or("/proc/self/exe".into());
        let mut command = Command::new(xtask);
        command.arg("enter").arg(serde_json::to_string(&spec)?).stdin(Stdio::null());
        Ok(command)
    }

    /// Runs `argv`, everything it prints goes to `log`; on failure the error shows the log's end.
    pub fn run<S: AsRef<str>>(&self, log: &Path, argv: impl IntoIterator<Item = S>) -> Result<()> {
        let argv: Vec<String> = argv.into_iter().map(|a| a.as_ref().to_owned()).collect();
        let file = std::fs::OpenOptions::new().create(true).append(true).open(log)?;
        let status = self.command(&argv)?.stdout(file.try_clone()?).stderr(file).status()?;
        check(&argv, status, log)
    }

    /// Runs `argv` and returns what it prints; its standard error goes to `log`.
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

fn check(argv: &[String], status: ExitStatus, log: &Path) -> Result<()> {
    if status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&std::fs::read(log).unwrap_or_default()).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    let tail = lines[lines.len().saturating_sub(25)..].join("\n");
    bail!("`{}` failed ({status}); the end of {}:\n{tail}", argv.join(" "), log.display())
}

/// `xtask enter SPEC`: leaves the namespaces of the host.
pub fn enter(spec: &str) -> Result<()> {
    let sandbox: Sandbox = serde_json::from_str(spec)?;
    // If the build is killed, everything it started ends with it.
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

/// In a new user namespace: this user of the host is `inside`, and there is no other.
fn map_user(inside: u32, uid: nix::unistd::Uid, gid: nix::unistd::Gid) -> Result<()> {
    std::fs::write("/proc/self/setgroups", "deny")?;
    std::fs::write("/proc/self/uid_map", format!("{inside} {uid} 1"))?;
    std::fs::write("/proc/self/gid_map", format!("{inside} {gid} 1"))?;
    Ok(())
}

/// `xtask as-user COMMAND...`: the command as an ordinary user that may touch what the caller owns
/// and has no privilege.
pub fn as_user(argv: &[String]) -> Result<()> {
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    unshare(CloneFlags::CLONE_NEWUSER).context(NO_NAMESPACES)?;
    map_user(ORDINARY_USER, uid, gid)?;
    let (program, args) = argv.split_first().context("nothing to run")?;
    // What the new namespace gives its first process is dropped by exec, since the user is not root
    // there.
    let error = Command::new(program).args(args).exec();
    bail!("cannot run {program}: {error}")
}

/// `xtask enter-second SPEC`: the first process inside.
pub fn enter_second(spec: &str) -> Result<()> {
    let sandbox: Sandbox = serde_json::from_str(spec)?;
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    nix::unistd::sethostname("basalt-build")?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    let root = sandbox.tree.as_path();
    bind(root, root, false).context("cannot bind the tools tree")?;
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
        .with_context(|| format!("no folder {} inside", sandbox.cwd.display()))?;
    if sandbox.net == Net::Loopback {
        let status = Command::new("/usr/sbin/ip").args(["link", "set", "lo", "up"]).status()?;
        if !status.success() {
            bail!("cannot bring the loopback interface up");
        }
    }
    let (program, args) = sandbox.argv.split_first().context("nothing to run")?;
    let error = Command::new(program).args(args).env_clear().envs(sandbox.env).exec();
    bail!("cannot run {program} inside the tools tree: {error}")
}

fn bind(host: &Path, target: &Path, writable: bool) -> Result<()> {
    mount(Some(host), target, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)?;
    if !writable {
        // In a user namespace, flags that the host's mount has must be kept when it is remounted.
        let kept = nix::sys::statvfs::statvfs(target)?.flags();
        let mut flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        for (have, keep) in [
            (nix::sys::statvfs::FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
            (nix::sys::statvfs::FsFlags::ST_NODEV, MsFlags::MS_NODEV),
            (nix::sys::statvfs::FsFlags::ST_RELATIME, MsFlags::MS_RELATIME),
        ] {
            if kept.contains(have) {
                flags |= keep;
            }
        }
        mount(None::<&str>, target, None::<&str>, flags, None::<&str>)?;
    }
    Ok(())
}

fn tmpfs(target: &Path) -> Result<()> {
    mount(Some("tmpfs"), target, Some("tmpfs"), MsFlags::MS_NOSUID, Some("mode=1777"))
        .with_context(|| format!("cannot mount {}", target.display()))
}

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

/// What a Docker Engine expects of its host.
fn engine_mounts(root: &Path, state: &Path) -> Result<()> {
    for name in ["docker", "containerd"] {
        let dir = state.join(name);
        std::fs::create_dir_all(&dir)?;
        bind(&dir, &root.join("var/lib").join(name), true)?;
    }
    mount(Some("sysfs"), &root.join("sys"), Some("sysfs"), MsFlags::empty(), None::<&str>)
        .context("cannot mount /sys")?;
    let groups = root.join("sys/fs/cgroup");
    let unified = std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").is_ok();
    if unified {
        mount(Some("cgroup2"), &groups, Some("cgroup2"), MsFlags::empty(), None::<&str>)
            .context("cannot mount control groups")?;
        return Ok(());
    }
    // A host with the old hierarchies.
    tmpfs(&groups)?;
    for controller in ["cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids"]
    {
        let dir = groups.join(controller);
        std::fs::create_dir_all(&dir)?;
        mount(Some("cgroup"), &dir, Some("cgroup"), MsFlags::empty(), Some(controller))
            .with_context(|| format!("cannot mount the control group {controller}"))?;
    }
    Ok(())
}

/// Runs the host's cargo, for what needs the network (vendoring).
pub fn host_cargo(args: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    command.args(args).current_dir(paths::repo());
    command
}
