//! The very images for Raspberry Pi boards, on the boards that QEMU emulates; what it lacks of them
//! stands in docs/hardware.md.
// Helpers of tests may unwrap as tests may.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use basalt_ci::Card;

/// The emulated card gives some 2 MB a second, and the engine has 130.
const BOARD_BOOTS_WITHIN: Duration = Duration::from_secs(900);

/// Boots to ready over an emulated USB network card, quotes what was predicted, and runs the demo
/// module.
fn boots_measured_and_runs_the_module(machine: &str) {
    let card = Card::flash_for(machine, machine).unwrap();
    let mut console = card.boot().unwrap();
    let line = console
        .wait_for_any(&["ready: all services run", "STOPPED", "Kernel panic"], BOARD_BOOTS_WITHIN)
        .unwrap();
    assert!(line.contains("ready"), "{}", console.text);
    card.wait_for_module("demo", BOARD_BOOTS_WITHIN, |m| m["status"]["state"] == "running")
        .unwrap();
    let checked = card.attest().unwrap();
    let kinds: Vec<&str> = checked.modules.iter().map(|r| r.content.kind.as_str()).collect();
    assert_eq!(kinds, ["tpm-clock", "module-approved", "module-started"]);
}

/// In the root's first block, which the kernel reads to mount it.
fn refuses_a_flipped_byte(machine: &str) {
    let card = Card::flash_for(machine, &format!("{machine}-flipped")).unwrap();
    card.flip_at(card.partition(2).unwrap() + 1024).unwrap();
    let mut console = card.boot().unwrap();
    let line =
        console.wait_for_any(&["Kernel panic", "STOPPED", "handover"], BOARD_BOOTS_WITHIN).unwrap();
    assert!(line.contains("dm-verity device corrupted"), "{}", console.text);
}

#[test]
fn rpi3_boots_measured_and_runs_the_module() {
    boots_measured_and_runs_the_module("rpi3");
}

#[test]
fn rpi3_refuses_a_flipped_byte() {
    refuses_a_flipped_byte("rpi3");
}

#[test]
fn rpi4_boots_measured_and_runs_the_module() {
    boots_measured_and_runs_the_module("rpi4");
}

#[test]
fn rpi4_refuses_a_flipped_byte() {
    refuses_a_flipped_byte("rpi4");
}
