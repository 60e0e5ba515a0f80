//! Every way known to us in which an archive can lie, performed.
// Helpers of tests may unwrap as tests may.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{Read as _, Write as _};

use basalt_oci::{
    Compression, Limits, Memory, OciError, BuiltImage, Platform, Verified, build, emit, import, resolve,
};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

fn sha(data: &[u8]) -> String {
    format!("sha256:{}", measure::hex(&Sha256::digest(data)))
}

/// An image in parts, so that each can be falsified.
struct Parts {
    layer: Vec<u8>,
    packed: Vec<u8>,
    config: Value,
    manifest: Value,
}

impl Parts {
    fn new(files: &[(&str, tar::EntryType, &[u8])]) -> Self {
        let mut tar = tar::Builder::new(Vec::new());
        for (name, kind, data) in files {
            let mut header = tar::Header::new_ustar();
            // set_path refuses what we want to write here.
            header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
            header.set_entry_type(*kind);
            header.set_size(if kind.is_file() { data.len() as u64 } else { 0 });
            if kind.is_hard_link() {
                header.as_mut_bytes()[157..157 + data.len()].copy_from_slice(data);
            }
            header.set_mode(0o755);
            header.set_mtime(0);
            header.set_cksum();
            tar.append(&header, if kind.is_file() { *data } else { &[] }).unwrap();
        }
        Self::of_layer(tar.into_inner().unwrap())
    }

    fn of_layer(layer: Vec<u8>) -> Self {
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
        gz.write_all(&layer).unwrap();
        let packed = gz.finish().unwrap();
        let config = json!({ "architecture": "arm64", "os": "linux", "rootfs": { "type": "layers", "diff_ids": [sha(&layer)] } });
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": { "mediaType": "application/vnd.oci.image.config.v1+json" },
            "layers": [{ "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": sha(&packed), "size": packed.len() }],
        });
        Self { layer, packed, config, manifest }
    }

    /// Fills in the config's digest and lays everything into a tar.
    fn archive(mut self) -> (Vec<u8>, String) {
        let config = self.config.to_string();
        self.manifest["config"]["digest"] = sha(config.as_bytes()).into();
        self.manifest["config"]["size"] = config.len().into();
        let manifest = self.manifest.to_string();
        let blobs = [config.into_bytes(), manifest.clone().into_bytes(), self.packed];
        let members: Vec<(String, Vec<u8>)> =
            blobs.into_iter().map(|b| (blob(&sha(&b)), b)).collect();
        (tar_of(&members), sha(manifest.as_bytes()))
    }
}

fn blob(digest: &str) -> String {
    digest.replace("sha256:", "blobs/sha256/")
}

fn tar_of(members: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, data) in members {
        let mut header = tar::Header::new_ustar();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, data.as_slice()).unwrap();
    }
    tar.into_inner().unwrap()
}

fn members_of(archive: &[u8]) -> Vec<(String, Vec<u8>)> {
    tar::Archive::new(archive)
        .entries()
        .unwrap()
        .map(|entry| {
            let mut entry = entry.unwrap();
            let mut data = Vec::new();
            entry.read_to_end(&mut data).unwrap();
            (entry.path().unwrap().to_string_lossy().into_owned(), data)
        })
        .collect()
}

fn verify(archive: &[u8], digest: &str, limits: &Limits) -> Result<(Memory, Verified), OciError> {
    let mut blobs = Memory::default();
    import(&mut &archive[..], &mut blobs, limits)?;
    let image =
        resolve(&blobs, digest, &Platform::linux("arm64"), limits)?.verify(&blobs, limits)?;
    Ok((blobs, image))
}

fn check(archive: &[u8], digest: &str) -> Result<(Memory, Verified), OciError> {
    verify(archive, digest, &Limits::default())
}

fn good() -> (Vec<u8>, String) {
    Parts::new(&[("bin/x", tar::EntryType::Regular, b"program")]).archive()
}

