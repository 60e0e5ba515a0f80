//! `cargo xtask flash` on a file in place of a card, and its view of the host's drives.
// Helpers of tests may unwrap as tests may.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::os::unix::fs::OpenOptionsExt as _;

use basalt_ci::Card;
use xtask::cmd::flash::flash;

#[test]
fn a_flashed_card_boots() {
    let card = Card::flash("flash").unwrap();
    // What was on the card before: it must not show through.
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
    // The image for a Raspberry Pi on QEMU's own board: the firmware finds no device tree for it.
    let card = Card::flash("other-board").unwrap();
    let image = card.image.parent().unwrap().with_file_name("rpi4").join("basalt-rpi4.img");
    flash(&image, "rpi4", &card.disk()).unwrap();
    let error = card.boot().map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("has no virt.dtb"), "{error}");
}

#[test]
fn the_settings_of_a_node_come_onto_its_card() {
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
    let (good, said) = run("hostname = \"gate-7\"\n");
    assert!(good, "{said}");
    card.with_boot("mcopy -i $BOOT ::node.toml back.toml && cmp back.toml mine.toml").unwrap();
    let (good, said) = run("hostname = \"Gate 7\"\n");
    assert!(
        !good && said.contains("a node would stop at it") && said.contains("hostname"),
        "{said}"
    );
}

/// A loop device is flashed like a card; while something of it is mounted or held, it is not.
#[test]
fn a_loop_device_is_a_card_unless_it_is_in_use() {
    let run = |program: &str, args: &[&str]| {
        let output = std::process::Command::new(program).args(args).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let card = Card::flash("loop").unwrap();
    let path = card.disk().to_string_lossy().into_owned();
    let (made, device) = run("losetup", &["--find", "--show", "--partscan", &path]);
    if !made {
        println!("NOTICE: this host gives no loop device (root only); the test of one is left out");
        return;
    }
    let device = std::path::PathBuf::from(device);
    let flashed = flash(&card.image, "virt", &device);
    // Something holds it: nothing is written.
    let held = std::fs::File::options().read(true).custom_flags(0o200).open(&device).unwrap();
    let refused = flash(&card.image, "virt", &device);
    drop(held);
    let (gone, _) = run("losetup", &["--detach", &device.to_string_lossy()]);
    flashed.unwrap();
    let refused = format!("{:#}", refused.unwrap_err());
    assert!(refused.contains("for itself alone; nothing was written"), "{refused}");
    assert!(gone);
    // What it wrote is in the file, and boots.
    let _console = card.boot_to_ready().unwrap();
    card.attest().unwrap();
}

/// What `trustctl verify-image` checks, for every machine that was built.
#[test]
fn every_image_holds_and_an_altered_one_does_not() {
    let builder = trustctl::keys::load(
        &trustctl::keys::folder().unwrap().join(trustctl::keys::BUILDER),
        "builder",
    )
    .unwrap()
    .verifying_key();
    let card = Card::flash("holds").unwrap();
    for machine in ["virt", "rpi3", "rpi4"] {
        let dir = card.image.parent().unwrap().with_file_name(machine);
        let manifest = trustctl::image::verify(&dir, &builder).unwrap();
        assert_eq!(manifest.machine, machine);
        let bill: serde_json::Value =
            serde_json::from_slice(&std::fs::read(dir.join("sbom.cdx.json")).unwrap()).unwrap();
        let names: Vec<&str> = bill["components"]
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
        assert!(!names.contains(&"tempfile"), "what only tests need is not in the image");
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
