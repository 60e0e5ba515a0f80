//! Layers: members in every form that has one meaning, and every compression.

use basalt_oci::{Compression, MemberKind, inspect, list_members};
use tar_bytes::*;

use super::*;

/// Returns kind, path and target of each member of a layer.
fn members(layer: &[u8]) -> Vec<(MemberKind, String, String)> {
    let mut members = Vec::new();
    list_members(layer, &Limits::default(), |member, _| {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        members.push((member.kind, text(&member.path), text(&member.target)));
        Ok(())
    })
    .unwrap();
    members
}

#[track_caller]
fn assert_members(parts: &[Vec<u8>], expected: &[(MemberKind, &str, &str)]) {
    let layer = [parts.concat(), END.to_vec()].concat();
    add_to_corpus("members", &layer);
    let found = members(&layer);
    let found: Vec<_> = found.iter().map(|(kind, path, to)| (*kind, &**path, &**to)).collect();
    assert_eq!(found, expected);
    assert_accepted(Parts::from_layer(layer).archive());
}

#[test]
fn names_are_relative_to_the_root_of_the_image() {
    use MemberKind::{File, Folder, HardLink, SymbolicLink};
    // kaniko begins each layer with the root, and `tar -P` keeps absolute names.
    for root in ["/", "./", ".", "//", "/./", ".//"] {
        let parts = [member(root, b'5', b""), file("a")];
        assert_members(&parts, &[(Folder, "", ""), (File, "a", "")]);
    }
    for name in ["etc/x", "/etc/x", "./etc/x", "//etc/x", "/./etc/x", ".//etc//x", "etc/./x"] {
        assert_members(&[file(name)], &[(File, "etc/x", "")]);
        let folder = format!("{name}/");
        assert_members(&[member(&folder, b'5', b"")], &[(Folder, "etc/x", "")]);
        assert_members(&[link("l", b'1', name)], &[(HardLink, "l", "etc/x")]);
        // The target of a symbolic link is resolved in the container.
        assert_members(&[link("l", b'2', name)], &[(SymbolicLink, "l", name)]);
    }
    assert_members(&[link("l", b'2', "../../x")], &[(SymbolicLink, "l", "../../x")]);
    assert_members(&[file("...")], &[(File, "...", "")]);
    assert_members(&[file("a/.wh.b")], &[(File, "a/.wh.b", "")]);
    assert_members(&[file("a/.wh..wh..opq")], &[(File, "a/.wh..wh..opq", "")]);
    assert_members(&[file("a\\..\\b")], &[(File, "a\\..\\b", "")]);
}

