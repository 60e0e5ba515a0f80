//! Logs through memory and disk, and how long a long one takes.

use std::io::{BufWriter, Write as _};
use std::process::Command;
use std::time::{Duration, Instant};

use ledger::{ImageStatement, LogEntry, SigningKey, Status};

use super::*;
use crate::admission::log_intake::{Cost, Intake};

/// Entries of the short run, which is part of the unit tests.
const SHORT: u64 = 5_000;
const LONG: u64 = 100_000;
/// What a log of [`LONG`] entries may take (docs/performance.md).
const MAX_TIME: Duration = Duration::from_secs(2);
const MAX_MEMORY_KIB: u64 = 16 * 1024;
const MAX_LINE_TIME: Duration = Duration::from_millis(5);
/// Processes of the unit tests are not optimised and run concurrently.
const TOLERANCE: u32 = 10;

fn key() -> SigningKey {
    SigningKey::from_bytes(&[5; 32])
}

fn policy() -> TrustPolicy {
    let approver = measure::hex(key().verifying_key().as_bytes());
    TrustPolicy::new("t", &[approver], 1).unwrap()
}

fn line(seq: u64) -> String {
    // Digests in no order, as real ones are.
    let digest = measure::hex(&ledger::merkle::leaf_hash(&seq.to_be_bytes()));
    let (digest, status) = (format!("sha256:{digest}"), Status::Approved);
    let (iat, exp) = (1_800_000_000, 1_900_000_000);
    let mut entry = LogEntry::new(ImageStatement { digest, exp, iat, seq, status });
    entry.sign("t", &key());
    entry.line() + "\n"
}

async fn open(dir: &Path) -> LedgerLog {
    let log = LedgerLog::new(policy(), &dir.join("etc"), dir);
    log.set(log.load(HighWaterMark::default()).await);
    log
}

/// Takes a text as the admission controller does, without the mark in the TPM.
async fn take(log: &LedgerLog, reader: impl Read + Send + 'static, start: u64) -> Cost {
    let input = LogInput { reader: Box::new(reader), start, refused: None };
    let report = log.verify(input, None).await.unwrap();
    let Ok(Intake::Verified(candidate)) = report.result else { panic!("not taken") };
    let marked = candidate.verified.high_water_mark();
    let (verified, text) = VerifiedLog::new(*candidate);
    let stored = log.write(text).await.unwrap();
    log.apply(verified, stored, marked).await.unwrap();
    report.cost
}

fn run<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test)
}

fn text_of(log: &LedgerLog) -> String {
    let mut text = String::new();
    log.text().unwrap().text().read_to_string(&mut text).unwrap();
    text
}

#[test]
fn a_log_grows_in_its_file_and_is_there_after_a_restart() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let log = open(dir.path()).await;
        let mut text = String::new();
        for seq in 1..=5 {
            text += &line(seq);
            let cost = take(&log, std::io::Cursor::new(text.clone()), 0).await;
            assert_eq!(cost.entries, 1);
            assert_eq!(text_of(&log), text);
            assert_eq!(text_of(&open(dir.path()).await), text);
        }
        // Entries were appended to one file.
        let mut names: Vec<_> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["ledger-head.json", "ledger.1.jsonl"]);
        // A reader that began before sees the log of that time.
        let mut before = log.text().unwrap().text();
        take(&log, std::io::Cursor::new(text.clone() + &line(6)), 0).await;
        let mut read = String::new();
        before.read_to_string(&mut read).unwrap();
        assert_eq!(read, text);
    });
}

#[test]
fn bytes_that_the_head_does_not_count_are_no_entries() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let one = line(1);
        take(&open(dir.path()).await, std::io::Cursor::new(one.clone()), 0).await;
        // A kill came between the entries and the head.
        let path = dir.path().join("ledger.1.jsonl");
        std::fs::write(&path, one.clone() + &line(2)[..50]).unwrap();
        std::fs::write(dir.path().join("ledger.7.jsonl"), "another file").unwrap();
        std::fs::write(dir.path().join("ledger.incoming.3"), "and another").unwrap();
        let log = open(dir.path()).await;
        assert_eq!(text_of(&log), one);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
        take(&log, std::io::Cursor::new(one.clone() + &line(2)), 0).await;
        assert_eq!(text_of(&open(dir.path()).await), one + &line(2));
        // A file that is too short is an error, and not a shorter log.
        std::fs::write(&path, "").unwrap();
        let error = open(dir.path()).await.text().unwrap_err();
        assert!(error_chain(error.as_ref()).contains("expected at least"), "{error}");
    });
}

