//! What commands print.

/// One answer, for people or for programs.
pub(crate) fn said(as_json: bool, value: &serde_json::Value, text: impl FnOnce() -> String) {
    println!("{}", if as_json { value.to_string() } else { text() });
}
