//! Readers of images: their answers are those of the library, and a reader that fails, lies or
//! stalls is a verdict about the image.
// Test helpers may unwrap, as tests may.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::cell::Cell;
use std::io::{self, Read, Write};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use basalt_trustd::reader::Readers;
use basalt_trustd::reader::wire::{self, Answer, Request};
use basalt_trustd::sandbox::{Landlock, MAX_READER_MEMORY_BYTES, confine_reader};
use nix::sys::signal::{Signal, raise};
use oci::{
    BuiltImage, Claim, ClaimedLayer, Compression, LayerInfo, Limits, Memory, OciError, Platform,
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_basalt-trustd");

fn readers() -> Readers {
    Readers::new(PROGRAM.into(), Landlock::IfSupported)
}

fn corpus(kind: &str) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(kind);
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.into_iter().map(|path| std::fs::read(path).unwrap()).collect()
}

fn image() -> (Vec<u8>, String) {
    oci::build(&BuiltImage {
        architecture: "arm64",
        files: &[("x", 0o755, b"program")],
        folders: &["run"],
        entrypoint: &["/x"],
        user: "1:1",
    })
    .unwrap()
}

/// Imports an archive through a process, and verifies the blobs as the store does.
fn import(readers: &Readers, mut archive: &[u8]) -> Result<Memory, OciError> {
    let mut blobs = Memory::default();
    readers.import(&mut archive, &Limits::default(), |digest, size, content| {
        let mut bytes = Vec::new();
        oci::Checked::new(content, digest, size).read_to_end(&mut bytes)?;
        blobs.0.insert(digest.to_owned(), bytes.into());
        Ok(())
    })?;
    Ok(blobs)
}

/// Text of a result, without the digests that only one side can know.
fn text<T: std::fmt::Debug>(result: &Result<T, OciError>) -> String {
    match result {
        Ok(value) => format!("{value:?}"),
        Err(error) => format!("{}: {error}", error.code()),
    }
}

#[test]
fn layers_are_inspected_as_in_the_library() {
    let mut layers = corpus("layer");
    assert!(layers.len() >= 10, "only {} layers; run cargo xtask fuzz --corpus", layers.len());
    let tar = {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_path("big").unwrap();
        header.set_size(3 << 20);
        header.set_cksum();
        let content: Vec<u8> = (0..3u32 << 20).map(|n| n.wrapping_mul(n) as u8).collect();
        tar.append(&header, content.as_slice()).unwrap();
        tar.into_inner().unwrap()
    };
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&tar).unwrap();
    layers.extend([gzip.finish().unwrap(), zstd::bulk::compress(&tar, 3).unwrap(), tar]);
    layers.extend([Vec::new(), vec![0; 1 << 20]]);
    for layer in layers {
        let limits = Limits { unpacked: 4 << 20, ..Limits::default() };
        let expected = oci::inspect(layer.as_slice(), &limits);
        assert_eq!(text(&readers().inspect(layer.as_slice(), &limits)), text(&expected));
    }
}

#[test]
fn archives_and_documents_are_read_as_in_the_library() {
    let good = image();
    let mut inputs: Vec<(Vec<u8>, String)> = vec![good];
    for kind in ["archive", "archive-around"] {
        for input in corpus(kind).into_iter().step_by(3) {
            let (digest, archive) = input.split_at(32);
            inputs.push((archive.to_vec(), format!("sha256:{}", measure::hex(digest))));
        }
    }
    assert!(inputs.len() > 10);
    let (platform, limits) = (Platform::linux("arm64"), Limits::default());
    for (archive, digest) in inputs {
        let mut expected = Memory::default();
        let imported = oci::import(&mut archive.as_slice(), &mut expected, &limits);
        let mut found = Memory::default();
        let result = import(&readers(), &archive).map(|blobs| found = blobs);
        assert_eq!(text(&result), text(&imported.map(|_| ())));
        if result.is_err() {
            continue;
        }
        assert_eq!(found.0, expected.0);
        let expected = oci::resolve(&expected, &digest, &platform, &limits);
        let resolved = readers().resolve(&found, &digest, &platform, &limits);
        assert_eq!(text(&resolved), text(&expected));
    }
}

