//! A log of events in the canonical event log's JSON, and statements.
#![no_main]

use libfuzzer_sys::fuzz_target;
use measure::{Measurements, AttestedStatement, compare, parse_log, replay};

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(statement) = AttestedStatement::read(text) {
        assert_eq!(statement.text(), text, "one text for one statement");
    }
    if let Ok(measurements) = serde_json::from_str::<Measurements>(text) {
        let _ = measurements.board_of(&[]);
    }
    let Ok(records) = parse_log(text, 0) else { return };
    assert_eq!(compare(&records, &records), None);
    let Ok(pcrs) = replay(&records) else { return };
    // What replays is written as it was read, and replays to the same.
    let written: String = records.iter().map(measure::Record::line).collect();
    let again = parse_log(&written, 0);
    assert_eq!(again.as_ref(), Ok(&records));
    assert_eq!(replay(&records), Ok(pcrs));
});
