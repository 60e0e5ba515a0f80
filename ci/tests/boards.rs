//! Images for Raspberry Pi boards on the boards that QEMU emulates. docs/hardware.md lists the
//! hardware that QEMU lacks.
// Test helpers may unwrap, like tests.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use api::owner::ModuleStatus;
use basalt_ci::Card;

/// Timeout for a boot. The emulated card reads about 2 MB/s, and the engine has 130 MB.
const BOARD_BOOT_TIMEOUT: Duration = Duration::from_secs(900);

/// Boots with an emulated USB network card and requires that all services run, that the demo module
/// runs, and that the quote matches the prediction.
fn assert_boots_and_runs_the_module(machine: &str) {
    let card = Card::flash_for(machine, machine).unwrap();
    let mut console = card.boot().unwrap();
    let line = console
        .wait_for_any(&["ready: all services run", "STOPPED", "Kernel panic"], BOARD_BOOT_TIMEOUT)
        .unwrap();
    assert!(line.contains("ready"), "{}", console.text);
    card.wait_for_module("demo", BOARD_BOOT_TIMEOUT, |m| {
        matches!(m.status, ModuleStatus::Running { .. })
    })
    .unwrap();
    let evidence = card.attest().unwrap();
    let kinds: Vec<&str> = evidence.modules.iter().map(|r| r.content.kind.as_str()).collect();
    assert_eq!(kinds, ["tpm-clock", "module-approved", "module-started"]);
}

/// Flips a bit in the root's first block, which the kernel reads to mount it, and requires that the
/// boot stops.
fn assert_flipped_bit_stops_the_boot(machine: &str) {
    let card = Card::flash_for(machine, &format!("{machine}-flipped")).unwrap();
    card.flip_bit_at(card.partition(2).unwrap() + 1024).unwrap();
    let mut console = card.boot().unwrap();
    let line =
        console.wait_for_any(&["Kernel panic", "STOPPED", "handover"], BOARD_BOOT_TIMEOUT).unwrap();
    assert!(line.contains("dm-verity device corrupted"), "{}", console.text);
}

#[test]
fn rpi3_boots_measured_and_runs_the_module() {
    assert_boots_and_runs_the_module("rpi3");
}

#[test]
fn rpi3_stops_at_a_flipped_bit() {
    assert_flipped_bit_stops_the_boot("rpi3");
}

#[test]
fn rpi4_boots_measured_and_runs_the_module() {
    assert_boots_and_runs_the_module("rpi4");
}

#[test]
fn rpi4_stops_at_a_flipped_bit() {
    assert_flipped_bit_stops_the_boot("rpi4");
}
