//! Messages of the Simple Network Time Protocol: the request of a client and the answer of a server
//! (RFC 4330).

use std::time::Duration;

/// Seconds from 1900, the epoch of the protocol, to 1970.
const UNIX_EPOCH_S: u64 = 2_208_988_800;

/// Builds a request. Its transmit timestamp is a nonce, which the server copies into its answer.
pub(crate) fn request(nonce: u64) -> [u8; 48] {
    let mut m = [0; 48];
    // No leap warning, version 4, mode client.
    m[0] = 0x23;
    m[40..].copy_from_slice(&nonce.to_be_bytes());
    m
}

/// Parses an answer and returns the time of the server since 1970. Returns `None` if the message is
/// malformed, is no answer to this request, or is of a server that is not synchronised.
pub(crate) fn parse(m: &[u8], nonce: u64) -> Option<Duration> {
    let m: &[u8; 48] = m.get(..48)?.try_into().ok()?;
    let (leap, mode, stratum) = (m[0] >> 6, m[0] & 7, m[1]);
    if leap == 3 || mode != 4 || !(1..16).contains(&stratum) || m[24..32] != nonce.to_be_bytes() {
        return None;
    }
    let word = |at: usize| u64::from(u32::from_be_bytes([m[at], m[at + 1], m[at + 2], m[at + 3]]));
    // The counter wraps around in 2036 (RFC 4330, section 3).
    let seconds = if word(40) < 0x8000_0000 { word(40) + (1 << 32) } else { word(40) };
    Some(Duration::new(
        seconds.checked_sub(UNIX_EPOCH_S)?,
        ((word(44) * 1_000_000_000) >> 32) as u32,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_answers_to_this_request_from_synchronised_servers_are_accepted() {
        let mut m = [0u8; 48];
        m[0] = 0x24;
        m[1] = 2;
        m[24..32].copy_from_slice(&9u64.to_be_bytes());
        m[40..44].copy_from_slice(&((UNIX_EPOCH_S + 1_800_000_000) as u32).to_be_bytes());
        assert_eq!(parse(&m, 9).unwrap().as_secs(), 1_800_000_000);
        assert!(parse(&m, 8).is_none());
        assert!(parse(&m[..47], 9).is_none());
        m[0] = 0xe4;
        assert!(parse(&m, 9).is_none());
        m[0] = 0x24;
        m[1] = 0;
        assert!(parse(&m, 9).is_none(), "kiss-o'-death packet");
    }
}
