//! Faults of the TPM: busy, in self-test, truncated, corrupted, late or missing responses. A proxy
//! between trustd and a software TPM injects them.
// Test helpers may unwrap, as tests may.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::collections::VecDeque;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use basalt_trustd::audit::{Audit, EventKind};
use basalt_trustd::tpm::{Tpm, TpmError};
use common::{Swtpm, signer};
use measure::{MODULES_PCR, Pcr, replay};
use policy::Policies;
use serde_json::json;

// Response codes (TPM 2.0 Library, Part 2, 6.6.3).
const RETRY: u32 = 0x922;
const TESTING: u32 = 0x90a;
const LOCKOUT: u32 = 0x921;

#[derive(Debug, Clone, Copy)]
enum Fault {
    /// The response is this code; the command does not reach the TPM.
    Code(u32),
    /// The command does not reach the TPM, and there is no response.
    CommandLoss,
    /// The TPM executes the command, and the response is lost.
    ResponseLoss,
    /// The response is cut off after this number of bytes.
    Truncation(usize),
    /// Some bytes of the response are changed; the number seeds the choice.
    Corruption(u32),
    /// The response is delayed by a second.
    Delay,
}

/// A proxy with a queue of faults, one for each coming command; `None` passes the command on.
struct FaultProxy {
    faults: Arc<Mutex<VecDeque<Option<Fault>>>>,
    tcti: String,
}

/// Sends a command to the TPM and returns its response.
fn exchange(to: &str, command: &[u8]) -> Vec<u8> {
    let mut tpm = TcpStream::connect(to).unwrap();
    tpm.write_all(command).unwrap();
    let mut response = vec![0; 10];
    tpm.read_exact(&mut response).unwrap();
    let size = u32::from_be_bytes(response[2..6].try_into().unwrap()) as usize;
    response.resize(size, 0);
    tpm.read_exact(&mut response[10..]).unwrap();
    response
}

/// Flushes all transient objects and loaded sessions, as the kernel's resource manager does when
/// trustd closes the device after a fault.
fn flush(tpm: &str) {
    // First handles of transient objects and of loaded sessions.
    for first in [0x8000_0000u32, 0x0200_0000] {
        let capability = [
            &[0x80, 1, 0, 0, 0, 22, 0, 0, 1, 0x7a, 0, 0, 0, 1][..],
            &first.to_be_bytes(),
            &[0, 0, 0, 64],
        ]
        .concat();
        let response = exchange(tpm, &capability);
        for handle in response[19..].chunks_exact(4) {
            exchange(tpm, &[&[0x80, 1, 0, 0, 0, 14, 0, 0, 1, 0x65][..], handle].concat());
        }
    }
}

impl FaultProxy {
    fn start(swtpm: &Swtpm) -> Self {
        let backend =
            swtpm.tcti.trim_start_matches("swtpm:host=").split(',').next().unwrap().to_owned();
        // The proxy uses the TPM's ports on another address of the loopback network.
        let mut octets: Vec<u8> = backend.split('.').map(|o| o.parse().unwrap()).collect();
        octets[1] = octets[1].wrapping_add(128);
        let address = octets.iter().map(u8::to_string).collect::<Vec<_>>().join(".");
        let faults = Arc::new(Mutex::new(VecDeque::new()));
        let (data, control) = (
            TcpListener::bind((&*address, 2321)).unwrap(),
            TcpListener::bind((&*address, 2322)).unwrap(),
        );
        let (to, queue) = (format!("{backend}:2321"), faults.clone());
        std::thread::spawn(move || {
            for client in data.incoming() {
                // The library opens a connection for each command.
                let _ = serve(client.unwrap(), &to, &queue);
            }
        });
        let to = format!("{backend}:2322");
        std::thread::spawn(move || {
            for client in control.incoming() {
                let (mut client, mut tpm) = (client.unwrap(), TcpStream::connect(&to).unwrap());
                let (mut back, mut responses) =
                    (client.try_clone().unwrap(), tpm.try_clone().unwrap());
                std::thread::spawn(move || std::io::copy(&mut responses, &mut back));
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut client, &mut tpm);
                    // swtpm serves one connection at a time, so it must see the end of this one.
                    tpm.shutdown(std::net::Shutdown::Both)
                });
            }
        });
        Self { faults, tcti: format!("swtpm:host={address},port=2321") }
    }

    /// Replaces the queue: the next `good` commands pass, the following ones get the faults.
    fn set_faults(&self, good: usize, faults: impl IntoIterator<Item = Fault>) {
        let mut queue = self.faults.lock().unwrap();
        queue.clear();
        queue.extend(std::iter::repeat_n(None, good));
        queue.extend(faults.into_iter().map(Some));
    }

    /// Lets all coming commands pass.
    fn clear_faults(&self) {
        self.faults.lock().unwrap().clear();
    }
}

