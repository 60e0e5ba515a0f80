//! TLS settings: the well-known authorities, or the certificates that node.toml lists for a
//! registry.
//!
//! A listed certificate is an authority or the server's own. Common tools make self-signed
//! certificates with `CA:TRUE`, which webpki rejects as a server's certificate. A server's
//! certificate that is listed byte for byte is therefore accepted, if its name and its validity
//! (RFC 5280, section 4.1.2.5) are right; listing it was the owner's decision to trust it.

use std::sync::Arc;

use anyhow::Context as _;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};
use webpki::{EndEntityCert, KeyUsage};

/// Returns the settings for hosts with a certificate of a well-known authority.
///
/// # Errors
///
/// Returns an error if the cryptography has no cipher suite for a protocol version.
pub(super) fn well_known() -> anyhow::Result<Arc<ClientConfig>> {
    let roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// Returns the settings for hosts whose certificate, or that of their authority, is in `pem`.
///
/// # Errors
///
/// Returns an error if `pem` has no certificate or one that cannot be parsed.
pub(super) fn listed(pem: &str) -> anyhow::Result<Arc<ClientConfig>> {
    let (mut roots, mut listed) = (RootCertStore::empty(), Vec::new());
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let certificate = certificate.context("expected certificates in PEM")?;
        roots.add(certificate.clone()).context("expected X.509 certificates")?;
        listed.push(certificate);
    }
    anyhow::ensure!(!listed.is_empty(), "expected certificates in PEM, found none");
    let provider = provider();
    let authorities =
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build()?;
    let verifier = ListedVerifier { listed, authorities, provider: provider.clone() };
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    Ok(Arc::new(config))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Verifier that accepts what webpki accepts, and listed certificates themselves.
#[derive(Debug)]
struct ListedVerifier {
    listed: Vec<CertificateDer<'static>>,
    authorities: Arc<WebPkiServerVerifier>,
    provider: Arc<CryptoProvider>,
}

impl ListedVerifier {
    /// Verifies a listed certificate: everything but its issuer.
    fn verify_listed(
        &self,
        certificate: &CertificateDer<'_>,
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let parsed = EndEntityCert::try_from(certificate)
            .map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        let usage = KeyUsage::server_auth();
        // Without authorities there is always an error. These two come after the verification of
        // the validity, as the tests of this file make sure.
        match parsed.verify_for_usage(algorithms, &[], &[], now, usage, None, None).err() {
            Some(webpki::Error::CaUsedAsEndEntity | webpki::Error::UnknownIssuer) => {}
            Some(webpki::Error::CertExpired { .. }) => {
                return Err(Error::InvalidCertificate(CertificateError::Expired));
            }
            Some(webpki::Error::CertNotValidYet { .. }) => {
                return Err(Error::InvalidCertificate(CertificateError::NotValidYet));
            }
            _ => {
                let problem = CertificateError::ApplicationVerificationFailure;
                return Err(Error::InvalidCertificate(problem));
            }
        }
        rustls::client::verify_server_name(&ParsedCertificate::try_from(certificate)?, name)?;
        Ok(ServerCertVerified::assertion())
    }
}

impl ServerCertVerifier for ListedVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self.authorities.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        );
        match verified {
            Err(_) if self.listed.contains(end_entity) => {
                self.verify_listed(end_entity, server_name, now)
            }
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.authorities.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.authorities.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.authorities.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};

    use super::*;

    /// 2026-11-27.
    const NOW: u64 = 1_795_737_600;

    fn params(is_ca: bool, from: i32, until: i32) -> CertificateParams {
        let mut params = CertificateParams::new(vec!["registry.example".to_owned()]).unwrap();
        if is_ca {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }
        params.not_before = date_time_ymd(from, 1, 1);
        params.not_after = date_time_ymd(until, 1, 1);
        params
    }

    fn self_signed(params: CertificateParams) -> rcgen::Certificate {
        params.self_signed(&KeyPair::generate().unwrap()).unwrap()
    }

    /// Verifies a server's certificate with the settings for the `listed` one.
    fn verify(listed_pem: &str, server: &[u8], name: &str) -> Result<(), String> {
        let mut roots = RootCertStore::empty();
        let listed: Vec<_> = CertificateDer::pem_slice_iter(listed_pem.as_bytes())
            .map(|certificate| certificate.unwrap())
            .collect();
        listed.iter().for_each(|certificate| roots.add(certificate.clone()).unwrap());
        let authorities = WebPkiServerVerifier::builder_with_provider(roots.into(), provider());
        let authorities = authorities.build().unwrap();
        let verifier = ListedVerifier { listed, authorities, provider: provider() };
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let now = UnixTime::since_unix_epoch(Duration::from_secs(NOW));
        let verified =
            verifier.verify_server_cert(&CertificateDer::from(server), &[], &name, &[], now);
        verified.map(drop).map_err(|error| error.to_string())
    }

    #[test]
    fn a_listed_certificate_is_accepted_with_and_without_ca_true() {
        for is_ca in [true, false] {
            let own = self_signed(params(is_ca, 2020, 2030));
            assert_eq!(verify(&own.pem(), own.der(), "registry.example"), Ok(()), "{is_ca}");
        }
    }

    #[test]
    fn a_listed_certificate_needs_the_name_and_the_time() {
        for is_ca in [true, false] {
            let own = self_signed(params(is_ca, 2020, 2030));
            let error = verify(&own.pem(), own.der(), "other.example").unwrap_err();
            assert!(error.contains("not valid for name"), "{error}");
            for (from, until, message) in [(2010, 2020, "Expired"), (2027, 2030, "NotValidYet")] {
                let own = self_signed(params(is_ca, from, until));
                let error = verify(&own.pem(), own.der(), "registry.example").unwrap_err();
                assert!(error.contains(message), "{is_ca} {message}: {error}");
            }
        }
    }

    #[test]
    fn a_certificate_that_is_not_listed_needs_an_authority() {
        let key = KeyPair::generate().unwrap();
        let authority = params(true, 2020, 2030).self_signed(&key).unwrap();
        let issuer = Issuer::new(params(true, 2020, 2030), key);
        let server = |is_ca| {
            let key = KeyPair::generate().unwrap();
            params(is_ca, 2020, 2030).signed_by(&key, &issuer).unwrap()
        };
        let name = "registry.example";
        assert_eq!(verify(&authority.pem(), server(false).der(), name), Ok(()));
        // Another certificate with CA:TRUE, of the authority or of another key.
        assert!(verify(&authority.pem(), server(true).der(), name).is_err());
        let foreign = self_signed(params(true, 2020, 2030));
        assert!(verify(&authority.pem(), foreign.der(), name).is_err());
        // A server's certificate can be listed without its authority.
        let own = server(false);
        assert_eq!(verify(&own.pem(), own.der(), name), Ok(()));
    }

    #[test]
    fn a_text_without_certificates_is_rejected() {
        assert!(listed("").is_err() && listed("no certificate").is_err());
        assert!(well_known().is_ok());
    }
}