#[test]
fn a_broken_source_is_no_verdict() {
    struct Broken<'a>(&'a [u8]);
    impl Read for Broken<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            match self.0.read(buffer)? {
                0 => Err(io::ErrorKind::ConnectionReset.into()),
                n => Ok(n),
            }
        }
    }
    let (archive, _) = image();
    let half = &archive[..archive.len() / 2];
    let limits = Limits::default();
    let imported = readers().import(&mut Broken(half), &limits, |_, _, _| Ok(()));
    assert!(
        matches!(&imported, Err(OciError::Io(e)) if e.kind() == io::ErrorKind::ConnectionReset),
        "{imported:?}"
    );
    let inspected = readers().inspect(Broken(half), &limits);
    assert!(matches!(inspected, Err(OciError::Io(_))), "{inspected:?}");
}

/// Behaviours of a bad reader, and what trustd says about it. The name of the program selects one.
const FAILURES: [(&str, &str); 11] = [
    ("segfault", "ended with SIGSEGV"),
    ("abort", "ended with SIGABRT"),
    ("exit", "ended with the status 3"),
    ("panic", "panicked at x.rs:1"),
    ("forbidden", "ended with SIGSYS; it tried a system call that is forbidden to it"),
    ("memory", "ended with SIGABRT; it failed, or its memory was exhausted"),
    ("silent", "made no progress for 1 s"),
    ("garbage", "invalid answer"),
    ("long", "expected at most 65536 bytes, found 65537"),
    ("truncated", "ended with the status 0"),
    ("wrong-kind", "invalid answer: expected"),
];

/// Creates a reader that behaves like this. Its program is this one under another name.
fn bad(dir: &Path, behaviour: &str) -> Readers {
    let program = dir.join(behaviour);
    std::os::unix::fs::symlink(std::env::current_exe().unwrap(), &program).unwrap();
    Readers::new(program, Landlock::IfSupported).with_stall_timeout(Duration::from_secs(1))
}

#[test]
fn a_failure_is_a_verdict_on_each_kind_of_input() {
    let dir = tempfile::tempdir().unwrap();
    let (archive, digest) = image();
    let blobs = import(&readers(), &archive).unwrap();
    let (platform, limits) = (Platform::linux("arm64"), Limits::default());
    for (behaviour, expected) in FAILURES {
        let bad = bad(dir.path(), behaviour);
        let begun = Instant::now();
        let layer = vec![7; 4 << 20];
        let errors = [
            bad.inspect(layer.as_slice(), &limits).unwrap_err(),
            import(&bad, &archive).map(|_| ()).unwrap_err(),
            bad.resolve(&blobs, &digest, &platform, &limits).unwrap_err(),
        ];
        for (error, code) in errors.iter().zip(["layer", "archive", "document"]) {
            assert_eq!(error.code(), code, "{behaviour}: {error}");
            assert!(error.to_string().contains(expected), "{behaviour}: {error}");
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "{behaviour}");
    }
}

#[test]
fn a_process_that_cannot_start_or_is_killed_from_outside_is_no_verdict() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits::default();
    for (bad, expected) in [
        (Readers::new("/nonexistent".into(), Landlock::Required), "cannot start a reader"),
        (bad(dir.path(), "killed"), "was killed by the system"),
        (bad(dir.path(), "unconfined"), "cannot give up its privileges: no Landlock"),
    ] {
        match bad.inspect(&b"layer"[..], &limits) {
            Err(OciError::Io(error)) => assert!(error.to_string().contains(expected), "{error}"),
            other => panic!("{expected}: {other:?}"),
        }
    }
}

