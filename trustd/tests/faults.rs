//! A TPM that is busy, tests itself, answers too little, nonsense or nothing: between trustd and a
//! software TPM stands a proxy that does that.
// Helpers of tests may unwrap as tests may.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::collections::VecDeque;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use basalt_trustd::audit::Audit;
use basalt_trustd::tpm::{Tpm, TpmError};
use common::{Swtpm, signer};
use measure::{MODULES_PCR, Pcr, replay};
use policy::Policies;
use serde_json::json;

/// TPM 2.0 Library, Part 2, 6.6.3.
const RETRY: u32 = 0x922;
const TESTING: u32 = 0x90a;
const LOCKOUT: u32 = 0x921;

#[derive(Debug, Clone, Copy)]
enum Fault {
    /// The TPM does not see the command; the answer is this code.
    Code(u32),
    /// The TPM does not see it and there is no answer.
    Lost,
    /// The TPM does it and the answer is lost.
    Unanswered,
    /// Its answer is cut off after so many bytes.
    Short(usize),
    /// Bytes of its answer are others, as this number says.
    Spoilt(u32),
    /// Its answer comes late.
    Late,
}

struct Proxy {
    faults: Arc<Mutex<VecDeque<Option<Fault>>>>,
    tcti: String,
}

fn exchange(to: &str, command: &[u8]) -> Vec<u8> {
    let mut tpm = TcpStream::connect(to).unwrap();
    tpm.write_all(command).unwrap();
    let mut answer = vec![0; 10];
    tpm.read_exact(&mut answer).unwrap();
    let size = u32::from_be_bytes(answer[2..6].try_into().unwrap()) as usize;
    answer.resize(size, 0);
    tpm.read_exact(&mut answer[10..]).unwrap();
    answer
}

/// As after a fault the kernel's resource manager does, when trustd closes the device: nothing of
/// it stays in the TPM.
fn flush(tpm: &str) {
    // Transient objects, and sessions that are loaded.
    for first in [0x8000_0000u32, 0x0200_0000] {
        let capability = [
            &[0x80, 1, 0, 0, 0, 22, 0, 0, 1, 0x7a, 0, 0, 0, 1][..],
            &first.to_be_bytes(),
            &[0, 0, 0, 64],
        ]
        .concat();
        let answer = exchange(tpm, &capability);
        for handle in answer[19..].chunks_exact(4) {
            exchange(tpm, &[&[0x80, 1, 0, 0, 0, 14, 0, 0, 1, 0x65][..], handle].concat());
        }
    }
}

impl Proxy {
    fn start(swtpm: &Swtpm) -> Self {
        let behind =
            swtpm.tcti.trim_start_matches("swtpm:host=").split(',').next().unwrap().to_owned();
        // Its neighbour on the loopback network.
        let mut octets: Vec<u8> = behind.split('.').map(|o| o.parse().unwrap()).collect();
        octets[1] = octets[1].wrapping_add(128);
        let address = octets.iter().map(u8::to_string).collect::<Vec<_>>().join(".");
        let faults = Arc::new(Mutex::new(VecDeque::new()));
        let (data, control) = (
            TcpListener::bind((&*address, 2321)).unwrap(),
            TcpListener::bind((&*address, 2322)).unwrap(),
        );
        let (to, queue) = (format!("{behind}:2321"), faults.clone());
        std::thread::spawn(move || {
            for client in data.incoming() {
                // The library has a connection for each command.
                let _ = serve(client.unwrap(), &to, &queue);
            }
        });
        let to = format!("{behind}:2322");
        std::thread::spawn(move || {
            for client in control.incoming() {
                let (mut client, mut tpm) = (client.unwrap(), TcpStream::connect(&to).unwrap());
                let (mut back, mut answers) =
                    (client.try_clone().unwrap(), tpm.try_clone().unwrap());
                std::thread::spawn(move || std::io::copy(&mut answers, &mut back));
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut client, &mut tpm);
                    // It has one at a time: it must see that this one is over.
                    tpm.shutdown(std::net::Shutdown::Both)
                });
            }
        });
        Self { faults, tcti: format!("swtpm:host={address},port=2321") }
    }

    /// After `good` commands that go through as they are.
    fn next(&self, good: usize, faults: impl IntoIterator<Item = Fault>) {
        let mut queue = self.faults.lock().unwrap();
        queue.clear();
        queue.extend(std::iter::repeat_n(None, good));
        queue.extend(faults.into_iter().map(Some));
    }

    fn calm(&self) {
        self.faults.lock().unwrap().clear();
    }
}

/// Until one side has had enough.
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
            Some(Fault::Lost) => {
                flush(tpm);
                return Ok(());
            }
            Some(Fault::Unanswered) => {
                exchange(tpm, &command);
                flush(tpm);
                return Ok(());
            }
            Some(Fault::Short(bytes)) => {
                let answer = exchange(tpm, &command);
                flush(tpm);
                client.write_all(&answer[..bytes.min(answer.len() - 1)])?;
                return Ok(());
            }
            Some(Fault::Spoilt(seed)) => {
                let mut answer = exchange(tpm, &command);
                flush(tpm);
                let mut state = seed;
                for _ in 0..=seed % 4 {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    // The length stays true: the kernel's driver delivers no other.
                    let at = [0, 1]
                        .into_iter()
                        .chain(6..answer.len())
                        .nth((state >> 8) as usize % (answer.len() - 4))
                        .unwrap();
                    answer[at] ^= (state >> 24) as u8 | 1;
                }
                client.write_all(&answer)?;
            }
            Some(Fault::Late) => {
                let answer = exchange(tpm, &command);
                std::thread::sleep(Duration::from_secs(1));
                client.write_all(&answer)?;
            }
        }
    }
}

fn run<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test)
}

