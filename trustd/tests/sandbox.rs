//! The confinement of trustd and of its readers: a forbidden system call ends the process, and a
//! file outside of the allowed folders cannot be opened.
//!
//! Each attempt runs in a process of its own: this program, started again with the attempt's name.
// Test helpers may unwrap, as tests may.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs::File;
use std::io::{self, Read as _};
use std::net::TcpListener;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use basalt_trustd::reader::Readers;
use basalt_trustd::sandbox::{Landlock, confine_reader, confine_trustd};
use basalt_trustd::settings::Settings;
use nix::errno::Errno;
use nix::mount::MsFlags;
use nix::sched::CloneFlags;
use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::unistd::Pid;
use oci::Limits;

const ATTEMPT: &str = "BASALT_ATTEMPT";
const DIR: &str = "BASALT_DIR";
const SIGSYS: i32 = Signal::SIGSYS as i32;

/// Runs an attempt in a process of its own, whose folders are below `dir`.
fn attempt(dir: &Path, name: &str) -> Output {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "attempts", "--nocapture"])
        .env(ATTEMPT, name)
        .env(DIR, dir)
        .output()
        .unwrap()
}

#[test]
fn a_forbidden_call_ends_a_reader() {
    let dir = tempfile::tempdir().unwrap();
    let names = [
        "open",
        "socket",
        "connect",
        "execute",
        "thread",
        "ptrace",
        "mount",
        "kill",
        "namespace",
        "duplicate",
        "limits",
    ];
    for name in names {
        let output = attempt(dir.path(), &format!("reader {name}"));
        assert_eq!(output.status.signal(), Some(SIGSYS), "{name}: {output:?}");
    }
    let output = attempt(dir.path(), "reader compute");
    assert_eq!(output.status.signal(), Some(Signal::SIGABRT as i32), "{output:?}");
}

#[test]
fn a_forbidden_call_ends_trustd() {
    let dir = tempfile::tempdir().unwrap();
    for name in [
        "mount",
        "namespace",
        "ptrace",
        "raw-socket",
        "packet-socket",
        "user",
        "symlink",
        "host-name",
    ] {
        let output = attempt(dir.path(), &format!("trustd {name}"));
        assert_eq!(output.status.signal(), Some(SIGSYS), "{name}: {output:?}");
    }
}

