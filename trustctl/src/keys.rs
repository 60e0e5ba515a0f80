//! The user's key files: of owners, approvers, builders, logs, accounts and for recovery.
//!
//! Invariant: a private key is written atomically, with mode 0600, and never over an existing one.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
#[cfg(feature = "client")]
use deployment::{SignedSpec, Spec};
use ed25519_dalek::pkcs8::{
    DecodePrivateKey as _, EncodePrivateKey as _, spki::der::pem::LineEnding,
};
use ed25519_dalek::{SigningKey, VerifyingKey};
use ledger::{NoteKey, Role};
use pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use policy::RecoveryKey;
#[cfg(feature = "client")]
use rustls::SignatureScheme;
use sha2::{Digest as _, Sha256};

/// Returns the folder of keys: `BASALT_CONFIG`, or `basalt` in the user's configuration folder.
///
/// # Errors
/// Returns an error if neither `BASALT_CONFIG`, `XDG_CONFIG_HOME` nor `HOME` is set.
pub fn folder() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("BASALT_CONFIG") {
        return Ok(dir.into());
    }
    let base = match std::env::var_os("XDG_CONFIG_HOME") {
        Some(dir) => PathBuf::from(dir),
        None => PathBuf::from(
            std::env::var_os("HOME")
                .context("HOME is not set; name the folder of keys in BASALT_CONFIG")?,
        )
        .join(".config"),
    };
    Ok(base.join("basalt"))
}

/// Owner's certificate and key.
pub struct Owner {
    /// Certificate that nodes pin.
    pub certificate: CertificateDer<'static>,
    /// Private key of the certificate.
    pub key: PrivateKeyDer<'static>,
}

impl Owner {
    /// Returns the SHA-256 of the certificate, hex, as `owner.certificates` of node.toml has it.
    pub fn fingerprint(&self) -> String {
        measure::hex(&Sha256::digest(&self.certificate))
    }

    /// Loads `owner.crt` and `owner.key` from the folder of keys.
    ///
    /// # Errors
    /// Returns an error if a file is absent or malformed.
    pub fn load(dir: &Path) -> Result<Self> {
        let (crt, key) = (dir.join("owner.crt"), dir.join("owner.key"));
        let hint = || {
            format!(
                "no valid owner's key in {}; make one with `trustctl key new owner`",
                dir.display()
            )
        };
        Ok(Self {
            certificate: CertificateDer::from_pem_file(&crt).with_context(hint)?,
            key: PrivateKeyDer::from_pem_file(&key).with_context(hint)?,
        })
    }

    /// Signs a spec with the certificate's key.
    ///
    /// # Errors
    /// Returns an error if the key signs neither with ECDSA P-256 nor with Ed25519.
    #[cfg(feature = "client")]
    pub fn sign(&self, spec: &Spec) -> Result<SignedSpec> {
        let text = spec.text();
        let key = rustls::crypto::ring::sign::any_supported_type(&self.key)
            .context("the owner's key cannot sign")?;
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

/// Makes an owner's key and self-signed certificate.
///
/// # Errors
/// Returns an error if there is a key already, or the files cannot be written.
#[cfg(feature = "client")]
pub fn new_owner(dir: &Path) -> Result<Owner> {
    let mut params = rcgen::CertificateParams::new(Vec::new())?;
    params.distinguished_name.push(rcgen::DnType::CommonName, "Basalt owner");
    // Nodes pin the certificate and ignore its dates, because they can boot without a clock.
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2120, 1, 1);
    let key = rcgen::KeyPair::generate()?;
    let certificate = params.self_signed(&key)?;
    write_private(&dir.join("owner.key"), key.serialize_pem().as_bytes())?;
    std::fs::write(dir.join("owner.crt"), certificate.pem())?;
    Owner::load(dir)
}

/// File of the builder's key.
pub const BUILDER: &str = "builder.key";

/// Makes an approver's key.
///
/// # Errors
/// Returns the errors of [`new_signing`].
pub fn new_approver(dir: &Path) -> Result<SigningKey> {
    new_signing(dir, "approver")
}

/// Makes an Ed25519 signing key in `ROLE.key`, where the role is `approver`, `builder` or `log`.
///
/// # Errors
/// Returns an error if there is a key already, or the file cannot be written.
pub fn new_signing(dir: &Path, role: &str) -> Result<SigningKey> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|e| anyhow::anyhow!("no random numbers: {e}"))?;
    let key = SigningKey::from_bytes(&seed);
    write_private(&dir.join(format!("{role}.key")), key.to_pkcs8_pem(LineEnding::LF)?.as_bytes())?;
    Ok(key)
}

