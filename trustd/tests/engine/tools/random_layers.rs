//! Random layers: members in all forms of the tar formats, and changes of their headers.

use super::tar_bytes::{DIRECTORY, FILE, HARD_LINK, Header, SYMLINK, TarBytes, set_checksum};

/// Names of members. None is that of a file which the engine adds to a container.
const NAMES: [&str; 10] =
    ["a", "b", "c", "d", ".hidden", "with space", "ümläut", ".wh.a", ".wh.b", ".wh..wh..opq"];

/// Bytes of a block.
const BLOCK: usize = 512;

/// Reproducible random numbers (xorshift).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    /// Returns a number below `bound`.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from((self.0 >> 11) % bound as u64).unwrap()
    }

    fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    /// Returns whether an event of this chance in a hundred happens.
    fn percent(&mut self, chance: usize) -> bool {
        self.below(100) < chance
    }
}

/// Returns a random layer, and whether its headers were changed.
pub(crate) fn random_layer(random: &mut Random) -> (Vec<u8>, bool) {
    let mut tar = TarBytes::default();
    let mut headers = Vec::new();
    let mut files: Vec<String> = Vec::new();
    for _ in 0..3 + random.below(10) {
        let path = random_path(random);
        let kind = random.one_of(&[FILE, FILE, DIRECTORY, DIRECTORY, SYMLINK, HARD_LINK, 0, b'6']);
        let target = match kind {
            HARD_LINK if files.is_empty() => continue,
            HARD_LINK => {
                let target = files[random.below(files.len())].clone();
                random_form(random, &target)
            }
            SYMLINK => random_target(random),
            _ => String::new(),
        };
        if kind == FILE || kind == 0 {
            files.push(path.clone());
        }
        let name = random_form(random, &path);
        let name = if kind == DIRECTORY || random.percent(3) { name + "/" } else { name };
        append(random, &mut tar, &mut headers, &name, kind, &target);
    }
    let changed = random.percent(70);
    if changed {
        for _ in 0..=random.below(3) {
            change(random, tar.bytes_mut(), &headers);
        }
    }
    (tar.finish(BLOCK), changed)
}

/// Returns a path of one to three names, some of them longer than a header's field.
fn random_path(random: &mut Random) -> String {
    let depth = 1 + random.below(3);
    let mut names: Vec<String> = (0..depth)
        .map(|n| {
            // A whiteout is a last name.
            let choices = if n + 1 == depth { NAMES.len() } else { 7 };
            let mut name = NAMES[random.below(choices)].to_owned();
            if random.percent(8) {
                name += &"l".repeat(60 + random.below(60));
            }
            name
        })
        .collect();
    if depth == 1 && names[0].starts_with(".wh..wh.") {
        // overlayfs ignores the mark on the root.
        names[0] = "a".to_owned();
    }
    names.join("/")
}

fn random_target(random: &mut Random) -> String {
    let path = random_path(random);
    match random.below(4) {
        0 => format!("/{path}"),
        1 => format!("../{path}"),
        2 => "/".to_owned(),
        _ => path,
    }
}

/// Writes a path in another form with the same meaning.
fn random_form(random: &mut Random, path: &str) -> String {
    match random.below(8) {
        0 => format!("/{path}"),
        1 => format!("./{path}"),
        2 => format!("//{path}"),
        3 => path.replace('/', "//"),
        4 => path.replace('/', "/./"),
        _ => path.to_owned(),
    }
}

/// Appends a member, with its names in the header or in one of the extensions.
fn append(
    random: &mut Random,
    tar: &mut TarBytes,
    headers: &mut Vec<usize>,
    name: &str,
    kind: u8,
    target: &str,
) {
    let gnu = random.percent(40);
    for (key, flag, value) in [("path", b'L', name), ("linkpath", b'K', target)] {
        if value.len() > 100 || random.percent(10) && !value.is_empty() {
            headers.push(tar.len());
            if gnu {
                tar.gnu_name(flag, value);
            } else {
                tar.attributes(&[(key, value), ("mtime", "1.5")]);
            }
        }
    }
    if random.percent(5) {
        headers.push(tar.len());
        tar.member(&Header::new("pax_global_header", b'g', 0o644), b"16 comment=note\n");
    }
    headers.push(tar.len());
    let data = if kind == FILE || kind == 0 { random_data(random) } else { Vec::new() };
    let header = Header { link: head(target), ..Header::new(head(name), kind, 0o755) };
    let at = tar.len();
    tar.member(&header, &data);
    let block = &mut tar.bytes_mut()[at..at + BLOCK];
    if name.len() <= 100
        && random.percent(20)
        && let Some(slash) = name.rfind('/')
    {
        // The format ustar keeps the folders in a field of their own.
        if slash > 0 && slash + 1 < name.len() {
            let (folder, last) = (&name[..slash], &name[slash + 1..]);
            block[..100].fill(0);
            block[..last.len()].copy_from_slice(last.as_bytes());
            block[345..345 + folder.len()].copy_from_slice(folder.as_bytes());
        }
    } else if gnu {
        block[257..265].copy_from_slice(b"ustar  \0");
    } else if random.percent(10) {
        // The format of Unix version 7 has no magic.
        block[257..265].fill(0);
    }
    let owner = random.one_of(&[0, 1, 0o1750]);
    block[108..116].copy_from_slice(format!("{owner:07o}\0").as_bytes());
    set_checksum(block);
}

fn random_data(random: &mut Random) -> Vec<u8> {
    let length = random.one_of(&[0, 1, 511, 512, 513, 2000]);
    (0..length).map(|_| u8::try_from(random.below(256)).unwrap()).collect()
}

/// Returns as much of a text as a header has room for.
fn head(text: &str) -> &str {
    let mut end = text.len().min(100);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Changes a byte of a header, or copies a header over another, and corrects the checksum.
fn change(random: &mut Random, bytes: &mut [u8], headers: &[usize]) {
    let at = headers[random.below(headers.len())];
    // The fields that say what the member is are changed more often than the rest.
    let field = random.one_of(&[
        (0, 100),
        (100, 24),
        (124, 12),
        (156, 1),
        (157, 100),
        (257, 8),
        (345, 155),
    ]);
    match random.below(8) {
        0 => {
            let from = headers[random.below(headers.len())];
            bytes.copy_within(from..from + BLOCK, at);
        }
        1 => bytes[at + 156] = random.one_of(b"01234567xgLKSDV\0"),
        _ => {
            let byte = at + field.0 + random.below(field.1);
            bytes[byte] = match random.below(3) {
                0 => 0,
                1 => random.one_of(b"/. 017a"),
                _ => u8::try_from(random.below(256)).unwrap(),
            };
        }
    }
    set_checksum(&mut bytes[at..at + BLOCK]);
}
