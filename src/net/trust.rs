//! Whom to trust: which certificates registries may show.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, OtherError, RootCertStore,
    SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject as _},
    server::ParsedCertificate,
};

/// As webpki says of a certificate that it is an authority's.
const SIGNS_OTHERS: &str = "CaUsedAsEndEntity";

/// Which certificates a registry may show.
#[derive(Clone)]
pub struct Trust {
    config: Arc<ClientConfig>,
    /// For the token exchange on the pool, which has a client of its own.
    pub roots: Arc<Vec<CertificateDer<'static>>>,
    pub is_unchecked: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    #[error("{path} cannot be read: {cause}", path = path.display())]
    Unreadable { path: PathBuf, cause: io::Error },
    #[error("{path} holds no certificate in PEM", path = path.display())]
    NoCertificate { path: PathBuf },
}

impl Trust {
    /// The platform's roots, or Mozilla's where it has none.
    pub fn platform() -> Self {
        let native = rustls_native_certs::load_native_certs().certs;
        let mut store = RootCertStore::empty();
        let (usable, _) = store.add_parsable_certificates(native.iter().cloned());
        if usable == 0 {
            store.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        }
        Self::with_roots(store, native)
    }

    /// Authorities, or registries' own certificates.
    pub fn from_file(path: &Path) -> Result<Self, TrustError> {
        let pem = fs::read(path).map_err(|cause| TrustError::Unreadable {
            path: path.to_owned(),
            cause,
        })?;
        let roots: Vec<_> = CertificateDer::pem_slice_iter(&pem)
            .filter_map(Result::ok)
            .collect();
        let mut store = RootCertStore::empty();
        let (usable, _) = store.add_parsable_certificates(roots.iter().cloned());
        if usable == 0 {
            return Err(TrustError::NoCertificate {
                path: path.to_owned(),
            });
        }
        Ok(Self::with_roots(store, roots))
    }

    /// Any certificate: the operator said `insecure`.
    pub fn unchecked() -> Self {
        Self {
            config: client(Arc::new(ring::default_provider()), Rule::Any),
            roots: Arc::default(),
            is_unchecked: true,
        }
    }

    pub(super) fn client(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.config)
    }

    /// Tells apart what is trusted, for keeping connections apart.
    pub fn identity(&self) -> usize {
        Arc::as_ptr(&self.config).addr()
    }

    fn with_roots(store: RootCertStore, roots: Vec<CertificateDer<'static>>) -> Self {
        let provider = Arc::new(ring::default_provider());
        let roots = Arc::new(roots);
        let rule = Rule::listed(store, &roots, &provider);
        Self {
            config: client(provider, rule),
            roots,
            is_unchecked: false,
        }
    }
}

fn client(provider: Arc<CryptoProvider>, rule: Rule) -> Arc<ClientConfig> {
    let verifier = Verifier {
        rule,
        provider: Arc::clone(&provider),
    };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has the default versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Arc::new(config)
}

/// Which certificates are good. That the other side holds a certificate's key, it proves in the same way for all.
#[derive(Debug)]
struct Verifier {
    rule: Rule,
    provider: Arc<CryptoProvider>,
}

#[derive(Debug)]
enum Rule {
    Any,
    /// Certificates of authorities and what they sign, and the listed certificates themselves. What a registry makes for itself
    /// with one command of openssl says of itself that it signs others, and such a one is no server's for webpki; but whoever lists
    /// it means it. Only here: `ureq`, which asks token servers, takes authorities alone.
    Listed {
        authorities: Arc<WebPkiServerVerifier>,
        listed: Arc<Vec<CertificateDer<'static>>>,
    },
}

impl Rule {
    fn listed(
        store: RootCertStore,
        listed: &Arc<Vec<CertificateDer<'static>>>,
        provider: &Arc<CryptoProvider>,
    ) -> Self {
        let authorities =
            WebPkiServerVerifier::builder_with_provider(Arc::new(store), Arc::clone(provider));
        Self::Listed {
            authorities: authorities.build().expect("the store is not empty"),
            listed: Arc::clone(listed),
        }
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Rule::Listed {
            authorities,
            listed,
        } = &self.rule
        else {
            return Ok(ServerCertVerified::assertion());
        };
        match authorities.verify_server_cert(end_entity, intermediates, name, ocsp_response, now) {
            // Its time is looked at before what it says of itself.
            Err(rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(cause))))
                if cause.to_string() == SIGNS_OTHERS && listed.contains(end_entity) =>
            {
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, name)?;
                Ok(ServerCertVerified::assertion())
            }
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// Why there is no session, and what to change if the registry is right.
pub(super) fn explain(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            "nobody who is trusted has signed its certificate; if it is right, name it or its authority in ca_file".to_owned()
        }
        rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(cause)))
            if cause.to_string() == SIGNS_OTHERS =>
        {
            "its certificate is one of an authority; if it is right, name it in ca_file".to_owned()
        }
        error => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};

    use super::*;

    /// As `openssl req -x509` makes it.
    fn own_certificate(names: &[&str]) -> CertificateDer<'static> {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2030, 1, 1);
        let key = KeyPair::generate().expect("a key");
        let made = params.self_signed(&key).expect("a certificate");
        made.der().clone()
    }

    fn year(number: u64) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs((number - 1970) * 31_556_952))
    }

    #[test]
    fn what_is_listed_is_trusted_for_its_names_and_its_time() {
        let (listed, other) = (
            own_certificate(&["r.example"]),
            own_certificate(&["r.example"]),
        );
        let mut store = RootCertStore::empty();
        store.add(listed.clone()).expect("a certificate");
        let provider = Arc::new(ring::default_provider());
        let rule = Rule::listed(store, &Arc::new(vec![listed.clone()]), &provider);
        let verifier = Verifier { rule, provider };
        for (shown, name, now, expected) in [
            (&listed, "r.example", year(2025), None),
            (
                &listed,
                "s.example",
                year(2025),
                Some("not valid for name \"s.example\""),
            ),
            (&listed, "r.example", year(2031), Some("expired")),
            (&listed, "r.example", year(2019), Some("not valid yet")),
            (&other, "r.example", year(2025), Some("ca_file")),
        ] {
            let server = ServerName::try_from(name).expect("a name");
            let verified = verifier.verify_server_cert(shown, &[], &server, &[], now);
            let said = verified.err().map(|error| explain(&error));
            match (&said, expected) {
                (None, None) => {}
                (Some(said), Some(part)) if said.contains(part) => {}
                _ => panic!("{name}: {said:?} and not {expected:?}"),
            }
        }
    }
}