/// `cargo xtask fuzz --corpus`: what these tests make is what the fuzz targets begin with, and what
/// the gate is shown whole. An archive is written behind the 32 bytes of its manifest's SHA-256.
fn keep(kind: &str, input: &[u8]) {
    if let Some(dir) = std::env::var_os("BASALT_CORPUS").filter(|_| input.len() < 20_000) {
        let path = std::path::Path::new(&dir).join(kind).join(&sha(input)["sha256:".len()..][..16]);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, input).unwrap();
    }
}

fn digest_bytes(digest: &str) -> Vec<u8> {
    measure::unhex(&digest["sha256:".len()..]).unwrap()
}

#[test]
fn nothing_of_the_corpus_is_admitted() {
    let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus");
    let mut seen = 0;
    for entry in ["archive", "archive-around"]
        .iter()
        .flat_map(|kind| std::fs::read_dir(corpus.join(kind)).unwrap())
    {
        let path = entry.unwrap().path();
        let input = std::fs::read(&path).unwrap();
        let (digest, archive) = input.split_at(32);
        assert!(
            check(archive, &format!("sha256:{}", measure::hex(digest))).is_err(),
            "{}",
            path.display()
        );
        seen += 1;
    }
    assert!(seen >= 40, "only {seen}: cargo xtask fuzz --corpus");
}

#[track_caller]
fn refused(archive: &[u8], digest: &str, says: &str) {
    // Around a good image, whose blobs stay good whatever comes with them, or one that is bad by
    // itself.
    let kind = if digest == good().1 { "archive-around" } else { "archive" };
    keep(kind, &[&digest_bytes(digest), archive].concat());
    let error = check(archive, digest).unwrap_err().to_string();
    assert!(error.contains(says), "expected {says:?} in: {error}");
}

#[test]
fn a_good_archive_passes_and_comes_out_in_canonical_form() {
    let (archive, digest) = build(&BuiltImage {
        architecture: "arm64",
        files: &[("x", 0o755, b"program")],
        folders: &["run"],
        entrypoint: &["/x"],
        user: "1:1",
    })
    .unwrap();
    let (blobs, image) = check(&archive, &digest).unwrap();
    keep("archive-good", &[&digest_bytes(&digest), archive.as_slice()].concat());
    keep("manifest", &[&*blobs.0[&digest], &[0], &*blobs.0[&image.config_digest]].concat());
    keep("layer", &blobs.0[&image.layers[0].digest]);
    let out = emit(&blobs, &image, "basalt/x:1", Vec::new()).unwrap();
    assert_eq!(check(&out, &digest).unwrap().1.layers.len(), 1);
    // What came in decides nothing about the form: more members and another order give the same
    // bytes.
    let mut members = members_of(&archive);
    members.reverse();
    members.push(("manifest.json".into(), b"[{\"Config\":\"evil\"}]".to_vec()));
    members.push((blob(&sha(b"stowaway")), b"stowaway".to_vec()));
    let other = tar_of(&members);
    let (blobs, image) = check(&other, &digest).unwrap();
    assert_eq!(emit(&blobs, &image, "basalt/x:1", Vec::new()).unwrap(), out);
}

#[test]
fn a_blob_that_is_not_what_its_name_says() {
    let (archive, digest) = good();
    let mut members = members_of(&archive);
    for n in 0..members.len() {
        let original = members[n].1.clone();
        members[n].1.push(b' ');
        refused(&tar_of(&members), &digest, "expected");
        members[n].1 = original;
    }
}

#[test]
fn every_flipped_byte_of_a_blob_and_every_truncation() {
    let (archive, digest) = good();
    for at in (0..archive.len()).step_by(7) {
        let mut bad = archive.clone();
        bad[at] ^= 0x20;
        // A flip in the padding changes nothing; anywhere else it must not pass as another image.
        if let Ok(image) = check(&bad, &digest) {
            assert_eq!(image.1.digest, digest);
        }
        assert!(check(&archive[..at], &digest).is_err() || at > archive.len() - 1024);
    }
}

