//! What a page or a scraper is shown.

use std::collections::BTreeMap;

use serde_json::Value;

pub(super) struct Snapshot {
    pub(super) status: Value,
    pub(super) modules: Vec<Value>,
    /// PCR number and value; or why the TPM does not say.
    pub(super) registers: Result<BTreeMap<String, String>, String>,
}
