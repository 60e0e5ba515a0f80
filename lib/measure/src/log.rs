//! The event log: one JSON record per line in the TCG Canonical Event Log Format (version 1.0,
//! section 5.2, JSON encoding), with the content type `basalt`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Event, Pcr, hex, unhex};

/// One record of the log.
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Number of the record.
    pub recnum: u64,
    /// Number of the PCR that the event is extended into.
    pub pcr: u32,
    /// Digest of the event, exactly one (SHA-256).
    pub digests: Vec<TaggedDigest>,
    /// Content type, always `basalt`.
    pub content_type: String,
    /// Kind and data of the event.
    pub content: Content,
}

/// Digest with its algorithm.
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct TaggedDigest {
    /// Name of the algorithm, always `sha256`.
    #[serde(rename = "hashAlg")]
    pub hash_alg: String,
    /// Digest, hex.
    pub digest: String,
}

/// Kind and data of an event.
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Content {
    /// Kind of the event.
    #[serde(rename = "type")]
    pub kind: String,
    /// Data of the event.
    pub data: String,
}

/// Error of parsing or replaying a log.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum LogError {
    /// A line is not a record.
    #[error("line {line} of the log is not a record: {reason}")]
    NotARecord {
        /// Number of the line, from 1 on.
        line: usize,
        /// Message of the JSON parser.
        reason: String,
    },
    /// A record has the wrong number.
    #[error(
        "record {recnum} ({kind}): expected number {expected}; records are missing or out of order"
    )]
    Order {
        /// Number of the record.
        recnum: u64,
        /// Expected number.
        expected: u64,
        /// Kind of the event.
        kind: String,
    },
    /// The digest of a record is not that of its content.
    #[error(
        "record {recnum} ({kind}): expected the digest of the content, {expected}, found {found}"
    )]
    Digest {
        /// Number of the record.
        recnum: u64,
        /// Kind of the event.
        kind: String,
        /// Digest of the content, hex.
        expected: String,
        /// Digest in the record.
        found: String,
    },
    /// A record has other digests or another content type.
    #[error(
        "record {recnum} ({kind}): expected exactly one SHA-256 digest and content type \"basalt\""
    )]
    Format {
        /// Number of the record.
        recnum: u64,
        /// Kind of the event.
        kind: String,
    },
}

/// First difference between two logs.
#[derive(Debug, PartialEq, Eq)]
pub struct Divergence {
    /// Position of the difference.
    pub recnum: u64,
    /// Expected record; `None` if the expected log ends here.
    pub expected: Option<Record>,
    /// Record that was found; `None` if the log ends here.
    pub found: Option<Record>,
}

impl std::fmt::Display for Divergence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        fn show(record: &Option<Record>) -> String {
            match record {
                Some(r) => format!("PCR {} {} {:?}", r.pcr, r.content.kind, r.content.data),
                None => "the end of the log".into(),
            }
        }
        write!(
            f,
            "event {} differs: expected {}, found {}",
            self.recnum,
            show(&self.expected),
            show(&self.found)
        )
    }
}

impl Record {
    /// Creates the record of an event.
    pub fn new(recnum: u64, event: &Event) -> Self {
        Self {
            recnum,
            pcr: event.pcr,
            digests: vec![TaggedDigest { hash_alg: "sha256".into(), digest: hex(&event.digest()) }],
            content_type: "basalt".into(),
            content: Content { kind: event.kind.clone(), data: event.data.clone() },
        }
    }

    /// Returns the event.
    pub fn event(&self) -> Event {
        Event::new(self.pcr, &self.content.kind, self.content.data.clone())
    }

    /// Serializes the record as one line with its newline.
    pub fn line(&self) -> String {
        // Serializing strings and numbers cannot fail.
        serde_json::to_string(self).map(|text| text + "\n").unwrap_or_default()
    }
}

/// Parses a log. `first` is the number that its first record must have.
///
/// # Errors
///
/// Returns [`LogError::NotARecord`] if a line is malformed, and [`LogError::Order`] if the records
/// are not numbered consecutively.
pub fn parse_log(text: &str, first: u64) -> Result<Vec<Record>, LogError> {
    let mut records = Vec::new();
    for (n, line) in text.lines().enumerate() {
        let record: Record = serde_json::from_str(line)
            .map_err(|e| LogError::NotARecord { line: n + 1, reason: e.to_string() })?;
        let expected = first + n as u64;
        if record.recnum != expected {
            return Err(LogError::Order {
                recnum: record.recnum,
                expected,
                kind: record.content.kind,
            });
        }
        records.push(record);
    }
    Ok(records)
}

