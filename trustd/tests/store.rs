//! The store of blobs, with real readers.

// Test helpers may unwrap, as tests may.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;
use std::io::{self, Read, Write as _};
use std::path::Path;

use basalt_trustd::images::store::{Store, StoreError};
use basalt_trustd::reader::Readers;
use basalt_trustd::sandbox::Landlock;
use oci::{Blobs as _, Limits, OciError};
use sha2::{Digest as _, Sha256};

fn readers() -> Readers {
    Readers::new(env!("CARGO_BIN_EXE_basalt-trustd").into(), Landlock::IfSupported)
}

fn sha(data: &[u8]) -> String {
    format!("sha256:{}", measure::hex(&Sha256::digest(data)))
}

fn store(dir: &Path, quota: u64) -> Store {
    Store::open(dir, quota, Limits::default(), readers()).unwrap()
}

fn read(store: &Store, digest: &str) -> Vec<u8> {
    let (_, mut file) = store.blob(digest).unwrap().unwrap();
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn an_interrupted_transfer_is_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), 1 << 20);
    let data: Vec<u8> = (0..300_000u32).map(|n| n as u8).collect();
    let digest = sha(&data);
    assert!(matches!(
        store.receive(&digest, 300_000, 0, BrokenConnection(&data[..200_000])),
        Err(StoreError::Io { .. })
    ));
    assert_eq!((store.partial_size(&digest), store.size(&digest)), (200_000, None));
    store.receive(&digest, 300_000, 200_000, &data[200_000..]).unwrap();
    assert_eq!((store.partial_size(&digest), store.size(&digest)), (0, Some(300_000)));
    assert_eq!(read(&store, &digest), data);
}

/// Connection that breaks after these bytes.
struct BrokenConnection<'a>(&'a [u8]);

impl Read for BrokenConnection<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.0.read(buffer)? {
            0 => Err(io::ErrorKind::ConnectionReset.into()),
            n => Ok(n),
        }
    }
}

#[test]
fn wrong_content_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), 1 << 20);
    let digest = sha(b"good");
    for (size, bytes) in [(4, &b"evil"[..]), (4, b"goo"), (4, b"goods"), (5, b"good")] {
        assert!(
            matches!(
                store.receive(&digest, size, 0, bytes),
                Err(StoreError::Oci(OciError::Mismatch { .. }))
            ),
            "{bytes:?}"
        );
        assert_eq!((store.partial_size(&digest), store.size(&digest)), (0, None));
    }
    // The bytes of the first transfer are verified too.
    assert!(store.receive(&digest, 4, 0, BrokenConnection(b"ev")).is_err());
    assert!(matches!(store.receive(&digest, 4, 2, &b"od"[..]), Err(StoreError::Oci(_))));
    assert_eq!(store.partial_size(&digest), 0);
}

#[test]
fn blobs_that_are_not_pinned_are_removed_to_make_room() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), 1000);
    let blob = |n: u8| vec![n; 400];
    let put = |n: u8| store.receive(&sha(&blob(n)), 400, 0, blob(n).as_slice());
    put(1).unwrap();
    put(2).unwrap();
    store.pin("m", [sha(&blob(1))].into());
    put(3).unwrap();
    assert_eq!([1, 2, 3].map(|n| store.size(&sha(&blob(n))).is_some()), [true, false, true]);
    store.pin("n", [sha(&blob(3))].into());
    let error = put(4).unwrap_err();
    assert!(matches!(error, StoreError::Quota { needed: 400, used: 800, quota: 1000 }), "{error}");
    assert!(error.to_string().contains("quota-mib"));
    store.pin("m", BTreeSet::new());
    put(4).unwrap();
    assert_eq!(store.size(&sha(&blob(1))), None);
}

#[test]
fn a_decompression_bomb_is_rejected_during_the_transfer() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits { unpacked: 1 << 20, ..Limits::default() };
    let store = Store::open(dir.path(), 1 << 30, limits, readers()).unwrap();
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    for _ in 0..512 {
        gz.write_all(&vec![0; 1 << 20]).unwrap();
    }
    let bomb = gz.finish().unwrap();
    let error = store.receive(&sha(&bomb), bomb.len() as u64, 0, bomb.as_slice()).unwrap_err();
    assert!(matches!(error, StoreError::Oci(OciError::Limit { .. })), "{error}");
}

#[test]
fn documents_of_a_known_image_are_verified_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), 1 << 20);
    let (archive, digest) = oci::build(&oci::BuiltImage {
        architecture: "arm64",
        files: &[],
        folders: &["run"],
        entrypoint: &["/x"],
        user: "1:1",
    })
    .unwrap();
    store.import(&mut archive.as_slice()).unwrap();
    let platform = oci::Platform::linux("arm64");
    let image = store.resolve(&digest, &platform).unwrap();
    assert_eq!(store.resolve(&digest, &platform).unwrap().config_digest, image.config_digest);
    assert!(store.resolve(&digest, &oci::Platform::linux("amd64")).is_err());
    let config = &image.config_digest;
    std::fs::write(dir.path().join("blobs").join(&config["sha256:".len()..]), "{}").unwrap();
    assert!(matches!(store.resolve(&digest, &platform), Err(OciError::Mismatch { .. })));
    store.remove(config).unwrap();
    assert!(matches!(store.resolve(&digest, &platform), Err(OciError::Absent { .. })));
}

#[test]
fn names_that_are_not_digests_reach_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), 1000);
    for name in ["../../etc/passwd", "sha256:../x", "", "sha256:AA"] {
        assert!(store.blob(name).is_err());
        assert!(store.receive(name, 1, 0, &b"x"[..]).is_err());
    }
}
