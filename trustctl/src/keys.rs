//! The keys of people: an owner's certificate, an approver's signing key.
//!
//! Invariant: a private key is written with mode 0600, whole, and never over an existing one.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use deployment::{SignedSpec, Spec};
use ed25519_dalek::pkcs8::{
    DecodePrivateKey as _, EncodePrivateKey as _, spki::der::pem::LineEnding,
};
use ed25519_dalek::{SigningKey, VerifyingKey};
use ledger::{NoteKey, Role};
use policy::RecoveryKey;
use rustls::SignatureScheme;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use sha2::{Digest as _, Sha256};

/// The user's folder for Basalt: `BASALT_CONFIG`, or `basalt` in the configuration directory.
pub fn folder() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("BASALT_CONFIG") {
        return Ok(dir.into());
    }
    let base = match std::env::var_os("XDG_CONFIG_HOME") {
        Some(dir) => PathBuf::from(dir),
        None => PathBuf::from(
            std::env::var_os("HOME")
                .context("HOME is not set; BASALT_CONFIG names the folder for keys")?,
        )
        .join(".config"),
    };
    Ok(base.join("basalt"))
}

/// An owner: the certificate that a node pins, and its key.
pub struct Owner {
    pub certificate: CertificateDer<'static>,
    pub key: PrivateKeyDer<'static>,
}

impl Owner {
    /// SHA-256 of the certificate, as configs/node.toml wants it.
    pub fn fingerprint(&self) -> String {
        measure::hex(&Sha256::digest(&self.certificate))
    }

    pub fn load(dir: &Path) -> Result<Self> {
        let (crt, key) = (dir.join("owner.crt"), dir.join("owner.key"));
        let hint = || {
            format!(
                "no usable owner's key in {}; make one with `trustctl key new owner`",
                dir.display()
            )
        };
        Ok(Self {
            certificate: CertificateDer::from_pem_file(&crt).with_context(hint)?,
            key: PrivateKeyDer::from_pem_file(&key).with_context(hint)?,
        })
    }
}

impl Owner {
    /// Signs with the certificate's key, as a node checks it.
    pub fn sign(&self, spec: &Spec) -> Result<SignedSpec> {
        let text = spec.text();
        let key = rustls::crypto::ring::sign::any_supported_type(&self.key)
            .context("the owner's key is of no kind that signs")?;
        let signer = key
            .choose_scheme(&[SignatureScheme::ECDSA_NISTP256_SHA256, SignatureScheme::ED25519])
            .context("the owner's key signs neither with ECDSA P-256 nor with Ed25519")?;
        let signature = signer.sign(&deployment::signed_bytes(&text))?;
        Ok(SignedSpec {
            certificate: measure::hex(&self.certificate),
            signature: measure::hex(&signature),
            spec: text,
        })
    }
}

pub fn new_owner(dir: &Path) -> Result<Owner> {
    let mut params = rcgen::CertificateParams::new(Vec::new())?;
    params.distinguished_name.push(rcgen::DnType::CommonName, "Basalt owner");
    // It is pinned, not trusted for its dates: a node may boot without a clock.
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2120, 1, 1);
    let key = rcgen::KeyPair::generate()?;
    let certificate = params.self_signed(&key)?;
    write_private(&dir.join("owner.key"), key.serialize_pem().as_bytes())?;
    std::fs::write(dir.join("owner.crt"), certificate.pem())?;
    Owner::load(dir)
}

/// The file of the builder's key.
pub const BUILDER: &str = "builder.key";

pub fn new_approver(dir: &Path) -> Result<SigningKey> {
    new_signing(dir, "approver")
}

/// A key for one who signs: `approver` or `builder`.
pub fn new_signing(dir: &Path, who: &str) -> Result<SigningKey> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|e| anyhow::anyhow!("no random numbers: {e}"))?;
    let key = SigningKey::from_bytes(&seed);
    write_private(&dir.join(format!("{who}.key")), key.to_pkcs8_pem(LineEnding::LF)?.as_bytes())?;
    Ok(key)
}

pub fn load_approver(path: &Path) -> Result<SigningKey> {
    load(path, "approver")
}

pub fn load(path: &Path, who: &str) -> Result<SigningKey> {
    let text = std::fs::read_to_string(path).with_context(|| {
        format!("no {who}'s key at {}; make one with `trustctl key new {who}`", path.display())
    })?;
    SigningKey::from_pkcs8_pem(&text).map_err(|e| {
        anyhow::anyhow!("{} is not an Ed25519 key in PKCS #8 PEM: {e}", path.display())
    })
}

/// Who signs policies for what is built with this key.
pub fn policy_signer(builder: &SigningKey) -> policy::Signer {
    policy::Signer::of_builder(&builder.to_bytes())
}

const RECOVERY: &str = "recovery.key";

pub fn new_recovery(dir: &Path) -> Result<RecoveryKey> {
    let mut secret = [0; 32];
    getrandom::fill(&mut secret).map_err(|e| anyhow::anyhow!("no random numbers: {e}"))?;
    let key = RecoveryKey::from_bytes(secret);
    write_private(&dir.join(RECOVERY), format!("{}\n", *key.hex()).as_bytes())?;
    Ok(key)
}

