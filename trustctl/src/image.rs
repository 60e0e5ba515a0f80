//! Verification of a built image: its signed manifest, its files and its predicted measurements.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use measure::{Board, Measurements, Record};
use policy::{Policies, PublicKey};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// File with the manifest.
pub const MANIFEST: &str = "manifest.json";
/// File with the builder's signature of the manifest.
pub const SIGNATURE: &str = "manifest.json.sig";
/// File with the predicted measurements.
const MEASUREMENTS: &str = "measurements.json";
/// Format of the manifest, and prefix of the signed bytes.
pub const FORMAT: &str = "basalt-manifest-1";

/// Content of `manifest.json`: hashes of everything that went into an image and came out.
#[derive(Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: String,
    /// Machine that the image is for.
    pub machine: String,
    /// Variant of the image.
    pub variant: String,
    /// Version of Basalt.
    pub version: String,
    /// Inputs of each build step, by name: hashes.
    pub inputs: BTreeMap<String, BTreeMap<String, String>>,
    /// SHA-256 of each file next to the manifest, by name.
    pub outputs: BTreeMap<String, String>,
    /// Versions of the packages in the tools sysroot, by name.
    pub tools: BTreeMap<String, String>,
}

/// Returns the bytes that the builder signs: the format, so that the signature counts for nothing
/// else, and the manifest.
fn signed_bytes(manifest: &[u8]) -> Vec<u8> {
    [FORMAT.as_bytes(), b"\n", manifest].concat()
}

/// Returns the content of `manifest.json.sig`.
pub fn sign(manifest: &[u8], key: &SigningKey) -> String {
    format!("{}\n", measure::hex(&key.sign(&signed_bytes(manifest)).to_bytes()))
}

/// Reads an image's `measurements.json`. With `settings`, the `node.toml` of a boot partition, the
/// predictions are those of a node with these settings.
///
/// # Errors
/// Returns an error if a file cannot be read or is malformed.
pub fn read_measurements(path: &Path, settings: Option<&Path>) -> Result<Measurements> {
    let mut measurements: Measurements = serde_json::from_slice(&read(path)?)
        .with_context(|| format!("{} is not a {MEASUREMENTS}", path.display()))?;
    if let Some(settings) = settings {
        let settings = read(settings)?;
        measurements.boards =
            measurements.boards.iter().map(|board| board.with_settings(&settings)).collect();
    }
    Ok(measurements)
}

