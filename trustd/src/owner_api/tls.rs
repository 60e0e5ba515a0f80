//! TLS for the owner's API. The node makes its own certificate, and node.toml pins the owners'.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use axum::serve::Listener;
use config::{Api, AttestationAccess};
use rustls::DigitallySignedStruct;
use rustls::DistinguishedName;
use rustls::SignatureScheme;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use sha2::{Digest as _, Sha256};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::AbortHandle;
use tokio_rustls::TlsAcceptor;

use super::connection::{Connection, PeerRole};
use crate::keys::derive::ModuleKeys;
use crate::keys::seal;
use crate::util::atomic_file;

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const MAX_HANDSHAKES: usize = 256;
const MAX_ANONYMOUS_CONNECTIONS: usize = 16;
/// Pause after a failed accept, which most likely means that there are no file descriptors left.
const ACCEPT_RETRY_PAUSE: Duration = Duration::from_millis(100);

/// Accepts exactly the client certificates whose SHA-256 is pinned. Names and dates in them do not
/// matter.
///
/// trustctl has the same methods for signatures: rustls has no default for them, and the two
/// programs share no crate that uses rustls.
#[derive(Debug)]
struct PinnedVerifier {
    fingerprints: Vec<String>,
    /// Whether clients without a certificate are accepted.
    accepts_anonymous: bool,
    provider: Arc<CryptoProvider>,
}

impl ClientCertVerifier for PinnedVerifier {
    fn client_auth_mandatory(&self) -> bool {
        !self.accepts_anonymous
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
        logging::warn!("rejected the client certificate {fingerprint}: node.toml does not pin it");
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

/// Listener that returns connections after their handshake. Handshakes run concurrently, so that a
/// slow client does not delay others.
pub struct TlsListener {
    ready: mpsc::Receiver<(Connection, PeerRole)>,
    /// SHA-256 of the node's certificate, hex.
    pub fingerprint: String,
}

impl TlsListener {
    /// Listens on the address of `api`, for the certificates whose SHA-256 are `owners`.
    ///
    /// `dir` has the node's certificate and its private key, which is encrypted with the keys of
    /// this TPM, `tpm_keys`.
    ///
    /// # Errors
    /// The certificate cannot be read or made, or the address cannot be used.
    pub async fn bind(
        api: &Api,
        owners: &[String],
        dir: &Path,
        tpm_keys: &ModuleKeys,
    ) -> Result<Self> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let (certificate, key) = load_or_make_identity(dir, tpm_keys)?;
        let fingerprint = measure::hex(&Sha256::digest(&certificate));
        logging::info!("this node's certificate is {fingerprint}");
        let verifier = Arc::new(PinnedVerifier {
            fingerprints: owners.to_vec(),
            accepts_anonymous: api.attest == AttestationAccess::Anyone,
            provider: provider.clone(),
        });
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![certificate], key)?;
        let listener = TcpListener::bind(&api.listen)
            .await
            .with_context(|| format!("cannot listen on {}", api.listen))?;
        let (sender, ready) = mpsc::channel(MAX_HANDSHAKES);
        let acceptor = Acceptor {
            tls: TlsAcceptor::from(Arc::new(config)),
            anonymous: Arc::new(Semaphore::new(MAX_ANONYMOUS_CONNECTIONS)),
            ready: sender,
        };
        tokio::spawn(accept_forever(listener, acceptor));
        Ok(Self { ready, fingerprint })
    }
}

impl Listener for TlsListener {
    type Io = Connection;
    type Addr = PeerRole;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match self.ready.recv().await {
            Some(connection) => connection,
            // Unreachable: the task that accepts connections never ends.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> std::io::Result<PeerRole> {
        Ok(PeerRole::Owner)
    }
}

/// TLS configuration and limits of a handshake.
#[derive(Clone)]
struct Acceptor {
    tls: TlsAcceptor,
    /// Permits of anonymous clients.
    anonymous: Arc<Semaphore>,
    ready: mpsc::Sender<(Connection, PeerRole)>,
}

impl Acceptor {
    /// Completes a handshake and hands the connection over, or drops it.
    async fn handshake(self, stream: TcpStream) {
        let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, self.tls.accept(stream));
        let Ok(Ok(stream)) = handshake.await else { return };
        // The handshake succeeds with a pinned certificate or none.
        let is_owner =
            stream.get_ref().1.peer_certificates().is_some_and(|chain| !chain.is_empty());
        let connection = if is_owner {
            (Connection::of_owner(stream), PeerRole::Owner)
        } else {
            // Too many anonymous clients: drop this one, so that owners are not affected.
            let Ok(permit) = self.anonymous.try_acquire_owned() else { return };
            (Connection::of_anonymous(stream, permit), PeerRole::Anonymous)
        };
        let _ = self.ready.send(connection).await;
    }
}

async fn accept_forever(listener: TcpListener, acceptor: Acceptor) {
    let mut handshakes: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                logging::warn!("cannot accept a connection: {error}");
                tokio::time::sleep(ACCEPT_RETRY_PAUSE).await;
                continue;
            }
        };
        handshakes.retain(|handshake| !handshake.is_finished());
        if handshakes.len() >= MAX_HANDSHAKES {
            // Too many handshakes: drop the oldest, so that idle clients cannot lock owners out.
            handshakes.pop_front().inspect(AbortHandle::abort);
        }
        let handshake = tokio::spawn(acceptor.clone().handshake(stream));
        handshakes.push_back(handshake.abort_handle());
    }
}

/// Loads the node's certificate and private key, or makes them.
///
/// They are made at the first start, and again if this TPM cannot decrypt the key, because it is
/// another TPM.
fn load_or_make_identity(
    dir: &Path,
    tpm_keys: &ModuleKeys,
) -> Result<(CertificateDer<'static>, PrivateKeyDer<'static>)> {
    const CONTEXT: &[u8] = b"tls";
    let (crt, key) = (dir.join("node.crt"), dir.join("node.key"));
    let stored =
        std::fs::read(&key).ok().and_then(|sealed| seal::unseal(tpm_keys, CONTEXT, &sealed).ok());
    if let (true, Some(stored)) = (crt.exists(), stored) {
        let certificate = CertificateDer::from_pem_file(&crt)
            .with_context(|| format!("{} is damaged", crt.display()))?;
        return Ok((certificate, PrivatePkcs8KeyDer::from(stored.to_vec()).into()));
    }
    let mut params = rcgen::CertificateParams::new(vec!["basalt-node".to_owned()])?;
    params.distinguished_name.push(rcgen::DnType::CommonName, "Basalt node");
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2120, 1, 1);
    let pair = rcgen::KeyPair::generate()?;
    let certificate = params.self_signed(&pair)?;
    // The certificate is removed first and written last, so that it never exists without its key.
    atomic_file::remove(&crt)?;
    atomic_file::write(&key, &seal::seal(tpm_keys, CONTEXT, &pair.serialize_der())?)?;
    atomic_file::write(&crt, certificate.pem().as_bytes())?;
    Ok((certificate.der().clone(), PrivatePkcs8KeyDer::from(pair.serialize_der()).into()))
}