#[test]
fn the_manifest_that_was_approved_and_no_other() {
    let (archive, digest) = good();
    refused(&archive, &sha(b"another"), "is not there");
    let (other, _) = Parts::new(&[("bin/x", tar::EntryType::Regular, b"evil")]).archive();
    refused(&other, &digest, "is not there");
}

#[test]
fn members_that_have_no_business_in_an_image() {
    let (archive, digest) = good();
    let with = |name: &str, kind: tar::EntryType| {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(kind);
        header.set_size(0);
        header.set_cksum();
        tar.append(&header, &[][..]).unwrap();
        let mut bytes = tar.into_inner().unwrap();
        bytes.truncate(512);
        bytes.extend(&archive);
        bytes
    };
    for name in [
        "../../etc/passwd",
        "/etc/passwd",
        "blobs/sha256/../../x",
        "blobs/sha256/abc",
        "blobs/sha512/x",
        "INDEX.JSON",
    ] {
        refused(&with(name, tar::EntryType::Regular), &digest, "refused");
    }
    for kind in [
        tar::EntryType::Symlink,
        tar::EntryType::Link,
        tar::EntryType::Char,
        tar::EntryType::GNULongName,
        tar::EntryType::XHeader,
        tar::EntryType::GNUSparse,
    ] {
        refused(&with("index.json", kind), &digest, "only plain files");
    }
    let mut twice = members_of(&archive);
    twice.push(twice[0].clone());
    refused(&tar_of(&twice), &digest, "twice");
}

#[test]
fn documents_that_say_two_things() {
    let parts = || Parts::new(&[("x", tar::EntryType::Regular, b"p")]);
    let mut other_diff = parts();
    other_diff.config["rootfs"]["diff_ids"] = json!([sha(b"other")]);
    let (archive, digest) = other_diff.archive();
    refused(&archive, &digest, "unpacked layer");
    let mut more_ids = parts();
    more_ids.config["rootfs"]["diff_ids"] = json!([sha(b"a"), sha(b"b")]);
    let (archive, digest) = more_ids.archive();
    refused(&archive, &digest, "diff_ids");
    let mut wrong_size = parts();
    wrong_size.manifest["layers"][0]["size"] = 1.into();
    let (archive, digest) = wrong_size.archive();
    refused(&archive, &digest, "1 bytes");
    let mut inline = parts();
    inline.manifest["layers"][0]["urls"] = json!(["http://other.example/"]);
    let (archive, digest) = inline.archive();
    refused(&archive, &digest, "urls");
    let mut case = parts();
    case.config["Config"] = json!({});
    case.config["config"] = json!({});
    let (archive, digest) = case.archive();
    refused(&archive, &digest, "twice");
    let mut kind = parts();
    kind.manifest["layers"][0]["mediaType"] = "application/octet-stream".into();
    let (archive, digest) = kind.archive();
    refused(&archive, &digest, "media type");
    let mut no_layers = parts();
    no_layers.manifest["layers"] = json!([]);
    no_layers.config["rootfs"]["diff_ids"] = json!([]);
    let (archive, digest) = no_layers.archive();
    refused(&archive, &digest, "diff_ids");
}

#[test]
fn what_cannot_be_read_is_refused_and_no_error_of_the_storage() {
    let (_, digest) = good();
    refused(&b"not a tar".repeat(1000), &digest, "no tar archive");
    for junk in [
        &b"\x1f\x8b\x08 and no deflate follows"[..],
        b"\x28\xb5\x2f\xfd and no frame",
        &b"no tar either ".repeat(100),
    ] {
        let mut parts = Parts::new(&[("x", tar::EntryType::Regular, b"p")]);
        parts.packed = junk.to_vec();
        parts.manifest["layers"][0]["digest"] = sha(junk).into();
        parts.manifest["layers"][0]["size"] = junk.len().into();
        keep("layer", junk);
        let (archive, digest) = parts.archive();
        refused(&archive, &digest, "cannot be unpacked");
    }
}

