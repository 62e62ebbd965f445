//! Certificates for the product's listener.

use std::{fs, path::PathBuf, sync::Arc};

use rcgen::{CertificateParams, DnType, Issuer, KeyPair};
use rustls::{ClientConfig, RootCertStore, crypto::ring};
use tempfile::TempDir;

/// A certificate authority in a folder, and the pair that tidegate is told to use.
pub struct Authority {
    folder: TempDir,
    key: KeyPair,
    params: CertificateParams,
    pub client: Arc<ClientConfig>,
}

impl Authority {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(DnType::CommonName, "the tests' authority");
        let certificate = params.self_signed(&key).expect("a certificate");
        // skopeo takes every `.crt` of a folder, so that the root has one of its own.
        let roots = folder.path().join("roots");
        fs::create_dir(&roots).expect("a writable folder");
        fs::write(roots.join("ca.crt"), certificate.pem()).expect("a writable folder");
        let mut store = RootCertStore::empty();
        store
            .add(certificate.der().clone())
            .expect("a usable certificate");
        let mut client = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("the provider has the default versions")
            .with_root_certificates(store)
            .with_no_client_auth();
        client.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let authority = Self {
            folder,
            key,
            params,
            client: Arc::new(client),
        };
        authority.issue();
        authority
    }

    /// Writes a new pair, and returns the certificate.
    pub fn issue(&self) -> Vec<u8> {
        let (certificate, key, der) = self.pair();
        fs::write(self.certificate_file(), certificate).expect("a writable folder");
        fs::write(self.key_file(), key).expect("a writable folder");
        der
    }

    /// A new certificate with its key, in PEM, and the certificate alone.
    pub fn pair(&self) -> (String, String, Vec<u8>) {
        let key = KeyPair::generate().expect("a key");
        let params =
            CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("an address is a name");
        let issuer = Issuer::from_params(&self.params, &self.key);
        let certificate = params.signed_by(&key, &issuer).expect("a certificate");
        (
            certificate.pem(),
            key.serialize_pem(),
            certificate.der().to_vec(),
        )
    }

    pub fn certificate_file(&self) -> PathBuf {
        self.folder.path().join("server.crt")
    }

    pub fn key_file(&self) -> PathBuf {
        self.folder.path().join("server.key")
    }

    pub fn roots(&self) -> PathBuf {
        self.folder.path().join("roots")
    }

    pub fn section(&self, more: &str) -> String {
        format!(
            "[listener]\ntls = {{ cert_file = {:?}, key_file = {:?} }}\n{more}",
            self.certificate_file(),
            self.key_file()
        )
    }
}
