//! The status page: one HTML document without scripts, which loads nothing.

use std::fmt::Write as _;

use api::owner::{
    EngineState, LedgerDecision, LedgerState, LogSummary, Module, ModuleStatus, Registers,
    SourceStatus, Status,
};

/// Content security policy: the page loads, runs and sends nothing. A header forbids frames,
/// because a policy in the document cannot (CSP Level 3, section 3.3).
pub(super) const CONTENT_POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'";

const STYLE: &str = "
:root{color-scheme:light dark;--line:#8884;--good:#18794e;--bad:#c62a2f;--wait:#946800}
@media(prefers-color-scheme:dark){:root{--good:#4cc38a;--bad:#ff6369;--wait:#f1a10d}}
body{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem;margin:0}h2{font-size:1.1rem;margin:2rem 0 .5rem}p{margin:.2rem 0}
table{border-collapse:collapse;width:100%}th,td{text-align:left;vertical-align:top;\
padding:.4rem .8rem .4rem 0;border-top:1px solid var(--line)}
th{font-weight:600;white-space:nowrap}code{font:.85em ui-monospace,monospace;overflow-wrap:anywhere}
.good{color:var(--good)}.bad{color:var(--bad)}.wait{color:var(--wait)}\
.small{font-size:.85em;opacity:.75}
";

/// Returns the page.
pub(super) fn render(status: &Status, modules: &[Module]) -> String {
    let mut page = Page::default();
    page.head(status);
    page.ledger(status);
    page.modules(modules);
    page.registers(&status.registers);
    page.push(format_args!(
        "<p class=\"small\">As of {} s since 1970-01-01 UTC. This page proves nothing; \
         <code>trustctl attest</code> does.</p>\n</body></html>\n",
        status.time
    ));
    page.0
}

/// HTML document that grows. Every method escapes the texts that it is given.
#[derive(Default)]
struct Page(String);

impl Page {
    fn push(&mut self, html: std::fmt::Arguments<'_>) {
        // Writing to a String does not fail.
        let _ = self.0.write_fmt(html);
    }

    fn head(&mut self, status: &Status) {
        let host = escape(&status.hostname);
        self.push(format_args!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
             <meta name=\"viewport\" content=\"width=device-width\">\
             <meta http-equiv=\"content-security-policy\" content=\"{CONTENT_POLICY}\">\
             <meta http-equiv=\"refresh\" content=\"10\"><title>{host} \u{2013} Basalt</title>\
             <style>{STYLE}</style></head><body>\n\
             <h1>{host}</h1><p>Basalt {} <span class=\"small\">({} for {})</span>, up for {}</p>\n",
            escape(&status.version),
            escape(&status.variant),
            escape(&status.machine),
            duration(status.uptime_s.unwrap_or_default() as u64),
        ));
        let (class, state) = match status.engine {
            EngineState::Available => ("good", "answers"),
            EngineState::Unavailable => ("bad", "does not answer"),
        };
        self.push(format_args!("<p>The engine <span class=\"{class}\">{state}</span>.</p>\n"));
    }

    /// Adds a table row. `value` is HTML.
    fn row(&mut self, name: &str, value: &str) {
        self.push(format_args!("<tr><th>{}</th><td>{value}</td></tr>\n", escape(name)));
    }

    fn ledger(&mut self, status: &Status) {
        self.push(format_args!("<h2>Ledger</h2>\n<table><tbody>\n"));
        match &status.ledger.log {
            LedgerState::Unusable { problem } => {
                self.row("State", &span("bad", &format!("cannot be used: {problem}")));
            }
            LedgerState::Usable(log) => {
                self.log(log, status.time);
                self.chain(log);
            }
        }
        let sources = status.ledger.sources.iter().map(|source| ("Source", source));
        let relays = status.ledger.relays.iter().map(|relay| ("Relay", relay));
        for (title, (address, SourceStatus { problem, .. })) in sources.chain(relays) {
            let state = match problem {
                Some(problem) => span("bad", problem),
                None => span("good", "works"),
            };
            self.row(title, &format!("<code>{}</code> {state}", escape(address)));
        }
        self.push(format_args!("</tbody></table>\n"));
    }

    fn log(&mut self, log: &LogSummary, now: u64) {
        self.row("Statements", &log.statements.to_string());
        self.row("Root", &format!("<code>{}</code>", escape(&log.root)));
        let count = log.approvers.len();
        self.row("Approvers", &format!("{} of {count} must approve", log.threshold));
        let (Some(witnessed), Some(max_age)) = (log.witnessed, log.max_age_s) else {
            self.row("Age", "no witnesses are required");
            return;
        };
        let age = now.saturating_sub(witnessed);
        let class = if age > max_age { "bad" } else { "good" };
        let seen = span(class, &format!("witnessed {} ago", duration(age)));
        self.row("Age", &format!("{seen}; fresh for {}", duration(max_age)));
    }

    fn chain(&mut self, log: &LogSummary) {
        let Some(chain) = &log.chain else { return };
        match (&chain.problem, &chain.head) {
            (Some(problem), _) => self.row("Chain", &span("bad", problem)),
            (None, Some(head)) => {
                let class = if head.age_s > chain.max_age_s { "bad" } else { "good" };
                let age = duration(head.age_s);
                let text = format!("block {} is finalized, {age} ago", head.block);
                self.row("Chain", &span(class, &text));
            }
            (None, None) => {}
        }
    }

    fn modules(&mut self, modules: &[Module]) {
        self.push(format_args!(
            "<h2>Modules</h2>\n<table><thead><tr><th>Module</th><th>State</th>\
             <th>Decision of the ledger</th><th>Image</th></tr></thead><tbody>\n"
        ));
        for module in modules {
            self.module(module);
        }
        if modules.is_empty() {
            self.push(format_args!("<tr><td colspan=\"4\">There are no modules.</td></tr>\n"));
        }
        self.push(format_args!("</tbody></table>\n"));
    }

    fn module(&mut self, module: &Module) {
        let class = match module.status {
            ModuleStatus::Running { .. } => "good",
            ModuleStatus::Denied { .. } | ModuleStatus::Failed { .. } => "bad",
            _ => "wait",
        };
        let decision = match &module.ledger {
            LedgerDecision::Allow { statement, .. } => {
                format!("{} by statement {statement}", span("good", "allowed"))
            }
            LedgerDecision::Deny { code, reason } => {
                format!("{} {}", span("bad", code.as_str()), escape(reason))
            }
        };
        let reason = module.status.reason().or(module.last_error.as_deref());
        let reason = reason.map(|reason| format!("<br>{}", span("small", reason)));
        self.push(format_args!(
            "<tr><th>{}</th><td>{}{}</td><td>{decision}</td><td><code>{}</code></td></tr>\n",
            escape(&module.name),
            span(class, module.status.state()),
            reason.unwrap_or_default(),
            escape(&module.digest),
        ));
    }

    fn registers(&mut self, registers: &Registers) {
        self.push(format_args!("<h2>Platform configuration registers</h2>\n<table><tbody>\n"));
        match registers {
            Registers::Values(values) => {
                for (number, value) in values {
                    let content = if number == "14" { "the boot" } else { "the modules" };
                    let (number, value) = (escape(number), escape(value));
                    self.push(format_args!(
                        "<tr><th>PCR {number}</th><td>{content}</td>\
                         <td><code>{value}</code></td></tr>\n"
                    ));
                }
            }
            Registers::Unavailable { problem } => {
                let problem = escape(problem);
                self.push(format_args!("<tr><td class=\"bad\">{problem}</td></tr>\n"));
            }
        }
        self.push(format_args!("</tbody></table>\n"));
    }
}

/// Returns a `span` element of a class with an escaped text.
fn span(class: &str, text: &str) -> String {
    format!("<span class=\"{class}\">{}</span>", escape(text))
}

/// Replaces the characters that have a meaning in HTML.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\'' => escaped += "&#39;",
            c => escaped.push(c),
        }
    }
    escaped
}

