//! TLS connections to nodes, which are known by their certificate and not by an authority.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use sha2::{Digest as _, Sha256};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::keys::Owner;
use crate::known_nodes;

/// Connects to a node and requires that its certificate is the known one.
///
/// Returns the connection and the SHA-256 of the node's certificate, hex. Without `owner` the
/// client is anonymous.
///
/// # Errors
/// Returns an error if there is no connection, the node rejects the handshake, or its certificate
/// is not the known one.
pub(crate) async fn connect(
    address: &str,
    folder: &Path,
    owner: Option<Owner>,
) -> Result<(TlsStream<TcpStream>, String)> {
    let rejected = if owner.is_some() {
        "the node rejected the TLS handshake; does its node.toml pin your certificate?"
    } else {
        "the node rejected the TLS handshake; it may deny clients without a certificate"
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let shown = Arc::new(Mutex::new(None));
    let verifier =
        Arc::new(FingerprintRecorder { provider: provider.clone(), shown: shown.clone() });
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let config = match owner {
        Some(owner) => config.with_client_auth_cert(vec![owner.certificate], owner.key)?,
        None => config.with_no_client_auth(),
    };
    let stream = TcpStream::connect(address).await.with_context(|| {
        format!("cannot connect to {address}; does the node run, and is the port forwarded?")
    })?;
    let name = ServerName::try_from("basalt-node")?;
    let stream = tokio_rustls::TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
        .context(rejected)?;
    let fingerprint = shown
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take()
        .context("the node showed no certificate")?;
    known_nodes::verify_or_add(folder, address, &fingerprint)?;
    Ok((stream, fingerprint))
}

/// Accepts any certificate for the handshake and records its SHA-256. [`connect`] compares it with
/// the known one before any data is sent.
#[derive(Debug)]
struct FingerprintRecorder {
    provider: Arc<CryptoProvider>,
    shown: Arc<Mutex<Option<String>>>,
}

impl ServerCertVerifier for FingerprintRecorder {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(measure::hex(&Sha256::digest(certificate)));
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