#[test]
fn the_log_of_the_image_is_continued_in_a_file_of_its_own() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        let shipped = dir.path().join("etc/ledger.jsonl");
        std::fs::write(&shipped, line(1)).unwrap();
        let log = open(dir.path()).await;
        assert_eq!(text_of(&log), line(1));
        let longer = line(1) + &line(2);
        take(&log, std::io::Cursor::new(longer.clone()), 0).await;
        assert_eq!(std::fs::read_to_string(&shipped).unwrap(), line(1));
        assert_eq!(text_of(&open(dir.path()).await), longer);
        // The image's log contradicts the persisted one.
        std::fs::write(&shipped, line(9)).unwrap();
        assert!(matches!(*open(dir.path()).await.text().unwrap_err(), AdmissionError::Fork));
    });
}

/// Returns the peak of the process's memory.
fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Time for a log and for one line more, and the memory that the log took.
struct Figures {
    log: Duration,
    line: Duration,
    memory_kib: u64,
}

/// Measures in a process of its own, so that nothing else counts.
fn measure_in_process(entries: u64) -> Figures {
    let dir = tempfile::tempdir().unwrap();
    let mut file = BufWriter::new(std::fs::File::create(dir.path().join("sent")).unwrap());
    for seq in 1..=entries {
        file.write_all(line(seq).as_bytes()).unwrap();
    }
    file.into_inner().unwrap().sync_all().unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "--nocapture"])
        .arg("admission::ledger_log::tests::one_process")
        .env("BASALT_LOG_DIR", dir.path())
        .env("BASALT_LOG_ENTRIES", entries.to_string())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let figures = text.lines().find_map(|line| line.split_once("figures ")).unwrap().1;
    let figures: Vec<u64> = figures.split(' ').map(|n| n.parse().unwrap()).collect();
    Figures {
        log: Duration::from_micros(figures[0]),
        line: Duration::from_micros(figures[1]),
        memory_kib: figures[2],
    }
}

#[test]
#[ignore = "process that the other tests start"]
fn one_process() {
    let dir = PathBuf::from(std::env::var_os("BASALT_LOG_DIR").unwrap());
    let entries: u64 = std::env::var("BASALT_LOG_ENTRIES").unwrap().parse().unwrap();
    run(async {
        let log = open(&dir).await;
        let sent = std::fs::File::open(dir.join("sent")).unwrap();
        let (before, began) = (peak_kib(), Instant::now());
        let cost = take(&log, sent, 0).await;
        let (of_log, memory) = (began.elapsed(), peak_kib() - before);
        assert_eq!(cost.entries, entries);
        let mut of_lines = Vec::new();
        for seq in entries + 1..=entries + 9 {
            let start = log.text().unwrap().last_line_start().unwrap();
            let part = line(seq - 1) + &line(seq);
            let began = Instant::now();
            assert_eq!(take(&log, std::io::Cursor::new(part), start).await.entries, 1);
            of_lines.push(began.elapsed());
        }
        of_lines.sort();
        println!("figures {} {} {memory}", of_log.as_micros(), of_lines[4].as_micros());
    });
}

#[test]
fn a_long_log_takes_bounded_time_and_memory() {
    let Figures { log, line, memory_kib } = measure_in_process(SHORT);
    assert!(log < MAX_TIME * TOLERANCE, "{log:?}");
    assert!(line < MAX_LINE_TIME * TOLERANCE * 5, "{line:?}");
    assert!(memory_kib < MAX_MEMORY_KIB, "{memory_kib} KiB");
}

#[test]
#[ignore = "cargo xtask bench log"]
fn figures() {
    let mut runs: Vec<Figures> = (0..5).map(|_| measure_in_process(LONG)).collect();
    runs.sort_by_key(|figures| figures.log);
    for Figures { log, line, memory_kib } in &runs {
        println!("{LONG} entries: {log:?}, {memory_kib} KiB; one line more: {line:?}");
    }
    let Figures { log, line, memory_kib } = &runs[2];
    println!("median: {log:?} (limit {MAX_TIME:?}), {memory_kib} KiB (limit {MAX_MEMORY_KIB})");
    println!("one line more: {line:?} (limit {MAX_LINE_TIME:?})");
    assert!(*log <= MAX_TIME && *memory_kib <= MAX_MEMORY_KIB && *line <= MAX_LINE_TIME);
}
