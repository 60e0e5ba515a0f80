//! Records of pax headers (POSIX.1-2001, "pax Header Block"), as Go's `archive/tar` reads them
//! (`parsePAX`, `mergePAX`).

use std::collections::BTreeSet;

use super::error::{Problem, shown};

/// Greatest number of records of a member.
const MAX_RECORDS: usize = 4096;
/// Greatest length of the name of an extended attribute (`XATTR_NAME_MAX` of Linux).
const MAX_ATTRIBUTE_NAME_BYTES: usize = 255;
/// Greatest size of an extended attribute (`XATTR_SIZE_MAX` of Linux).
const MAX_ATTRIBUTE_BYTES: usize = 65536;
/// Prefix of the keys of extended attributes, which the engine sets.
const ATTRIBUTE: &[u8] = b"SCHILY.xattr.";
/// Beginnings of keys that let some readers see another member.
const AMBIGUOUS_KEYS: [&[u8]; 5] =
    [b"GNU.sparse.", b"GNU.volume.", b"SCHILY.realsize", b"SCHILY.filetype", b"SCHILY.offset"];
/// Beginnings of the names of attributes that control the engine's overlay file system.
const OVERLAY_ATTRIBUTES: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];

/// The records that decide what the next member is.
#[derive(Debug, Default)]
pub(super) struct Records {
    pub(super) path: Option<Vec<u8>>,
    pub(super) target: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<i64>,
    pub(super) gid: Option<i64>,
    pub(super) attributes: Vec<Vec<u8>>,
}

impl Records {
    /// Parses the records of a header of the type `x`.
    ///
    /// # Errors
    ///
    /// Returns the first [`Problem`]. All records that Go rejects are rejected, and those that
    /// other readers understand in another way.
    pub(super) fn parse(data: &[u8]) -> Result<Self, Problem> {
        let mut records = Self::default();
        each_record(data, |key, value| records.take(key, value))?;
        records.attributes.sort_unstable();
        Ok(records)
    }

    /// Checks the records of a global header (type `g`). Go ignores them and other readers do not,
    /// so they must have no effect.
    pub(super) fn check_global(data: &[u8]) -> Result<(), Problem> {
        each_record(data, |key, value| match key {
            b"path" | b"linkpath" | b"size" | b"uid" | b"gid" => {
                Err(Problem::RecordKey(shown(key)))
            }
            _ if key.starts_with(ATTRIBUTE) => Err(Problem::RecordKey(shown(key))),
            _ => Self::default().take(key, value),
        })
    }

    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), Problem> {
        let invalid = || Problem::RecordValue { key: shown(key), value: shown(value) };
        let number = || parse_number(value).ok_or_else(invalid);
        // POSIX deletes a record with an empty value, and Go uses the header.
        let text = || match value {
            [] => Err(invalid()),
            _ => Ok(Some(value.to_vec())),
        };
        match key {
            b"path" | b"linkpath" | b"uname" | b"gname" if value.contains(&0) => Err(invalid())?,
            b"path" => self.path = text()?,
            b"linkpath" => self.target = text()?,
            b"size" => self.size = Some(number()?.try_into().map_err(|_| invalid())?),
            b"uid" => self.uid = Some(number()?),
            b"gid" => self.gid = Some(number()?),
            b"mtime" | b"atime" | b"ctime" if !is_time(value) => Err(invalid())?,
            _ if AMBIGUOUS_KEYS.iter().any(|start| key.starts_with(start)) => {
                return Err(Problem::RecordKey(shown(key)));
            }
            _ => {
                if let Some(name) = key.strip_prefix(ATTRIBUTE) {
                    check_attribute(name, value)?;
                    self.attributes.push(name.to_vec());
                }
            }
        }
        Ok(())
    }
}

fn check_attribute(name: &[u8], value: &[u8]) -> Result<(), Problem> {
    if OVERLAY_ATTRIBUTES.iter().any(|start| name.starts_with(start)) {
        return Err(Problem::OverlayAttribute);
    }
    let supported = (1..=MAX_ATTRIBUTE_NAME_BYTES).contains(&name.len());
    if supported && value.len() <= MAX_ATTRIBUTE_BYTES {
        Ok(())
    } else {
        Err(Problem::AttributeName)
    }
}

/// Calls `take` with key and value of each record `LENGTH KEY=VALUE\n`. The length is that of the
/// whole record in bytes, including its own digits and the newline.
fn each_record(
    data: &[u8],
    mut take: impl FnMut(&[u8], &[u8]) -> Result<(), Problem>,
) -> Result<(), Problem> {
    let mut keys = BTreeSet::new();
    let mut rest = data;
    while !rest.is_empty() {
        let (key, value, after) = split_record(rest).ok_or(Problem::Record)?;
        if key.is_empty() || key.contains(&0) {
            return Err(Problem::Record);
        }
        if !keys.insert(key) {
            return Err(Problem::RecordTwice(shown(key)));
        }
        if keys.len() > MAX_RECORDS {
            return Err(Problem::Records(MAX_RECORDS));
        }
        take(key, value)?;
        rest = after;
    }
    Ok(())
}

/// Returns key, value and the data after the first record.
fn split_record(data: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = data.iter().take(8).position(|b| *b == b' ')?;
    let digits = &data[..space];
    if !matches!(digits, [b'1'..=b'9', rest @ ..] if rest.iter().all(u8::is_ascii_digit)) {
        return None;
    }
    let length = digits.iter().fold(0, |value, digit| 10 * value + usize::from(digit - b'0'));
    let record = data.get(space + 1..length)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|b| *b == b'=')?;
    Some((&record[..equals], &record[equals + 1..], &data[length..]))
}

/// Parses a decimal number.
fn parse_number(text: &[u8]) -> Option<i64> {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Reports whether a text is empty, which Go ignores, or seconds with an optional fraction.
fn is_time(text: &[u8]) -> bool {
    let mut parts = text.splitn(2, |b| *b == b'.');
    let seconds = parts.next().unwrap_or_default();
    text.is_empty()
        || parse_number(seconds).is_some()
            && parts.next().unwrap_or_default().iter().all(u8::is_ascii_digit)
}
