//! Criterion's own files, side by side.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// The median of each, in microseconds, by its name.
fn read(dir: &Path, found: &mut BTreeMap<String, f64>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.file_name().is_some_and(|name| name == "new") {
            let value = |file: &str| -> Value {
                serde_json::from_slice(&std::fs::read(path.join(file)).unwrap()).unwrap()
            };
            let name = value("benchmark.json")["full_id"].as_str().unwrap().to_owned();
            found.insert(
                name,
                value("estimates.json")["median"]["point_estimate"].as_f64().unwrap() / 1000.0,
            );
        } else if path.is_dir() {
            read(&path, found);
        }
    }
}

pub(crate) fn print() {
    let mut found = BTreeMap::new();
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    read(&target.join("criterion"), &mut found);
    println!("\nMedians of this run in microseconds");
    for (name, median) in &found {
        println!("FIGURE {name:60} {median:10.1}");
    }
    let ratio = |a: &str, b: &str, most: &str| {
        if let (Some(ours), Some(other)) = (found.get(a), found.get(b)) {
            println!("RATIO {:.2} ({most}): {a} / {b}", ours / other);
        }
    };
    for suite in vrf::Suite::ALL {
        for what in ["prove", "verify"] {
            let name = |who: &str| format!("{}/{what}/{who}", suite.name());
            ratio(&name("ours"), &name("vrf-rfc9381"), "at most 1.0");
            ratio(&name("ours"), &name("vrf"), "at most 1.0");
        }
    }
    ratio("batch of 1,024/verify/batch", "batch of 1,024/verify/single", "at most 0.6");
    ratio("batch of 1,024/socket/batch", "batch of 1,024/socket/single", "not asked for");
    for name in ["socket", "socket on one processor"] {
        let median = |what: &str| found.get(&format!("{name}/verify/{what}"));
        if let (Some(socket), Some(inside)) = (median("socket"), median("in-process")) {
            println!("FIGURE overhead of the {name}: {:.0} us (at most 100 us)", socket - inside);
        }
    }
}
