//! Event logs in the JSON form of the canonical event log, attested statements, and reference
//! measurements.
#![no_main]

use libfuzzer_sys::fuzz_target;
use measure::{AttestedStatement, Measurements, compare, parse_log, replay};

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(statement) = AttestedStatement::parse(text) {
        assert_eq!(statement.text(), text, "a statement has one accepted text");
    }
    if let Ok(measurements) = serde_json::from_str::<Measurements>(text) {
        let _ = measurements.closest_board(&[]);
    }
    let Ok(records) = parse_log(text, 0) else { return };
    assert_eq!(compare(&records, &records), None);
    let Ok(pcrs) = replay(&records) else { return };
    // A log that replays has the same records and replays to the same registers once written.
    let written: String = records.iter().map(measure::Record::line).collect();
    let parsed = parse_log(&written, 0);
    assert_eq!(parsed.as_ref(), Ok(&records));
    assert_eq!(replay(&records), Ok(pcrs));
});
