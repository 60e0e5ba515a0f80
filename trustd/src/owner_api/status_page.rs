//! The status page: one HTML document without scripts that loads nothing, made of what the API
//! says.

use std::fmt::Write as _;

use serde_json::Value;

use super::snapshot::Snapshot;

/// Nothing is loaded, nothing runs, nothing is sent. Frames are refused by a header: a document
/// cannot say that of itself (CSP3, section 3.3).
pub(super) const POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'";

const STYLE: &str = "
:root{color-scheme:light dark;--line:#8884;--good:#18794e;--bad:#c62a2f;--wait:#946800}
@media(prefers-color-scheme:dark){:root{--good:#4cc38a;--bad:#ff6369;--wait:#f1a10d}}
body{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem;margin:0}h2{font-size:1.1rem;margin:2rem 0 .5rem}p{margin:.2rem 0}
table{border-collapse:collapse;width:100%}th,td{text-align:left;vertical-align:top;padding:.4rem .8rem .4rem 0;border-top:1px solid var(--line)}
th{font-weight:600;white-space:nowrap}code{font:.85em ui-monospace,monospace;overflow-wrap:anywhere}
.good{color:var(--good)}.bad{color:var(--bad)}.wait{color:var(--wait)}.small{font-size:.85em;opacity:.75}
";

pub(super) fn render(snapshot: &Snapshot) -> String {
    let Snapshot { status, modules, registers } = snapshot;
    let mut page = String::new();
    let host = text(&status["hostname"]);
    // Writing into a String does not fail.
    let _ = write!(
        page,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <meta http-equiv=\"content-security-policy\" content=\"{POLICY}\"><meta http-equiv=\"refresh\" content=\"10\"><title>{host} \u{2013} Basalt</title><style>{STYLE}</style></head><body>\n\
         <h1>{host}</h1><p>Basalt {} <span class=\"small\">({} for {})</span>, up for {}</p>\n",
        text(&status["version"]),
        text(&status["variant"]),
        text(&status["machine"]),
        duration(status["uptime_s"].as_f64().unwrap_or_default() as u64),
    );
    let engine = text(&status["engine"]);
    let _ = writeln!(
        page,
        "<p>The engine <span class=\"{}\">{engine}</span>.</p>",
        if engine == "answers" { "good" } else { "bad" }
    );
    ledger(&mut page, status);
    page += "<h2>Modules</h2>\n<table><thead><tr><th>Module</th><th>State</th><th>Verdict of the ledger</th><th>Image</th></tr></thead><tbody>\n";
    for module in modules {
        module_row(&mut page, module);
    }
    if modules.is_empty() {
        page += "<tr><td colspan=\"4\">There is none.</td></tr>\n";
    }
    page += "</tbody></table>\n<h2>Platform configuration registers</h2>\n<table><tbody>\n";
    match registers {
        Ok(registers) => {
            for (number, value) in registers {
                let what = if number == "14" { "the boot" } else { "the modules" };
                let _ = writeln!(
                    page,
                    "<tr><th>PCR {number}</th><td>{what}</td><td><code>{value}</code></td></tr>"
                );
            }
        }
        Err(problem) => {
            let _ = writeln!(page, "<tr><td class=\"bad\">{}</td></tr>", escape(problem));
        }
    }
    let _ = writeln!(
        page,
        "</tbody></table>\n<p class=\"small\">As of {} s since 1970. This page proves nothing: <code>trustctl quote</code> does.</p>\n</body></html>",
        status["time"]
    );
    page
}

fn ledger(page: &mut String, status: &Value) {
    let ledger = &status["ledger"];
    *page += "<h2>Ledger</h2>\n<table><tbody>\n";
    let mut row = |name: &str, value: &str| {
        let _ = writeln!(page, "<tr><th>{name}</th><td>{value}</td></tr>");
    };
    if let Some(problem) = ledger["problem"].as_str() {
        row("State", &format!("<span class=\"bad\">cannot be used: {}</span>", escape(problem)));
    } else {
        row("Statements", &text(&ledger["statements"]));
        row("Root", &format!("<code>{}</code>", text(&ledger["root"])));
        let approvers = ledger["approvers"].as_array().map_or(0, Vec::len);
        row("Approvers", &format!("{} of {approvers} approve", ledger["threshold"]));
        if let (Some(witnessed), Some(max_age)) =
            (ledger["witnessed"].as_u64(), ledger["max_age_s"].as_u64())
        {
            let age = status["time"].as_u64().unwrap_or_default().saturating_sub(witnessed);
            let class = if age > max_age { "bad" } else { "good" };
            row(
                "Age",
                &format!(
                    "<span class=\"{class}\">witnessed {} ago</span>; it counts for {}",
                    duration(age),
                    duration(max_age)
                ),
            );
        } else {
            row("Age", "no witness is asked for");
        }
    }
    let chain = &ledger["chain"];
    match (chain["problem"].as_str(), chain["block"].as_u64(), chain["age_s"].as_u64()) {
        (Some(problem), ..) => {
            row("Chain", &format!("<span class=\"bad\">{}</span>", escape(problem)))
        }
        (None, Some(block), Some(age)) => {
            let class = if chain["max_age_s"].as_u64().is_some_and(|most| age > most) {
                "bad"
            } else {
                "good"
            };
            row(
                "Chain",
                &format!(
                    "<span class=\"{class}\">block {block} is final, {} ago</span>",
                    duration(age)
                ),
            );
        }
        _ => {}
    }
    for (title, list) in [("Source", &ledger["sources"]), ("Relay", &ledger["relays"])] {
        for (source, heard) in list.as_object().into_iter().flatten() {
            let said = match heard["problem"].as_str() {
                Some(problem) => format!("<span class=\"bad\">{}</span>", escape(problem)),
                None => "<span class=\"good\">good</span>".into(),
            };
            row(title, &format!("<code>{}</code> {said}", escape(source)));
        }
    }
    *page += "</tbody></table>\n";
}

fn module_row(page: &mut String, module: &Value) {
    let state = text(&module["status"]["state"]);
    let class = match state.as_str() {
        "running" => "good",
        "refused" | "failed" => "bad",
        _ => "wait",
    };
    let verdict = match module["ledger"]["allowed"].as_bool() {
        Some(true) => format!(
            "<span class=\"good\">allowed</span> by statement {}",
            module["ledger"]["statement"]
        ),
        _ => format!(
            "<span class=\"bad\">{}</span> {}",
            text(&module["ledger"]["code"]),
            text(&module["ledger"]["reason"])
        ),
    };
    let reasons = [&module["status"]["reason"], &module["trouble"]];
    let reason = reasons
        .into_iter()
        .find_map(Value::as_str)
        .map(|r| format!("<br><span class=\"small\">{}</span>", escape(r)));
    let _ = writeln!(
        page,
        "<tr><th>{}</th><td><span class=\"{class}\">{state}</span>{}</td><td>{verdict}</td><td><code>{}</code></td></tr>",
        text(&module["name"]),
        reason.unwrap_or_default(),
        text(&module["digest"]),
    );
}

/// A value as text that HTML takes for nothing else.
fn text(value: &Value) -> String {
    escape(&value.as_str().map_or_else(|| value.to_string(), str::to_owned))
}

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
    use serde_json::json;

    use super::*;

    #[test]
    fn nothing_that_somebody_else_wrote_is_markup() {
        let evil = "<script>alert(1)</script>\"'&";
        let snapshot = Snapshot {
            status: json!({ "hostname": evil, "version": evil, "variant": evil, "machine": evil, "engine": evil, "time": 5,
                "ledger": { "statements": 1, "root": evil, "approvers": [], "threshold": 1, "sources": { evil: { "problem": evil } },
                "relays": { evil: { "problem": evil } }, "chain": { "problem": evil } } }),
            modules: vec![
                json!({ "name": evil, "digest": evil, "status": { "state": evil, "reason": evil }, "ledger": { "code": evil, "reason": evil } }),
            ],
            registers: Err(evil.into()),
        };
        let page = render(&snapshot);
        assert!(
            !page.contains("<script") && !page.contains("\"'&") && page.contains("&lt;script&gt;"),
            "{page}"
        );
        assert_eq!([119, 121, 7300, 200_000].map(duration), ["119 s", "2 min", "2 h", "2 days"]);
    }
}
