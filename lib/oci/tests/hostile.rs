//! Every way known to us in which an archive can lie, performed.
// Helpers of tests may unwrap as tests may.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{Cursor, Read as _, Write as _};

use basalt_oci::{Image, Limits, OciError, build, emit, verify};
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
        let members: Vec<(String, Vec<u8>)> = blobs.into_iter().map(|b| (blob(&sha(&b)), b)).collect();
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

fn check(archive: &[u8], digest: &str) -> Result<basalt_oci::Verified, OciError> {
    verify(&mut Cursor::new(archive), digest, &Limits::default())
}

fn good() -> (Vec<u8>, String) {
    Parts::new(&[("bin/x", tar::EntryType::Regular, b"program")]).archive()
}

#[track_caller]
fn refused(archive: &[u8], digest: &str, says: &str) {
    let error = check(archive, digest).unwrap_err().to_string();
    assert!(error.contains(says), "expected {says:?} in: {error}");
}

#[test]
fn a_good_archive_passes_and_comes_out_in_canonical_form() {
    let (archive, digest) =
        build(&Image { architecture: "arm64", files: &[("x", 0o755, b"program")], folders: &["run"], entrypoint: &["/x"], user: "1:1" })
            .unwrap();
    let image = check(&archive, &digest).unwrap();
    let out = emit(&mut Cursor::new(&archive), &image, "basalt/x:1", Vec::new()).unwrap();
    assert_eq!(check(&out, &digest).unwrap().layers.len(), 1);
    // What came in decides nothing about the form: more members and another order give the same bytes.
    let mut members = members_of(&archive);
    members.reverse();
    members.push(("manifest.json".into(), b"[{\"Config\":\"evil\"}]".to_vec()));
    members.push((blob(&sha(b"stowaway")), b"stowaway".to_vec()));
    let other = tar_of(&members);
    let image = check(&other, &digest).unwrap();
    assert_eq!(emit(&mut Cursor::new(&other), &image, "basalt/x:1", Vec::new()).unwrap(), out);
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
            assert_eq!(image.digest, digest);
        }
        assert!(check(&archive[..at], &digest).is_err() || at > archive.len() - 1024);
    }
}

#[test]
fn the_manifest_that_was_approved_and_no_other() {
    let (archive, digest) = good();
    refused(&archive, &sha(b"another"), "does not hold");
    let (other, _) = Parts::new(&[("bin/x", tar::EntryType::Regular, b"evil")]).archive();
    refused(&other, &digest, "does not hold");
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
    for name in ["../../etc/passwd", "/etc/passwd", "blobs/sha256/../../x", "blobs/sha256/abc", "blobs/sha512/x", "INDEX.JSON"] {
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
    let error = verify(&mut Cursor::new(&archive), &digest, &limits).unwrap_err();
    assert!(matches!(error, OciError::Limit { limit: 1048576, .. }), "{error}");
    let small = Limits { archive: 1000, ..Limits::default() };
    assert!(matches!(verify(&mut Cursor::new(&archive), &digest, &small), Err(OciError::Limit { .. })));
    let json = Limits { json: 10, ..Limits::default() };
    assert!(matches!(verify(&mut Cursor::new(&archive), &digest, &json), Err(OciError::Limit { .. })));
}

#[test]
fn an_archive_that_changes_after_it_was_checked_stays_unfinished() {
    let (archive, digest) = good();
    let image = check(&archive, &digest).unwrap();
    let at = archive.windows(2).position(|w| w == [0x1f, 0x8b]).unwrap();
    let mut changed = archive;
    changed[at + 20] ^= 1;
    let mut out = Vec::new();
    let error = emit(&mut Cursor::new(&changed), &image, "n", &mut out).unwrap_err();
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
    ] {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.as_mut_bytes()[..1].copy_from_slice(b"x");
        header.set_entry_type(kind);
        header.set_size(data.len() as u64);
        header.set_cksum();
        tar.append(&header, data.as_slice()).unwrap();
        let (archive, digest) = Parts::of_layer(tar.into_inner().unwrap()).archive();
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
