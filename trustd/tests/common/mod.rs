//! The real parts that tests use: a software TPM, each test its own.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use basalt_trustd::tpm::Tpm;

pub(crate) struct Swtpm {
    child: Child,
    pub(crate) tcti: String,
}

impl Drop for Swtpm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Swtpm {
    pub(crate) fn start(dir: &Path) -> Self {
        assert!(std::env::var_os("BASALT_IN_TOOLS_TREE").is_some(), "these tests need the tools tree: cargo xtask test unit");
        let state = dir.join("tpm");
        std::fs::create_dir_all(&state).unwrap();
        // Two ports side by side; another test may take one in between, so try again.
        for _ in 0..20 {
            let first = TcpListener::bind(("127.0.0.1", 0)).unwrap();
            let port = first.local_addr().unwrap().port();
            let Ok(second) = TcpListener::bind(("127.0.0.1", port.wrapping_add(1))) else { continue };
            drop((first, second));
            let mut child = Command::new("swtpm")
                .args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear", "--tpmstate"])
                .arg(format!("dir={}", state.display()))
                .args([
                    "--server",
                    &format!("type=tcp,port={port},bindaddr=127.0.0.1,disconnect"),
                    "--ctrl",
                    &format!("type=tcp,port={},bindaddr=127.0.0.1", port + 1),
                ])
                .stdout(Stdio::null())
                .spawn()
                .unwrap();
            let deadline = Instant::now() + Duration::from_secs(20);
            while Instant::now() < deadline && child.try_wait().unwrap().is_none() {
                if std::net::TcpStream::connect(("127.0.0.1", port + 1)).is_ok() {
                    return Self { child, tcti: format!("swtpm:host=127.0.0.1,port={port}") };
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        panic!("swtpm does not start");
    }

    pub(crate) async fn open(&self) -> Tpm {
        Tpm::open(&self.tcti).await.unwrap()
    }
}
