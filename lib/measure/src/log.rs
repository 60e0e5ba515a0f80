//! The log: one JSON record a line, after the TCG Canonical Event Log Format (version 1.0, section
//! 5.2, JSON encoding), with a content type of our own.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Event, Pcr, hex, unhex};

#[derive(Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Record {
    pub recnum: u64,
    pub pcr: u32,
    pub digests: Vec<TaggedDigest>,
    pub content_type: String,
    pub content: Content,
}

#[derive(Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct TaggedDigest {
    #[serde(rename = "hashAlg")]
    pub hash_alg: String,
    pub digest: String,
}

#[derive(Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Content {
    #[serde(rename = "type")]
    pub kind: String,
    pub data: String,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum LogError {
    #[error("line {line} of the log is not a record: {reason}")]
    NotARecord { line: usize, reason: String },
    #[error(
        "record {recnum} ({kind}): its number should be {expected}; records are missing or in another order"
    )]
    Order { recnum: u64, expected: u64, kind: String },
    #[error(
        "record {recnum} ({kind}): the digest should be that of its content, {expected}; found {found}"
    )]
    Digest { recnum: u64, kind: String, expected: String, found: String },
    #[error(
        "record {recnum} ({kind}): expected exactly one SHA-256 digest and content type \"basalt\""
    )]
    Form { recnum: u64, kind: String },
}

/// Where two logs part.
#[derive(Debug, PartialEq, Eq)]
pub struct Divergence {
    pub recnum: u64,
    pub expected: Option<Record>,
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
    pub fn new(recnum: u64, event: &Event) -> Self {
        Self {
            recnum,
            pcr: event.pcr,
            digests: vec![TaggedDigest { hash_alg: "sha256".into(), digest: hex(&event.digest()) }],
            content_type: "basalt".into(),
            content: Content { kind: event.kind.clone(), data: event.data.clone() },
        }
    }

    pub fn event(&self) -> Event {
        Event::new(self.pcr, &self.content.kind, self.content.data.clone())
    }

    /// One line of the log, with its newline.
    pub fn line(&self) -> String {
        // A record is made of strings and numbers only, which always serialise.
        serde_json::to_string(self).map(|text| text + "\n").unwrap_or_default()
    }
}

/// Parses a whole log. `first` is the number that its first record must have.
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

/// The values that registers, all zero at first, have after these records. Every digest is
/// recomputed from its content.
pub fn replay<'a>(
    records: impl IntoIterator<Item = &'a Record>,
) -> Result<BTreeMap<u32, Pcr>, LogError> {
    let mut pcrs: BTreeMap<u32, Pcr> = BTreeMap::new();
    for record in records {
        let kind = record.content.kind.clone();
        let [tagged] = record.digests.as_slice() else {
            return Err(LogError::Form { recnum: record.recnum, kind });
        };
        if tagged.hash_alg != "sha256" || record.content_type != "basalt" {
            return Err(LogError::Form { recnum: record.recnum, kind });
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

/// The first record in which `found` differs from `expected`.
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
    use crate::{Board, BootFacts, Measurements, boot_events};

    fn events() -> Vec<Event> {
        boot_events(&BootFacts {
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
    fn a_log_is_compared_with_the_board_that_it_is_of() {
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
            assert_eq!(all.board_of(&board.events).unwrap().board, board.board);
        }
        // Of none of them: the first is as good as any, and the difference is the device tree.
        let other = all.boards[0].with_device_tree(&[9; 32]);
        let closest = all.board_of(&other.events).unwrap();
        assert_eq!(
            (closest.board.as_str(), compare(&closest.events, &other.events).unwrap().recnum),
            ("a", 2)
        );
        // Of one of them, with something else altered.
        let mut altered = all.boards[1].events.clone();
        altered[6].content.data.push('x');
        assert_eq!(all.board_of(&altered).unwrap().board, "b");
    }

    #[test]
    fn every_altered_field_is_seen() {
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
            let mut gone = original.clone();
            gone.remove(n);
            assert!(compare(&original, &gone).is_some());
            if n + 1 < original.len() {
                let lines: String = gone.iter().map(Record::line).collect();
                assert!(matches!(parse_log(&lines, 0), Err(LogError::Order { .. })));
            }
        }
    }

    #[test]
    fn the_digest_of_an_event_is_fixed() {
        // printf 'basalt-event-v1\nvariant\nprod virt' | sha256sum
        let event = Event::new(14, "variant", "prod virt");
        assert_eq!(
            hex(&event.digest()),
            "db99bbb43d08409bd20b7ba564a38ffbac2aab92ba0eb38e92057e2eef64f1f9"
        );
    }

    #[test]
    fn junk_is_an_error_not_a_panic() {
        for junk in ["{}", "null", "{\"recnum\":0}", "\u{0}", "[]"] {
            assert!(matches!(parse_log(junk, 0), Err(LogError::NotARecord { line: 1, .. })));
        }
        let extra = text().replacen("{\"recnum\":0", "{\"x\":1,\"recnum\":0", 1);
        assert!(parse_log(&extra, 0).is_err());
    }
}
