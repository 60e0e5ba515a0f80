//! Reads ELF files: the libraries and the loader that they need, and their hardening. Only 64-bit
//! little-endian files are supported; see elf(5).

use std::path::Path;

use anyhow::{Context as _, Result};

const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;
const PT_LOAD: u32 = 1;
const DT_NEEDED: u64 = 1;
const DT_STRTAB: u64 = 5;

/// Returns the loader's path and the names of the needed libraries; an empty list for a file that
/// is not ELF.
///
/// # Errors
///
/// Fails if the file cannot be read or is malformed.
pub fn needed(path: &Path) -> Result<Vec<String>> {
    let data = std::fs::read(path)?;
    if !data.starts_with(b"\x7fELF\x02\x01") {
        return Ok(Vec::new());
    }
    parse(&data).with_context(|| format!("{} is a malformed ELF file", path.display()))
}

/// Returns the loader's path and the needed libraries; `None` if the file is malformed.
fn parse(data: &[u8]) -> Option<Vec<String>> {
    let u64_at = |at: usize| Some(u64::from_le_bytes(data.get(at..at + 8)?.try_into().ok()?));
    let u32_at = |at: usize| Some(u32::from_le_bytes(data.get(at..at + 4)?.try_into().ok()?));
    let u16_at = |at: usize| Some(u16::from_le_bytes(data.get(at..at + 2)?.try_into().ok()?));
    let text = |at: usize| {
        let rest = data.get(at..)?;
        Some(String::from_utf8_lossy(&rest[..rest.iter().position(|b| *b == 0)?]).into_owned())
    };
    let (table, size, count) =
        (u64_at(32)? as usize, usize::from(u16_at(54)?), usize::from(u16_at(56)?));
    let mut found = Vec::new();
    let (mut loads, mut dynamic) = (Vec::new(), None);
    for n in 0..count {
        let at = table + n * size;
        let (offset, address, length) = (u64_at(at + 8)?, u64_at(at + 16)?, u64_at(at + 32)?);
        match u32_at(at)? {
            PT_LOAD => loads.push((offset, address, length)),
            PT_INTERP => found.push(text(offset as usize)?),
            PT_DYNAMIC => dynamic = Some((offset as usize, length as usize)),
            _ => {}
        }
    }
    let Some((offset, length)) = dynamic else { return Some(found) };
    let entries: Vec<(u64, u64)> = (0..length / 16)
        .map(|n| Some((u64_at(offset + n * 16)?, u64_at(offset + n * 16 + 8)?)))
        .collect::<Option<_>>()?;
    let Some(strings) = entries.iter().find(|(tag, _)| *tag == DT_STRTAB).map(|(_, value)| *value)
    else {
        return Some(found);
    };
    let (load, base, _) = loads
        .into_iter()
        .find(|(_, address, length)| (*address..address + length).contains(&strings))?;
    for (_, name) in entries.iter().filter(|(tag, _)| *tag == DT_NEEDED) {
        found.push(text((strings - base + load + name) as usize)?);
    }
    Some(found)
}

const ET_DYN: u16 = 3;
const PT_GNU_RELRO: u32 = 0x6474_e552;

/// Byte strings that mark programs of toolchains without a stack protector: Go and stable Rust.
const NO_STACK_PROTECTOR_MARKERS: [&[u8]; 3] =
    [b"Go buildinf:", b"library/core/src/", b"library/std/src/"];

/// Returns the hardening that a program or library lacks: `PIE`, `RELRO` and, if its toolchain has
/// one, `stack protector`. Returns `None` for a file that is not ELF.
///
/// # Errors
///
/// Fails if the file cannot be read or is malformed.
pub fn missing_hardening(path: &Path) -> Result<Option<std::collections::BTreeSet<String>>> {
    let data = std::fs::read(path)?;
    if !data.starts_with(b"\x7fELF\x02\x01") {
        return Ok(None);
    }
    let malformed = || format!("{} is a malformed ELF file", path.display());
    let u16_at = |at: usize| Some(u16::from_le_bytes(data.get(at..at + 2)?.try_into().ok()?));
    let u32_at = |at: usize| Some(u32::from_le_bytes(data.get(at..at + 4)?.try_into().ok()?));
    let header = || {
        let table = usize::try_from(u64::from_le_bytes(data.get(32..40)?.try_into().ok()?)).ok()?;
        let (size, count) = (usize::from(u16_at(54)?), usize::from(u16_at(56)?));
        let kinds: Option<Vec<u32>> =
            (0..count).map(|n| u32_at(table.checked_add(n * size)?)).collect();
        Some((u16_at(16)?, kinds?))
    };
    let (kind, segments) = header().with_context(malformed)?;
    let mut missing = std::collections::BTreeSet::new();
    if kind != ET_DYN {
        missing.insert("PIE".to_owned());
    }
    if !segments.contains(&PT_GNU_RELRO) {
        missing.insert("RELRO".to_owned());
    }
    let contains = |text: &[u8]| data.windows(text.len()).any(|w| w == text);
    if !contains(b"__stack_chk_fail")
        && !NO_STACK_PROTECTOR_MARKERS.iter().any(|marker| contains(marker))
    {
        missing.insert("stack protector".to_owned());
    }
    Ok(Some(missing))
}

/// Returns a path relative to the root without `.` and `..`, with `/bin`, `/sbin`, `/lib` and
/// `/lib64` replaced by the folders of the merged `/usr`.
pub fn normalise(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    if parts.first().is_some_and(|p| ["bin", "sbin", "lib", "lib64"].contains(p)) {
        parts.insert(0, "usr");
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_test_program_needs_libc_and_a_loader() {
        let needed = needed(&std::env::current_exe().unwrap()).unwrap();
        assert!(
            needed.iter().any(|n| n == "libc.so.6") && needed.iter().any(|n| n.contains("/ld-")),
            "{needed:?}"
        );
        assert!(parse(&[0; 64]).is_some_and(|n| n.is_empty()));
        assert_eq!(parse(&[0; 20]), None);
    }

    #[test]
    fn missing_hardening_is_reported() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut elf = [0; 64];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        let found = |more: &[u8]| {
            std::fs::write(file.path(), [&elf[..], more].concat()).unwrap();
            missing_hardening(file.path())
                .unwrap()
                .unwrap()
                .into_iter()
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(found(b""), "PIE RELRO stack protector");
        assert_eq!(found(b"\0__stack_chk_fail\0"), "PIE RELRO");
        assert_eq!(found(b"\xff Go buildinf:"), "PIE RELRO");
        std::fs::write(file.path(), "text").unwrap();
        assert_eq!(missing_hardening(file.path()).unwrap(), None);
        assert_eq!(
            missing_hardening(&std::env::current_exe().unwrap()).unwrap(),
            Some(Default::default()),
            "the test program must have all hardening"
        );
    }

    #[test]
    fn paths_are_normalised() {
        assert_eq!(normalise("usr/lib/x/../y/./z"), "usr/lib/y/z");
        assert_eq!(normalise("/lib/ld.so"), "usr/lib/ld.so");
    }
}
