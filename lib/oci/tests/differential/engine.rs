//! The engine's reader: `members.go`, compiled with the Go toolchain that `BASALT_GO` names.

use std::io::{BufReader, BufWriter, Read as _, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// Variable with the path of a `go` program.
pub(crate) const GO: &str = "BASALT_GO";

/// Source of the program.
const SOURCE: &str = include_str!("members.go");

/// A running program that lists members.
pub(crate) struct Engine {
    child: Child,
    archives: Option<BufWriter<ChildStdin>>,
    lists: BufReader<ChildStdout>,
    // The program is in this folder.
    _folder: tempfile::TempDir,
}

impl Engine {
    /// Compiles and starts the program. Returns `None` if no toolchain is named.
    pub(crate) fn start() -> Option<Self> {
        let go = std::env::var_os(GO)?;
        let folder = tempfile::tempdir().expect("a folder for the program");
        let (source, program) = (folder.path().join("members.go"), folder.path().join("members"));
        std::fs::write(&source, SOURCE).expect("the source is written");
        compile(Path::new(&go), folder.path());
        let mut child = Command::new(&program)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let archives = child.stdin.take().map(|pipe| BufWriter::with_capacity(1 << 20, pipe));
        let lists = BufReader::with_capacity(1 << 20, child.stdout.take().expect("a pipe"));
        Some(Self { child, archives, lists, _folder: folder })
    }

    /// Returns the lists of archives.
    pub(crate) fn list(&mut self, archives: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let (pipe, lists) = (self.archives.as_mut().expect("it runs"), &mut self.lists);
        // The program answers while it reads, so both pipes are served at the same time.
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for archive in archives {
                    let len = u32::try_from(archive.len()).expect("a small archive");
                    pipe.write_all(&len.to_le_bytes()).expect("the program reads");
                    pipe.write_all(archive).expect("the program reads");
                }
                pipe.flush().expect("the program reads");
            });
            archives
                .iter()
                .map(|_| {
                    let mut len = [0; 4];
                    lists.read_exact(&mut len).expect("the program answers");
                    let mut list = vec![0; u32::from_le_bytes(len) as usize];
                    lists.read_exact(&mut list).expect("the program answers");
                    list
                })
                .collect()
        })
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // The program ends with its input.
        self.archives = None;
        let _ = self.child.wait();
    }
}

fn compile(go: &Path, folder: &Path) {
    let mut command = Command::new(go);
    // GOROOT is the toolchain's own, wherever its package set is extracted.
    if let Some(root) = go.parent().and_then(Path::parent).filter(|root| root.join("src").exists())
    {
        command.env("GOROOT", root);
    }
    let output = command
        .args(["build", "-o", "members", "members.go"])
        .current_dir(folder)
        .env("CGO_ENABLED", "0")
        .env("GO111MODULE", "off")
        .env("GOTOOLCHAIN", "local")
        .env("GOFLAGS", "")
        .env("GOCACHE", folder.join("cache"))
        .env("GOPATH", folder.join("path"))
        .env("HOME", folder)
        .output()
        .expect("the toolchain starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
