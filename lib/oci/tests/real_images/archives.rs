//! Archives: an OCI layout in every form of tar.

use tar_bytes::*;

use super::*;

/// Returns a layout with a prefix before every name, and with `before` before each file.
fn layout(prefix: &str, before: &[u8]) -> (Vec<u8>, String) {
    let (archive, digest) = good();
    let mut layout = Vec::new();
    if !prefix.is_empty() {
        layout.extend(member(prefix, b'5', b""));
    }
    for folder in ["blobs/", "blobs/sha256/", "blobs/", "other/"] {
        layout.extend(member(&format!("{prefix}{folder}"), b'5', b""));
    }
    let documents =
        [("oci-layout".to_owned(), b"{}".to_vec()), ("index.json".to_owned(), b"{}".to_vec())];
    for (name, data) in documents.into_iter().chain(members_of(&archive)) {
        layout.extend(before);
        layout.extend(member(&format!("{prefix}{name}"), b'0', &data));
    }
    layout.extend(END);
    (layout, digest)
}

#[test]
fn layouts_may_be_packed_with_any_prefix_and_compression() {
    for prefix in ["", "./", "/", ".//", "/./"] {
        assert_accepted(layout(prefix, b""));
    }
    let (archive, digest) = layout("./", b"");
    assert_accepted((gzip(&archive), digest.clone()));
    assert_accepted((zstd(&archive, 20), digest.clone()));
    // The limit holds for the unpacked archive too.
    let bomb = gzip(&[&archive[..], &vec![0; 4 << 20]].concat());
    let limits = Limits { archive: 1 << 20, ..Limits::default() };
    assert!(matches!(verify(&bomb, &digest, &limits), Err(OciError::Limit { .. })));
}

#[test]
fn records_and_foreign_files_in_a_layout_are_skipped() {
    assert_accepted(layout("", &pax(b'x', &[("mtime", "1.5"), ("uname", "me")])));
    assert_accepted(layout("", &member("pax_global_header", b'g', b"13 comment=x\n")));
    for foreign in [file("README"), file("INDEX.JSON"), file("a/b/c"), file("manifest.json")] {
        let (archive, digest) = layout("./", b"");
        assert_accepted(([foreign, archive].concat(), digest));
    }
    let long = format!("{}x\0", "directory/".repeat(30));
    let (archive, digest) = layout("./", b"");
    assert_accepted(([gnu(b'L', long.as_bytes()), file("x"), archive].concat(), digest.clone()));
    // The blobs themselves may have names in extensions.
    let blob_names: Vec<u8> = members_of(&good().0)
        .iter()
        .flat_map(|(name, data)| {
            [gnu(b'L', format!("./{name}\0").as_bytes()), member("x", b'0', data)].concat()
        })
        .collect();
    assert_accepted(([blob_names, END.to_vec()].concat(), digest));
}

#[test]
fn archives_of_docker_and_folders_around_a_layout_get_a_hint() {
    let (_, digest) = good();
    let docker = [member("manifest.json", b'0', b"[]"), file("abc/layer.tar"), END.to_vec()];
    assert!(rejection(check(&docker.concat(), &digest)).contains("skopeo copy docker-archive:"));
    let links = [file("abc/layer.tar"), link("def/layer.tar", b'2', "../abc/layer.tar")];
    assert!(rejection(check(&links.concat(), &digest)).contains("skopeo copy docker-archive:"));
    let around = [file("layout/index.json"), END.to_vec()].concat();
    assert!(rejection(check(&around, &digest)).contains("tar -C LAYOUT"));
    let mut nothing = Memory::default();
    assert!(import(&mut &END[..], &mut nothing, &Limits::default()).unwrap().is_empty());
}
