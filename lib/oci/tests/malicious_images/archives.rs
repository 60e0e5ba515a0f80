//! Archives whose members or blobs are not what they claim to be.

use basalt_oci::{BuiltImage, OciError, build, export};

use super::*;

#[test]
fn all_archives_of_the_corpus_are_rejected() {
    let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus");
    let mut count = 0;
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
        count += 1;
    }
    assert!(count >= 40, "only {count} archives; run cargo xtask fuzz --corpus");
}

#[test]
fn a_valid_archive_is_exported_in_canonical_form() {
    let (archive, digest) = build(&BuiltImage {
        architecture: "arm64",
        files: &[("x", 0o755, b"program")],
        folders: &["run"],
        entrypoint: &["/x"],
        user: "1:1",
    })
    .unwrap();
    let (blobs, image) = check(&archive, &digest).unwrap();
    add_to_corpus("archive-good", &[&digest_bytes(&digest), archive.as_slice()].concat());
    add_to_corpus(
        "manifest",
        &[&*blobs.0[&digest], &[0], &*blobs.0[&image.config_digest]].concat(),
    );
    add_to_corpus("layer", &blobs.0[&image.layers[0].digest]);
    let out = export(&blobs, &image, "basalt/x:1", Vec::new()).unwrap();
    assert_eq!(check(&out, &digest).unwrap().1.layers.len(), 1);
    // The form does not depend on the imported archive: additional members and another order yield
    // the same bytes.
    let mut members = members_of(&archive);
    members.reverse();
    members.push(("manifest.json".into(), b"[{\"Config\":\"evil\"}]".to_vec()));
    members.push((blob(&sha(b"stowaway")), b"stowaway".to_vec()));
    let other = tar_of(&members);
    let (blobs, image) = check(&other, &digest).unwrap();
    assert_eq!(export(&blobs, &image, "basalt/x:1", Vec::new()).unwrap(), out);
}

#[test]
fn a_blob_that_does_not_match_its_digest_is_rejected() {
    let (archive, digest) = good();
    let mut members = members_of(&archive);
    for n in 0..members.len() {
        let original = members[n].1.clone();
        members[n].1.push(b' ');
        assert_rejected(&tar_of(&members), &digest, "expected");
        members[n].1 = original;
    }
}

#[test]
fn flipped_bytes_and_truncation_are_detected() {
    let (archive, digest) = good();
    for at in (0..archive.len()).step_by(7) {
        let mut bad = archive.clone();
        bad[at] ^= 0x20;
        // A flip in the padding changes nothing. Elsewhere, it must not yield another image.
        if let Ok(image) = check(&bad, &digest) {
            assert_eq!(image.1.digest, digest);
        }
        // The end of the archive and the padding of its last member carry nothing.
        assert!(check(&archive[..at], &digest).is_err() || at > archive.len() - 1024 - 512);
    }
}

#[test]
fn an_archive_without_the_approved_manifest_is_rejected() {
    let (archive, digest) = good();
    assert_rejected(&archive, &sha(b"another"), "is missing");
    let (other, _) = Parts::new(&[("bin/x", tar::EntryType::Regular, b"evil")]).archive();
    assert_rejected(&other, &digest, "is missing");
}

#[test]
fn members_that_are_no_blobs_are_rejected() {
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
    for (name, message) in [
        ("../../etc/passwd", "leaves the image"),
        ("/../etc/passwd", "leaves the image"),
        ("blobs/sha256/../../x", "leaves the image"),
        ("blobs/sha256/abc", "64 hex digits"),
        ("blobs/sha512/x", "64 hex digits"),
        ("./blobs//sha256/._x", "64 hex digits"),
        ("blobs", "64 hex digits"),
    ] {
        assert_rejected(&with(name, tar::EntryType::Regular), &digest, message);
    }
    for (kind, message) in [
        (tar::EntryType::Symlink, "links to nothing"),
        (tar::EntryType::Link, "links to nothing"),
        (tar::EntryType::Char, "device"),
        (tar::EntryType::Fifo, "only plain files"),
        (tar::EntryType::GNULongName, "empty"),
        (tar::EntryType::GNUSparse, "sparse"),
        (tar::EntryType::Continuous, "unknown type"),
    ] {
        assert_rejected(&with("index.json", kind), &digest, message);
    }
    let mut twice = members_of(&archive);
    twice.push(twice[0].clone());
    assert_rejected(&tar_of(&twice), &digest, "occurs twice");
    let mut links = tar_bytes::link("x", b'2', "blobs/sha256/x");
    links.extend(&archive);
    assert_rejected(&links, &digest, "--dereference");
}

#[test]
fn a_blob_that_changes_after_its_verification_leaves_the_archive_unfinished() {
    let (archive, digest) = good();
    let (mut blobs, image) = check(&archive, &digest).unwrap();
    let mut layer = blobs.0[&image.layers[0].digest].to_vec();
    layer[20] ^= 1;
    blobs.0.insert(image.layers[0].digest.clone(), layer.into());
    let mut out = Vec::new();
    let error = export(&blobs, &image, "n", &mut out).unwrap_err();
    assert!(matches!(error, OciError::Mismatch { .. }), "{error}");
    // Without its end marker, the archive cannot be mistaken for a complete one.
    assert!(!out.ends_with(&[0; 1024]));
}
