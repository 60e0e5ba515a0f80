//! TLS for the owner's API: the node has a certificate of its own making, the owner's is pinned in
//! node.toml.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use axum::serve::Listener;
use config::{Api, Attest};
use rustls::DigitallySignedStruct;
use rustls::DistinguishedName;
use rustls::SignatureScheme;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use sha2::{Digest as _, Sha256};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::AbortHandle;
use tokio_rustls::TlsAcceptor;

use super::access::{Connection, Guest};
use crate::keys::derive::ModuleKeys;
use crate::keys::seal;
use crate::util::atomic_file;

const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
const MOST_HANDSHAKES: usize = 256;
const MOST_STRANGERS: usize = 16;

/// Accepts exactly the certificates whose SHA-256 is pinned; names and dates do not matter.
#[derive(Debug)]
struct Pinned {
    fingerprints: Vec<String>,
    /// Whether somebody without a certificate is let in; one with another certificate never is.
    strangers: bool,
    provider: Arc<CryptoProvider>,
}

impl ClientCertVerifier for Pinned {
    fn client_auth_mandatory(&self) -> bool {
        !self.strangers
    }

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
        Err(rustls::Error::InvalidCertificate(
            rustls::CertificateError::ApplicationVerificationFailure,
        ))
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

/// Connections whose handshake is done. Handshakes run beside each other, so that a slow one holds
/// nobody up.
pub struct TlsListener {
    ready: mpsc::Receiver<(Connection, Guest)>,
    /// SHA-256 of the node's certificate, hex.
    pub fingerprint: String,
}

impl TlsListener {
    /// `secret` is this TPM's: the key of the certificate is kept under it in `dir`.
    pub async fn bind(
        api: &Api,
        owners: &[String],
        dir: &Path,
        secret: &ModuleKeys,
    ) -> Result<Self> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let (certificate, key) = identity(dir, secret)?;
        let fingerprint = measure::hex(&Sha256::digest(&certificate));
        println!("api: this node's certificate is {fingerprint}");
        let strangers = api.attest == Attest::Anyone;
        let verifier = Arc::new(Pinned {
            fingerprints: owners.to_vec(),
            strangers,
            provider: provider.clone(),
        });
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![certificate], key)?;
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind(&api.listen)
            .await
            .with_context(|| format!("cannot listen on {}", api.listen))?;
        let (sender, ready) = mpsc::channel(MOST_HANDSHAKES);
        let places = Arc::new(Semaphore::new(MOST_STRANGERS));
        tokio::spawn(async move {
            let mut begun: VecDeque<AbortHandle> = VecDeque::new();
            loop {
                let stream = match listener.accept().await {
                    Ok((accepted, _)) => accepted,
                    Err(error) => {
                        // Out of descriptors, most likely: others must end first.
                        println!("api: {error}");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                };
                let (acceptor, sender, places) = (acceptor.clone(), sender.clone(), places.clone());
                begun.retain(|handshake| !handshake.is_finished());
                if begun.len() >= MOST_HANDSHAKES {
                    // Whoever says nothing for longest makes room: silence must not keep owners
                    // out.
                    begun.pop_front().inspect(AbortHandle::abort);
                }
                let handshake = tokio::spawn(async move {
                    let Ok(Ok(stream)) =
                        tokio::time::timeout(HANDSHAKE_WITHIN, acceptor.accept(stream)).await
                    else {
                        return;
                    };
                    // The handshake let in no certificate but pinned ones.
                    let owner = stream
                        .get_ref()
                        .1
                        .peer_certificates()
                        .is_some_and(|shown| !shown.is_empty());
                    let connection = match owner {
                        true => (Connection::owner(stream), Guest::Owner),
                        false => match places.try_acquire_owned() {
                            Ok(place) => (Connection::stranger(stream, place), Guest::Stranger),
                            // There are enough of them; owners still come through.
                            Err(_) => return,
                        },
                    };
                    let _ = sender.send(connection).await;
                });
                begun.push_back(handshake.abort_handle());
            }
        });
        Ok(Self { ready, fingerprint })
    }
}

impl Listener for TlsListener {
    type Io = Connection;
    type Addr = Guest;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match self.ready.recv().await {
            Some(connection) => connection,
            // The task that accepts never ends.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> std::io::Result<Guest> {
        Ok(Guest::Owner)
    }
}

/// The node's certificate and key, made at the first start; again if it cannot read the key: then
/// it is another TPM.
fn identity(
    dir: &Path,
    secret: &ModuleKeys,
) -> Result<(CertificateDer<'static>, PrivateKeyDer<'static>)> {
    const CONTEXT: &[u8] = b"tls";
    let (crt, key) = (dir.join("node.crt"), dir.join("node.key"));
    let kept =
        std::fs::read(&key).ok().and_then(|sealed| seal::unseal(secret, CONTEXT, &sealed).ok());
    if let (true, Some(kept)) = (crt.exists(), kept) {
        let certificate = CertificateDer::from_pem_file(&crt)
            .with_context(|| format!("{} is damaged", crt.display()))?;
        return Ok((certificate, PrivatePkcs8KeyDer::from(kept.to_vec()).into()));
    }
    let mut params = rcgen::CertificateParams::new(vec!["basalt-node".to_owned()])?;
    params.distinguished_name.push(rcgen::DnType::CommonName, "Basalt node");
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2120, 1, 1);
    let pair = rcgen::KeyPair::generate()?;
    let certificate = params.self_signed(&pair)?;
    // The certificate goes first and comes last: where it is, the key is.
    atomic_file::remove(&crt)?;
    atomic_file::write(&key, &seal::seal(secret, CONTEXT, &pair.serialize_der())?)?;
    atomic_file::write(&crt, certificate.pem().as_bytes())?;
    Ok((certificate.der().clone(), PrivatePkcs8KeyDer::from(pair.serialize_der()).into()))
}
