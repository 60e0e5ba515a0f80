//! The two TPM commands that init needs, sent to the device of the kernel: TPM2_PCR_Extend (TPM 2.0
//! Library, Part 3, 22.2) and TPM2_PCR_Read (22.4). Part 1, 18, specifies the header and the
//! password session.

use std::fs::File;
use std::io::{Read, Write};
use std::time::{Duration, Instant};

use measure::Digest;

const ST_NO_SESSIONS: u16 = 0x8001;
const ST_SESSIONS: u16 = 0x8002;
const CC_PCR_READ: u32 = 0x17e;
const CC_PCR_EXTEND: u32 = 0x182;
const RS_PW: u32 = 0x4000_0009;
const ALG_SHA256: u16 = 0x000b;
/// Response codes after which the command may be retried: YIELDED, TESTING, RETRY.
const RETRY_CODES: [u32; 3] = [0x908, 0x90a, 0x922];
/// Time after which a command is not retried any more.
const RETRY_TIMEOUT: Duration = Duration::from_secs(10);
/// Interval between two attempts to open the device or to send a command.
const RETRY_INTERVAL: Duration = Duration::from_millis(20);
const DEVICE: &str = "/dev/tpm0";

/// Error of a TPM command.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TpmError {
    /// The device does not exist.
    #[error(
        "no TPM: {DEVICE} did not appear within {0} s; connect a TPM 2.0 (see docs/hardware.md) \
         or build an image for this board"
    )]
    Absent(u64),
    /// The device cannot be opened.
    #[error("cannot open {DEVICE}")]
    Open(#[source] std::io::Error),
    /// The device cannot be read or written.
    #[error("cannot execute {command} on the TPM")]
    Io { command: &'static str, source: std::io::Error },
    /// The TPM returned an error.
    #[error("the TPM rejected {command}: response code {code:#05x}")]
    Rejected { command: &'static str, code: u32 },
    /// The response does not decode.
    #[error("the TPM's response to {command} is malformed ({length} bytes)")]
    Malformed { command: &'static str, length: usize },
}

/// A TPM behind a byte stream: the device of the kernel, or the socket of a software TPM in tests.
pub(crate) struct Tpm<S = File>(S);

impl Tpm {
    /// Opens the TPM and waits at most `wait` for its device to appear.
    pub(crate) fn open(wait: Duration) -> Result<Self, TpmError> {
        let deadline = Instant::now() + wait;
        loop {
            match File::options().read(true).write(true).open(DEVICE) {
                Ok(file) => return Ok(Self(file)),
                Err(error)
                    if Instant::now() < deadline
                        && error.kind() != std::io::ErrorKind::PermissionDenied =>
                {
                    std::thread::sleep(RETRY_INTERVAL)
                }
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    return Err(TpmError::Absent(wait.as_secs()));
                }
                Err(source) => return Err(TpmError::Open(source)),
            }
        }
    }
}

impl<S: Read + Write> Tpm<S> {
    /// Extends a PCR of the SHA-256 bank.
    pub(crate) fn extend(&mut self, pcr: u32, digest: &Digest) -> Result<(), TpmError> {
        let mut body = Vec::new();
        body.extend(pcr.to_be_bytes());
        body.extend(9u32.to_be_bytes());
        body.extend(RS_PW.to_be_bytes());
        // Empty nonce, no attributes, empty password.
        body.extend([0; 5]);
        body.extend(1u32.to_be_bytes());
        body.extend(ALG_SHA256.to_be_bytes());
        body.extend(digest);
        self.command("PCR_Extend", ST_SESSIONS, CC_PCR_EXTEND, &body).map(|_| ())
    }

    /// Reads a PCR of the SHA-256 bank.
    pub(crate) fn read(&mut self, pcr: u32) -> Result<Digest, TpmError> {
        let mut select = [0u8; 3];
        select[pcr as usize / 8] = 1 << (pcr % 8);
        let mut body = Vec::new();
        body.extend(1u32.to_be_bytes());
        body.extend(ALG_SHA256.to_be_bytes());
        body.push(3);
        body.extend(select);
        let response = self.command("PCR_Read", ST_NO_SESSIONS, CC_PCR_READ, &body)?;
        parse_read(&response)
            .ok_or(TpmError::Malformed { command: "PCR_Read", length: response.len() })
    }

    fn command(
        &mut self,
        command: &'static str,
        tag: u16,
        code: u32,
        body: &[u8],
    ) -> Result<Vec<u8>, TpmError> {
        let mut request = Vec::with_capacity(10 + body.len());
        request.extend(tag.to_be_bytes());
        request.extend((10 + body.len() as u32).to_be_bytes());
        request.extend(code.to_be_bytes());
        request.extend(body);
        let deadline = Instant::now() + RETRY_TIMEOUT;
        loop {
            self.0.write_all(&request).map_err(|source| TpmError::Io { command, source })?;
            let mut response = vec![0; 4096];
            let n =
                self.0.read(&mut response).map_err(|source| TpmError::Io { command, source })?;
            response.truncate(n);
            match parse_header(&response) {
                None => return Err(TpmError::Malformed { command, length: n }),
                Some(0) => return Ok(response.split_off(10)),
                Some(rc) if RETRY_CODES.contains(&rc) && Instant::now() < deadline => {
                    std::thread::sleep(RETRY_INTERVAL)
                }
                Some(code) => return Err(TpmError::Rejected { command, code }),
            }
        }
    }
}

/// Returns the response code if the header is complete and has the right length.
fn parse_header(response: &[u8]) -> Option<u32> {
    let length = u32::from_be_bytes(response.get(2..6)?.try_into().ok()?);
    let code = u32::from_be_bytes(response.get(6..10)?.try_into().ok()?);
    (length as usize == response.len()).then_some(code)
}

/// Parses the response of TPM2_PCR_Read: updateCounter (4 bytes), selection (4 + 2 + 1 + 3), number
/// of digests (4), length (2), digest.
fn parse_read(body: &[u8]) -> Option<Digest> {
    let digest = body.get(20..)?;
    (body.get(14..20)? == [0, 0, 0, 1, 0, 32]).then_some(())?;
    digest.try_into().ok()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;
    use std::process::{Child, Command};

    /// A software TPM for one test.
    pub(crate) struct Swtpm {
        child: Child,
        dir: tempfile::TempDir,
    }

    impl Drop for Swtpm {
        fn drop(&mut self) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }

    impl Swtpm {
        pub(crate) fn start() -> Self {
            assert!(
                std::env::var_os("BASALT_IN_TOOLS_SYSROOT").is_some(),
                "this test needs the tools sysroot: cargo xtask test unit"
            );
            let dir = tempfile::tempdir().unwrap();
            let child = Command::new("swtpm")
                .args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear", "--tpmstate"])
                .arg(format!("dir={}", dir.path().display()))
                .args([
                    "--server",
                    &format!("type=unixio,path={}", dir.path().join("s").display()),
                    "--ctrl",
                ])
                .arg(format!("type=unixio,path={}", dir.path().join("c").display()))
                .spawn()
                .unwrap();
            Self { child, dir }
        }

        pub(crate) fn connect(&self) -> Tpm<UnixStream> {
            let deadline = Instant::now() + RETRY_TIMEOUT;
            loop {
                match UnixStream::connect(self.dir.path().join("s")) {
                    Ok(stream) => return Tpm(stream),
                    Err(error) => assert!(Instant::now() < deadline, "{error}"),
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }

    #[test]
    fn a_tpm_that_disappears_is_an_error() {
        let mut swtpm = Swtpm::start();
        let mut tpm = swtpm.connect();
        tpm.extend(14, &[1; 32]).unwrap();
        swtpm.child.kill().unwrap();
        swtpm.child.wait().unwrap();
        assert!(tpm.extend(14, &[1; 32]).is_err());
    }

    #[test]
    fn responses_whose_length_is_wrong_are_rejected() {
        let mut good = vec![0x80, 0x01, 0, 0, 0, 10, 0, 0, 0, 0];
        assert_eq!(parse_header(&good), Some(0));
        for n in 0..good.len() {
            assert_eq!(parse_header(&good[..n]), None);
        }
        good.push(0);
        assert_eq!(parse_header(&good), None);
    }

    #[test]
    fn a_response_without_a_digest_is_rejected() {
        let mut body = vec![0; 14];
        body.extend([0, 0, 0, 1, 0, 32]);
        body.extend([7; 32]);
        assert_eq!(parse_read(&body), Some([7; 32]));
        body.push(0);
        assert_eq!(parse_read(&body), None);
        // A TPM without the SHA-256 bank returns no digest.
        assert_eq!(parse_read(&[0; 18]), None);
    }
}
