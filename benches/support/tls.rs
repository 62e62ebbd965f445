//! A certificate for every server, and a client that trusts it.

use std::{fs, path::Path, path::PathBuf, sync::Arc};

use rustls::{
    ClientConfig, RootCertStore,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, pem::PemObject as _},
};

/// ECDSA on P-256, for 127.0.0.1.
pub struct Certificate {
    pub certificate: PathBuf,
    pub key: PathBuf,
    pub client: Arc<ClientConfig>,
}

impl Certificate {
    pub fn create(folder: &Path) -> Self {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).expect("a key");
        let made = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()])
            .and_then(|parameters| parameters.self_signed(&key))
            .expect("a certificate");
        let (certificate, key_file) = (folder.join("tls.pem"), folder.join("tls.key"));
        fs::write(&certificate, made.pem()).expect("a writable folder");
        fs::write(&key_file, key.serialize_pem()).expect("a writable folder");
        let mut roots = RootCertStore::empty();
        for root in CertificateDer::pem_slice_iter(made.pem().as_bytes()).flatten() {
            roots.add(root).expect("a root");
        }
        // One suite, so that every server encrypts alike.
        let mut provider: CryptoProvider = ring::default_provider();
        provider
            .cipher_suites
            .retain(|suite| suite.suite() == rustls::CipherSuite::TLS13_AES_256_GCM_SHA384);
        let client = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("the suite is one of TLS 1.3")
            .with_root_certificates(roots)
            .with_no_client_auth();
        Self {
            certificate,
            key: key_file,
            client: Arc::new(client),
        }
    }
}