/// Verifies a folder with an image: the builder's signature, every file, that the predicted
/// registers follow from the predicted events, and that each board has a policy.
///
/// One of `.img` and `.img.xz` may be absent.
///
/// # Errors
/// Returns an error that names the first file or value that is not as the builder signed it.
pub fn verify(dir: &Path, builder: &VerifyingKey) -> Result<Manifest> {
    let manifest = read_manifest(dir, builder)?;
    verify_files(dir, &manifest)?;
    let measurements = verify_measurements(dir, &manifest)?;
    verify_policies(dir, &manifest, &measurements)?;
    Ok(manifest)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

fn read_manifest(dir: &Path, builder: &VerifyingKey) -> Result<Manifest> {
    let text = read(&dir.join(MANIFEST))?;
    let signature = String::from_utf8(read(&dir.join(SIGNATURE))?)
        .with_context(|| format!("{SIGNATURE} is not text"))?;
    let signature =
        measure::unhex(signature.trim())
            .and_then(|b| Signature::from_slice(&b).ok())
            .with_context(|| format!("{SIGNATURE} is malformed: expected 128 hex digits"))?;
    if builder.verify_strict(&signed_bytes(&text), &signature).is_err() {
        bail!(
            "{MANIFEST} is not signed by the builder {}: it was altered, or another builder \
             signed it",
            measure::hex(builder.as_bytes())
        );
    }
    let manifest: Manifest =
        serde_json::from_slice(&text).with_context(|| format!("{MANIFEST} is malformed"))?;
    ensure!(
        manifest.format == FORMAT,
        "{MANIFEST}: expected the format {FORMAT}, found {}",
        manifest.format
    );
    Ok(manifest)
}

fn image_name(manifest: &Manifest) -> String {
    format!("basalt-{}.img", manifest.machine)
}

/// Requires that every file of the manifest has the signed hash.
fn verify_files(dir: &Path, manifest: &Manifest) -> Result<()> {
    let image = image_name(manifest);
    let packed = format!("{image}.xz");
    for (name, expected) in &manifest.outputs {
        ensure!(
            !name.contains('/') && name != "..",
            "{MANIFEST} names a file outside of its folder: {name}"
        );
        // One form of the image is enough.
        let other = if *name == image { &packed } else { &image };
        if (*name == image || *name == packed)
            && !dir.join(name).exists()
            && dir.join(other).exists()
            && manifest.outputs.contains_key(other)
        {
            continue;
        }
        let path = dir.join(name);
        let found = file_hash(&path).with_context(|| format!("cannot read {}", path.display()))?;
        ensure!(
            found == *expected,
            "{name} is altered: expected SHA-256 {expected}, found {found}"
        );
    }
    Ok(())
}

/// Requires that the predicted measurements belong to this image and are consistent.
fn verify_measurements(dir: &Path, manifest: &Manifest) -> Result<Measurements> {
    let measurements: Measurements = serde_json::from_slice(&read(&dir.join(MEASUREMENTS))?)
        .with_context(|| format!("{MEASUREMENTS} is malformed"))?;
    ensure!(
        manifest.outputs.contains_key(MEASUREMENTS),
        "{MANIFEST} does not cover {MEASUREMENTS}"
    );
    ensure!(
        measurements.machine == manifest.machine,
        "{MEASUREMENTS} is for {}, not for {}",
        measurements.machine,
        manifest.machine
    );
    let (found, expected) =
        ((&measurements.variant, &measurements.version), (&manifest.variant, &manifest.version));
    ensure!(found == expected, "{MEASUREMENTS} is of {found:?}, the manifest of {expected:?}");
    let image = image_name(manifest);
    ensure!(manifest.outputs.contains_key(&image), "{MANIFEST} does not cover {image}");
    for board in &measurements.boards {
        let again = Board::predict(
            &board.board,
            &board.events.iter().map(Record::event).collect::<Vec<_>>(),
        );
        ensure!(
            again == *board,
            "{MEASUREMENTS}: the registers of {} do not follow from its events",
            board.board
        );
    }
    Ok(measurements)
}

/// Requires that each board has a signed policy, without which its nodes would be locked.
fn verify_policies(dir: &Path, manifest: &Manifest, measurements: &Measurements) -> Result<()> {
    let policies = Policies::parse(&read(&dir.join(policy::FILE_NAME))?)
        .with_context(|| policy::FILE_NAME.to_owned())?;
    ensure!(
        manifest.outputs.contains_key(policy::FILE_NAME),
        "{MANIFEST} does not cover {}",
        policy::FILE_NAME
    );
    let signer = PublicKey::from_hex(&policies.signer)?;
    for board in &measurements.boards {
        let signed = policies.find(&signer, &board.platform_pcr());
        signed.with_context(|| {
            format!("{}: a node on {} would have no root key", policy::FILE_NAME, board.board)
        })?;
    }
    Ok(())
}

fn file_hash(path: &Path) -> std::io::Result<String> {
    sha256(std::fs::File::open(path)?)
}

/// Returns the SHA-256 of everything that a reader gives, in lower-case hex.
///
/// # Errors
/// Returns the reader's errors.
pub fn sha256(mut from: impl Read) -> std::io::Result<String> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let n = from.read(&mut buffer)?;
        if n == 0 {
            return Ok(measure::hex(&hasher.finalize()));
        }
        hasher.update(&buffer[..n]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use measure::Event;

    fn key(n: u8) -> SigningKey {
        SigningKey::from_bytes(&[n; 32])
    }

    fn image_dir(change: impl Fn(&mut Manifest, &mut Measurements)) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, data: &[u8]| std::fs::write(dir.path().join(name), data).unwrap();
        let board = Board::predict("b", &[Event::new(14, "variant", "prod virt")]);
        let mut measurements = Measurements {
            machine: "virt".into(),
            variant: "prod".into(),
            version: "0".into(),
            boards: vec![board],
        };
        let mut manifest = Manifest {
            format: FORMAT.into(),
            machine: "virt".into(),
            variant: "prod".into(),
            version: "0".into(),
            inputs: BTreeMap::new(),
            outputs: BTreeMap::new(),
            tools: BTreeMap::new(),
        };
        put(
            policy::FILE_NAME,
            Policies::sign(&policy::Signer::from_builder_key(&[1; 32]), &measurements.boards)
                .text()
                .as_bytes(),
        );
        change(&mut manifest, &mut measurements);
        put("basalt-virt.img", b"image");
        put("measurements.json", &serde_json::to_vec(&measurements).unwrap());
        for name in ["basalt-virt.img", "measurements.json", policy::FILE_NAME] {
            manifest.outputs.insert(name.into(), file_hash(&dir.path().join(name)).unwrap());
        }
        let text = serde_json::to_vec(&manifest).unwrap();
        put(MANIFEST, &text);
        put(SIGNATURE, sign(&text, &key(1)).as_bytes());
        dir
    }

    fn rejection(dir: &Path) -> String {
        format!("{:#}", verify(dir, &key(1).verifying_key()).unwrap_err())
    }

    #[test]
    fn accepts_what_the_builder_signed_and_rejects_every_change() {
        let dir = image_dir(|_, _| {});
        verify(dir.path(), &key(1).verifying_key()).unwrap();
        let other = verify(dir.path(), &key(2).verifying_key()).unwrap_err().to_string();
        assert!(other.contains("not signed by the builder"), "{other}");
        for (name, problem) in [
            ("basalt-virt.img", "basalt-virt.img is altered"),
            ("measurements.json", "measurements.json is altered"),
            (MANIFEST, "not signed"),
        ] {
            let dir = image_dir(|_, _| {});
            let path = dir.path().join(name);
            let mut data = std::fs::read(&path).unwrap();
            data[2] ^= 1;
            std::fs::write(&path, data).unwrap();
            assert!(rejection(dir.path()).contains(problem), "{}", rejection(dir.path()));
            std::fs::remove_file(&path).unwrap();
            assert!(rejection(dir.path()).contains("cannot read"));
        }
    }

    #[test]
    fn requires_one_form_of_the_image() {
        let packed = image_dir(|m, _| {
            _ = m
                .outputs
                .insert("basalt-virt.img.xz".into(), measure::hex(&Sha256::digest(b"packed")))
        });
        let (image, xz) =
            (packed.path().join("basalt-virt.img"), packed.path().join("basalt-virt.img.xz"));
        verify(packed.path(), &key(1).verifying_key()).unwrap();
        std::fs::write(&xz, b"packed").unwrap();
        std::fs::remove_file(&image).unwrap();
        verify(packed.path(), &key(1).verifying_key()).unwrap();
        std::fs::write(&xz, b"other").unwrap();
        assert!(rejection(packed.path()).contains("basalt-virt.img.xz is altered"));
        std::fs::remove_file(&xz).unwrap();
        assert!(rejection(packed.path()).contains("cannot read"));
        // A form that the builder did not sign does not replace the signed one.
        let alone = image_dir(|_, _| {});
        std::fs::rename(
            alone.path().join("basalt-virt.img"),
            alone.path().join("basalt-virt.img.xz"),
        )
        .unwrap();
        assert!(rejection(alone.path()).contains("cannot read"));
    }

    #[test]
    fn rejects_signed_contradictions() {
        assert!(
            rejection(image_dir(|m, _| m.machine = "rpi4".into()).path())
                .contains("is for virt, not for rpi4")
        );
        assert!(
            rejection(image_dir(|m, _| m.format = "other".into()).path())
                .contains("expected the format")
        );
        let wrong = image_dir(|_, m| _ = m.boards[0].pcrs.insert("14".into(), "00".into()));
        assert!(rejection(wrong.path()).contains("do not follow"));
        let other = image_dir(|_, m| {
            m.boards[0] = Board::predict("b", &[Event::new(14, "variant", "debug virt")])
        });
        assert!(rejection(other.path()).contains("a node on b would have no root key"));
        assert!(
            rejection(image_dir(|m, _| m.version = "1".into()).path()).contains("the manifest of")
        );
        let outside = image_dir(|m, _| _ = m.outputs.insert("../x".into(), String::new()));
        assert!(rejection(outside.path()).contains("outside"));
    }
}
