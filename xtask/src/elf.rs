//! What an ELF file needs to run: its libraries and its loader. 64-bit little-endian only; see
//! elf(5).

use std::path::Path;

use anyhow::{Context as _, Result};

const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;
const PT_LOAD: u32 = 1;
const DT_NEEDED: u64 = 1;
const DT_STRTAB: u64 = 5;

/// Names of needed libraries, and the loader's path; nothing for a file that is not ELF.
pub fn needed(path: &Path) -> Result<Vec<String>> {
    let data = std::fs::read(path)?;
    if !data.starts_with(b"\x7fELF\x02\x01") {
        return Ok(Vec::new());
    }
    parse(&data).with_context(|| format!("{} is a broken ELF file", path.display()))
}

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

/// What every program says of itself whose toolchain has no stack protector: Go, and Rust as it is
/// released.
const WITHOUT_PROTECTOR: [&[u8]; 3] = [b"Go buildinf:", b"library/core/src/", b"library/std/src/"];

/// What a program or library lacks of `PIE`, `RELRO` and, where its toolchain has one, `stack
/// protector`; None for a file that is not ELF.
pub fn lacks(path: &Path) -> Result<Option<std::collections::BTreeSet<String>>> {
    let data = std::fs::read(path)?;
    if !data.starts_with(b"\x7fELF\x02\x01") {
        return Ok(None);
    }
    let broken = || format!("{} is a broken ELF file", path.display());
    let u16_at = |at: usize| Some(u16::from_le_bytes(data.get(at..at + 2)?.try_into().ok()?));
    let u32_at = |at: usize| Some(u32::from_le_bytes(data.get(at..at + 4)?.try_into().ok()?));
    let header = || {
        let table = usize::try_from(u64::from_le_bytes(data.get(32..40)?.try_into().ok()?)).ok()?;
        let (size, count) = (usize::from(u16_at(54)?), usize::from(u16_at(56)?));
        let kinds: Option<Vec<u32>> =
            (0..count).map(|n| u32_at(table.checked_add(n * size)?)).collect();
        Some((u16_at(16)?, kinds?))
    };
    let (kind, segments) = header().with_context(broken)?;
    let mut lacks = std::collections::BTreeSet::new();
    if kind != ET_DYN {
        lacks.insert("PIE".to_owned());
    }
    if !segments.contains(&PT_GNU_RELRO) {
        lacks.insert("RELRO".to_owned());
    }
    let holds = |text: &[u8]| data.windows(text.len()).any(|w| w == text);
    if !holds(b"__stack_chk_fail") && !WITHOUT_PROTECTOR.iter().any(|mark| holds(mark)) {
        lacks.insert("stack protector".to_owned());
    }
    Ok(Some(lacks))
}

/// A path without `.`, `..` and the names from before the merged /usr.
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
    fn this_very_program_needs_libc_and_a_loader() {
        let needed = needed(&std::env::current_exe().unwrap()).unwrap();
        assert!(
            needed.iter().any(|n| n == "libc.so.6") && needed.iter().any(|n| n.contains("/ld-")),
            "{needed:?}"
        );
        assert!(parse(&[0; 64]).is_some_and(|n| n.is_empty()));
        assert_eq!(parse(&[0; 20]), None);
    }

    #[test]
    fn what_is_missing_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut elf = [0; 64];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        let found = |more: &[u8]| {
            std::fs::write(file.path(), [&elf[..], more].concat()).unwrap();
            lacks(file.path()).unwrap().unwrap().into_iter().collect::<Vec<_>>().join(" ")
        };
        assert_eq!(found(b""), "PIE RELRO stack protector");
        assert_eq!(found(b"\0__stack_chk_fail\0"), "PIE RELRO");
        assert_eq!(found(b"\xff Go buildinf:"), "PIE RELRO");
        std::fs::write(file.path(), "text").unwrap();
        assert_eq!(lacks(file.path()).unwrap(), None);
        assert_eq!(
            lacks(&std::env::current_exe().unwrap()).unwrap(),
            Some(Default::default()),
            "this very program"
        );
    }

    #[test]
    fn paths_are_put_in_order() {
        assert_eq!(normalise("usr/lib/x/../y/./z"), "usr/lib/y/z");
        assert_eq!(normalise("/lib/ld.so"), "usr/lib/ld.so");
    }
}
