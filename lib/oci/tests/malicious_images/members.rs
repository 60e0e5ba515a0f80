//! Layers that readers of tar understand in different ways.

use tar_bytes::*;

use super::*;

/// Checks that a layer with these members is rejected.
#[track_caller]
fn assert_layer_rejected(members: &[&[u8]], message: &str) {
    let layer = [members.concat(), file("app"), END.to_vec()].concat();
    add_to_corpus("members", &layer);
    let (archive, digest) = Parts::from_layer(layer).archive();
    let error = rejection(check(&archive, &digest));
    assert!(error.contains(message), "expected {message:?} in: {error}");
}

#[test]
fn sizes_of_members_without_data_are_rejected() {
    // Go ignores the size, so the "content" is two further members for the engine.
    let hidden = [member("../../evil", b'0', b""), member("dev/mem", b'3', b"")].concat();
    for (flag, name) in
        [(b'5', "x/"), (b'5', "x"), (0, "x/"), (b'1', "x"), (b'2', "x"), (b'6', "x")]
    {
        let header = header(USTAR, name, flag, hidden.len(), "target");
        assert_layer_rejected(&[&header, &hidden], "although it has no data");
    }
    let layer = [&header(USTAR, "x/", b'5', hidden.len(), "")[..], &hidden, &END].concat();
    let (archive, digest) = Parts::from_layer(layer).archive();
    assert_rejected(&archive, &digest, "although it has no data");
    // The size and the slash can come from extensions.
    let size = pax(b'x', &[("size", "1024")]);
    assert_layer_rejected(&[&size, &member("x/", b'5', b""), &hidden], "no data");
    let folder = pax(b'x', &[("path", "x/")]);
    assert_layer_rejected(&[&folder, &header(V7, "x", 0, 1024, ""), &hidden], "no data");
    let folder = gnu(b'L', b"x/\0");
    assert_layer_rejected(&[&folder, &header(GNU, "x", 0, 1024, ""), &hidden], "no data");
    // A size of 0 in a record does not take the other one away.
    let zero = pax(b'x', &[("size", "0")]);
    assert_layer_rejected(&[&zero, &header(USTAR, "x/", b'5', 1024, ""), &hidden], "no data");
}

#[test]
fn a_size_in_a_pax_record_is_the_size_of_the_content() {
    // Readers that use the header's size see the content as headers.
    let inner = member("../../evil", b'0', b"");
    let size = pax(b'x', &[("size", "512")]);
    let layer = [&size, &header(USTAR, "x", b'0', 0, "")[..], &inner, &file("app"), &END].concat();
    let (archive, digest) = Parts::from_layer(layer).archive();
    assert!(check(&archive, &digest).is_ok());
    for value in ["-1", "+512", " 512", "0x200", "512 ", "9223372036854775808", ""] {
        let size = pax(b'x', &[("size", value)]);
        let header = header(USTAR, "x", b'0', 0, "");
        assert_layer_rejected(&[&size, &header, &inner], "is not valid");
    }
}

#[test]
fn extensions_that_readers_combine_in_different_ways_are_rejected() {
    let path = pax(b'x', &[("path", "a")]);
    for (members, message) in [
        ([pax(b'x', &[("path", "a"), ("path", "b")]), Vec::new()], "occurs twice"),
        ([path.clone(), pax(b'x', &[("mtime", "1")])], "two extensions"),
        ([gnu(b'L', b"a\0"), gnu(b'L', b"b\0")], "two extensions"),
        ([gnu(b'L', b"a\0"), path.clone()], "GNU extension and by a pax record"),
        ([path.clone(), gnu(b'L', b"a\0")], "GNU extension and by a pax record"),
        ([pax(b'x', &[("linkpath", "a")]), gnu(b'K', b"b\0")], "link target"),
        ([gnu(b'L', b"a\0b"), Vec::new()], "contains NUL"),
        ([gnu(b'L', b"\0"), Vec::new()], "is empty"),
        ([path, pax(b'g', &[("comment", "x")])], "not followed by a member"),
        ([pax(b'x', &[("path", "")]), Vec::new()], "is not valid"),
        ([pax(b'x', &[("path", "a\0b")]), Vec::new()], "is not valid"),
        ([pax(b'x', &[("\0path", "b")]), Vec::new()], "malformed"),
        ([pax(b'x', &[("mtime", "x")]), Vec::new()], "is not valid"),
        ([pax(b'x', &[("uid", "4294967296")]), Vec::new()], "32 bits"),
        ([pax(b'x', &[("uid", "-1")]), Vec::new()], "32 bits"),
        ([pax(b'x', &[("GNU.sparse.major", "1")]), Vec::new()], "GNU.sparse.major"),
        ([pax(b'x', &[("GNU.sparse.name", "b")]), Vec::new()], "GNU.sparse.name"),
        ([pax(b'x', &[("SCHILY.realsize", "9")]), Vec::new()], "SCHILY.realsize"),
        ([pax(b'g', &[("path", "b")]), Vec::new()], "\"path\" would change"),
        ([pax(b'g', &[("size", "1")]), Vec::new()], "\"size\" would change"),
        ([pax(b'g', &[("SCHILY.xattr.user.a", "1")]), Vec::new()], "would change"),
        ([member("etc/passwd", b'g', b"13 comment=x\n"), Vec::new()], "global"),
        ([member("x", b'x', b"+8 a=bc\n"), Vec::new()], "malformed"),
        ([member("x", b'x', b"08 a=bc\n"), Vec::new()], "malformed"),
        ([member("x", b'x', b"7 a=bcd\n"), Vec::new()], "malformed"),
        ([member("x", b'x', b"9 a=b\n"), Vec::new()], "malformed"),
    ] {
        assert_layer_rejected(&[&members[0], &members[1]], message);
    }
    let dangling = [file("app"), gnu(b'L', b"a\0"), END.to_vec()].concat();
    let (archive, digest) = Parts::from_layer(dangling).archive();
    assert_rejected(&archive, &digest, "not followed by a member");
}

