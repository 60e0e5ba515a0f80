//! Header blocks, as Go's `archive/tar` reads them (`readHeader`, `getFormat`, `parseNumeric`).

use super::error::Problem;

/// Size of a block in bytes.
pub(super) const BLOCK_BYTES: usize = 512;

/// A block of an archive.
pub(super) type Block = [u8; BLOCK_BYTES];

/// The fields of a header that decide what a member is.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) name: Vec<u8>,
    pub(super) target: Vec<u8>,
    pub(super) size: u64,
    pub(super) uid: i64,
    pub(super) gid: i64,
    pub(super) kind: u8,
}

impl Header {
    /// Parses a header.
    ///
    /// # Errors
    ///
    /// Returns the first [`Problem`]. Every header that Go rejects is rejected.
    pub(super) fn parse(block: &Block) -> Result<Self, Problem> {
        if !checksum_matches(block) {
            return Err(Problem::Checksum);
        }
        let number = |field: &'static str, from: usize, len: usize| {
            parse_number(&block[from..from + len]).ok_or(Problem::Number(field))
        };
        let uid = number("user", 108, 8)?;
        let gid = number("group", 116, 8)?;
        let size = number("size", 124, 12)?;
        number("mode", 100, 8)?;
        number("time", 136, 12)?;
        let mut name = text(&block[..100]).to_vec();
        match Format::of(block)? {
            Format::V7 => {}
            Format::Ustar => {
                number("device", 329, 8)?;
                number("device", 337, 8)?;
                let prefix = text(&block[345..500]);
                if !prefix.is_empty() {
                    name = [prefix, b"/", &name].concat();
                }
            }
            Format::Gnu => {
                number("device", 329, 8)?;
                number("device", 337, 8)?;
                // If these are not times, Go takes them for the prefix of the name.
                for from in [345, 357] {
                    if block[from] != 0 {
                        number("time", from, 12)?;
                    }
                }
            }
        }
        Ok(Self {
            name,
            target: text(&block[157..257]).to_vec(),
            size: u64::try_from(size).map_err(|_| Problem::NegativeSize)?,
            uid,
            gid,
            kind: block[156],
        })
    }
}

enum Format {
    V7,
    Ustar,
    Gnu,
}

impl Format {
    /// Returns the format by the magic. The one of `star` is rejected: its prefix is shorter, and
    /// most readers do not know it.
    fn of(block: &Block) -> Result<Self, Problem> {
        match &block[257..265] {
            b"ustar  \0" => Ok(Self::Gnu),
            [b'u', b's', b't', b'a', b'r', 0, ..] if block[508..] != *b"tar\0" => Ok(Self::Ustar),
            // Some readers would use a prefix, so there must be none.
            [0, 0, 0, 0, 0, 0, 0, 0] if block[345..500].iter().all(|b| *b == 0) => Ok(Self::V7),
            _ => Err(Problem::Format),
        }
    }
}

/// Compares the checksum with the sum of all bytes, as signed or as unsigned numbers. The checksum
/// itself counts as spaces.
fn checksum_matches(block: &Block) -> bool {
    let field = &block[148..156];
    let sum = |bytes: &[u8]| bytes.iter().map(|b| u32::from(*b)).sum::<u32>();
    let unsigned = i64::from(sum(block) - sum(field) + 8 * u32::from(b' '));
    let high = |bytes: &[u8]| bytes.iter().map(|b| i64::from(*b >> 7)).sum::<i64>();
    let signed = unsigned - 256 * (high(block) - high(field));
    // An empty field is zero, which a signed sum can be.
    field.iter().any(u8::is_ascii_digit)
        && parse_octal(field).is_some_and(|found| found == unsigned || found == signed)
}

/// Returns the text of a field, which ends at the first NUL.
pub(super) fn text(field: &[u8]) -> &[u8] {
    field.split(|b| *b == 0).next().unwrap_or_default()
}

/// Parses a number in octal digits, or in base 256 (two's complement) if the first bit is set.
fn parse_number(field: &[u8]) -> Option<i64> {
    let [first, rest @ ..] = field else { return Some(0) };
    if first & 0x80 == 0 {
        return parse_octal(field);
    }
    // The second bit is the sign.
    let start = i64::from(first & 0x7f) - if first & 0x40 == 0 { 0 } else { 0x80 };
    rest.iter().try_fold(start, |value, byte| {
        value.checked_mul(256).map(|shifted| shifted | i64::from(*byte))
    })
}

/// Parses octal digits between spaces and NULs. No digits are zero, as in Go.
fn parse_octal(field: &[u8]) -> Option<i64> {
    let padding = |b: &u8| matches!(b, b' ' | 0);
    let start = field.iter().position(|b| !padding(b)).unwrap_or(field.len());
    let end = field.iter().rposition(|b| !padding(b)).map_or(start, |last| last + 1);
    field[start..end].iter().try_fold(0i64, |value, digit| match digit {
        b'0'..=b'7' => value.checked_mul(8).map(|shifted| shifted | i64::from(digit - b'0')),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_go_reads_them() {
        for (field, value) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"  644 \0 ", Some(0o644)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"0000648\0", None),
            (b"-000001\0", None),
            (b"12\x0034\0\0\0", None),
            (b"\x80\0\0\0\0\0\x01\x02", Some(258)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2)),
            (b"\xc0\0\0\0\0\0\0\0", Some(-(1 << 62))),
            (b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", Some(i64::MAX)),
            (b"\x80\0\0\0\x80\0\0\0\0\0\0\0", None),
            (b"\xff\xff\xff\xff\x80\0\0\0\0\0\0\0", Some(i64::MIN)),
        ] {
            assert_eq!(parse_number(field), value, "{field:?}");
        }
    }
}
