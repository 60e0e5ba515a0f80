//! Manifests, indexes and configs as the tools write them.

use super::*;

fn parts() -> Parts {
    Parts::new(&[("bin/x", tar::EntryType::Regular, b"program")])
}

/// Returns the Base64 of bytes (RFC 4648, section 4).
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let mut padded = [0; 4];
        padded[1..=group.len()].copy_from_slice(group);
        let bits = u32::from_be_bytes(padded);
        for n in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * n) & 63) as usize];
            text.push(if n <= group.len() { digit.into() } else { '=' });
        }
    }
    text
}

/// Returns a manifest with its digest, after `change`.
fn with_manifest(change: impl Fn(&mut Value, &str)) -> (Vec<u8>, String) {
    let mut parts = parts();
    let config = parts.config.to_string();
    change(&mut parts.manifest, &config);
    parts.archive()
}

#[test]
fn embedded_data_must_be_the_blob() {
    // The official image of Debian embeds its config.
    assert_accepted(with_manifest(|manifest, config| {
        manifest["config"]["data"] = base64(config.as_bytes()).into();
    }));
    for nothing in [Value::Null, "".into()] {
        assert_accepted(with_manifest(|manifest, _| {
            manifest["config"]["data"] = nothing.clone();
            manifest["layers"][0]["data"] = nothing.clone();
        }));
    }
    let layer = parts().packed;
    assert_accepted(with_manifest(|manifest, _| {
        manifest["layers"][0]["data"] = base64(&layer).into();
    }));
    let lies = [base64(b"{}"), "e30".into(), "=".into(), base64(&[&layer[..], b"x"].concat())];
    for lie in &lies {
        for place in ["config", "layers"] {
            let (archive, digest) = with_manifest(|manifest, _| match place {
                "config" => manifest["config"]["data"] = lie.as_str().into(),
                _ => manifest["layers"][0]["data"] = lie.as_str().into(),
            });
            assert!(rejection(check(&archive, &digest)).contains("data"), "{place}: {lie}");
        }
    }
}

#[test]
fn urls_and_layers_outside_of_the_registry_are_rejected_with_a_hint() {
    for nothing in [Value::Null, json!([])] {
        assert_accepted(with_manifest(|manifest, _| {
            manifest["config"]["urls"] = nothing.clone();
            manifest["layers"][0]["urls"] = nothing.clone();
        }));
    }
    for (kind, message) in [
        ("application/vnd.docker.image.rootfs.diff.tar.zstd", "oci-mediatypes=true"),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", "distributable"),
        ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "distributable"),
        ("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", "without encryption"),
        ("application/vnd.erofs.layer.v1", "expected one of"),
    ] {
        let (archive, digest) =
            with_manifest(|manifest, _| manifest["layers"][0]["mediaType"] = kind.into());
        assert!(rejection(check(&archive, &digest)).contains(message), "{kind}");
    }
}

#[test]
fn members_without_effect_in_documents_are_accepted() {
    assert_accepted(with_manifest(|manifest, _| {
        manifest["mediaType"] = "".into();
        manifest["artifactType"] = "application/x".into();
        manifest["subject"] = Value::Null;
        manifest["annotations"] =
            json!({ "org.example.Version": "1", "org.example.version": "2", "": "" });
        manifest["layers"][0]["annotations"] = json!({ "A": "1", "a": "2" });
        manifest["config"]["annotations"] = Value::Null;
        manifest["unknown"] = json!({ "x": [1.5, { "y": null }] });
    }));
    assert_accepted(with_manifest(|manifest, _| {
        manifest.as_object_mut().unwrap().remove("mediaType");
    }));
    let mut labels = parts();
    labels.config["config"] = json!({
        "Labels": { "Release": "1", "release": "2" },
        "ExposedPorts": { "80/tcp": {}, "80/TCP": {} },
        "Volumes": null,
        "Env": null,
        "Cmd": ["a"],
        "Healthcheck": { "Test": ["NONE"], "Interval": 5 },
    });
    labels.config["container_config"] = json!({ "Labels": { "A": "1", "a": "2" }, "Cmd": null });
    labels.config["variant"] = "v8".into();
    labels.config["history"] = json!([{ "created_by": "x", "empty_layer": true }]);
    assert_accepted(labels.archive());
}