/// Loads an approver's key.
///
/// # Errors
/// Returns the errors of [`load`].
pub fn load_approver(path: &Path) -> Result<SigningKey> {
    load(path, "approver")
}

/// Loads an Ed25519 signing key; `role` is for the error message.
///
/// # Errors
/// Returns an error if the file is absent or not an Ed25519 key in PKCS #8 PEM.
pub fn load(path: &Path, role: &str) -> Result<SigningKey> {
    let text = std::fs::read_to_string(path).with_context(|| {
        format!("no {role}'s key at {}; make one with `trustctl key new {role}`", path.display())
    })?;
    SigningKey::from_pkcs8_pem(&text).map_err(|e| {
        anyhow::anyhow!("{} is not an Ed25519 key in PKCS #8 PEM: {e}", path.display())
    })
}

/// Derives the key that signs policies from the builder's key.
pub fn policy_signer(builder: &SigningKey) -> policy::Signer {
    policy::Signer::from_builder_key(&builder.to_bytes())
}

const RECOVERY: &str = "recovery.key";

/// Makes a recovery key (X25519).
///
/// # Errors
/// Returns an error if there is a key already, or the file cannot be written.
pub fn new_recovery(dir: &Path) -> Result<RecoveryKey> {
    let mut secret = [0; 32];
    getrandom::fill(&mut secret).map_err(|e| anyhow::anyhow!("no random numbers: {e}"))?;
    let key = RecoveryKey::from_bytes(secret);
    write_private(&dir.join(RECOVERY), format!("{}\n", *key.hex()).as_bytes())?;
    Ok(key)
}

/// Loads the recovery key from the folder of keys.
///
/// # Errors
/// Returns an error if the file is absent or malformed.
pub fn load_recovery(dir: &Path) -> Result<RecoveryKey> {
    let path = dir.join(RECOVERY);
    let text = std::fs::read_to_string(&path).with_context(|| {
        format!("no recovery key at {}; make one with `trustctl key new recovery`", path.display())
    })?;
    RecoveryKey::from_hex(text.trim()).with_context(|| path.display().to_string())
}

/// File of the key of an approver's account on a chain.
pub const CHAIN: &str = "chain.key";

/// Makes a secp256k1 key and returns the file's content: 64 hex digits.
///
/// # Errors
/// Returns an error if there is a key already, or the file cannot be written.
pub fn new_chain(dir: &Path) -> Result<String> {
    // All but about one in 2^128 of the 32-byte numbers are valid keys.
    let mut secret = [0; 32];
    getrandom::fill(&mut secret).map_err(|e| anyhow::anyhow!("no random numbers: {e}"))?;
    let hex = measure::hex(&secret);
    write_private(&dir.join(CHAIN), format!("{hex}\n").as_bytes())?;
    Ok(hex)
}

/// File of a log's key; `log.vkey` next to it has the public key as a C2SP vkey.
pub const LOG: &str = "log.key";

/// Makes a log's key. Without an origin the log is named after its key, in the form that sigsum's
/// witnesses require.
///
/// # Errors
/// Returns an error if the origin is invalid, there is a key already, or a file cannot be written.
pub fn new_log(dir: &Path, origin: Option<&str>) -> Result<NoteKey> {
    let vkey_of = |key: &SigningKey| {
        let origin = origin.map_or_else(|| sigsum_origin(key), str::to_owned);
        NoteKey::new(&origin, Role::Log, key.verifying_key())
    };
    // An invalid origin is rejected before the key is written.
    vkey_of(&SigningKey::from_bytes(&[1; 32]))?;
    let vkey = vkey_of(&new_signing(dir, "log")?)?;
    std::fs::write(dir.join("log.vkey"), format!("{vkey}\n"))?;
    Ok(vkey)
}

