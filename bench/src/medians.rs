//! The medians in Criterion's files, and their ratios.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// Reads the medians of all benchmarks below a folder, in microseconds, by their names.
fn read_medians(dir: &Path, medians: &mut BTreeMap<String, f64>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.file_name().is_some_and(|name| name == "new") {
            let read_json = |file: &str| -> Value {
                serde_json::from_slice(&std::fs::read(path.join(file)).unwrap()).unwrap()
            };
            let name = read_json("benchmark.json")["full_id"].as_str().unwrap().to_owned();
            let nanoseconds = &read_json("estimates.json")["median"]["point_estimate"];
            medians.insert(name, nanoseconds.as_f64().unwrap() / 1000.0);
        } else if path.is_dir() {
            read_medians(&path, medians);
        }
    }
}

/// Prints all medians of this run and the ratios that docs/performance.md limits.
pub(crate) fn print() {
    let mut medians = BTreeMap::new();
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    read_medians(&target.join("criterion"), &mut medians);
    println!("\nMedians of this run in microseconds");
    for (name, median) in &medians {
        println!("FIGURE {name:60} {median:10.1}");
    }
    let print_ratio = |a: &str, b: &str, limit: &str| {
        if let (Some(ours), Some(other)) = (medians.get(a), medians.get(b)) {
            println!("RATIO {:.2} ({limit}): {a} / {b}", ours / other);
        }
    };
    for suite in vrf::Suite::ALL {
        for operation in ["prove", "verify"] {
            let name = |library: &str| format!("{}/{operation}/{library}", suite.name());
            print_ratio(&name("ours"), &name("vrf-rfc9381"), "at most 1.0");
            print_ratio(&name("ours"), &name("vrf"), "at most 1.0");
        }
    }
    print_ratio("batch of 1,024/verify/batch", "batch of 1,024/verify/single", "at most 0.6");
    print_ratio("batch of 1,024/socket/batch", "batch of 1,024/socket/single", "no limit");
    for name in ["socket", "socket on one processor"] {
        let median = |place: &str| medians.get(&format!("{name}/verify/{place}"));
        if let (Some(socket), Some(in_process)) = (median("socket"), median("in-process")) {
            let overhead = socket - in_process;
            println!("FIGURE overhead of the {name}: {overhead:.0} us (at most 100 us)");
        }
    }
}