#[test]
fn layers_that_would_leave_the_image() {
    for (name, kind, data, says) in [
        ("../../etc/shadow", tar::EntryType::Regular, &b"x"[..], "leaves the image"),
        ("/etc/shadow", tar::EntryType::Regular, b"x", "absolute"),
        ("a/../../b", tar::EntryType::Regular, b"x", "leaves the image"),
        ("x", tar::EntryType::Link, b"../../etc/shadow", "leaves the image"),
        ("dev/mem", tar::EntryType::Char, b"", "device"),
    ] {
        let (archive, digest) = Parts::new(&[(name, kind, data)]).archive();
        refused(&archive, &digest, says);
    }
}

#[test]
fn bombs_end_early() {
    let parts = Parts::of_layer(vec![0; 64 << 20]);
    assert!(parts.packed.len() < 100_000);
    assert_eq!(parts.layer.len(), 64 << 20);
    let (archive, digest) = parts.archive();
    let limits = Limits { unpacked: 1 << 20, ..Limits::default() };
    let error = verify(&archive, &digest, &limits).unwrap_err();
    assert!(matches!(error, OciError::Limit { limit: 1048576, .. }), "{error}");
    let small = Limits { archive: 1000, ..Limits::default() };
    assert!(matches!(verify(&archive, &digest, &small), Err(OciError::Limit { .. })));
    let json = Limits { json: 10, ..Limits::default() };
    assert!(matches!(verify(&archive, &digest, &json), Err(OciError::Limit { .. })));
}

#[test]
fn a_blob_that_changes_after_it_was_checked_leaves_the_archive_unfinished() {
    let (archive, digest) = good();
    let (mut blobs, image) = check(&archive, &digest).unwrap();
    let mut layer = blobs.0[&image.layers[0].digest].to_vec();
    layer[20] ^= 1;
    blobs.0.insert(image.layers[0].digest.clone(), layer.into());
    let mut out = Vec::new();
    let error = emit(&blobs, &image, "n", &mut out).unwrap_err();
    assert!(matches!(error, OciError::Mismatch { .. }), "{error}");
    // No end marker: nobody can take it for a whole archive.
    assert!(!out.ends_with(&[0; 1024]));
}

#[test]
fn volumes_and_giant_names_are_refused() {
    let mut parts = Parts::new(&[("x", tar::EntryType::Regular, b"p")]);
    parts.config["config"] = json!({ "Volumes": { "/data": {} } });
    let (archive, digest) = parts.archive();
    refused(&archive, &digest, "Volumes");
    for (kind, data, says) in [
        (tar::EntryType::GNULongName, vec![b'a'; 100_000], "are allowed"),
        (tar::EntryType::GNULongName, b"../../etc/shadow\0".to_vec(), "leaves the image"),
        (tar::EntryType::XHeader, b"28 path=../../../etc/shadow\n".to_vec(), "leaves the image"),
        (tar::EntryType::XHeader, b"16 path=a\n/../b\n".to_vec(), "leaves the image"),
        (tar::EntryType::XHeader, b"10 size=9\n".to_vec(), "size"),
        (tar::EntryType::XHeader, b"99 path=x\n".to_vec(), "malformed"),
        (tar::EntryType::XHeader, b"22 GNU.sparse.major=1\n".to_vec(), "sparse"),
    ] {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.as_mut_bytes()[..1].copy_from_slice(b"x");
        header.set_entry_type(kind);
        header.set_size(data.len() as u64);
        header.set_cksum();
        tar.append(&header, data.as_slice()).unwrap();
        let parts = Parts::of_layer(tar.into_inner().unwrap());
        keep("layer", &parts.packed);
        keep("layer", &parts.layer);
        let (archive, digest) = parts.archive();
        refused(&archive, &digest, says);
    }
    // A second gzip member belongs to the layer, as the engine has it.
    let mut two = Parts::new(&[("x", tar::EntryType::Regular, b"p")]);
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
    gz.write_all(&[0; 512]).unwrap();
    two.packed.extend(gz.finish().unwrap());
    two.manifest["layers"][0]["digest"] = sha(&two.packed).into();
    two.manifest["layers"][0]["size"] = two.packed.len().into();
    let (archive, digest) = two.archive();
    refused(&archive, &digest, "unpacked layer");
}

