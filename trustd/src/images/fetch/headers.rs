//! Headers that say which bytes of a blob a body holds, and how long a host wants to be left alone.

use std::time::{Duration, SystemTime};

use hyper::HeaderMap;
use hyper::header::{CONTENT_RANGE, DATE, RETRY_AFTER};

/// Part of a blob that a response holds: its first byte and the one after its last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ContentRange {
    pub(super) start: u64,
    pub(super) end: u64,
}

impl ContentRange {
    /// Reads `Content-Range: bytes START-LAST/SIZE` (RFC 9110, section 14.4). Returns `None` if it
    /// is missing, sent twice, malformed, or a range of a blob of another size than `size` bytes.
    pub(super) fn from_headers(headers: &HeaderMap, size: u64) -> Option<Self> {
        let mut values = headers.get_all(CONTENT_RANGE).iter();
        let text = values.next()?.to_str().ok()?;
        let range = text.split_once(' ').filter(|(unit, _)| unit.eq_ignore_ascii_case("bytes"))?.1;
        let (range, total) = range.trim().split_once('/')?;
        let (start, last) = range.split_once('-')?;
        let (start, last) = (number(start)?, number(last)?);
        let is_other_blob = total != "*" && number(total) != Some(size);
        if values.next().is_some() || is_other_blob || start > last || last >= size {
            return None;
        }
        Some(Self { start, end: last + 1 })
    }
}

/// Reads `Retry-After` (RFC 9110, section 10.2.3), in seconds or as a date. A date counts from the
/// host's own `Date`, if it sent one, because the node's clock may differ; otherwise from `now`.
pub(super) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let wanted = text(RETRY_AFTER)?;
    if let Some(seconds) = number(wanted) {
        return Some(Duration::from_secs(seconds));
    }
    let until = httpdate::parse_http_date(wanted).ok()?;
    let from = text(DATE).and_then(|date| httpdate::parse_http_date(date).ok()).unwrap_or(now);
    Some(until.duration_since(from).unwrap_or_default())
}

/// Parses decimal digits. Other forms that Rust accepts, such as `+1`, are no numbers here.
fn number(text: &str) -> Option<u64> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(name: hyper::header::HeaderName, value: &str) -> HeaderMap {
        [(name, value.parse().unwrap())].into_iter().collect()
    }

    fn range(value: &str) -> Option<(u64, u64)> {
        let range = ContentRange::from_headers(&header(CONTENT_RANGE, value), 100)?;
        Some((range.start, range.end))
    }

    #[test]
    fn ranges_of_the_blob_are_read() {
        assert_eq!(range("bytes 10-99/100"), Some((10, 100)));
        assert_eq!(range("Bytes 0-0/*"), Some((0, 1)));
    }

    #[test]
    fn ranges_that_cannot_be_are_none() {
        for bad in [
            "",
            "bytes",
            "bytes 10-99/101",
            "bytes 10-100/*",
            "bytes 20-10/100",
            "bytes +1-9/100",
            "bytes -9/100",
            "bytes */100",
            "items 10-99/100",
            "bytes 1-99999999999999999999/100",
        ] {
            assert_eq!(range(bad), None, "{bad}");
        }
        let mut twice = header(CONTENT_RANGE, "bytes 10-99/100");
        twice.append(CONTENT_RANGE, "bytes 0-99/100".parse().unwrap());
        assert_eq!(ContentRange::from_headers(&twice, 100), None);
        assert_eq!(ContentRange::from_headers(&HeaderMap::new(), 100), None);
    }

    #[test]
    fn pauses_are_read_in_seconds_and_as_a_date() {
        let now = httpdate::parse_http_date("Fri, 27 Nov 2026 10:00:00 GMT").unwrap();
        let pause = |value| retry_after(&header(RETRY_AFTER, value), now).map(|d| d.as_secs());
        assert_eq!(pause("120"), Some(120));
        assert_eq!(pause("Fri, 27 Nov 2026 10:00:30 GMT"), Some(30));
        // A moment that has passed.
        assert_eq!(pause("Fri, 27 Nov 2026 09:00:00 GMT"), Some(0));
        for bad in ["", "-1", "1.5", "soon", "99999999999999999999999"] {
            assert_eq!(pause(bad), None, "{bad}");
        }
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
        // The host's clock is an hour behind.
        let mut headers = header(RETRY_AFTER, "Fri, 27 Nov 2026 09:00:07 GMT");
        headers.insert(DATE, "Fri, 27 Nov 2026 09:00:00 GMT".parse().unwrap());
        assert_eq!(retry_after(&headers, now), Some(Duration::from_secs(7)));
    }
}
