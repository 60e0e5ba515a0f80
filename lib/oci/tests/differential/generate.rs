//! Generator of archives: valid ones of every format, with the oddities of writers and attackers.

/// Generator of pseudo-random numbers (xorshift64*): the same seed yields the same archives.
pub(crate) struct Random {
    state: u64,
    /// Whether the current archive has few oddities. Those of the others hide each other.
    tame: bool,
}

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self { state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1, tame: false }
    }

    fn next(&mut self) -> u64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() >> 33) as usize % bound
    }

    /// Returns `true` once in `n` calls, and seldom in a tame archive.
    fn one_in(&mut self, n: usize) -> bool {
        self.below(if self.tame { 8 * n } else { n }) == 0
    }

    /// Picks one of the elements, and mostly one of the first in a tame archive.
    fn odd<T: Copy>(&mut self, from: &[T], common: usize) -> T {
        let odd = self.below(if self.tame { 60 } else { 3 }) == 0;
        self.pick(if odd { from } else { &from[..common] })
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

/// Names. The first [`COMMON_NAMES`] are valid for every kind of member.
const NAMES: [&str; 32] = [
    "a",
    "a/b",
    "b/c",
    "./a",
    "/a",
    "//a",
    ".//b",
    "/./b",
    "a//b",
    "a/./b",
    "etc/passwd",
    "...",
    "a\\b",
    "a\nb",
    "\u{e9}/\u{fc}",
    "b/",
    "a/",
    "..",
    "../a",
    "a/../b",
    "a/..",
    "/",
    "./",
    ".",
    "",
    ".wh.a",
    "a/.wh..wh..opq",
    ".wh.",
    "a/.",
    "pax_global_header",
    "././@PaxHeader",
    ".wh.a/b",
];
const COMMON_NAMES: usize = 15;
/// Keys of pax records. The first [`COMMON_KEYS`] are allowed.
const KEYS: [&str; 22] = [
    "path",
    "linkpath",
    "size",
    "uid",
    "gid",
    "uname",
    "gname",
    "mtime",
    "atime",
    "ctime",
    "comment",
    "SCHILY.xattr.user.a",
    "SCHILY.xattr.security.capability",
    "LIBARCHIVE.creationtime",
    "hdrcharset",
    "SCHILY.xattr.trusted.overlay.opaque",
    "SCHILY.xattr.",
    "GNU.sparse.map",
    "GNU.sparse.major",
    "GNU.sparse.name",
    "SCHILY.realsize",
    "",
];
const COMMON_KEYS: usize = 15;
/// Type flags. The first [`COMMON_FLAGS`] are allowed.
const FLAGS: [u8; 20] = [
    b'0', b'0', b'0', b'0', 0, 0, b'5', b'5', b'1', b'1', b'2', b'6', b'g', b'3', b'4', b'7', b'S',
    b'V', b'M', b'x',
];
const COMMON_FLAGS: usize = 13;
/// Magic and version. The first [`COMMON_MAGICS`] are known formats.
const MAGICS: [&[u8]; 8] = [
    b"ustar\x0000",
    b"ustar\x0000",
    b"ustar  \0",
    b"ustar  \0",
    b"\0\0\0\0\0\0\0\0",
    b"ustar\0\0\0",
    b"ustar 00",
    b"USTAR\x0000",
];
const COMMON_MAGICS: usize = 5;

/// Returns the next archive.
pub(crate) fn archive(random: &mut Random) -> Vec<u8> {
    random.tame = random.below(2) == 0;
    let mut archive = Vec::new();
    for _ in 0..1 + random.below(4) {
        member(random, &mut archive);
    }
    match random.below(if random.tame { 40 } else { 12 }) {
        0 => {}
        1 => archive.extend([0; 512]),
        2 => {
            archive.extend([0; 512]);
            member(random, &mut archive);
        }
        3 => {
            archive.extend([0; 1024]);
            member(random, &mut archive);
        }
        _ => archive.extend([0; 1024]),
    }
    if random.one_in(4) {
        mutate(random, &mut archive);
    }
    archive
}

/// Changes bytes, and mostly corrects the checksums, so that the changes are read.
fn mutate(random: &mut Random, archive: &mut Vec<u8>) {
    for _ in 0..1 + random.below(3) {
        let at = random.below(archive.len());
        match random.below(8) {
            0 => archive[at] ^= 1 << random.below(8),
            1 => archive[at] = random.next() as u8,
            2 => archive[at] = random.pick(b"0 75/.\0x\xff\x80"),
            3 => {
                // A field of a header.
                let (field, len) = random.pick(&[
                    (0, 100),
                    (100, 8),
                    (108, 8),
                    (116, 8),
                    (124, 12),
                    (136, 12),
                    (148, 8),
                    (156, 1),
                    (157, 100),
                    (257, 8),
                    (265, 32),
                    (297, 32),
                    (329, 8),
                    (337, 8),
                    (345, 155),
                    (345, 12),
                    (357, 12),
                    (476, 12),
                    (483, 12),
                    (508, 4),
                ]);
                let from = at / 512 * 512 + field;
                let value = field_value(random, len);
                if let Some(target) = archive.get_mut(from..from + value.len()) {
                    target.copy_from_slice(&value);
                }
            }
            4 => archive.truncate(at + 1),
            5 => archive.truncate(at / 512 * 512 + 512),
            6 => {
                // A block twice, or one less.
                let from = at / 512 * 512;
                let block = archive[from..(from + 512).min(archive.len())].to_vec();
                let to = random.below(archive.len() / 512 + 1) * 512;
                archive.splice(to..to, block);
            }
            _ => {
                let from = at / 512 * 512;
                archive.drain(from..(from + 512).min(archive.len()));
            }
        }
        if archive.is_empty() {
            return;
        }
    }
    if !random.one_in(6) {
        for block in archive.chunks_exact_mut(512) {
            if block[148..156].iter().any(|b| *b != 0) {
                set_checksum(random, block);
            }
        }
    }
}

fn field_value(random: &mut Random, len: usize) -> Vec<u8> {
    let mut value = match random.below(9) {
        0 => vec![0; len],
        1 => vec![b' '; len],
        2 => vec![b'7'; len],
        3 => random.pick(&NAMES).as_bytes().to_vec(),
        4 => [&[0x80][..], &vec![0; len.saturating_sub(2)], &[random.next() as u8]].concat(),
        5 => vec![0xff; len],
        6 => format!("{:o}", random.next() >> random.below(64)).into_bytes(),
        7 => format!(" {:o} \0{}", random.below(2048), random.below(9)).into_bytes(),
        _ => (0..len).map(|_| random.next() as u8).collect(),
    };
    value.resize(len, 0);
    value
}

/// Returns a name, mostly with a slash at the end for a folder.
fn name(random: &mut Random, flag: u8) -> String {
    let name = random.odd(&NAMES, COMMON_NAMES);
    let slash = match flag {
        b'5' => random.below(2) == 0,
        0 => random.below(4) == 0,
        _ => random.one_in(30),
    };
    if slash { format!("{name}/") } else { name.to_owned() }
}

/// Appends a member with its extensions.
fn member(random: &mut Random, archive: &mut Vec<u8>) {
    let magic = random.odd(&MAGICS, COMMON_MAGICS);
    let flag = random.odd(&FLAGS, COMMON_FLAGS);
    if flag == b'g' {
        extension(random, archive, flag, flag);
        return;
    }
    for (extended, often) in [(b'x', 3), (b'L', 8), (b'K', 8)] {
        if random.below(often) == 0 {
            extension(random, archive, extended, flag);
        }
    }
    if random.one_in(40) {
        extension(random, archive, b'x', flag);
    }
    let has_data = match flag {
        b'0' | 0 | b'7' => random.below(10) < 7,
        _ => random.one_in(20),
    };
    let mut data = Vec::new();
    if has_data {
        // Readers that disagree about the size read the content as headers.
        if random.below(2) == 0 {
            data.extend(header(random, magic, "../hidden", b'0', 0, ""));
        }
        data.resize(random.pick(&[0, 1, 5, 511, 512, 513, 1024]), random.next() as u8);
    }
    let name = name(random, flag);
    let target = if matches!(flag, b'1' | b'2') || random.one_in(20) {
        random.odd(&NAMES, COMMON_NAMES)
    } else {
        ""
    };
    let size = if random.one_in(30) { random.below(1024) } else { data.len() };
    archive.extend(header(random, magic, &name, flag, size as u64, target));
    archive.extend(&data);
    archive.resize(archive.len().next_multiple_of(512), 0);
}

/// Appends an extension of a member with the type flag `of`.
fn extension(random: &mut Random, archive: &mut Vec<u8>, flag: u8, of: u8) {
    let mut data = Vec::new();
    if matches!(flag, b'x' | b'g') {
        for _ in 0..random.below(4) {
            data.extend(record(random, flag, of));
        }
    } else {
        if random.below(3) == 0 {
            data.extend(b"long/".repeat(40));
        }
        data.extend(name(random, of).as_bytes());
        match random.below(if random.tame { 3 } else { 5 }) {
            0 => {}
            1 => data.push(0),
            2 => data.extend([0; 512]),
            3 => data.extend(b"\0x"),
            _ => data.clear(),
        }
    }
    let magic = random.odd(&MAGICS, COMMON_MAGICS);
    let name = match flag {
        b'g' if random.one_in(4) => "a",
        b'g' => random.pick(&["pax_global_header", "././@PaxHeader", "/tmp/GlobalHead.1.1"]),
        _ => random.pick(&["././@LongLink", "PaxHeaders/a", "../x"]),
    };
    archive.extend(header(random, magic, name, flag, data.len() as u64, ""));
    archive.extend(&data);
    archive.resize(archive.len().next_multiple_of(512), 0);
}

/// Returns a pax record for a member with the type flag `of`.
fn record(random: &mut Random, flag: u8, of: u8) -> Vec<u8> {
    let key = match flag {
        b'g' if !random.one_in(4) => "comment",
        _ => random.odd(&KEYS, COMMON_KEYS),
    };
    let value: Vec<u8> = match key {
        _ if random.one_in(10) => field_value(random, 12),
        "path" | "GNU.sparse.name" => name(random, of).into(),
        "linkpath" => random.odd(&NAMES, COMMON_NAMES).into(),
        "size" if !matches!(of, b'0' | 0) => random.odd(&["0", "512"], 1).into(),
        "size" => random.odd(&["0", "1", "512", "1024", "07", "+5", "-1", " 1", ""], 5).into(),
        "uid" | "gid" => {
            random.odd(&["0", "1000", "4294967294", "-1", "4294967295", "x", ""], 3).into()
        }
        "mtime" | "atime" | "ctime" => random
            .odd(&["0", "1.5", "-1.25", "1.", "", ".5", "1.x", "99999999999999999999"], 5)
            .into(),
        _ => random.pick(&["", "0", "1", "a=b", "a\nb", "\0"]).into(),
    };
    let body = [b" ", key.as_bytes(), b"=", &value, b"\n"].concat();
    let mut length = body.len() + 1;
    while length.to_string().len() + body.len() != length {
        length += 1;
    }
    if random.one_in(40) {
        length = (length + random.below(3)).saturating_sub(1);
    }
    let digits = match random.below(if random.tame { 1000 } else { 40 }) {
        0 => format!("0{length}"),
        1 => format!("+{length}"),
        _ => length.to_string(),
    };
    [digits.as_bytes(), &body].concat()
}

fn header(
    random: &mut Random,
    magic: &[u8],
    name: &str,
    flag: u8,
    size: u64,
    target: &str,
) -> [u8; 512] {
    let mut block = [0; 512];
    block[..name.len()].copy_from_slice(name.as_bytes());
    for (from, value) in [(100, 0o755), (108, 0), (116, 0), (329, 0), (337, 0)] {
        // Version 7 has no device numbers, but GNU tar writes them.
        if from < 257 || magic.starts_with(b"ustar") || random.below(2) == 0 {
            block[from..from + 7].copy_from_slice(format!("{value:07o}").as_bytes());
        }
    }
    if random.below(12) == 0 {
        let base256 = [&[0x80, 0, 0, 0][..], &size.to_be_bytes()].concat();
        block[124..136].copy_from_slice(&base256);
    } else {
        block[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
    }
    block[136..147].copy_from_slice(b"00000000000");
    block[156] = flag;
    block[157..157 + target.len()].copy_from_slice(target.as_bytes());
    block[257..265].copy_from_slice(magic);
    if random.one_in(16) {
        let prefix: &[u8] = random.pick(&[
            &b"prefix"[..],
            b"../up",
            b"/abs/",
            b"00000000001\x0000000000001\0",
            b"\x80\x01",
            b"name-that-is-no-time\0and-more",
        ]);
        block[345..345 + prefix.len()].copy_from_slice(prefix);
    }
    if random.one_in(50) {
        block[508..].copy_from_slice(b"tar\0");
    }
    set_checksum(random, &mut block);
    block
}

fn set_checksum(random: &mut Random, block: &mut [u8]) {
    block[148..156].fill(b' ');
    let unsigned: i64 = block.iter().map(|b| i64::from(*b)).sum();
    let signed: i64 = block.iter().map(|b| i64::from(*b as i8)).sum();
    let sum = if random.below(16) == 0 && signed >= 0 { signed } else { unsigned };
    let text = match random.below(16) {
        0 => format!("{sum:o}"),
        1 => format!("{sum:7o}\0"),
        _ => format!("{sum:06o}\0 "),
    };
    block[148..148 + text.len()].copy_from_slice(text.as_bytes());
}

/// Returns an archive with a folder that has a size. Its content is a header.
pub(crate) fn hidden() -> Vec<u8> {
    // With this seed the headers are plain.
    let random = &mut Random::new(3);
    let mut archive = header(random, MAGICS[0], "x/", b'5', 512, "").to_vec();
    archive.extend(header(random, MAGICS[0], "evil", b'0', 0, ""));
    archive.extend([0; 1024]);
    archive
}