/// Serves one connection until one side closes it.
fn serve(
    mut client: TcpStream,
    tpm: &str,
    faults: &Mutex<VecDeque<Option<Fault>>>,
) -> std::io::Result<()> {
    loop {
        let mut command = vec![0; 10];
        client.read_exact(&mut command)?;
        let size = u32::from_be_bytes(command[2..6].try_into().unwrap()) as usize;
        command.resize(size, 0);
        client.read_exact(&mut command[10..])?;
        let fault = faults.lock().unwrap().pop_front().flatten();
        match fault {
            None => client.write_all(&exchange(tpm, &command))?,
            Some(Fault::Code(code)) => {
                if ![RETRY, TESTING, LOCKOUT].contains(&code) {
                    flush(tpm);
                }
                client.write_all(&[&[0x80, 1, 0, 0, 0, 10][..], &code.to_be_bytes()].concat())?;
            }
            Some(Fault::CommandLoss) => {
                flush(tpm);
                return Ok(());
            }
            Some(Fault::ResponseLoss) => {
                exchange(tpm, &command);
                flush(tpm);
                return Ok(());
            }
            Some(Fault::Truncation(bytes)) => {
                let response = exchange(tpm, &command);
                flush(tpm);
                client.write_all(&response[..bytes.min(response.len() - 1)])?;
                return Ok(());
            }
            Some(Fault::Corruption(seed)) => {
                let mut response = exchange(tpm, &command);
                flush(tpm);
                let mut state = seed;
                for _ in 0..=seed % 4 {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    // The length stays correct: the kernel's driver delivers no other response.
                    let at = [0, 1]
                        .into_iter()
                        .chain(6..response.len())
                        .nth((state >> 8) as usize % (response.len() - 4))
                        .unwrap();
                    response[at] ^= (state >> 24) as u8 | 1;
                }
                client.write_all(&response)?;
            }
            Some(Fault::Delay) => {
                let response = exchange(tpm, &command);
                std::thread::sleep(Duration::from_secs(1));
                client.write_all(&response)?;
            }
        }
    }
}

fn run<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test)
}

/// Runs every operation that trustd needs, and returns the results. A corrupted response can count
/// as success here; the verifier of signatures notices it.
async fn run_all_operations(tpm: &Tpm) -> Vec<Result<(), TpmError>> {
    let (ours, pcr14) = (signer().public(), Pcr::default());
    let approved = Policies { signer: ours.hex(), policies: vec![signer().sign("test", &pcr14)] }
        .find(&ours, &pcr14)
        .unwrap();
    let sealed = tpm.seal(vec![1; 32], Some(ours.authorization_policy())).await;
    let unsealed = match &sealed {
        Ok(sealed) => tpm.unseal(sealed.clone(), Some(approved)).await.map(drop),
        Err(_) => Ok(()),
    };
    vec![
        tpm.get_random(40).await.map(drop),
        tpm.read_pcr(MODULES_PCR).await.map(drop),
        tpm.quote([1; 32]).await.map(drop),
        tpm.read_endorsement().await.map(drop),
        tpm.increment_counter().await.map(drop),
        tpm.read_counter().await.map(drop),
        sealed.map(drop),
        unsealed,
        tpm.activate_credential(vec![0; 68], vec![0; 68]).await.map(drop).or(Ok(())),
    ]
}