#[test]
fn false_answers_bring_no_content_into_an_image() {
    let dir = tempfile::tempdir().unwrap();
    let (archive, digest) = image();
    let blobs = import(&readers(), &archive).unwrap();
    let (platform, limits) = (Platform::linux("arm64"), Limits::default());
    for behaviour in ["lie-manifest", "lie-layer", "lie-endless"] {
        let bad = bad(dir.path(), behaviour);
        let error = bad.resolve(&blobs, &digest, &platform, &limits).unwrap_err();
        assert_eq!(error.code(), "document", "{behaviour}: {error}");
    }
    let lying = bad(dir.path(), "lie-blob");
    let reads = Cell::new(0);
    let error = lying.import(&mut archive.as_slice(), &limits, |digest, size, content| {
        reads.set(reads.get() + 1);
        // The store hashes the content itself.
        Ok(io::copy(&mut oci::Checked::new(content, digest, size), &mut io::sink()).map(|_| ())?)
    });
    assert!(matches!(error, Err(OciError::Mismatch { .. })), "{error:?}");
    assert_eq!(reads.get(), 1);
    let error = bad(dir.path(), "lie-size").inspect(&b"layer"[..], &limits).unwrap_err();
    assert!(error.to_string().contains("impossible"), "{error}");
}

/// Connection of a bad reader to trustd.
struct Connection;

impl Read for Connection {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(io::stdin().as_fd(), buffer)?)
    }
}

impl Write for Connection {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(rustix::io::write(io::stdin().as_fd(), bytes)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The bad readers. trustd starts this program as `BEHAVIOUR reader …`, so the test harness runs
/// only this function, whose name is the word. In a run of the tests it does nothing.
#[test]
fn reader() {
    let program = std::env::args().next().unwrap();
    let behaviour = Path::new(&program).file_name().unwrap().to_str().unwrap();
    if program == std::env::current_exe().unwrap().to_str().unwrap() {
        return;
    }
    let send = |answer: &Answer| wire::send(&mut Connection, answer).unwrap();
    if behaviour == "unconfined" {
        send(&Answer::Failed("no Landlock".into()));
        std::process::exit(1);
    }
    if ["forbidden", "memory"].contains(&behaviour) {
        confine_reader(Landlock::IfSupported).unwrap();
    }
    send(&Answer::Ready);
    let _: Request = wire::receive_message(&mut Connection).unwrap();
    let other = || format!("sha256:{}", "a".repeat(64));
    let lie = |digest: String, layer: String| {
        let media_type = "application/vnd.oci.image.layer.v1.tar".into();
        let layer = ClaimedLayer { digest: layer, size: 1, media_type, diff_id: other() };
        let (config_digest, media_type) = (other(), oci::MANIFEST_TYPES[0].into());
        Answer::Resolved(Ok(Claim { digest, config_digest, layers: vec![layer], media_type }))
    };
    match behaviour {
        // The handler of Rust's runtime ignores the first one, because no address is at fault.
        "segfault" => (0..2).for_each(|_| raise(Signal::SIGSEGV).unwrap()),
        "killed" => raise(Signal::SIGKILL).unwrap(),
        "abort" => std::process::abort(),
        "exit" => std::process::exit(3),
        "panic" => send(&Answer::Panicked("x.rs:1\u{1b}[2J".into())),
        "forbidden" => drop(std::fs::File::open("/etc/passwd")),
        "memory" => drop(std::hint::black_box(vec![1u8; MAX_READER_MEMORY_BYTES as usize])),
        "silent" => std::thread::sleep(Duration::from_secs(3600)),
        "garbage" => Connection.write_all(&[0x20, 0, 0, 0].repeat(9)).unwrap(),
        "long" => Connection.write_all(&((64u32 << 10) + 1).to_le_bytes()).unwrap(),
        "truncated" => Connection.write_all(&[200, 0, 0, 0, 1]).unwrap(),
        "wrong-kind" => send(&Answer::Ready),
        "lie-manifest" | "lie-layer" => send(&lie(other(), other())),
        "lie-endless" => (0..100).for_each(|_| send(&Answer::Wanted(other()))),
        "lie-blob" => {
            send(&Answer::Blob { digest: other(), size: 4 });
            wire::send_data(&mut Connection, b"evil").unwrap();
            send(&Answer::Imported(Ok(())));
        }
        "lie-size" => send(&Answer::Inspected(Ok(LayerInfo {
            compression: Compression::None,
            diff_id: other(),
            unpacked: u64::MAX,
        }))),
        other => panic!("unknown behaviour {other}"),
    }
    std::process::exit(0);
}