fn sigsum_origin(key: &SigningKey) -> String {
    format!("sigsum.org/v1/tree/{}", measure::hex(&Sha256::digest(key.verifying_key().as_bytes())))
}

/// Loads a log's key and its public key.
///
/// # Errors
/// Returns an error if a file is absent or malformed, or the two do not match.
pub fn load_log(path: &Path) -> Result<(SigningKey, NoteKey)> {
    let key = load(path, "log")?;
    let vkey_path = path.with_extension("vkey");
    let text = std::fs::read_to_string(&vkey_path)
        .with_context(|| format!("cannot read {}, the log's public key", vkey_path.display()))?;
    let vkey = NoteKey::parse(text.trim()).with_context(|| vkey_path.display().to_string())?;
    if vkey.key != key.verifying_key() {
        bail!("{} is not the public key of {}", vkey_path.display(), path.display());
    }
    Ok((key, vkey))
}

/// Returns the public key in hex, as `ledger.approvers` of node.toml has it.
pub fn public_hex(key: &SigningKey) -> String {
    measure::hex(key.verifying_key().as_bytes())
}

/// Parses a public key in hex, the inverse of [`public_hex`].
///
/// # Errors
/// Returns an error if the text is not 64 hex digits or not an Ed25519 key.
pub fn public(text: &str) -> Result<VerifyingKey> {
    let bytes = measure::unhex(text)
        .and_then(|b| <[u8; 32]>::try_from(b).ok())
        .context("expected 64 lower-case hex digits")?;
    VerifyingKey::from_bytes(&bytes).context("this is not an Ed25519 public key")
}

/// Returns the builder's public key whose images are trusted: `key` in hex, or else the user's own.
///
/// # Errors
/// Returns an error if `key` is malformed, or there is none and the user has no builder's key.
pub fn builder(key: Option<&str>, folder: &Path) -> Result<VerifyingKey> {
    match key {
        Some(text) => public(text).context("--builder"),
        None => Ok(load(&folder.join(BUILDER), "builder")
            .context("the builder's public key is needed: name it with --builder KEY")?
            .verifying_key()),
    }
}

/// Writes a private key to a new file with mode 0600.
fn write_private(path: &Path, data: &[u8]) -> Result<()> {
    let dir = path.parent().context("the key's path has no folder")?;
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    if path.exists() {
        bail!("{} exists and is not overwritten; move it away first", path.display());
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

    fn mode(path: &Path) -> u32 {
        use std::os::unix::fs::PermissionsExt as _;
        path.metadata().unwrap().permissions().mode() & 0o777
    }

    #[cfg(feature = "client")]
    #[test]
    fn an_owners_key_is_private_and_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let owner = new_owner(dir.path()).unwrap();
        assert_eq!(Owner::load(dir.path()).unwrap().fingerprint(), owner.fingerprint());
        assert_eq!(mode(&dir.path().join("owner.key")), 0o600);
        assert!(new_owner(dir.path()).is_err());
        assert!(load_approver(&dir.path().join("owner.crt")).is_err());
    }

    #[test]
    fn keys_are_private_and_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let approver = new_approver(dir.path()).unwrap();
        assert_eq!(load_approver(&dir.path().join("approver.key")).unwrap(), approver);
        assert_eq!(mode(&dir.path().join("approver.key")), 0o600);
        assert!(new_approver(dir.path()).is_err());
        let recovery = new_recovery(dir.path()).unwrap();
        assert_eq!(load_recovery(dir.path()).unwrap().hex(), recovery.hex());
        assert!(new_recovery(dir.path()).is_err());
        let log = new_log(dir.path(), None).unwrap();
        assert!(log.name.starts_with("sigsum.org/v1/tree/"));
        assert_eq!(load_log(&dir.path().join(LOG)).unwrap().1, log);
        assert!(new_log(dir.path(), Some("x")).is_err(), "the key exists");
        assert!(new_log(&dir.path().join("other"), Some("two words")).is_err());
        assert!(!dir.path().join("other").join(LOG).exists());
    }
}
