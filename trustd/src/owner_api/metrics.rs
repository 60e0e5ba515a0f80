//! Metrics for Prometheus: the text exposition format, version 0.0.4.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use api::owner::{EngineState, LogSummary, Module, ModuleStatus, Registers, SourceStatus, Status};

pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4";

/// Values that are not part of the node's status.
pub(super) struct Counters {
    /// Events in the audit log since the boot, by kind.
    pub(super) events: BTreeMap<String, u64>,
    /// Requests to the engine that the authorization plugin denied.
    pub(super) denied_engine_requests: u64,
    /// Resident memory of this process in bytes.
    pub(super) resident_bytes: Option<u64>,
}

/// Returns the metrics as text.
pub(super) fn render(status: &Status, modules: &[Module], counters: &Counters) -> String {
    let mut metrics = Metrics::default();
    metrics.node(status);
    metrics.ledger(status);
    metrics.modules(modules);
    metrics.counters(counters);
    metrics.0
}

/// Text in the exposition format that grows.
#[derive(Default)]
struct Metrics(String);

impl Metrics {
    fn node(&mut self, status: &Status) {
        let labels = [
            ("version", status.version.clone()),
            ("variant", status.variant.clone()),
            ("machine", status.machine.clone()),
        ];
        self.family("basalt_info", "gauge", "Version of the image", &[(labels, 1.0)]);
        self.gauge("basalt_uptime_seconds", "Time since the boot", status.uptime_s);
        let engine = flag(status.engine == EngineState::Available);
        self.gauge("basalt_engine_up", "Whether the engine answers", Some(engine));
        let tpm = flag(matches!(status.registers, Registers::Values(_)));
        self.gauge("basalt_tpm_up", "Whether the TPM answers", Some(tpm));
        let bytes = |kib: Option<u64>| kib.map(|kib| kib as f64 * 1024.0);
        let (total, available) = (status.memory.total_kib, status.memory.available_kib);
        self.gauge("basalt_memory_bytes", "Memory of the node", bytes(total));
        self.gauge(
            "basalt_memory_available_bytes",
            "Memory that programs can use without swapping",
            bytes(available),
        );
    }

    fn ledger(&mut self, status: &Status) {
        let log = status.ledger.log.usable();
        let number = |value: &dyn Fn(&LogSummary) -> Option<u64>| {
            log.and_then(value).map(|number| number as f64)
        };
        self.gauge("basalt_ledger_usable", "Whether the log is usable", Some(flag(log.is_some())));
        self.gauge(
            "basalt_ledger_statements",
            "Statements in the log",
            number(&|log| Some(log.statements)),
        );
        self.gauge(
            "basalt_ledger_witnessed_timestamp_seconds",
            "Time at which enough witnesses had seen the log",
            number(&|log| log.witnessed),
        );
        self.gauge(
            "basalt_ledger_max_age_seconds",
            "Time for which a witnessed log is fresh",
            number(&|log| log.max_age_s),
        );
        let help = "Whether the last poll of a log source succeeded";
        self.sources("basalt_ledger_source_up", help, "source", &status.ledger.sources);
        self.gauge(
            "basalt_chain_final_block",
            "Number of the finalized block that decides",
            number(&|log| Some(log.chain.as_ref()?.head.as_ref()?.block)),
        );
        self.gauge(
            "basalt_chain_final_timestamp_seconds",
            "Time of that block's slot",
            number(&|log| Some(log.chain.as_ref()?.head.as_ref()?.time)),
        );
        self.gauge(
            "basalt_chain_max_age_seconds",
            "Time for which a finalized block is fresh",
            number(&|log| Some(log.chain.as_ref()?.max_age_s)),
        );
        let help = "Whether the last poll of a relay succeeded";
        self.sources("basalt_chain_relay_up", help, "relay", &status.ledger.relays);
    }

    fn sources(
        &mut self,
        name: &str,
        help: &str,
        label: &'static str,
        sources: &BTreeMap<String, SourceStatus>,
    ) {
        let samples: Vec<_> = sources
            .iter()
            .map(|(address, status)| ([(label, address.clone())], flag(status.problem.is_none())))
            .collect();
        self.family(name, "gauge", help, &samples);
    }

    fn modules(&mut self, modules: &[Module]) {
        let states: Vec<_> = modules
            .iter()
            .flat_map(|module| {
                ModuleStatus::STATES.map(|state| {
                    let labels = [("module", module.name.clone()), ("state", state.to_owned())];
                    (labels, flag(module.status.state() == state))
                })
            })
            .collect();
        let help = "1 for the state of the module, 0 for the others";
        self.family("basalt_module_state", "gauge", help, &states);
        let each = |value: &dyn Fn(&Module) -> f64| -> Vec<_> {
            modules.iter().map(|m| ([("module", m.name.clone())], value(m))).collect()
        };
        let allowed = each(&|module| flag(module.ledger.is_allowed()));
        let help = "Whether the ledger allows the module";
        self.family("basalt_module_allowed", "gauge", help, &allowed);
        let restarts = each(&|module| module.restarts as f64);
        let help = "How often the module exited by itself";
        self.family("basalt_module_restarts_total", "counter", help, &restarts);
    }