/// Everything that trustd asks a TPM for; whether it came through. An answer that was spoilt unseen
/// is told apart by who checks signatures.
async fn everything(tpm: &Tpm) -> Vec<Result<(), TpmError>> {
    let (ours, pcr14) = (signer().public(), Pcr::default());
    let approved = Policies { signer: ours.hex(), policies: vec![signer().sign("test", &pcr14)] }
        .find(&ours, &pcr14)
        .unwrap();
    let sealed = tpm.seal(vec![1; 32], Some(ours.authorises())).await;
    let unsealed = match &sealed {
        Ok(sealed) => tpm.unseal(sealed.clone(), Some(approved)).await.map(drop),
        Err(_) => Ok(()),
    };
    vec![
        tpm.random(40).await.map(drop),
        tpm.read(MODULES_PCR).await.map(drop),
        tpm.quote([1; 32]).await.map(drop),
        tpm.endorsement().await.map(drop),
        tpm.increment().await.map(drop),
        tpm.counter().await.map(drop),
        sealed.map(drop),
        unsealed,
        tpm.activate(vec![0; 68], vec![0; 68]).await.map(drop).or(Ok(())),
    ]
}

#[test]
fn a_busy_tpm_is_asked_again_and_a_locked_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let swtpm = Swtpm::start(dir.path());
    let proxy = Proxy::start(&swtpm);
    run(async {
        let tpm = Tpm::open(&proxy.tcti).await.unwrap();
        for code in [RETRY, TESTING] {
            // The library asks five times by itself.
            proxy.next(0, std::iter::repeat_n(Fault::Code(code), 12));
            assert_eq!(tpm.random(32).await.unwrap().len(), 32);
        }
        // Once for each: an extend that the TPM did not begin is made once, not never and not
        // twice.
        let before = tpm.read(MODULES_PCR).await.unwrap();
        proxy.next(0, std::iter::repeat_n(Fault::Code(RETRY), 7));
        tpm.extend(MODULES_PCR, [7; 32]).await.unwrap();
        let mut expected = before;
        expected.extend(&[7; 32]);
        assert_eq!(tpm.read(MODULES_PCR).await.unwrap(), expected);
        proxy.next(0, [Fault::Code(LOCKOUT)]);
        let begun = Instant::now();
        let error = tpm.read(MODULES_PCR).await.unwrap_err();
        assert!(
            matches!(error, TpmError::Lockout) && error.to_string().contains("recovery time"),
            "{error}"
        );
        assert!(begun.elapsed() < Duration::from_secs(5));
        proxy.next(0, [Fault::Late]);
        tpm.read(MODULES_PCR).await.unwrap();
    });
}

#[test]
fn no_answer_is_too_strange() {
    let dir = tempfile::tempdir().unwrap();
    let swtpm = Swtpm::start(dir.path());
    let proxy = Proxy::start(&swtpm);
    run(async {
        let tpm = Tpm::open(&proxy.tcti).await.unwrap();
        assert!(everything(&tpm).await.iter().all(Result::is_ok));
        let mut faults: Vec<Fault> = [0, 1, 5, 9, 10, 11, 17].map(Fault::Short).to_vec();
        faults.extend([
            Fault::Lost,
            Fault::Unanswered,
            Fault::Code(0x101),
            Fault::Code(0xffff_ffff),
            Fault::Code(0x0),
            Fault::Code(0x902),
        ]);
        faults.extend((0..100).map(Fault::Spoilt));
        let mut failed = 0;
        for (n, fault) in faults.into_iter().enumerate() {
            proxy.next(n % 13, [fault]);
            failed += everything(&tpm).await.iter().filter(|r| r.is_err()).count();
            proxy.calm();
            // Not one of them is for ever.
            let after = everything(&tpm).await;
            assert!(after.iter().all(Result::is_ok), "after {fault:?}: {after:?}");
        }
        assert!(failed > 20, "{failed}: what was spoilt?");
    });
}

/// The answer to an extend is lost, and nobody knows whether it was made: the log finds out.
#[test]
fn the_log_stays_true_whatever_becomes_of_an_extend() {
    let dir = tempfile::tempdir().unwrap();
    let swtpm = Swtpm::start(dir.path());
    let proxy = Proxy::start(&swtpm);
    run(async {
        let tpm = Tpm::open(&proxy.tcti).await.unwrap();
        let platform = dir.path().join("platform.log");
        std::fs::write(&platform, "").unwrap();
        let audit = Audit::open(tpm.clone(), &platform, dir.path(), dir.path()).await.unwrap();
        for (n, fault) in [
            Fault::Lost,
            Fault::Unanswered,
            Fault::Short(3),
            Fault::Code(0x101),
            Fault::Code(RETRY),
        ]
        .into_iter()
        .enumerate()
        {
            // The register is read first.
            proxy.next(1, [fault]);
            let recorded = audit.record("one", &json!({ "n": n })).await;
            assert_eq!(recorded.is_ok(), matches!(fault, Fault::Code(RETRY)), "{fault:?}");
            proxy.calm();
            audit.record("next", &json!({ "n": n })).await.unwrap();
            let records = audit.records().await;
            assert_eq!(
                replay(records.iter()).unwrap()[&MODULES_PCR],
                tpm.read(MODULES_PCR).await.unwrap(),
                "{fault:?}"
            );
            // What the TPM did is in the log, what it did not is not.
            let there = records
                .iter()
                .any(|r| r.content.kind == "one" && r.content.data.contains(&n.to_string()));
            assert_eq!(
                there,
                matches!(fault, Fault::Unanswered | Fault::Short(_) | Fault::Code(RETRY)),
                "{fault:?}"
            );
        }
        Audit::open(tpm.clone(), &platform, dir.path(), dir.path()).await.unwrap();
    });
}
