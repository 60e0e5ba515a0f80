//! What a builder says of an image: a manifest with the hashes of all that went in and came out,
//! signed.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use measure::{Board, Measurements, Record};
use policy::{Policies, PublicKey};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

pub const MANIFEST: &str = "manifest.json";
pub const SIGNATURE: &str = "manifest.json.sig";

/// `manifest.json`.
#[derive(Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    pub format: String,
    pub machine: String,
    pub variant: String,
    pub version: String,
    /// For each step of the build, what it was made from: a name and a hash.
    pub inputs: BTreeMap<String, BTreeMap<String, String>>,
    /// For each file beside the manifest, its SHA-256.
    pub outputs: BTreeMap<String, String>,
    /// Packages of the tools tree and their versions.
    pub tools: BTreeMap<String, String>,
}

pub const FORMAT: &str = "basalt-manifest-1";

/// The signature is over this line and the manifest's bytes, so that it can stand for nothing else.
fn signed(manifest: &[u8]) -> Vec<u8> {
    [FORMAT.as_bytes(), b"\n", manifest].concat()
}

/// The text of `manifest.json.sig`.
pub fn sign(manifest: &[u8], key: &SigningKey) -> String {
    format!("{}\n", measure::hex(&key.sign(&signed(manifest)).to_bytes()))
}

