//! Layers that do not unpack, unpack to too much, or leave their folder.

use basalt_oci::Compression;

use super::*;

#[test]
fn undecodable_data_is_an_error_of_the_image_and_not_of_the_storage() {
    let (_, digest) = good();
    assert_rejected(&b"not a tar".repeat(1000), &digest, "not a tar archive");
    for junk in [
        &b"\x1f\x8b\x08 and no deflate follows"[..],
        b"\x28\xb5\x2f\xfd and no frame",
        &b"no tar either ".repeat(100),
    ] {
        let mut parts = Parts::new(&[("x", tar::EntryType::Regular, b"p")]);
        parts.packed = junk.to_vec();
        parts.manifest["layers"][0]["digest"] = sha(junk).into();
        parts.manifest["layers"][0]["size"] = junk.len().into();
        add_to_corpus("layer", junk);
        let (archive, digest) = parts.archive();
        assert_rejected(&archive, &digest, "cannot unpack");
    }
}

#[test]
fn layers_with_paths_outside_of_the_image_are_rejected() {
    for (name, kind, data, message) in [
        ("../../etc/shadow", tar::EntryType::Regular, &b"x"[..], "leaves the image"),
        ("/../etc/shadow", tar::EntryType::Regular, b"x", "leaves the image"),
        ("a/../../b", tar::EntryType::Regular, b"x", "leaves the image"),
        ("x", tar::EntryType::Link, b"../../etc/shadow", "leaves the image"),
        ("dev/mem", tar::EntryType::Char, b"", "device"),
    ] {
        let (archive, digest) = Parts::new(&[(name, kind, data)]).archive();
        assert_rejected(&archive, &digest, message);
    }
}

#[test]
fn decompression_bombs_are_stopped_at_the_limit() {
    let parts = Parts::from_layer(vec![0; 64 << 20]);
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
fn volumes_and_invalid_extensions_are_rejected() {
    let mut parts = Parts::new(&[("x", tar::EntryType::Regular, b"p")]);
    parts.config["config"] = json!({ "Volumes": { "/data": {} } });
    let (archive, digest) = parts.archive();
    assert_rejected(&archive, &digest, "Volumes");
    for (kind, data, message) in [
        (tar::EntryType::GNULongName, vec![b'a'; 2 << 20], "expected at most 1048576 bytes"),
        (tar::EntryType::GNULongName, b"../../etc/shadow\0".to_vec(), "leaves the image"),
        (tar::EntryType::XHeader, b"28 path=../../../etc/shadow\n".to_vec(), "leaves the image"),
        (tar::EntryType::XHeader, b"16 path=a\n/../b\n".to_vec(), "leaves the image"),
        (tar::EntryType::XHeader, b"99 path=x\n".to_vec(), "malformed"),
        (tar::EntryType::XHeader, b"22 GNU.sparse.major=1\n".to_vec(), "GNU.sparse.major"),
    ] {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.as_mut_bytes()[..1].copy_from_slice(b"x");
        header.set_entry_type(kind);
        header.set_size(data.len() as u64);
        header.set_cksum();
        tar.append(&header, data.as_slice()).unwrap();
        header.set_entry_type(tar::EntryType::Regular);
        header.set_size(0);
        header.set_cksum();
        tar.append(&header, &[][..]).unwrap();
        let parts = Parts::from_layer(tar.into_inner().unwrap());
        add_to_corpus("layer", &parts.packed);
        add_to_corpus("layer", &parts.layer);
        let (archive, digest) = parts.archive();
        assert_rejected(&archive, &digest, message);
    }
    // A second gzip member is part of the layer, as in the engine.
    let mut two = Parts::new(&[("x", tar::EntryType::Regular, b"p")]);
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
    gz.write_all(&[0; 512]).unwrap();
    two.packed.extend(gz.finish().unwrap());
    two.manifest["layers"][0]["digest"] = sha(&two.packed).into();
    two.manifest["layers"][0]["size"] = two.packed.len().into();
    let (archive, digest) = two.archive();
    assert_rejected(&archive, &digest, "unpacked layer");
}

fn packed_with_zstd(layer: Vec<u8>, packed: Vec<u8>) -> Parts {
    Parts::from_layer(layer).pack("application/vnd.oci.image.layer.v1.tar+zstd", packed)
}

#[test]
fn layers_compressed_with_zstd_are_accepted() {
    let layer = Parts::new(&[("x", tar::EntryType::Regular, &[b'p'; 100_000])]).layer;
    // The layer has two frames with a skippable frame between them (RFC 8878, section 3).
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
    // The engine unpacks the type of a plain archive without a look at the data.
    let plain = "application/vnd.oci.image.layer.v1.tar";
    let (archive, digest) = Parts::from_layer(layer).pack(plain, packed).archive();
    assert_rejected(&archive, &digest, "compression of the layer");
    // The decoder would hold a window of 256 MiB in memory.
    let mut wide = zstd(b"x", 20);
    (wide[4], wide[5]) = (0, 18 << 3);
    let (archive, digest) = packed_with_zstd(b"x".to_vec(), wide).archive();
    assert_rejected(&archive, &digest, "cannot unpack");
    let bomb = vec![0; 32 << 20];
    let packed = zstd(&bomb, 20);
    let (archive, digest) = packed_with_zstd(bomb, packed).archive();
    let limits = Limits { unpacked: 1 << 20, ..Limits::default() };
    assert!(matches!(
        verify(&archive, &digest, &limits),
        Err(OciError::Limit { limit: 1048576, .. })
    ));
}
