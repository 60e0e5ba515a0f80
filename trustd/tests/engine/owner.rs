//! An owner who signs specs.

use std::path::Path;

use deployment::{SignedSpec, Spec};
use rcgen::SigningKey as _;

/// Certificate and key of an owner, as `trustctl` makes them.
pub(crate) struct Owner {
    key: rcgen::KeyPair,
    certificate: Vec<u8>,
}

impl Owner {
    pub(crate) fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate =
            rcgen::CertificateParams::new(Vec::new()).unwrap().self_signed(&key).unwrap();
        Self { key, certificate: certificate.der().to_vec() }
    }

    /// Loads the owner from files, or makes them, so that a restarted process has the same owner.
    pub(crate) fn load_or_create(dir: &Path) -> Self {
        let (key, certificate) = (dir.join("owner.pem"), dir.join("owner.der"));
        if !key.exists() {
            let new = Self::new();
            std::fs::write(&certificate, &new.certificate).unwrap();
            std::fs::write(&key, new.key.serialize_pem()).unwrap();
        }
        let key = rcgen::KeyPair::from_pem(&std::fs::read_to_string(key).unwrap()).unwrap();
        Self { key, certificate: std::fs::read(certificate).unwrap() }
    }

    /// Returns the SHA-256 of the certificate, hex.
    pub(crate) fn fingerprint(&self) -> String {
        use sha2::Digest as _;
        measure::hex(&sha2::Sha256::digest(&self.certificate))
    }

    /// Writes the owner's key and certificate to a folder of `trustctl`.
    pub(crate) fn save(&self, keys: &Path) {
        use base64::Engine as _;
        let text = base64::engine::general_purpose::STANDARD.encode(&self.certificate);
        let lines: Vec<&str> =
            text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
        let label = |edge: &str| format!("-----{edge} CERTIFICATE-----");
        let certificate = format!("{}\n{}\n{}\n", label("BEGIN"), lines.join("\n"), label("END"));
        std::fs::create_dir_all(keys).unwrap();
        std::fs::write(keys.join("owner.crt"), certificate).unwrap();
        std::fs::write(keys.join("owner.key"), self.key.serialize_pem()).unwrap();
    }

    pub(crate) fn sign(&self, spec: &Spec) -> SignedSpec {
        let text = spec.text();
        let signature = self.key.sign(&deployment::signed_bytes(&text)).unwrap();
        SignedSpec {
            certificate: measure::hex(&self.certificate),
            signature: measure::hex(&signature),
            spec: text,
        }
    }
}
