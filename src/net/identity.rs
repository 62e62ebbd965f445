//! Who we are towards clients: a certificate and its key, from files that may be replaced while we run.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("cannot read {path}: {cause}", path = path.display())]
    Unreadable { path: PathBuf, cause: io::Error },
    #[error("{path} holds no certificate in PEM", path = path.display())]
    NoCertificate { path: PathBuf },
    #[error("{path} holds no private key in PEM; one with a passphrase cannot be used", path = path.display())]
    NoKey { path: PathBuf },
    #[error("the key in {key} does not belong to the first certificate in {certificate}", key = key.display(), certificate = certificate.display())]
    Mismatch { certificate: PathBuf, key: PathBuf },
    #[error("certificate and key cannot be used: {0}")]
    Unusable(#[source] rustls::Error),
}

impl IdentityError {
    /// The file to look at.
    pub fn is_about_the_key(&self) -> bool {
        matches!(self, Self::NoKey { .. } | Self::Mismatch { .. })
    }
}

/// What `renew` found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewed {
    Unchanged,
    /// New connections get the new certificate.
    Changed,
}

/// One for all cores: a session that began on one of them can be taken up on another.
pub struct Identity {
    certificate_file: PathBuf,
    key_file: PathBuf,
    pub(super) config: Arc<ServerConfig>,
    current: Arc<Current>,
    /// What the files held when they were last looked at, good or not.
    seen: Mutex<Files>,
}

#[derive(PartialEq, Eq)]
struct Files {
    certificates: Vec<u8>,
    key: Vec<u8>,
}

/// The pair in use.
struct Current(Mutex<Arc<CertifiedKey>>);

impl Identity {
    /// Blocks: for the start.
    pub fn load(certificate_file: &Path, key_file: &Path) -> Result<Self, IdentityError> {
        let seen = Files::read(certificate_file, key_file)?;
        let pair = seen.parse(certificate_file, key_file)?;
        let current = Arc::new(Current(Mutex::new(Arc::new(pair))));
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(IdentityError::Unusable)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&current) as Arc<_>);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.ticketer = ring::Ticketer::new().map_err(IdentityError::Unusable)?;
        Ok(Self {
            certificate_file: certificate_file.to_owned(),
            key_file: key_file.to_owned(),
            config: Arc::new(config),
            current,
            seen: Mutex::new(seen),
        })
    }

    /// Looks whether the files have changed, and takes what they hold now. A pair that cannot be used is told of once,
    /// and the one in use stays: whoever replaces two files is seen between them now and then. Blocks.
    pub fn renew(&self) -> Result<Renewed, IdentityError> {
        let found = Files::read(&self.certificate_file, &self.key_file)?;
        let mut seen = lock(&self.seen);
        if *seen == found {
            return Ok(Renewed::Unchanged);
        }
        *seen = found;
        let pair = seen.parse(&self.certificate_file, &self.key_file)?;
        *lock(&self.current.0) = Arc::new(pair);
        Ok(Renewed::Changed)
    }
}

impl Files {
    fn read(certificate_file: &Path, key_file: &Path) -> Result<Self, IdentityError> {
        let read = |path: &Path| {
            fs::read(path).map_err(|cause| IdentityError::Unreadable {
                path: path.to_owned(),
                cause,
            })
        };
        Ok(Self {
            certificates: read(certificate_file)?,
            key: read(key_file)?,
        })
    }

    fn parse(
        &self,
        certificate_file: &Path,
        key_file: &Path,
    ) -> Result<CertifiedKey, IdentityError> {
        let no_certificate = || IdentityError::NoCertificate {
            path: certificate_file.to_owned(),
        };
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&self.certificates).collect();
        let chain = chain.map_err(|_| no_certificate())?;
        if chain.is_empty() {
            return Err(no_certificate());
        }
        let key = PrivateKeyDer::from_pem_slice(&self.key).map_err(|_| IdentityError::NoKey {
            path: key_file.to_owned(),
        })?;
        CertifiedKey::from_der(chain, key, &ring::default_provider()).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => IdentityError::Mismatch {
                certificate: certificate_file.to_owned(),
                key: key_file.to_owned(),
            },
            error => IdentityError::Unusable(error),
        })
    }
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&lock(&self.0)))
    }
}

impl fmt::Debug for Current {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Current(…)")
    }
}

/// Every value behind these locks is whole between statements.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
