//! What Prometheus asks for: the text exposition format, version 0.0.4.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::Value;

use super::snapshot::Snapshot;

pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4";
const STATES: [&str; 7] =
    ["waiting", "fetching", "starting", "running", "stopped", "refused", "failed"];

/// What else is counted.
pub(super) struct Counts {
    /// Events of the audit log since the boot, by kind.
    pub(super) events: BTreeMap<String, u64>,
    /// Requests that the second lock refused.
    pub(super) refused: u64,
    /// Memory of this process, in bytes.
    pub(super) resident: Option<u64>,
}

pub(super) fn render(snapshot: &Snapshot, counts: &Counts) -> String {
    let Snapshot { status, modules, registers } = snapshot;
    let mut out = Text::default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let info = ["version", "variant", "machine"].map(|key| (key, text(&status[key])));
    out.family("basalt_info", "gauge", "The image that runs", &[(info, 1.0)]);
    out.single("basalt_uptime_seconds", "gauge", "Since the boot", status["uptime_s"].as_f64());
    out.single(
        "basalt_engine_up",
        "gauge",
        "Whether the engine answers",
        Some(one_if(status["engine"] == "answers")),
    );
    out.single(
        "basalt_tpm_up",
        "gauge",
        "Whether the TPM answers",
        Some(one_if(registers.is_ok())),
    );
    let kib = |key: &str| status["memory"][key].as_f64().map(|k| k * 1024.0);
    out.single("basalt_memory_bytes", "gauge", "Memory of the node", kib("total_kb"));
    out.single(
        "basalt_memory_available_bytes",
        "gauge",
        "Memory that is free to use",
        kib("available_kb"),
    );
    let ledger = &status["ledger"];
    out.single(
        "basalt_ledger_usable",
        "gauge",
        "Whether the ledger can be used",
        Some(one_if(ledger["problem"].is_null())),
    );
    out.single(
        "basalt_ledger_statements",
        "gauge",
        "Statements in the ledger",
        ledger["statements"].as_f64(),
    );
    out.single(
        "basalt_ledger_witnessed_timestamp_seconds",
        "gauge",
        "The time that enough witnesses vouch for",
        ledger["witnessed"].as_f64(),
    );
    out.single(
        "basalt_ledger_max_age_seconds",
        "gauge",
        "For how long after that the ledger counts",
        ledger["max_age_s"].as_f64(),
    );
    let up = |label: &'static str, list: &Value| -> Vec<_> {
        let list = list.as_object().into_iter().flatten();
        list.map(|(name, heard)| ([(label, name.clone())], one_if(heard["problem"].is_null())))
            .collect()
    };
    let title = "Whether a source of the ledger gave one that holds";
    out.family("basalt_ledger_source_up", "gauge", title, &up("source", &ledger["sources"]));
    let chain = &ledger["chain"];
    out.single(
        "basalt_chain_final_block",
        "gauge",
        "Number of the final block that decides",
        chain["block"].as_f64(),
    );
    out.single(
        "basalt_chain_final_timestamp_seconds",
        "gauge",
        "When that block's slot was",
        chain["time"].as_f64(),
    );
    out.single(
        "basalt_chain_max_age_seconds",
        "gauge",
        "How old that block may be",
        chain["max_age_s"].as_f64(),
    );
    let title = "Whether a relay of the chain gave a bundle that holds";
    out.family("basalt_chain_relay_up", "gauge", title, &up("relay", &ledger["relays"]));
    let states: Vec<_> = modules
        .iter()
        .flat_map(|m| {
            let (name, state) = (text(&m["name"]), text(&m["status"]["state"]));
            STATES
                .map(|s| ([("module", name.clone()), ("state", s.to_owned())], one_if(s == state)))
        })
        .collect();
    out.family("basalt_module_state", "gauge", "1 for the state that a module is in", &states);
    let each = |value: &dyn Fn(&Value) -> f64| -> Vec<_> {
        modules.iter().map(|m| ([("module", text(&m["name"]))], value(m))).collect()
    };
    let allowed = each(&|m| one_if(m["ledger"]["allowed"] == true));
    out.family("basalt_module_allowed", "gauge", "Whether the ledger allows a module", &allowed);
    let restarts = each(&|m| m["restarts"].as_f64().unwrap_or_default());
    out.family(
        "basalt_module_restarts_total",
        "counter",
        "How often a module ended by itself",
        &restarts,
    );
    let events: Vec<_> =
        counts.events.iter().map(|(kind, n)| ([("type", kind.clone())], *n as f64)).collect();
    out.single(
        "process_resident_memory_bytes",
        "gauge",
        "Of trustd",
        counts.resident.map(|bytes| bytes as f64),
    );
    out.family("basalt_audit_events_total", "counter", "Events in PCR 15 since the boot", &events);
    out.single(
        "basalt_engine_requests_denied_total",
        "counter",
        "Requests that the second lock refused",
        Some(counts.refused as f64),
    );
    out.0
}

fn one_if(condition: bool) -> f64 {
    if condition { 1.0 } else { 0.0 }
}

#[derive(Default)]
struct Text(String);

impl Text {
    fn single(&mut self, name: &str, kind: &str, help: &str, value: Option<f64>) {
        self.family(name, kind, help, value.map(|value| ([], value)).as_slice());
    }

    /// One metric with all its samples; left out where there is none.
    fn family<'a, L: AsRef<[(&'a str, String)]>>(
        &mut self,
        name: &str,
        kind: &str,
        help: &str,
        samples: &[(L, f64)],
    ) {
        if samples.is_empty() {
            return;
        }
        // Writing into a String does not fail.
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        for (labels, value) in samples {
            let labels: Vec<String> = labels
                .as_ref()
                .iter()
                .map(|(key, value)| format!("{key}=\"{}\"", escape(value)))
                .collect();
            let labels =
                if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
            let _ = writeln!(self.0, "{name}{labels} {value}");
        }
    }
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn samples_have_their_type_and_labels_cannot_break_out() {
        let snapshot = Snapshot {
            status: json!({ "version": "1\"}\n2\\", "variant": "prod", "machine": "virt", "engine": "answers", "uptime_s": 7.5,
                "ledger": { "statements": 3, "sources": { "https://x/l": {}, "file:/y": { "problem": "gone" } } } }),
            modules: vec![
                json!({ "name": "app", "status": { "state": "running" }, "ledger": { "allowed": true }, "restarts": 2 }),
            ],
            registers: Ok(Default::default()),
        };
        let counts = Counts {
            events: [("module-started".to_owned(), 4)].into(),
            refused: 1,
            resident: Some(7_000_000),
        };
        let text = render(&snapshot, &counts);
        for line in [
            "basalt_info{version=\"1\\\"}\\n2\\\\\",variant=\"prod\",machine=\"virt\"} 1",
            "basalt_uptime_seconds 7.5",
            "basalt_ledger_source_up{source=\"file:/y\"} 0",
            "basalt_module_state{module=\"app\",state=\"running\"} 1",
            "basalt_module_state{module=\"app\",state=\"failed\"} 0",
            "basalt_module_restarts_total{module=\"app\"} 2",
            "basalt_audit_events_total{type=\"module-started\"} 4",
            "process_resident_memory_bytes 7000000",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("witnessed"), "what is not known is left out");
        for line in text.lines().filter(|l| !l.starts_with('#')) {
            let name = line.split(['{', ' ']).next().unwrap();
            assert_eq!(text.matches(&format!("# TYPE {name} ")).count(), 1, "{line}");
        }
    }
}