/// An index over images for several platforms.
fn index(entries: &[(&str, Option<&str>, &str, usize)]) -> Vec<u8> {
    let manifests: Vec<Value> = entries
        .iter()
        .map(|(architecture, variant, digest, size)| {
            let mut entry = json!({
                "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": size,
                "platform": { "os": "linux", "architecture": architecture },
            });
            if let Some(variant) = variant {
                entry["platform"]["variant"] = (*variant).into();
            }
            entry
        })
        .collect();
    json!({ "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": manifests }).to_string().into_bytes()
}

fn with_index(archive: &[u8], index: &[u8]) -> Vec<u8> {
    let mut members = members_of(archive);
    members.push((blob(&sha(index)), index.to_vec()));
    tar_of(&members)
}

#[test]
fn an_index_leads_to_the_platforms_manifest() {
    let (archive, digest) = good();
    let size =
        members_of(&archive).iter().find(|(name, _)| *name == blob(&digest)).unwrap().1.len();
    let other = sha(b"for another");
    let list = index(&[
        ("amd64", None, &other, 9),
        ("arm64", Some("v9"), &other, 9),
        ("arm64", Some("v8"), &digest, size),
    ]);
    let (_, image) = check(&with_index(&archive, &list), &sha(&list)).unwrap();
    assert_eq!(
        (image.digest.as_str(), image.asked.as_str()),
        (digest.as_str(), sha(&list).as_str())
    );

    let none = index(&[("amd64", None, &digest, size), ("riscv64", None, &digest, size)]);
    refused(&with_index(&archive, &none), &sha(&none), "linux/amd64, linux/riscv64");
    let wrong = index(&[("arm64", None, &digest, size + 1)]);
    refused(&with_index(&archive, &wrong), &sha(&wrong), "bytes");
    // An index of indexes would be followed without end.
    let text =
        String::from_utf8(list.clone()).unwrap().replacen("image.manifest.v1", "image.index.v1", 3);
    refused(&with_index(&archive, text.as_bytes()), &sha(text.as_bytes()), "expected one of");
    // A manifest that is an index as well could be read as either.
    let both = format!(
        "{{\"mediaType\":\"application/vnd.oci.image.manifest.v1+json\",{}",
        &String::from_utf8(list).unwrap()[1..]
    );
    refused(&with_index(&archive, both.as_bytes()), &sha(both.as_bytes()), "twice");
    let both = both.replacen(",\"mediaType\":\"application/vnd.oci.image.index.v1+json\"", "", 1);
    refused(&with_index(&archive, both.as_bytes()), &sha(both.as_bytes()), "index too");
}

#[test]
fn an_image_for_another_machine_is_refused() {
    let mut parts = Parts::new(&[("x", tar::EntryType::Regular, b"p")]);
    parts.config["architecture"] = "amd64".into();
    let (archive, digest) = parts.archive();
    refused(&archive, &digest, "linux/amd64");
}

fn zstd(layer: &[u8], window: u32) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
    encoder.window_log(window).unwrap();
    encoder.write_all(layer).unwrap();
    encoder.finish().unwrap()
}

