//! The simple network time protocol (RFC 4330 as far as a client needs it): one question, one
//! answer.

use std::time::Duration;

/// Seconds from 1900 to 1970.
const UNIX: u64 = 2_208_988_800;

/// A request whose transmit time is a nonce that the answer must carry back.
pub(crate) fn request(nonce: u64) -> [u8; 48] {
    let mut m = [0; 48];
    m[0] = 0x23; // no warning, version 4, client
    m[40..].copy_from_slice(&nonce.to_be_bytes());
    m
}

/// The server's time since 1970.
pub(crate) fn parse(m: &[u8], nonce: u64) -> Option<Duration> {
    let m: &[u8; 48] = m.get(..48)?.try_into().ok()?;
    let (leap, mode, stratum) = (m[0] >> 6, m[0] & 7, m[1]);
    if leap == 3 || mode != 4 || !(1..16).contains(&stratum) || m[24..32] != nonce.to_be_bytes() {
        return None;
    }
    let word = |at: usize| u64::from(u32::from_be_bytes([m[at], m[at + 1], m[at + 2], m[at + 3]]));
    // After 2036 the counter starts again at zero.
    let seconds = if word(40) < 0x8000_0000 { word(40) + (1 << 32) } else { word(40) };
    Some(Duration::new(seconds.checked_sub(UNIX)?, ((word(44) * 1_000_000_000) >> 32) as u32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_synchronised_answer_to_this_question_counts() {
        let mut m = [0u8; 48];
        m[0] = 0x24;
        m[1] = 2;
        m[24..32].copy_from_slice(&9u64.to_be_bytes());
        m[40..44].copy_from_slice(&((UNIX + 1_800_000_000) as u32).to_be_bytes());
        assert_eq!(parse(&m, 9).unwrap().as_secs(), 1_800_000_000);
        assert!(parse(&m, 8).is_none());
        assert!(parse(&m[..47], 9).is_none());
        m[0] = 0xe4;
        assert!(parse(&m, 9).is_none());
        m[0] = 0x24;
        m[1] = 0;
        assert!(parse(&m, 9).is_none(), "kiss of death");
    }
}
