//! TLS for the owner's API: the node has a certificate of its own making, the owner's is pinned in node.toml.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use axum::serve::Listener;
use rustls::DigitallySignedStruct;
use rustls::DistinguishedName;
use rustls::SignatureScheme;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use sha2::{Digest as _, Sha256};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::files;

const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
const MOST_HANDSHAKES: usize = 32;

/// Accepts exactly the certificates whose SHA-256 is pinned; names and dates do not matter.
#[derive(Debug)]
struct Pinned {
    fingerprints: Vec<String>,
    provider: Arc<CryptoProvider>,
}

impl ClientCertVerifier for Pinned {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let fingerprint = measure::hex(&Sha256::digest(certificate));
        if self.fingerprints.contains(&fingerprint) {
            return Ok(ClientCertVerified::assertion());
        }
        println!("api: the client certificate {fingerprint} is not pinned in node.toml");
        Err(rustls::Error::InvalidCertificate(rustls::CertificateError::ApplicationVerificationFailure))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Connections whose handshake is done. Handshakes run beside each other, so that a slow one holds nobody up.
pub struct TlsListener {
    ready: mpsc::Receiver<(TlsStream<TcpStream>, SocketAddr)>,
    address: SocketAddr,
}

impl TlsListener {
    pub async fn bind(listen: &str, owners: &[String], dir: &Path) -> Result<Self> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let (certificate, key) = identity(dir)?;
        let verifier = Arc::new(Pinned { fingerprints: owners.to_vec(), provider: provider.clone() });
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![certificate], key)?;
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind(listen).await.with_context(|| format!("cannot listen on {listen}"))?;
        let address = listener.local_addr()?;
        let (sender, ready) = mpsc::channel(MOST_HANDSHAKES);
        let limit = Arc::new(tokio::sync::Semaphore::new(MOST_HANDSHAKES));
        tokio::spawn(async move {
            loop {
                let Ok(permit) = limit.clone().acquire_owned().await else { return };
                let (stream, peer) = match listener.accept().await {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        // Out of descriptors, most likely: others must end first.
                        println!("api: {error}");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                };
                let (acceptor, sender) = (acceptor.clone(), sender.clone());
                tokio::spawn(async move {
                    let _permit = permit;
                    if let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE_WITHIN, acceptor.accept(stream)).await {
                        let _ = sender.send((stream, peer)).await;
                    }
                });
            }
        });
        Ok(Self { ready, address })
    }
}

impl Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match self.ready.recv().await {
            Some(connection) => connection,
            // The task that accepts never ends.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        Ok(self.address)
    }
}

/// The node's certificate and key, made at the first start.
fn identity(dir: &Path) -> Result<(CertificateDer<'static>, PrivateKeyDer<'static>)> {
    let (crt, key) = (dir.join("node.crt"), dir.join("node.key"));
    if !crt.exists() {
        let mut params = rcgen::CertificateParams::new(vec!["basalt-node".to_owned()])?;
        params.distinguished_name.push(rcgen::DnType::CommonName, "Basalt node");
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2120, 1, 1);
        let pair = rcgen::KeyPair::generate()?;
        let certificate = params.self_signed(&pair)?;
        // The certificate comes last: where it is, the key is.
        files::write(&key, pair.serialize_pem().as_bytes())?;
        files::write(&crt, certificate.pem().as_bytes())?;
    }
    let certificate = CertificateDer::from_pem_file(&crt).with_context(|| format!("{} is damaged", crt.display()))?;
    println!("api: this node's certificate is {}", measure::hex(&Sha256::digest(&certificate)));
    Ok((certificate, PrivateKeyDer::from_pem_file(&key).with_context(|| format!("{} is damaged", key.display()))?))
}