pub fn load_recovery(dir: &Path) -> Result<RecoveryKey> {
    let path = dir.join(RECOVERY);
    let text = std::fs::read_to_string(&path).with_context(|| {
        format!("no recovery key at {}; make one with `trustctl key new recovery`", path.display())
    })?;
    RecoveryKey::from_hex(text.trim()).with_context(|| path.display().to_string())
}

/// The file of an account's key.
pub const CHAIN: &str = "chain.key";

/// A secp256k1 key as 64 hex digits, which is what is in the file too.
pub fn new_chain(dir: &Path) -> Result<String> {
    // Of 2^256 numbers all but one in 2^128 are keys.
    let mut secret = [0; 32];
    getrandom::fill(&mut secret).map_err(|e| anyhow::anyhow!("no random numbers: {e}"))?;
    let hex = measure::hex(&secret);
    write_private(&dir.join(CHAIN), format!("{hex}\n").as_bytes())?;
    Ok(hex)
}

/// The file of a log's key; the name that the key has as a C2SP vkey is beside it.
pub const LOG: &str = "log.key";

/// Makes the key of a log. Without an origin the log is named after its key, in the form that
/// sigsum's witnesses want.
pub fn new_log(dir: &Path, origin: Option<&str>) -> Result<NoteKey> {
    // A bad name is refused before there is a key.
    let named = |key: &SigningKey| {
        let origin = origin.map_or_else(|| sigsum_origin(key), str::to_owned);
        NoteKey::new(&origin, Role::Log, key.verifying_key()).map_err(anyhow::Error::msg)
    };
    named(&SigningKey::from_bytes(&[1; 32]))?;
    let vkey = named(&new_signing(dir, "log")?)?;
    std::fs::write(dir.join("log.vkey"), format!("{vkey}\n"))?;
    Ok(vkey)
}

fn sigsum_origin(key: &SigningKey) -> String {
    format!("sigsum.org/v1/tree/{}", measure::hex(&Sha256::digest(key.verifying_key().as_bytes())))
}

/// A log's key, and its public form.
pub fn load_log(path: &Path) -> Result<(SigningKey, NoteKey)> {
    let key = load(path, "log")?;
    let beside = path.with_extension("vkey");
    let text = std::fs::read_to_string(&beside)
        .with_context(|| format!("cannot read {}, the log's public key", beside.display()))?;
    let vkey = NoteKey::parse(text.trim())
        .map_err(anyhow::Error::msg)
        .with_context(|| beside.display().to_string())?;
    if vkey.key != key.verifying_key() {
        bail!("{} is not the public key of {}", beside.display(), path.display());
    }
    Ok((key, vkey))
}

/// The approver's public key as configs/node.toml wants it.
pub fn public_hex(key: &SigningKey) -> String {
    measure::hex(key.verifying_key().as_bytes())
}

/// The inverse of [`public_hex`].
pub fn public(text: &str) -> Result<VerifyingKey> {
    let bytes = measure::unhex(text)
        .and_then(|b| <[u8; 32]>::try_from(b).ok())
        .context("expected 64 lower-case hex digits")?;
    VerifyingKey::from_bytes(&bytes).context("this is no Ed25519 key")
}

/// Whose images are believed: the key that was named, or else the user's own builder's.
pub fn builder(named: Option<&str>, folder: &Path) -> Result<VerifyingKey> {
    match named {
        Some(text) => public(text).context("--builder"),
        None => Ok(load(&folder.join(BUILDER), "builder")
            .context("whose image is it? --builder names the key")?
            .verifying_key()),
    }
}

fn write_private(path: &Path, data: &[u8]) -> Result<()> {
    let dir = path.parent().context("a key needs a folder")?;
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    if path.exists() {
        bail!("{} is there already and is not overwritten; move it away first", path.display());
    }
    let temporary = path.with_extension("new");
    let _ = std::fs::remove_file(&temporary);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)
        .with_context(|| format!("cannot write {}", temporary.display()))?;
    file.write_all(data)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_private_and_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let owner = new_owner(dir.path()).unwrap();
        assert_eq!(Owner::load(dir.path()).unwrap().fingerprint(), owner.fingerprint());
        let approver = new_approver(dir.path()).unwrap();
        assert_eq!(load_approver(&dir.path().join("approver.key")).unwrap(), approver);
        for name in ["owner.key", "approver.key"] {
            let mode = std::os::unix::fs::PermissionsExt::mode(
                &dir.path().join(name).metadata().unwrap().permissions(),
            );
            assert_eq!(mode & 0o777, 0o600);
        }
        assert!(new_owner(dir.path()).is_err());
        assert!(new_approver(dir.path()).is_err());
        assert!(load_approver(&dir.path().join("owner.crt")).is_err());
        let recovery = new_recovery(dir.path()).unwrap();
        assert_eq!(load_recovery(dir.path()).unwrap().hex(), recovery.hex());
        assert!(new_recovery(dir.path()).is_err());
        let log = new_log(dir.path(), None).unwrap();
        assert!(log.name.starts_with("sigsum.org/v1/tree/"));
        assert_eq!(load_log(&dir.path().join(LOG)).unwrap().1, log);
        assert!(new_log(dir.path(), Some("x")).is_err(), "there is one");
        assert!(new_log(&dir.path().join("other"), Some("two words")).is_err());
        assert!(!dir.path().join("other").join(LOG).exists());
    }
}