    fn counters(&mut self, counters: &Counters) {
        let resident = counters.resident_bytes.map(|bytes| bytes as f64);
        self.gauge("process_resident_memory_bytes", "Memory of trustd", resident);
        let events: Vec<_> = counters
            .events
            .iter()
            .map(|(kind, count)| ([("type", kind.clone())], *count as f64))
            .collect();
        let help = "Events in PCR 15 since the boot";
        self.family("basalt_audit_events_total", "counter", help, &events);
        let denied = counters.denied_engine_requests as f64;
        let help = "Requests that the authorization plugin denied";
        self.single("basalt_engine_requests_denied_total", "counter", help, Some(denied));
    }

    fn gauge(&mut self, name: &str, help: &str, value: Option<f64>) {
        self.single(name, "gauge", help, value);
    }

    /// Adds a metric without labels. It is left out if there is no value.
    fn single(&mut self, name: &str, kind: &str, help: &str, value: Option<f64>) {
        self.family(name, kind, help, value.map(|value| ([], value)).as_slice());
    }

    /// Adds a metric with all its samples. It is left out if there are none.
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
        // Writing to a String does not fail.
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

fn flag(condition: bool) -> f64 {
    if condition { 1.0 } else { 0.0 }
}

/// Escapes the value of a label.
fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use api::owner::{DesiredState, LedgerDecision, LedgerState, LedgerStatus, Memory};

    use super::*;

    fn status() -> Status {
        let source =
            |problem: Option<&str>| SourceStatus { polled: 1, problem: problem.map(str::to_owned) };
        let log = LogSummary {
            statements: 3,
            root: "00".into(),
            approvers: Vec::new(),
            threshold: 1,
            witnessed: None,
            max_age_s: None,
            chain: None,
        };
        Status {
            machine: "virt".into(),
            variant: "prod".into(),
            version: "1\"}\n2\\".into(),
            hostname: "n".into(),
            certificate: "00".into(),
            time: 5,
            uptime_s: Some(7.5),
            engine: EngineState::Available,
            ledger: LedgerStatus {
                log: LedgerState::Usable(log),
                sources: BTreeMap::from([
                    ("https://x/l".to_owned(), source(None)),
                    ("file:/y".to_owned(), source(Some("gone"))),
                ]),
                relays: BTreeMap::new(),
            },
            memory: Memory::default(),
            processes: 1,
            registers: Registers::Values(BTreeMap::new()),
        }
    }

    fn module() -> Module {
        Module {
            name: "app".into(),
            desired: DesiredState::Run,
            generation: 1,
            digest: "sha256:00".into(),
            toml: String::new(),
            shipped: false,
            previous: None,
            status: ModuleStatus::Running { container: "c".into() },
            reconciled: true,
            last_error: None,
            progress: None,
            restarts: 2,
            ledger: LedgerDecision::Allow { statement: 1, until: 2, signers: 1 },
        }
    }

    #[test]
    fn samples_have_a_type_and_label_values_are_escaped() {
        let counters = Counters {
            events: [("module-started".to_owned(), 4)].into(),
            denied_engine_requests: 1,
            resident_bytes: Some(7_000_000),
        };
        let text = render(&status(), &[module()], &counters);
        for line in [
            "basalt_info{version=\"1\\\"}\\n2\\\\\",variant=\"prod\",machine=\"virt\"} 1",
            "basalt_uptime_seconds 7.5",
            "basalt_engine_up 1",
            "basalt_ledger_statements 3",
            "basalt_ledger_source_up{source=\"file:/y\"} 0",
            "basalt_module_state{module=\"app\",state=\"running\"} 1",
            "basalt_module_state{module=\"app\",state=\"failed\"} 0",
            "basalt_module_allowed{module=\"app\"} 1",
            "basalt_module_restarts_total{module=\"app\"} 2",
            "basalt_audit_events_total{type=\"module-started\"} 4",
            "process_resident_memory_bytes 7000000",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("witnessed"), "unknown values are left out");
        for line in text.lines().filter(|l| !l.starts_with('#')) {
            let name = line.split(['{', ' ']).next().unwrap();
            assert_eq!(text.matches(&format!("# TYPE {name} ")).count(), 1, "{line}");
        }
    }
}