/// Computes the PCR values after these records, starting from zero. The digests are recomputed from
/// the contents.
///
/// # Errors
///
/// Returns [`LogError::Format`] if a record has other digests than one SHA-256 digest or another
/// content type, and [`LogError::Digest`] if a digest does not match its content.
pub fn replay<'a>(
    records: impl IntoIterator<Item = &'a Record>,
) -> Result<BTreeMap<u32, Pcr>, LogError> {
    let mut pcrs: BTreeMap<u32, Pcr> = BTreeMap::new();
    for record in records {
        let kind = record.content.kind.clone();
        let [tagged] = record.digests.as_slice() else {
            return Err(LogError::Format { recnum: record.recnum, kind });
        };
        if tagged.hash_alg != "sha256" || record.content_type != "basalt" {
            return Err(LogError::Format { recnum: record.recnum, kind });
        }
        let digest = record.event().digest();
        if unhex(&tagged.digest).as_deref() != Some(&digest[..]) {
            return Err(LogError::Digest {
                recnum: record.recnum,
                kind,
                expected: hex(&digest),
                found: tagged.digest.clone(),
            });
        }
        pcrs.entry(record.pcr).or_default().extend(&digest);
    }
    Ok(pcrs)
}

/// Returns the first record in which `found` differs from `expected`, or `None` if the logs are
/// equal.
pub fn compare(expected: &[Record], found: &[Record]) -> Option<Divergence> {
    (0..expected.len().max(found.len())).find(|&n| expected.get(n) != found.get(n)).map(|n| {
        Divergence {
            recnum: n as u64,
            expected: expected.get(n).cloned(),
            found: found.get(n).cloned(),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Board, BootComponents, Measurements, boot_events};

    fn events() -> Vec<Event> {
        boot_events(&BootComponents {
            variant: "prod",
            machine: "virt",
            command_line: "console=ttyAMA0 \n",
            device_tree: [1; 32],
            boot_partition: [6; 32],
            node_settings: [9; 32],
            verity_root: "00ff",
            init: [2; 32],
            trustd: [3; 32],
            engine: [4; 32],
            configuration: [5; 32],
        })
    }

    fn text() -> String {
        events().iter().enumerate().map(|(n, e)| Record::new(n as u64, e).line()).collect()
    }

    #[test]
    fn the_log_replays_to_the_predicted_registers() {
        let records = parse_log(&text(), 0).unwrap();
        let predicted = Board::predict("virt", &events());
        let replayed = replay(&records).unwrap();
        assert_eq!(predicted.pcrs["14"], hex(&replayed[&14].0));
        assert_eq!(predicted.pcrs["15"], hex(&replayed[&15].0));
        assert_eq!(compare(&predicted.events, &records), None);
    }

    #[test]
    fn a_log_is_compared_with_the_closest_board() {
        let boards: Vec<Board> = [("a", 1u8), ("b", 2), ("c", 3)]
            .iter()
            .map(|(name, n)| Board {
                board: (*name).into(),
                ..Board::predict(name, &events()).with_device_tree(&[*n; 32])
            })
            .collect();
        let all = Measurements {
            machine: "m".into(),
            variant: "prod".into(),
            version: "0".into(),
            boards,
        };
        for board in &all.boards {
            assert_eq!(all.closest_board(&board.events).unwrap().board, board.board);
        }
        // If the device tree is of no board, all boards match equally and the first one is
        // returned.
        let other = all.boards[0].with_device_tree(&[9; 32]);
        let closest = all.closest_board(&other.events).unwrap();
        assert_eq!(
            (closest.board.as_str(), compare(&closest.events, &other.events).unwrap().recnum),
            ("a", 2)
        );
        // An altered later event does not change the closest board.
        let mut altered = all.boards[1].events.clone();
        altered[6].content.data.push('x');
        assert_eq!(all.closest_board(&altered).unwrap().board, "b");
    }

    #[test]
    fn alterations_of_any_record_are_detected() {
        let original = parse_log(&text(), 0).unwrap();
        for n in 0..original.len() {
            let mut kind = original.clone();
            kind[n].content.kind.push('x');
            assert!(
                matches!(replay(&kind), Err(LogError::Digest { recnum, .. }) if recnum == n as u64)
            );
            let mut data = original.clone();
            data[n].content.data.push('x');
            assert!(
                matches!(replay(&data), Err(LogError::Digest { recnum, .. }) if recnum == n as u64)
            );
            assert_eq!(compare(&original, &data).unwrap().recnum, n as u64);
            let mut shorter = original.clone();
            shorter.remove(n);
            assert!(compare(&original, &shorter).is_some());
            if n + 1 < original.len() {
                let lines: String = shorter.iter().map(Record::line).collect();
                assert!(matches!(parse_log(&lines, 0), Err(LogError::Order { .. })));
            }
        }
    }

    #[test]
    fn the_digest_of_an_event_has_the_specified_form() {
        // Computed with: printf 'basalt-event-v1\nvariant\nprod virt' | sha256sum
        let event = Event::new(14, "variant", "prod virt");
        assert_eq!(
            hex(&event.digest()),
            "db99bbb43d08409bd20b7ba564a38ffbac2aab92ba0eb38e92057e2eef64f1f9"
        );
    }

    #[test]
    fn malformed_lines_are_errors() {
        for junk in ["{}", "null", "{\"recnum\":0}", "\u{0}", "[]"] {
            assert!(matches!(parse_log(junk, 0), Err(LogError::NotARecord { line: 1, .. })));
        }
        let extra = text().replacen("{\"recnum\":0", "{\"x\":1,\"recnum\":0", 1);
        assert!(parse_log(&extra, 0).is_err());
    }
}
