//! Builds of the example layer, which adds a board and a module, and of a layer that overrides a
//! file.
// Test helpers may unwrap, like tests.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::{Path, PathBuf};
use std::process::Command;

/// Runs xtask. Returns whether it succeeded, and its standard output and error.
fn xtask(args: &[&str]) -> (bool, String) {
    let repo = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let output = Command::new(std::env::var_os("BASALT_XTASK").unwrap())
        .args(args)
        .current_dir(repo)
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr]
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .concat();
    (output.status.success(), text)
}

/// Builds a step. Returns the folder of its result, and the output.
fn build(args: &[&str]) -> (PathBuf, String) {
    let (success, output) = xtask(&[&["build"], args].concat());
    assert!(success, "{output}");
    let (_, dir) = output.trim_end().rsplit_once(" is in ").unwrap();
    (PathBuf::from(dir), output)
}

#[test]
fn the_example_layer_adds_a_board_and_a_module() {
    let layer = ["--machine", "rpi3a", "--layer", "examples/layer"];
    let (disk, output) = build(&[&["disk-rpi3a"], &layer[..]].concat());
    for added in [
        "configs/machines/rpi3a.toml",
        "configs/modules/hello.toml",
        "image/device-tree/rpi3a-led.dtso",
    ] {
        assert!(output.contains(&format!("adds {added}")), "{output}");
    }
    assert!(!output.contains("OVERRIDES"), "{output}");
    assert!(disk.join("basalt-rpi3a.img").is_file());
    let text = std::fs::read_to_string(disk.join("measurements.json")).unwrap();
    let measurements: measure::Measurements = serde_json::from_str(&text).unwrap();
    assert_eq!(measurements.boards[0].board, "Raspberry Pi 3 Model A+");

    let (root, _) = build(&[&["root"], &layer[..]].concat());
    let inside = root.join("root");
    let module = std::fs::read_to_string(inside.join("etc/basalt/modules/hello.toml")).unwrap();
    let archive_bytes = std::fs::read(inside.join("usr/share/basalt/modules/hello.tar"))
        .map(|tar| tar.len())
        .unwrap();
    assert!(
        module.contains("/usr/share/basalt/modules/hello.tar") && archive_bytes > 1000,
        "{module}"
    );
    assert!(
        inside.join("usr/share/basalt/modules/demo.tar").is_file(),
        "the module of the checkout is missing"
    );
    // The layer's module is approved like the checkout's own.
    let log = std::fs::read_to_string(inside.join("etc/basalt/ledger.jsonl")).unwrap();
    assert_eq!(log.lines().count(), 2, "{log}");
}

#[test]
fn a_layer_reports_its_overrides_and_a_stray_file_is_rejected() {
    let layer = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = layer.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    let node =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/node.toml"))
            .unwrap();
    write("configs/node.toml", &node.replace("hostname = \"basalt\"", "hostname = \"layered\""));
    let args = ["build", "root", "--machine", "virt", "--layer", layer.path().to_str().unwrap()];
    let (success, output) = xtask(&args);
    assert!(success && output.contains("OVERRIDES configs/node.toml"), "{output}");
    let (_, dir) = output.trim_end().rsplit_once(" is in ").unwrap();
    assert!(
        std::fs::read_to_string(Path::new(dir).join("root/etc/basalt/node.toml"))
            .unwrap()
            .contains("layered")
    );

    write("configs/nodes.toml", "");
    let (success, output) = xtask(&args);
    assert!(
        !success && output.contains("configs/nodes.toml, which the build does not read"),
        "{output}"
    );
}