#[test]
fn commands_of_a_busy_tpm_are_retried_and_those_of_a_locked_one_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let swtpm = Swtpm::start(dir.path());
    let proxy = FaultProxy::start(&swtpm);
    run(async {
        let tpm = Tpm::open(&proxy.tcti).await.unwrap();
        for code in [RETRY, TESTING] {
            // The library itself tries five times.
            proxy.set_faults(0, std::iter::repeat_n(Fault::Code(code), 12));
            assert_eq!(tpm.get_random(32).await.unwrap().len(), 32);
        }
        // An extend that the TPM did not start is executed exactly once.
        let before = tpm.read_pcr(MODULES_PCR).await.unwrap();
        proxy.set_faults(0, std::iter::repeat_n(Fault::Code(RETRY), 7));
        tpm.extend_pcr(MODULES_PCR, [7; 32]).await.unwrap();
        let mut expected = before;
        expected.extend(&[7; 32]);
        assert_eq!(tpm.read_pcr(MODULES_PCR).await.unwrap(), expected);
        proxy.set_faults(0, [Fault::Code(LOCKOUT)]);
        let start = Instant::now();
        let error = tpm.read_pcr(MODULES_PCR).await.unwrap_err();
        assert!(
            matches!(error, TpmError::Lockout) && error.to_string().contains("recovery time"),
            "{error}"
        );
        assert!(start.elapsed() < Duration::from_secs(5), "a locked TPM was retried");
        proxy.set_faults(0, [Fault::Delay]);
        tpm.read_pcr(MODULES_PCR).await.unwrap();
    });
}

#[test]
fn no_fault_is_permanent() {
    let dir = tempfile::tempdir().unwrap();
    let swtpm = Swtpm::start(dir.path());
    let proxy = FaultProxy::start(&swtpm);
    run(async {
        let tpm = Tpm::open(&proxy.tcti).await.unwrap();
        assert!(run_all_operations(&tpm).await.iter().all(Result::is_ok));
        let mut faults: Vec<Fault> = [0, 1, 5, 9, 10, 11, 17].map(Fault::Truncation).to_vec();
        faults.extend([
            Fault::CommandLoss,
            Fault::ResponseLoss,
            Fault::Code(0x101),
            Fault::Code(0xffff_ffff),
            Fault::Code(0x0),
            Fault::Code(0x902),
        ]);
        faults.extend((0..100).map(Fault::Corruption));
        let mut failed = 0;
        for (n, fault) in faults.into_iter().enumerate() {
            proxy.set_faults(n % 13, [fault]);
            failed += run_all_operations(&tpm).await.iter().filter(|r| r.is_err()).count();
            proxy.clear_faults();
            // Without the fault, everything works again.
            let after = run_all_operations(&tpm).await;
            assert!(after.iter().all(Result::is_ok), "after {fault:?}: {after:?}");
        }
        assert!(failed > 20, "only {failed} operations failed");
    });
}

/// After a lost response it is unknown whether the TPM extended; the next step finds out.
#[test]
fn the_log_matches_the_register_after_every_fault_of_an_extend() {
    let dir = tempfile::tempdir().unwrap();
    let swtpm = Swtpm::start(dir.path());
    let proxy = FaultProxy::start(&swtpm);
    run(async {
        let tpm = Tpm::open(&proxy.tcti).await.unwrap();
        let platform = dir.path().join("platform.log");
        std::fs::write(&platform, "").unwrap();
        let audit = Audit::open(tpm.clone(), &platform, dir.path(), dir.path()).await.unwrap();
        for (n, fault) in [
            Fault::CommandLoss,
            Fault::ResponseLoss,
            Fault::Truncation(3),
            Fault::Code(0x101),
            Fault::Code(RETRY),
        ]
        .into_iter()
        .enumerate()
        {
            // The first command reads the register.
            proxy.set_faults(1, [fault]);
            let recorded = audit.record(EventKind::ModuleStarted, &json!({ "n": n })).await;
            assert_eq!(recorded.is_ok(), matches!(fault, Fault::Code(RETRY)), "{fault:?}");
            proxy.clear_faults();
            audit.record(EventKind::ModuleStopped, &json!({ "n": n })).await.unwrap();
            let records = audit.records().await;
            assert_eq!(
                replay(records.iter()).unwrap()[&MODULES_PCR],
                tpm.read_pcr(MODULES_PCR).await.unwrap(),
                "{fault:?}"
            );
            // The log has the event exactly if the TPM extended.
            let is_logged = records.iter().any(|r| {
                r.content.kind == EventKind::ModuleStarted.as_str()
                    && r.content.data.contains(&n.to_string())
            });
            assert_eq!(
                is_logged,
                matches!(fault, Fault::ResponseLoss | Fault::Truncation(_) | Fault::Code(RETRY)),
                "{fault:?}"
            );
        }
        Audit::open(tpm.clone(), &platform, dir.path(), dir.path()).await.unwrap();
    });
}
