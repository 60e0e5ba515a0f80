//! `cargo xtask flash` to a file and to a loop device in place of a card, and `trustctl
//! verify-image`.
// Test helpers may unwrap, like tests.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::os::unix::fs::OpenOptionsExt as _;

use basalt_ci::Card;
use xtask::cmd::flash::flash;

#[test]
fn a_flashed_card_boots() {
    let card = Card::flash("flash").unwrap();
    // Old content of the card must not remain.
    let length = card.disk().metadata().unwrap().len();
    std::fs::write(card.disk(), vec![0xa5; length as usize]).unwrap();
    flash(&card.image, "virt", &card.disk()).unwrap();
    let _console = card.boot_to_ready().unwrap();
    card.attest().unwrap();
    let error = flash(&card.image, "rpi4", &card.disk()).unwrap_err().to_string();
    assert!(error.contains("is an image for virt, not for rpi4"), "{error}");
}

#[test]
fn an_image_for_another_board_never_runs() {
    // On QEMU's own board, the image for a Raspberry Pi has no device tree for the firmware.
    let card = Card::flash("other-board").unwrap();
    let image = card.image.parent().unwrap().with_file_name("rpi4").join("basalt-rpi4.img");
    flash(&image, "rpi4", &card.disk()).unwrap();
    let error = card.boot().map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("has no virt.dtb"), "{error}");
}

#[test]
fn flash_writes_the_settings_of_a_node() {
    let card = Card::flash("flash-settings").unwrap();
    let run = |settings: &str| {
        std::fs::write(card.dir.join("mine.toml"), settings).unwrap();
        let path = |name: &str| card.dir.join(name).to_string_lossy().into_owned();
        let output = std::process::Command::new(std::env::var_os("BASALT_XTASK").unwrap())
            .args([
                "flash",
                &path("disk.img"),
                "--machine",
                "virt",
                "--yes",
                "--settings",
                &path("mine.toml"),
            ])
            .output()
            .unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (success, output) = run("hostname = \"gate-7\"\n");
    assert!(success, "{output}");
    card.edit_boot_partition("mcopy -i $BOOT ::node.toml back.toml && cmp back.toml mine.toml")
        .unwrap();
    let (success, output) = run("hostname = \"Gate 7\"\n");
    assert!(
        !success
            && output.contains("is invalid, a node would not boot")
            && output.contains("hostname"),
        "{output}"
    );
}

/// A loop device is flashed like a card, unless it is mounted or open exclusively.
#[test]
fn a_loop_device_is_flashed_unless_it_is_in_use() {
    let run = |program: &str, args: &[&str]| {
        let output = std::process::Command::new(program).args(args).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let card = Card::flash("loop").unwrap();
    let path = card.disk().to_string_lossy().into_owned();
    let (attached, device) = run("losetup", &["--find", "--show", "--partscan", &path]);
    if !attached {
        println!(
            "NOTICE: no loop device on this host (only root can attach one); the test is skipped"
        );
        return;
    }
    let device = std::path::PathBuf::from(device);
    let flashed = flash(&card.image, "virt", &device);
    // While the device is open exclusively, nothing is written to it.
    let exclusive = std::fs::File::options().read(true).custom_flags(0o200).open(&device).unwrap();
    let rejected = flash(&card.image, "virt", &device);
    drop(exclusive);
    let (detached, _) = run("losetup", &["--detach", &device.to_string_lossy()]);
    flashed.unwrap();
    let error = format!("{:#}", rejected.unwrap_err());
    assert!(error.contains("for exclusive use; nothing was written"), "{error}");
    assert!(detached);
    // The file has the written image, which boots.
    let _console = card.boot_to_ready().unwrap();
    card.attest().unwrap();
}

/// Verifies every built image like `trustctl verify-image`.
#[test]
fn every_image_verifies_and_an_altered_one_is_rejected() {
    let builder = trustctl::keys::load(
        &trustctl::keys::folder().unwrap().join(trustctl::keys::BUILDER),
        "builder",
    )
    .unwrap()
    .verifying_key();
    let card = Card::flash("verify-image").unwrap();
    for machine in ["virt", "rpi3", "rpi4"] {
        let dir = card.image.parent().unwrap().with_file_name(machine);
        let manifest = trustctl::image::verify(&dir, &builder).unwrap();
        assert_eq!(manifest.machine, machine);
        let sbom: serde_json::Value =
            serde_json::from_slice(&std::fs::read(dir.join("sbom.cdx.json")).unwrap()).unwrap();
        let names: Vec<&str> = sbom["components"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|c| c["name"].as_str())
            .collect();
        for name in [
            "docker.io",
            "containerd",
            "runc",
            "linux-source-6.12",
            "tokio",
            "tss-esapi",
            "libstd-rust-web-dev",
        ] {
            assert!(names.contains(&name), "{machine}: {name}");
        }
        assert_eq!(names.contains(&"raspi-firmware"), machine != "virt", "{machine}");
        assert!(!names.contains(&"tempfile"), "the image has a dependency of tests");
    }
    let altered = card.dir.join("altered");
    std::fs::create_dir_all(&altered).unwrap();
    for file in std::fs::read_dir(card.image.parent().unwrap())
        .unwrap()
        .flatten()
        .filter(|f| f.file_type().unwrap().is_file())
    {
        std::fs::copy(file.path(), altered.join(file.file_name())).unwrap();
    }
    trustctl::image::verify(&altered, &builder).unwrap();
    std::fs::write(altered.join("licences.txt"), "none").unwrap();
    let error = trustctl::image::verify(&altered, &builder).unwrap_err().to_string();
    assert!(error.contains("licences.txt is altered"), "{error}");
}