#[test]
fn documents_that_go_reads_in_another_way_are_rejected() {
    for (from, to, message) in [
        // Go folds the keys of structures, so this is a second config.
        (r#""os""#, r#""config":{},"Config":{},"os""#, "occurs twice"),
        (r#""os""#, r#""config":{"Labels":{"a":"1","a":"2"}},"os""#, "occurs twice"),
        (r#""os""#, r#""config":{"Labels":{},"labels":{}},"os""#, "occurs twice"),
        (r#""os""#, r#""CONFIG":{"VOLUMES":{"/x":{}}},"os""#, "Volumes"),
        (r#""os""#, "\"config\":{\"volume\u{17f}\":{\"/x\":{}}},\"os\"", "Volumes"),
        (r#""os""#, r#""config":{"Labels":{"a":1}},"os""#, "expected a text"),
        (r#""os""#, r#""config":[],"os""#, "expected an object"),
        (r#""os""#, r#""config":{"Cmd":"sh"},"os""#, "expected a list"),
        (r#""os""#, r#""author":"\ud800","os""#, "hex escape"),
        (r#""type""#, r#""TYPE":"x","type""#, "occurs twice"),
    ] {
        let config = parts().config.to_string();
        let altered = config.replacen(from, to, 1);
        assert_ne!(config, altered);
        let (archive, digest) = parts().archive_with_config(&altered);
        let error = rejection(check(&archive, &digest));
        assert!(error.contains(message), "expected {message:?} in: {error}");
    }
    for size in [json!(1.0), json!("86"), json!(-1), json!(null), json!(u64::MAX)] {
        let (archive, digest) =
            with_manifest(|manifest, _| manifest["layers"][0]["size"] = size.clone());
        assert!(check(&archive, &digest).is_err(), "{size}");
    }
    for version in [json!(2.0), json!("2"), json!(null), json!(1)] {
        let (archive, digest) =
            with_manifest(|manifest, _| manifest["schemaVersion"] = version.clone());
        assert!(check(&archive, &digest).is_err(), "{version}");
    }
}

#[test]
fn images_may_have_as_many_layers_as_the_engine_stacks() {
    for (count, accepted) in [(65, true), (127, true), (256, true), (257, false)] {
        let mut parts = parts();
        let layer = parts.manifest["layers"][0].clone();
        let diff_id = parts.config["rootfs"]["diff_ids"][0].clone();
        parts.manifest["layers"] = vec![layer; count].into();
        parts.config["rootfs"]["diff_ids"] = vec![diff_id; count].into();
        let (archive, digest) = parts.archive();
        assert_eq!(check(&archive, &digest).is_ok(), accepted, "{count} layers");
    }
}

/// Adds documents to an archive. Returns it with the digest of the last one.
fn with_documents(mut archive: Vec<(String, Vec<u8>)>, documents: &[Value]) -> (Vec<u8>, String) {
    let mut digest = String::new();
    for document in documents {
        let bytes = document.to_string().into_bytes();
        digest = sha(&bytes);
        archive.push((blob(&digest), bytes));
    }
    (tar_of(&archive), digest)
}

fn index(entries: &[Value]) -> Value {
    json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": entries,
    })
}

/// Returns an index entry of a document in an archive.
fn entry(archive: &[(String, Vec<u8>)], digest: &str, kind: &str, platform: Value) -> Value {
    let size = archive.iter().find(|(name, _)| *name == blob(digest)).map_or(9, |m| m.1.len());
    let mut entry = json!({
        "mediaType": format!("application/vnd.oci.image.{kind}.v1+json"),
        "digest": digest,
        "size": size,
    });
    if !platform.is_null() {
        entry["platform"] = platform;
    }
    entry
}

#[test]
fn an_index_is_searched_as_the_engine_does() {
    let (archive, digest) = good();
    let archive = members_of(&archive);
    let mut amd = parts();
    amd.config["architecture"] = "amd64".into();
    let (amd_archive, amd_digest) = amd.archive();
    let archive: Vec<_> = archive.into_iter().chain(members_of(&amd_archive)).collect();
    let mut seen = std::collections::BTreeSet::new();
    let archive: Vec<_> = archive.into_iter().filter(|(n, _)| seen.insert(n.clone())).collect();
    let platform = |architecture: &str| json!({ "os": "linux", "architecture": architecture });
    let manifest = |digest: &str, platform: Value| entry(&archive, digest, "manifest", platform);
    let unknown = json!({ "os": "unknown", "architecture": "unknown" });
    let mut attestation = manifest(&sha(b"attestation"), platform("arm64"));
    attestation["annotations"] = json!({ "vnd.docker.reference.type": "attestation-manifest" });
    let null = Value::Null;
    for entries in [
        vec![manifest(&amd_digest, platform("amd64")), manifest(&digest, platform("arm64"))],
        vec![manifest(&digest, platform("aarch64")), manifest(&sha(b"x"), unknown.clone())],
        vec![attestation, manifest(&digest, platform("arm64"))],
        // Entries without a platform have that of their config.
        vec![manifest(&digest, null.clone())],
        vec![manifest(&amd_digest, null.clone()), manifest(&digest, null.clone())],
        vec![manifest(&amd_digest, null.clone()), manifest(&digest, platform("arm64"))],
    ] {
        let (bytes, asked) = with_documents(archive.clone(), &[index(&entries)]);
        match check(&bytes, &asked) {
            Ok((_, image)) => assert_eq!(image.digest, digest),
            Err(error) => panic!("{error} in {entries:?}"),
        }
    }
    for (entries, message) in [
        (vec![manifest(&amd_digest, null.clone())], "found linux/amd64"),
        (vec![], "found none"),
        (vec![manifest(&sha(b"x"), unknown)], "found unknown/unknown"),
        (vec![entry(&archive, &digest, "layer", platform("arm64"))], "expected one of"),
    ] {
        let (bytes, asked) = with_documents(archive.clone(), &[index(&entries)]);
        let error = rejection(check(&bytes, &asked));
        assert!(error.contains(message), "{error}");
    }
    // An entry that is not chosen must not lie either.
    let mut lie = manifest(&amd_digest, platform("amd64"));
    lie["data"] = "e30=".into();
    let entries = [manifest(&digest, platform("arm64")), lie];
    let (bytes, asked) = with_documents(archive.clone(), &[index(&entries)]);
    assert!(rejection(check(&bytes, &asked)).contains("does not match digest"));
}

#[test]
fn indexes_in_indexes_are_searched_up_to_a_depth() {
    let (archive, digest) = good();
    let archive = members_of(&archive);
    for (depth, accepted) in [(1, true), (2, true), (3, true), (4, false)] {
        let mut documents = vec![index(&[entry(&archive, &digest, "manifest", Value::Null)])];
        for _ in 1..depth {
            let inner = documents[documents.len() - 1].to_string();
            documents.push(index(&[json!({
                "mediaType": "application/vnd.oci.image.index.v1+json",
                "digest": sha(inner.as_bytes()),
                "size": inner.len(),
            })]));
        }
        let (bytes, asked) = with_documents(archive.clone(), &documents);
        assert_eq!(check(&bytes, &asked).is_ok(), accepted, "depth {depth}");
    }
    // Reading has a limit, also if every document is there.
    let wrong = {
        let mut parts = parts();
        parts.config["architecture"] = "amd64".into();
        parts.archive()
    };
    let archive = members_of(&wrong.0);
    let entries = vec![entry(&archive, &wrong.1, "manifest", Value::Null); 100];
    let (bytes, asked) = with_documents(archive, &[index(&entries)]);
    assert!(rejection(check(&bytes, &asked)).contains("number of documents"));
}
