//! Shared parts of the tests: a software TPM per test, and the root key under its seal.

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use basalt_trustd::keys::root_key::RootKeyVault;
use basalt_trustd::tpm::Tpm;
use measure::Pcr;
use policy::{Policies, Signer};

/// Port of the data connection; the control connection has the next one.
const PORT: u16 = 2321;
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// Name of the file with the policies of the boot partition.
pub(crate) const SHIPPED: &str = "shipped.json";

/// Returns the signer whose policies the nodes of the tests accept.
pub(crate) fn signer() -> Signer {
    Signer::from_builder_key(&[9; 32])
}

#[allow(dead_code)] // Not every test program uses it.
pub(crate) fn boot() -> config::Boot {
    let text = format!(
        "variant = \"prod\"\nversion = \"1\"\nbuilt = 1\ntpm = \"required\"\nsigner = \"{}\"\n",
        signer().public().hex()
    );
    config::parse("boot.toml", &text).unwrap()
}

/// Creates a vault for the root key. Writes a policy for this boot to `dir`, which stands for the
/// boot partition.
#[allow(dead_code)] // Not every test program uses it.
pub(crate) fn vault(
    tpm: &Tpm,
    pcr14: Pcr,
    data: &Path,
    dir: &Path,
    keys: &config::Keys,
) -> RootKeyVault {
    let policies =
        Policies { signer: signer().public().hex(), policies: vec![signer().sign("test", &pcr14)] };
    std::fs::write(dir.join(SHIPPED), policies.text()).unwrap();
    RootKeyVault::new(tpm.clone(), pcr14, &boot(), keys, data, &dir.join(SHIPPED)).unwrap()
}

/// A running software TPM, which is killed on drop.
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
        assert!(
            std::env::var_os("BASALT_IN_TOOLS_SYSROOT").is_some(),
            "these tests need the tools sysroot: run cargo xtask test unit"
        );
        let state = dir.join("tpm");
        std::fs::create_dir_all(&state).unwrap();
        // The transport has no Unix sockets. Each TPM gets its own address of the loopback network,
        // so that concurrent tests do not use the same port.
        static STARTED: AtomicU8 = AtomicU8::new(1);
        let [.., high, low] = std::process::id().to_be_bytes();
        let address =
            Ipv4Addr::new(127, STARTED.fetch_add(1, Ordering::Relaxed), high, low.clamp(1, 254));
        let mut child = Command::new("swtpm")
            .args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear", "--tpmstate"])
            .arg(format!("dir={}", state.display()))
            .args([
                "--server",
                &format!("type=tcp,port={PORT},bindaddr={address},disconnect"),
                "--ctrl",
                &format!("type=tcp,port={},bindaddr={address}", PORT + 1),
            ])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + START_TIMEOUT;
        while Instant::now() < deadline {
            assert!(child.try_wait().unwrap().is_none(), "swtpm on {address} exited");
            // It can listen on one of the ports before the other.
            if [PORT, PORT + 1]
                .into_iter()
                .all(|port| std::net::TcpStream::connect((address, port)).is_ok())
            {
                return Self { child, tcti: format!("swtpm:host={address},port={PORT}") };
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = child.kill();
        panic!("swtpm did not start: {}", child.wait().unwrap());
    }

    /// Resets the TPM: sends CMD_INIT, which stands for the reset line, and then the command with
    /// which firmware starts a TPM.
    #[allow(dead_code)] // Not every test program uses it.
    pub(crate) fn reset(&self) {
        use std::io::{Read as _, Write as _};
        let address = self.tcti.trim_start_matches("swtpm:host=").split(',').next().unwrap();
        let mut control = std::net::TcpStream::connect((address, PORT + 1)).unwrap();
        // CMD_INIT is 2, followed by four bytes of flags (swtpm, include/swtpm/tpm_ioctl.h).
        control.write_all(&[0, 0, 0, 2, 0, 0, 0, 0]).unwrap();
        let mut answer = [9; 4];
        control.read_exact(&mut answer).unwrap();
        assert_eq!(answer, [0; 4], "CMD_INIT");
        // TPM2_Startup(CLEAR).
        let mut data = std::net::TcpStream::connect((address, PORT)).unwrap();
        data.write_all(&[0x80, 0x01, 0, 0, 0, 12, 0, 0, 0x01, 0x44, 0, 0]).unwrap();
        let mut answer = [9; 10];
        data.read_exact(&mut answer).unwrap();
        assert_eq!(answer[6..], [0; 4], "TPM2_Startup");
    }

    /// Returns the ID of the process.
    #[allow(dead_code)] // Not every test program uses it.
    pub(crate) fn process(&self) -> u32 {
        self.child.id()
    }

    #[allow(dead_code)] // Not every test program uses it.
    pub(crate) async fn open(&self) -> Tpm {
        Tpm::open(&self.tcti).await.unwrap()
    }
}
