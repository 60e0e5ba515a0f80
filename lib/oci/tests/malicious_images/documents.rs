//! Indexes, manifests and configs that contradict each other.

use super::*;

#[test]
fn contradictory_documents_are_rejected() {
    let parts = || Parts::new(&[("x", tar::EntryType::Regular, b"p")]);
    let mut other_diff = parts();
    other_diff.config["rootfs"]["diff_ids"] = json!([sha(b"other")]);
    let (archive, digest) = other_diff.archive();
    assert_rejected(&archive, &digest, "unpacked layer");
    let mut more_ids = parts();
    more_ids.config["rootfs"]["diff_ids"] = json!([sha(b"a"), sha(b"b")]);
    let (archive, digest) = more_ids.archive();
    assert_rejected(&archive, &digest, "diff_ids");
    let mut wrong_size = parts();
    wrong_size.manifest["layers"][0]["size"] = 1.into();
    let (archive, digest) = wrong_size.archive();
    assert_rejected(&archive, &digest, "1 bytes");
    let mut inline = parts();
    inline.manifest["layers"][0]["urls"] = json!(["http://other.example/"]);
    let (archive, digest) = inline.archive();
    assert_rejected(&archive, &digest, "urls");
    let mut case = parts();
    case.config["Config"] = json!({});
    case.config["config"] = json!({});
    let (archive, digest) = case.archive();
    assert_rejected(&archive, &digest, "twice");
    let mut kind = parts();
    kind.manifest["layers"][0]["mediaType"] = "application/octet-stream".into();
    let (archive, digest) = kind.archive();
    assert_rejected(&archive, &digest, "media type");
    let mut no_layers = parts();
    no_layers.manifest["layers"] = json!([]);
    no_layers.config["rootfs"]["diff_ids"] = json!([]);
    let (archive, digest) = no_layers.archive();
    assert_rejected(&archive, &digest, "diff_ids");
}

/// Returns an index of images for several platforms.
fn index(entries: &[(&str, Option<&str>, &str, usize)]) -> Vec<u8> {
    let manifests: Vec<Value> = entries
        .iter()
        .map(|(architecture, variant, digest, size)| {
            let mut entry = json!({
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": digest,
                "size": size,
                "platform": { "os": "linux", "architecture": architecture },
            });
            if let Some(variant) = variant {
                entry["platform"]["variant"] = (*variant).into();
            }
            entry
        })
        .collect();
    json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": manifests,
    })
    .to_string()
    .into_bytes()
}

fn with_index(archive: &[u8], index: &[u8]) -> Vec<u8> {
    let mut members = members_of(archive);
    members.push((blob(&sha(index)), index.to_vec()));
    tar_of(&members)
}

#[test]
fn an_index_is_resolved_to_the_manifest_of_the_platform() {
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
    assert_rejected(&with_index(&archive, &none), &sha(&none), "linux/amd64, linux/riscv64");
    let wrong = index(&[("arm64", None, &digest, size + 1)]);
    assert_rejected(&with_index(&archive, &wrong), &sha(&wrong), "bytes");
    // An index of indexes could nest without a limit.
    let text =
        String::from_utf8(list.clone()).unwrap().replacen("image.manifest.v1", "image.index.v1", 3);
    assert_rejected(&with_index(&archive, text.as_bytes()), &sha(text.as_bytes()), "is a manifest");
    // A document that is both a manifest and an index is ambiguous.
    let both = format!(
        "{{\"mediaType\":\"application/vnd.oci.image.manifest.v1+json\",{}",
        &String::from_utf8(list).unwrap()[1..]
    );
    assert_rejected(&with_index(&archive, both.as_bytes()), &sha(both.as_bytes()), "occurs twice");
    let both = both.replacen(",\"mediaType\":\"application/vnd.oci.image.index.v1+json\"", "", 1);
    assert_rejected(&with_index(&archive, both.as_bytes()), &sha(both.as_bytes()), "also an index");
}

#[test]
fn an_image_for_another_architecture_is_rejected() {
    let mut parts = Parts::new(&[("x", tar::EntryType::Regular, b"p")]);
    parts.config["architecture"] = "amd64".into();
    let (archive, digest) = parts.archive();
    assert_rejected(&archive, &digest, "linux/amd64");
}