/// Checks a folder with an image: signature, every file, and that the predicted registers follow
/// from the predicted events.
pub fn verify(dir: &Path, builder: &VerifyingKey) -> Result<Manifest> {
    let read = |name: &str| {
        std::fs::read(dir.join(name))
            .with_context(|| format!("cannot read {}", dir.join(name).display()))
    };
    let (text, signature) = (
        read(MANIFEST)?,
        String::from_utf8(read(SIGNATURE)?).context("the signature is not text")?,
    );
    let signature = measure::unhex(signature.trim())
        .and_then(|b| Signature::from_slice(&b).ok())
        .context("the signature is malformed")?;
    if builder.verify_strict(&signed(&text), &signature).is_err() {
        bail!(
            "{MANIFEST} is not signed by the builder {}: another builder's, or altered",
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
    let image = format!("basalt-{}.img", manifest.machine);
    let packed = format!("{image}.xz");
    for (name, expected) in &manifest.outputs {
        ensure!(
            !name.contains('/') && name != "..",
            "{MANIFEST} names a file outside of its folder: {name}"
        );
        // Whoever fetched one form of the image need not have the other.
        let other = if *name == image { &packed } else { &image };
        if (*name == image || *name == packed)
            && !dir.join(name).exists()
            && dir.join(other).exists()
            && manifest.outputs.contains_key(other)
        {
            continue;
        }
        let found = file_hash(&dir.join(name))
            .with_context(|| format!("cannot read {}", dir.join(name).display()))?;
        ensure!(
            found == *expected,
            "{name} is altered: expected SHA-256 {expected}, found {found}"
        );
    }
    let measurements: Measurements = serde_json::from_slice(&read("measurements.json")?)
        .context("measurements.json is malformed")?;
    ensure!(
        manifest.outputs.contains_key("measurements.json"),
        "{MANIFEST} does not cover measurements.json"
    );
    ensure!(
        measurements.machine == manifest.machine,
        "measurements.json is for {}, not for {}",
        measurements.machine,
        manifest.machine
    );
    let (found, expected) =
        ((&measurements.variant, &measurements.version), (&manifest.variant, &manifest.version));
    ensure!(found == expected, "measurements.json is of {found:?}, the manifest of {expected:?}");
    ensure!(manifest.outputs.contains_key(&image), "{MANIFEST} covers no {image}");
    for board in &measurements.boards {
        let again = Board::predict(
            &board.board,
            &board.events.iter().map(Record::event).collect::<Vec<_>>(),
        );
        ensure!(
            again == *board,
            "measurements.json: the registers of {} do not follow from its events",
            board.board
        );
    }
    let policies = Policies::read(&read(policy::FILE)?).with_context(|| policy::FILE.to_owned())?;
    ensure!(
        manifest.outputs.contains_key(policy::FILE),
        "{MANIFEST} does not cover {}",
        policy::FILE
    );
    let signer = PublicKey::from_hex(&policies.signer)?;
    for board in &measurements.boards {
        let signed = policies.find(&signer, &board.platform());
        signed.with_context(|| {
            format!("{}: a node on {} would have no root key", policy::FILE, board.board)
        })?;
    }
    Ok(manifest)
}

fn file_hash(path: &Path) -> std::io::Result<String> {
    sha256(std::fs::File::open(path)?)
}

/// SHA-256 of all that comes, in lower-case hex.
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

    fn folder(change: impl Fn(&mut Manifest, &mut Measurements)) -> tempfile::TempDir {
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
            policy::FILE,
            Policies::sign(&policy::Signer::of_builder(&[1; 32]), &measurements.boards)
                .text()
                .as_bytes(),
        );
        change(&mut manifest, &mut measurements);
        put("basalt-virt.img", b"image");
        put("measurements.json", &serde_json::to_vec(&measurements).unwrap());
        for name in ["basalt-virt.img", "measurements.json", policy::FILE] {
            manifest.outputs.insert(name.into(), file_hash(&dir.path().join(name)).unwrap());
        }
        let text = serde_json::to_vec(&manifest).unwrap();
        put(MANIFEST, &text);
        put(SIGNATURE, sign(&text, &key(1)).as_bytes());
        dir
    }

    fn says(dir: &Path) -> String {
        format!("{:#}", verify(dir, &key(1).verifying_key()).unwrap_err())
    }

    #[test]
    fn what_the_builder_signed_is_believed_and_nothing_else() {
        let dir = folder(|_, _| {});
        verify(dir.path(), &key(1).verifying_key()).unwrap();
        let other = verify(dir.path(), &key(2).verifying_key()).unwrap_err().to_string();
        assert!(other.contains("not signed by the builder"), "{other}");
        for (name, problem) in [
            ("basalt-virt.img", "basalt-virt.img is altered"),
            ("measurements.json", "measurements.json is altered"),
            (MANIFEST, "not signed"),
        ] {
            let dir = folder(|_, _| {});
            let path = dir.path().join(name);
            let mut data = std::fs::read(&path).unwrap();
            data[2] ^= 1;
            std::fs::write(&path, data).unwrap();
            assert!(says(dir.path()).contains(problem), "{}", says(dir.path()));
            std::fs::remove_file(&path).unwrap();
            assert!(says(dir.path()).contains("cannot read"));
        }
    }

    #[test]
    fn one_form_of_the_image_is_enough_and_none_is_not() {
        let packed = folder(|m, _| {
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
        assert!(says(packed.path()).contains("basalt-virt.img.xz is altered"));
        std::fs::remove_file(&xz).unwrap();
        assert!(says(packed.path()).contains("cannot read"));
        // What the builder did not sign does not stand for what he did.
        let alone = folder(|_, _| {});
        std::fs::rename(
            alone.path().join("basalt-virt.img"),
            alone.path().join("basalt-virt.img.xz"),
        )
        .unwrap();
        assert!(says(alone.path()).contains("cannot read"));
    }

    #[test]
    fn a_signed_contradiction_is_seen() {
        assert!(
            says(folder(|m, _| m.machine = "rpi4".into()).path())
                .contains("is for virt, not for rpi4")
        );
        assert!(
            says(folder(|m, _| m.format = "other".into()).path()).contains("expected the format")
        );
        let wrong = folder(|_, m| _ = m.boards[0].pcrs.insert("14".into(), "00".into()));
        assert!(says(wrong.path()).contains("do not follow"));
        let other = folder(|_, m| {
            m.boards[0] = Board::predict("b", &[Event::new(14, "variant", "debug virt")])
        });
        assert!(says(other.path()).contains("a node on b would have no root key"));
        assert!(says(folder(|m, _| m.version = "1".into()).path()).contains("the manifest of"));
        let outside = folder(|m, _| _ = m.outputs.insert("../x".into(), String::new()));
        assert!(says(outside.path()).contains("outside"));
    }
}