#[test]
fn headers_of_every_format_are_read() {
    use MemberKind::{File, Folder};
    let long = "directory/".repeat(30) + "file";
    let nul = [long.as_bytes(), b"\0"].concat();
    let prefix = altered(header(USTAR, "x", b'0', 0, ""), 345, b"a/prefix");
    assert_members(&[prefix], &[(File, "a/prefix/x", "")]);
    assert_members(&[header(V7, "x", 0, 0, "").to_vec()], &[(File, "x", "")]);
    assert_members(&[header(V7, "x/", 0, 0, "").to_vec()], &[(Folder, "x", "")]);
    // GNU tar writes device numbers in this format too.
    let devices = altered(header(V7, "x", b'0', 0, ""), 329, b"0000000\x000000000\0");
    assert_members(&[devices], &[(File, "x", "")]);
    assert_members(&[header(GNU, "x", b'0', 0, "").to_vec()], &[(File, "x", "")]);
    assert_members(&[gnu(b'L', &nul), file("x")], &[(File, &long, "")]);
    assert_members(&[gnu(b'L', long.as_bytes()), file("x")], &[(File, &long, "")]);
    assert_members(&[pax(b'x', &[("path", &long)]), file("x")], &[(File, &long, "")]);
    let link = |flag| link("l", flag, "x");
    let hard = (MemberKind::HardLink, "l", long.as_str());
    assert_members(&[gnu(b'K', &nul), link(b'1')], &[hard]);
    assert_members(&[pax(b'x', &[("linkpath", &long)]), link(b'1')], &[hard]);
    // A record replaces what Go would take for the mark of a folder.
    let records = pax(b'x', &[("path", "x")]);
    assert_members(&[records, header(V7, "x/", 0, 0, "").to_vec()], &[(File, "x", "")]);
    let base256 =
        altered(header(GNU, "x", b'0', 0, ""), 124, &[0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_members(&[base256], &[(File, "x", "")]);
    let times = altered(header(GNU, "x", b'0', 0, ""), 345, b"14712345670\x0014712345670\0");
    assert_members(&[times], &[(File, "x", "")]);
}

#[test]
fn records_without_effect_on_the_members_are_accepted() {
    use MemberKind::{File, GlobalRecords};
    let records = pax(
        b'x',
        &[
            ("mtime", "1700000000.123456789"),
            ("atime", "-1.5"),
            ("ctime", "0"),
            ("comment", ""),
            ("uid", "1000"),
            ("gid", "4294967294"),
            ("uname", "n\u{f6}body"),
            ("gname", ""),
            ("SCHILY.xattr.user.a", "\0\n="),
            ("SCHILY.xattr.security.capability", "\u{1}\0\0\u{2}"),
            ("SCHILY.dev", "1"),
            ("LIBARCHIVE.creationtime", "1.5"),
            ("LIBARCHIVE.xattr.user.a", "YQ"),
            ("RHT.security.selinux", "u:r:t:s0"),
            ("hdrcharset", "BINARY"),
            ("MSWINDOWS.fileattr", "archive"),
        ],
    );
    assert_members(&[records, file("x")], &[(File, "x", "")]);
    // git archive, Python's tarfile, GNU tar.
    for name in ["pax_global_header", "././@PaxHeader", "/tmp/GlobalHead.123.1"] {
        let global = member(name, b'g', b"13 comment=x\n");
        let path = name.trim_start_matches(['.', '/']);
        assert_members(&[global, file("x")], &[(GlobalRecords, path, ""), (File, "x", "")]);
    }
}

#[test]
fn archives_may_end_in_every_way_that_the_engine_takes() {
    for end in [&END[..], &[0; 512], &[0; 10240], b"", &[&END[..], b"anything"].concat()] {
        let layer = [&file("x"), end].concat();
        assert_eq!(members(&layer).len(), 1);
    }
    assert_eq!(members(b"").len(), 0);
    assert_eq!(members(&END).len(), 0);
}

#[test]
fn layers_of_every_media_type_and_compression_are_accepted() {
    let layer = [file("x"), END.to_vec()].concat();
    let oci = "application/vnd.oci.image.layer.v1.tar";
    let docker = "application/vnd.docker.image.rootfs.diff.tar";
    for (kind, packed) in [
        (oci.to_owned(), layer.clone()),
        (docker.to_owned(), layer.clone()),
        (format!("{oci}+gzip"), gzip(&layer)),
        (format!("{docker}.gzip"), gzip(&layer)),
        (format!("{oci}+zstd"), zstd(&layer, 20)),
        // The engine recognises the compression of these types by the data.
        (docker.to_owned(), gzip(&layer)),
        (format!("{oci}+gzip"), layer.clone()),
        (format!("{docker}.gzip"), zstd(&layer, 20)),
    ] {
        let (archive, digest) = Parts::from_layer(layer.clone()).pack(&kind, packed).archive();
        let (blobs, image) = match check(&archive, &digest) {
            Ok(found) => found,
            Err(error) => panic!("{kind}: {error}"),
        };
        // An image of the first layers keeps the type, so that the engine unpacks it too.
        let first = image.first_layers(1);
        assert!(first.verify(&blobs, &Limits::default()).is_ok(), "{kind}");
    }
}

#[test]
fn layers_in_several_frames_are_accepted() {
    let layer = [member("x", b'0', &[b'p'; 100_000]), END.to_vec()].concat();
    let (head, tail) = layer.split_at(60_000);
    let skippable = [0x5f, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3];
    for packed in [
        // eStargz: one gzip member for each file, and an empty one at the end.
        [gzip(head), gzip(tail), gzip(b"")].concat(),
        // zstd:chunked: a table of contents in a skippable frame.
        [zstd(head, 20), zstd(tail, 24), skippable.to_vec()].concat(),
        [&skippable[..], &zstd(head, 27), &skippable, &zstd(tail, 10)].concat(),
    ] {
        let info = inspect(packed.as_slice(), &Limits::default()).unwrap();
        assert_eq!((info.diff_id, info.unpacked), (sha(&layer), layer.len() as u64));
        assert_ne!(info.compression, Compression::None);
    }
    // Zeros after the last member are an error in the engine.
    let zeros = [gzip(&layer), vec![0; 512]].concat();
    assert!(rejection(inspect(zeros.as_slice(), &Limits::default())).contains("cannot unpack"));
}

/// Returns a Zstandard frame of raw blocks with a window of 2^`window` bytes.
fn raw_frame(data: &[u8], window: u8) -> Vec<u8> {
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0, (window - 10) << 3];
    let mut blocks = data.chunks(100_000).peekable();
    while let Some(block) = blocks.next() {
        let last = u32::from(blocks.peek().is_none());
        let head = last | u32::try_from(block.len()).unwrap() << 3;
        frame.extend(&head.to_le_bytes()[..3]);
        frame.extend(block);
    }
    frame
}

#[test]
fn windows_of_up_to_128_mib_are_accepted() {
    let layer = [member("x", b'0', &[b'p'; 300_000]), END.to_vec()].concat();
    for window in [17, 20, 23, 24, 25, 27] {
        let packed = raw_frame(&layer, window);
        let info = inspect(packed.as_slice(), &Limits::default()).unwrap();
        assert_eq!(info.diff_id, sha(&layer), "window of 2^{window}");
    }
    let (head, tail) = layer.split_at(1000);
    for (first, second) in [(28, 20), (20, 28), (17, 31)] {
        let packed = [raw_frame(head, first), raw_frame(tail, second)].concat();
        let error = rejection(inspect(packed.as_slice(), &Limits::default()));
        assert!(error.contains("window"), "{error}");
    }
}