fn duration(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use api::owner::{ChainStatus, DenialCode, DesiredState, LedgerStatus, Memory};

    use super::*;

    #[test]
    fn no_text_of_a_third_party_is_markup() {
        let evil = "<script>alert(1)</script>\"'&";
        let text = || evil.to_owned();
        let source = SourceStatus { polled: 1, problem: Some(text()) };
        let chain = ChainStatus { head: None, max_age_s: 1, problem: Some(text()) };
        let log = LogSummary {
            statements: 1,
            root: text(),
            approvers: vec![text()],
            threshold: 1,
            witnessed: None,
            max_age_s: None,
            chain: Some(chain),
        };
        let mut status = Status {
            machine: text(),
            variant: text(),
            version: text(),
            hostname: text(),
            certificate: text(),
            time: 5,
            uptime_s: None,
            engine: EngineState::Available,
            ledger: LedgerStatus {
                log: LedgerState::Usable(log),
                sources: BTreeMap::from([(text(), source.clone())]),
                relays: BTreeMap::from([(text(), source)]),
            },
            memory: Memory::default(),
            processes: 1,
            registers: Registers::Unavailable { problem: text() },
        };
        let module = Module {
            name: text(),
            desired: DesiredState::Run,
            generation: 1,
            digest: text(),
            toml: text(),
            shipped: false,
            previous: None,
            status: ModuleStatus::Failed { reason: text() },
            reconciled: false,
            last_error: Some(text()),
            progress: None,
            restarts: 0,
            ledger: LedgerDecision::Deny { code: DenialCode::Other(text()), reason: text() },
        };
        let check = |status: &Status| {
            let page = render(status, std::slice::from_ref(&module));
            assert!(!page.contains("<script") && !page.contains("\"'&"), "{page}");
            assert!(page.contains("&lt;script&gt;"), "{page}");
        };
        check(&status);
        status.ledger.log = LedgerState::Unusable { problem: text() };
        status.registers = Registers::Values(BTreeMap::from([(text(), text())]));
        check(&status);
    }

    #[test]
    fn durations_have_one_unit() {
        assert_eq!([119, 121, 7300, 200_000].map(duration), ["119 s", "2 min", "2 h", "2 days"]);
    }
}