fn packed_with_zstd(layer: Vec<u8>, packed: Vec<u8>) -> Parts {
    let mut parts = Parts::of_layer(layer);
    parts.packed = packed;
    parts.manifest["layers"][0] = json!({
        "mediaType": "application/vnd.oci.image.layer.v1.tar+zstd", "digest": sha(&parts.packed), "size": parts.packed.len(),
    });
    parts
}

#[test]
fn layers_may_be_packed_with_zstd() {
    let layer = Parts::new(&[("x", tar::EntryType::Regular, &[b'p'; 100_000])]).layer;
    // Two frames and a skippable one between them: all of it is the layer (RFC 8878, section 3).
    let (head, tail) = layer.split_at(60_000);
    let mut packed = zstd(head, 20);
    packed.extend([0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3]);
    packed.extend(zstd(tail, 20));
    let (archive, digest) = packed_with_zstd(layer.clone(), packed.clone()).archive();
    assert_eq!(check(&archive, &digest).unwrap().1.layers[0].compression, Compression::Zstd);

    let mut short = packed.clone();
    short.truncate(packed.len() - 5);
    let (archive, digest) = packed_with_zstd(layer.clone(), short).archive();
    assert!(check(&archive, &digest).is_err());
    let mut more = packed.clone();
    more.extend(b"more");
    let (archive, digest) = packed_with_zstd(layer.clone(), more).archive();
    assert!(check(&archive, &digest).is_err());
    // Named gzip and packed with zstd: the engine would go by one of the two.
    let mut named = packed_with_zstd(layer.clone(), packed);
    named.manifest["layers"][0]["mediaType"] = "application/vnd.oci.image.layer.v1.tar+gzip".into();
    let (archive, digest) = named.archive();
    refused(&archive, &digest, "packing of the layer");
    // A window of 512 MiB is what the unpacker would have to keep in memory.
    let (archive, digest) =
        packed_with_zstd(vec![0; 64 << 20], zstd(&vec![0; 64 << 20], 27)).archive();
    assert!(check(&archive, &digest).is_err());
    let bomb = vec![0; 32 << 20];
    let packed = zstd(&bomb, 20);
    let (archive, digest) = packed_with_zstd(bomb, packed).archive();
    let limits = Limits { unpacked: 1 << 20, ..Limits::default() };
    assert!(matches!(
        verify(&archive, &digest, &limits),
        Err(OciError::Limit { limit: 1048576, .. })
    ));
}

mod properties {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

        /// Whatever is done to an archive: what comes out at the other end is the approved image or
        /// nothing.
        #[test]
        fn an_altered_archive_gives_the_same_image_or_none(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8), cut in any::<prop::sample::Index>(), cuts in any::<bool>()) {
            let (archive, digest) = good();
            let (blobs, image) = check(&archive, &digest).unwrap();
            let expected = emit(&blobs, &image, "n", Vec::new()).unwrap();
            let mut altered = archive;
            for (at, byte) in changes {
                let at = at.index(altered.len());
                altered[at] = byte;
            }
            if cuts {
                altered.truncate(cut.index(altered.len()));
            }
            if let Ok((blobs, image)) = check(&altered, &digest) {
                prop_assert_eq!(emit(&blobs, &image, "n", Vec::new()).unwrap(), expected);
            }
        }

        /// No bytes at all make the parsers panic or hang.
        #[test]
        fn junk_is_refused_or_empty(junk in prop::collection::vec(any::<u8>(), 0..4096), start in prop::sample::select(vec![vec![], vec![0x1f, 0x8b, 8], vec![0x28, 0xb5, 0x2f, 0xfd]])) {
            let bytes = [start, junk].concat();
            let _ = import(&mut bytes.as_slice(), &mut Memory::default(), &Limits::default());
            let _ = basalt_oci::inspect(bytes.as_slice(), &Limits { unpacked: 1 << 20, ..Limits::default() });
        }
    }
}
