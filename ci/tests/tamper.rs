//! Attacks with a card reader: every alteration of the card stops the boot or appears in the quote.
// Test helpers may unwrap, like tests.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use basalt_ci::{BOOT_TIMEOUT, Card, EVENT_TIMEOUT};

/// Alters the boot partition, boots, and requires that the quote differs in this event.
fn assert_in_quote(test: &str, script: &str, event: &str) {
    let card = Card::flash(test).unwrap();
    card.edit_boot_partition(script).unwrap();
    let mut console = card.boot_to_ready().unwrap();
    // No policy authorises this boot. The TPM does not unseal the root key, and no module runs.
    assert!(console.text.contains("LOCKED: no module runs"), "{}", console.text);
    let error =
        card.attest_with(&card.measurements().unwrap()).map(|_| ()).unwrap_err().to_string();
    assert!(
        error.contains("is not the expected image")
            && error.contains(&format!("({event}): expected")),
        "{error}"
    );
    assert!(card.client().modules().unwrap_err().to_string().contains("locked"));
    card.client().control_node("poweroff").unwrap();
    console.wait_for("down", EVENT_TIMEOUT).unwrap();
    assert!(!console.text.contains("module-started"), "{}", console.text);
}

/// Message of the kernel about a block that does not match the hash tree.
const CORRUPTED: &str = "dm-verity device corrupted";

/// Tampers with the card and requires that the boot stops for this reason before all services run.
fn assert_boot_stops(test: &str, reason: &str, tamper: impl Fn(&Card)) {
    let card = Card::flash(test).unwrap();
    tamper(&card);
    let mut console = card.boot().unwrap();
    let line = console
        .wait_for_any(&["Kernel panic", "STOPPED", "ready: all services run"], BOOT_TIMEOUT)
        .unwrap();
    assert!(line.contains(reason), "{}", console.text);
}

#[test]
fn another_kernel_appears_in_the_quote() {
    // The same kernel in another gzip file would boot without a visible difference.
    let script = "mcopy -n -i $BOOT ::Image.gz kernel && gzip -dc kernel | gzip -1n > other && \
        ! cmp -s kernel other && mcopy -o -i $BOOT other ::Image.gz";
    assert_in_quote("tamper-kernel", script, "boot-partition");
}

#[test]
fn another_command_line_appears_in_the_quote() {
    let script = "mcopy -n -i $BOOT ::cmdline.txt line && \
        sed -i 's/panic=5/panic=6/' line && mcopy -o -i $BOOT line ::cmdline.txt";
    assert_in_quote("tamper-cmdline", script, "kernel-command-line");
}

#[test]
fn another_device_tree_appears_in_the_quote() {
    let script = "mcopy -n -i $BOOT ::virt.dtb tree && \
        fdtput -t s tree / tampered yes && mcopy -o -i $BOOT tree ::virt.dtb";
    assert_in_quote("tamper-dtb", script, "device-tree");
}

#[test]
fn another_firmware_setting_appears_in_the_quote() {
    let script = "mcopy -n -i $BOOT ::config.txt settings && \
        echo arm_freq=2000 >> settings && mcopy -o -i $BOOT settings ::config.txt";
    assert_in_quote("tamper-config-txt", script, "boot-partition");
}

#[test]
fn a_flipped_bit_in_the_superblock_stops_the_boot() {
    // The superblock of EROFS is 1024 bytes from the start of the partition.
    assert_boot_stops("tamper-superblock", CORRUPTED, |card| {
        card.flip_bit_at(card.partition(2).unwrap() + 1024).unwrap()
    });
}

#[test]
fn a_flipped_bit_in_the_hash_tree_stops_the_boot() {
    // The top of the tree follows the tree's own superblock.
    assert_boot_stops("tamper-hash-tree", CORRUPTED, |card| {
        let data = card.verity_data_blocks().unwrap();
        card.flip_bit_at(card.partition(2).unwrap() + (data + 1) * 4096).unwrap();
    });
}

#[test]
fn a_flipped_bit_in_the_engine_stops_the_boot() {
    // The name of the loader is in the first block of the first dynamic program, containerd.
    assert_boot_stops("tamper-engine", CORRUPTED, |card| {
        card.flip_bit_of(b"/lib/ld-linux-aarch64.so.1\0").unwrap()
    });
}

#[test]
fn a_flipped_bit_in_the_configuration_stops_the_boot() {
    assert_boot_stops("tamper-configuration", CORRUPTED, |card| {
        card.flip_bit_of(b"variant = \"prod\"").unwrap()
    });
}

#[test]
fn a_module_archive_with_a_flipped_bit_never_runs() {
    let card = Card::flash("tamper-module").unwrap();
    // The root has the archive uncompressed. Its first member is oci-layout.
    card.flip_bit_of(b"oci-layout\0").unwrap();
    let mut console = card.boot().unwrap();
    // The archive is read when the module starts, perhaps after all services run.
    console.wait_for(CORRUPTED, BOOT_TIMEOUT + EVENT_TIMEOUT).unwrap();
    assert!(!console.text.contains("module-started"), "{}", console.text);
}

#[test]
fn an_added_partition_stops_the_boot() {
    // The fourth entry of the table becomes non-empty. Some firmware could start from it.
    assert_boot_stops("tamper-table", "STOPPED: the partition table", |card| {
        card.flip_bit_at(446 + 3 * 16 + 4).unwrap()
    });
}
