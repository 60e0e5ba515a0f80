//! Everything on the card that somebody with a card reader could alter: refused at boot, or seen in
//! the quote.
// Helpers of tests may unwrap as tests may.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use basalt_ci::{BOOT_WITHIN, Card, SOON};

/// The node starts, and its quote names this event as the one that differs.
fn seen_in_the_quote(test: &str, script: &str, event: &str) {
    let card = Card::flash(test).unwrap();
    card.with_boot(script).unwrap();
    let mut console = card.boot_to_ready().unwrap();
    // Nobody signed a policy for what was booted: the TPM keeps the root key to itself, and nothing
    // runs.
    assert!(console.text.contains("LOCKED: no module runs"), "{}", console.text);
    let found = card.attest_to(&card.measurements().unwrap()).map(|_| ()).unwrap_err().to_string();
    assert!(
        found.contains("is not the expected image")
            && found.contains(&format!("({event}): expected")),
        "{found}"
    );
    assert!(card.client().get("/v1/modules").unwrap_err().to_string().contains("locked"));
    card.client().post("/v1/node/poweroff", &serde_json::json!({})).unwrap();
    console.wait_for("down", SOON).unwrap();
    assert!(!console.text.contains("module-started"), "{}", console.text);
}

/// What the kernel says when a block does not fit the hash tree.
const CORRUPTED: &str = "dm-verity device corrupted";

/// The node never gets to where all services run, for this reason and no other.
fn refused_at_boot(test: &str, reason: &str, tamper: impl Fn(&Card)) {
    let card = Card::flash(test).unwrap();
    tamper(&card);
    let mut console = card.boot().unwrap();
    let line = console
        .wait_for_any(&["Kernel panic", "STOPPED", "ready: all services run"], BOOT_WITHIN)
        .unwrap();
    assert!(line.contains(reason), "{}", console.text);
}

#[test]
fn another_kernel_is_seen() {
    // The same kernel in another gzip file: what would boot as if nothing had happened.
    let script = "mcopy -n -i $BOOT ::Image.gz kernel && gzip -dc kernel | gzip -1n > other && ! cmp -s kernel other && mcopy -o -i $BOOT other ::Image.gz";
    seen_in_the_quote("tamper-kernel", script, "boot-partition");
}

#[test]
fn another_command_line_is_seen() {
    let script = "mcopy -n -i $BOOT ::cmdline.txt line && sed -i 's/panic=5/panic=6/' line && mcopy -o -i $BOOT line ::cmdline.txt";
    seen_in_the_quote("tamper-cmdline", script, "kernel-command-line");
}

#[test]
fn another_device_tree_is_seen() {
    let script = "mcopy -n -i $BOOT ::virt.dtb tree && fdtput -t s tree / tampered yes && mcopy -o -i $BOOT tree ::virt.dtb";
    seen_in_the_quote("tamper-dtb", script, "device-tree");
}

#[test]
fn another_firmware_setting_is_seen() {
    let script = "mcopy -n -i $BOOT ::config.txt settings && echo arm_freq=2000 >> settings && mcopy -o -i $BOOT settings ::config.txt";
    seen_in_the_quote("tamper-config-txt", script, "boot-partition");
}

#[test]
fn a_flipped_byte_in_the_superblock_is_refused() {
    // EROFS: 1024 bytes from the start of the partition.
    refused_at_boot("tamper-superblock", CORRUPTED, |card| {
        card.flip_at(card.partition(2).unwrap() + 1024).unwrap()
    });
}

#[test]
fn a_flipped_byte_in_the_hash_tree_is_refused() {
    // The tree's top, behind its own superblock.
    refused_at_boot("tamper-hash-tree", CORRUPTED, |card| {
        let data = card.verity_data_blocks().unwrap();
        card.flip_at(card.partition(2).unwrap() + (data + 1) * 4096).unwrap();
    });
}

#[test]
fn a_flipped_byte_in_the_engine_is_refused() {
    // The name of the loader, in the first block of the first program that has one: containerd.
    refused_at_boot("tamper-engine", CORRUPTED, |card| {
        card.flip_text(b"/lib/ld-linux-aarch64.so.1\0").unwrap()
    });
}

#[test]
fn a_flipped_byte_in_the_configuration_is_refused() {
    refused_at_boot("tamper-configuration", CORRUPTED, |card| {
        card.flip_text(b"variant = \"prod\"").unwrap()
    });
}

#[test]
fn a_flipped_byte_in_a_module_archive_is_never_run() {
    let card = Card::flash("tamper-module").unwrap();
    // The archive lies in the root as it is: its first member is oci-layout.
    card.flip_text(b"oci-layout\0").unwrap();
    let mut console = card.boot().unwrap();
    // It is read when the module is to start, perhaps after all services run.
    console.wait_for(CORRUPTED, BOOT_WITHIN + SOON).unwrap();
    assert!(!console.text.contains("module-started"), "{}", console.text);
}

#[test]
fn another_partition_to_start_from_is_refused() {
    // A fourth entry of the table: some firmware could be made to start from it.
    refused_at_boot("tamper-table", "STOPPED: the partition table", |card| {
        card.flip_at(446 + 3 * 16 + 4).unwrap()
    });
}