#[test]
fn attributes_that_control_the_overlay_file_system_are_rejected() {
    for key in ["trusted.overlay.redirect", "trusted.overlay.opaque", "user.overlay.whiteout"] {
        let key = format!("SCHILY.xattr.{key}");
        assert_layer_rejected(&[&pax(b'x', &[(&key, "y")])], "overlay");
    }
    let nameless = pax(b'x', &[("SCHILY.xattr.", "y")]);
    assert_layer_rejected(&[&nameless], "extended attribute");
}

#[test]
fn headers_of_ambiguous_formats_are_rejected() {
    let plain = |magic| header(magic, "x", b'0', 0, "");
    for (header, message) in [
        // Go reads this as version 7, and others as ustar with a prefix.
        (altered(plain(USTAR), 257, b"USTAR"), "unknown format"),
        (altered(plain(V7), 345, b"../up"), "unknown format"),
        (altered(plain(USTAR), 508, b"tar\0"), "unknown format"),
        // Go takes what is no time for a prefix.
        (altered(plain(GNU), 345, b"../up"), "time is not a number"),
        (altered(plain(USTAR), 345, b"../up"), "leaves the image"),
        (altered(plain(USTAR), 124, b"0000000\x00123"), "size is not a number"),
        (altered(plain(USTAR), 124, b"00000000008"), "size is not a number"),
        (altered(plain(USTAR), 124, b"-0000000001"), "size is not a number"),
        (altered(plain(USTAR), 124, &[0xff; 12]), "negative"),
        (altered(plain(USTAR), 124, &[0x80, 0xff, 0xff, 0xff, 0xff]), "size is not a number"),
        (altered(plain(USTAR), 100, b"00x0000"), "mode is not a number"),
        (altered(plain(USTAR), 329, b"00x0000"), "device is not a number"),
        (altered(plain(USTAR), 108, &[0xff; 8]), "32 bits"),
        (altered(plain(USTAR), 156, b"7"), "unknown type"),
        (altered(plain(USTAR), 156, b"V"), "unknown type"),
        (altered(plain(USTAR), 156, b"S"), "sparse"),
        (altered(plain(USTAR), 156, b"3"), "device"),
        (altered(plain(USTAR), 156, b"4"), "device"),
    ] {
        assert_layer_rejected(&[&header], message);
    }
    let mut wrong = plain(USTAR);
    wrong[0] = b'y';
    assert_layer_rejected(&[&wrong], "checksum");
    assert_layer_rejected(&[&[0; 512]], "follows a block of zeros");
}

#[test]
fn names_and_targets_that_leave_the_image_are_rejected() {
    for name in ["..", "../x", "/../x", "./../x", "x/..", "x/../y", "x/../..", "a/./../b"] {
        assert_layer_rejected(&[&file(name)], "leaves the image");
        assert_layer_rejected(&[&member(name, b'5', b"")], "leaves the image");
        assert_layer_rejected(&[&link("l", b'1', name)], "leaves the image");
        assert_layer_rejected(&[&pax(b'x', &[("path", name)]), &file("y")], "leaves the image");
        let long = [name.as_bytes(), b"\0"].concat();
        assert_layer_rejected(&[&gnu(b'L', &long), &file("y")], "leaves the image");
        let target = pax(b'x', &[("linkpath", name)]);
        assert_layer_rejected(&[&target, &link("l", b'1', "y")], "leaves the image");
        assert_layer_rejected(&[&gnu(b'K', &long), &link("l", b'1', "y")], "leaves the image");
    }
    let long = "a".repeat(256);
    for (members, message) in [
        (file(""), "path is empty"),
        (file("x/"), "not a folder"),
        (file("x/."), "not a folder"),
        (file("/"), "the root is not a folder"),
        (file("."), "the root is not a folder"),
        (link("x/", b'2', "y"), "not a folder"),
        (link("x", b'2', ""), "links to nothing"),
        (link("x", b'1', ""), "links to nothing"),
        (link("x", b'1', "/"), "itself or to the root"),
        (link("x", b'1', "./x"), "itself or to the root"),
        ([pax(b'x', &[("path", &long)]), file("x")].concat(), "too long"),
        (file(".wh."), "reserved for deletions"),
        (file("a/.wh.."), "reserved for deletions"),
        (file("a/.wh..."), "reserved for deletions"),
        (file(".wh.a/b"), "reserved for deletions"),
        (member(".wh.a", b'5', b""), "reserved for deletions"),
    ] {
        assert_layer_rejected(&[&members], message);
    }
}