#[test]
fn trustd_reaches_only_its_own_files_and_programs() {
    let dir = tempfile::tempdir().unwrap();
    for folder in ["data", "run", "modules"] {
        std::fs::create_dir(dir.path().join(folder)).unwrap();
    }
    std::fs::write(dir.path().join("secret"), "x").unwrap();
    let output = attempt(dir.path(), "trustd files");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if text.contains("NOTICE") {
        eprintln!("NOTICE: this kernel has no Landlock of Linux 6.12, so its rules are not tested");
        return;
    }
    assert_eq!(output.status.code(), Some(0), "{text}{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_reader_closes_what_it_inherits() {
    // The library of the TPM opens descriptors that are inherited over execve(2).
    let (mut theirs, ours) = io::pipe().unwrap();
    rustix::io::fcntl_setfd(&ours, rustix::io::FdFlags::empty()).unwrap();
    let readers = Readers::new(env!("CARGO_BIN_EXE_basalt-trustd").into(), Landlock::IfSupported);
    let _alive = readers.begin_inspection(&Limits::default()).unwrap();
    drop(ours);
    // The pipe ends when no process has its other end.
    let (sender, ended) = std::sync::mpsc::channel();
    std::thread::spawn(move || sender.send(theirs.read_to_end(&mut Vec::new())));
    assert!(ended.recv_timeout(Duration::from_secs(60)).is_ok(), "the reader has the descriptor");
}

/// The attempts. In a run of the tests it does nothing.
#[test]
fn attempts() {
    let Ok(name) = std::env::var(ATTEMPT) else { return };
    let dir = PathBuf::from(std::env::var_os(DIR).unwrap());
    let (who, name) = name.split_once(' ').unwrap();
    let parent = Pid::parent();
    match who {
        "reader" => confine_reader(Landlock::IfSupported).unwrap(),
        _ => confine(&dir, name),
    }
    let result: io::Result<()> = match name {
        "open" => File::open("/etc/passwd").map(drop),
        "socket" => UnixDatagram::unbound().map(drop),
        "connect" => std::net::TcpStream::connect("127.0.0.1:9").map(drop),
        "execute" => Command::new("/bin/true").status().map(drop),
        "thread" => std::thread::Builder::new().spawn(|| ()).map(drop),
        "ptrace" => nix::sys::ptrace::attach(parent).map_err(Into::into),
        "mount" => {
            nix::mount::mount(Some("tmpfs"), &dir, Some("tmpfs"), MsFlags::empty(), None::<&str>)
                .map_err(Into::into)
        }
        "kill" => nix::sys::signal::kill(parent, None).map_err(Into::into),
        "namespace" => nix::sched::unshare(CloneFlags::CLONE_NEWUSER).map_err(Into::into),
        "duplicate" => rustix::io::dup(io::stdin()).map(drop).map_err(Into::into),
        "limits" => raise_limit(),
        "raw-socket" => open_socket(AddressFamily::Vsock, SockType::Stream),
        "packet-socket" => open_socket(AddressFamily::Packet, SockType::Raw),
        "user" => nix::unistd::setuid(nix::unistd::Uid::from_raw(1)).map_err(Into::into),
        "symlink" => std::os::unix::fs::symlink("/etc", dir.join("data/link")),
        "host-name" => nix::unistd::sethostname("x").map_err(Into::into),
        "compute" => compute(),
        "files" => reach(&dir),
        other => panic!("unknown attempt {other}"),
    };
    // A call that was not allowed has ended the process. Nothing else may have happened but an
    // allowed attempt.
    match (name, result) {
        // The end of the program uses forbidden system calls.
        ("compute", Ok(())) => std::process::abort(),
        ("files", Ok(())) => std::process::exit(0),
        (_, result) => {
            println!("{name}: {result:?}");
            std::process::exit(1)
        }
    }
}

fn raise_limit() -> io::Result<()> {
    let none = rustix::process::Rlimit { current: None, maximum: None };
    Ok(rustix::process::setrlimit(rustix::process::Resource::As, none)?)
}

fn open_socket(family: AddressFamily, kind: SockType) -> io::Result<()> {
    Ok(socket(family, kind, SockFlag::empty(), None).map(drop)?)
}

/// Uses memory as a decoder does.
fn compute() -> io::Result<()> {
    let large = std::hint::black_box(vec![1u8; 192 << 20]);
    let small: Vec<Vec<u8>> = (0..1000).map(|n| vec![2; n]).collect();
    assert!(large.len() > small.len());
    Ok(())
}

fn confine(dir: &Path, name: &str) {
    let settings = Settings {
        data: dir.join("data"),
        run: dir.join("run"),
        modules: dir.join("modules"),
        reader_program: env!("CARGO_BIN_EXE_basalt-trustd").into(),
        ..Settings::on_node()
    };
    let requirement = if name == "files" { Landlock::Required } else { Landlock::IfSupported };
    if confine_trustd(&settings, requirement).is_err() && name == "files" {
        println!("NOTICE");
        std::process::exit(0);
    }
}

/// Tries what trustd needs and what it must not do.
fn reach(dir: &Path) -> io::Result<()> {
    let denied = |result: io::Result<()>| {
        let error = result.expect_err("it must be denied");
        assert_eq!(error.raw_os_error(), Some(Errno::EACCES as i32), "{error}");
    };
    // Outside of the folders.
    denied(File::open(dir.join("secret")).map(drop));
    denied(std::fs::write(dir.join("new"), "x"));
    denied(std::fs::write("/run/basalt-test", "x"));
    denied(File::options().write(true).open("/proc/self/oom_score_adj").map(drop));
    denied(Command::new("/bin/true").status().map(drop));
    // Another program in a folder of its own.
    std::fs::copy("/bin/true", dir.join("data/true"))?;
    denied(Command::new(dir.join("data/true")).status().map(drop));
    // Inside.
    std::fs::read_to_string("/proc/meminfo")?;
    std::fs::create_dir(dir.join("data/a"))?;
    std::fs::write(dir.join("data/a/file"), "x")?;
    std::fs::rename(dir.join("data/a/file"), dir.join("data/file"))?;
    let _socket = UnixDatagram::bind(dir.join("run/socket"))?;
    let _server = TcpListener::bind("127.0.0.1:0")?;
    std::thread::spawn(|| ()).join().unwrap();
    // A reader starts and works inside of trustd's confinement.
    let readers = Readers::new(env!("CARGO_BIN_EXE_basalt-trustd").into(), Landlock::Required);
    let error = readers.inspect(&[7u8; 4096][..], &Limits::default()).unwrap_err();
    assert_eq!(error.code(), "layer", "{error}");
    Ok(())
}
