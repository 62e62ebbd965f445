//! The product's client for pushes, in this process: a core of its own, and blobs to push.

use std::{fs::File, io::Write as _, sync::Arc, time::Duration};

use bytes::Bytes;
use monoio::{IoUringDriver, LegacyDriver, RuntimeBuilder};
use tidegate::{
    blocking::Pool,
    net::{Addresses, Dialer, Piece, Transfer},
    oci::{Credentials, Digest, Registry, Repository},
    secret::Secret,
    upstream::{
        Authorizer, Endpoints, Exchange, Login, Options, RegistryOptions, Target, Upload,
        UploadError, Upstream,
    },
};

/// How it reaches its registries, and as whom.
pub struct Pushing {
    pub options: Options,
    pub tables: Vec<(String, RegistryOptions)>,
    pub login: Login,
}

impl Pushing {
    pub fn to(name: &str) -> Self {
        let table = RegistryOptions {
            allow_private: true,
            ..RegistryOptions::default()
        };
        Self {
            options: Options::default(),
            tables: vec![(name.to_owned(), table)],
            login: login(None),
        }
    }

    pub fn and(mut self, name: &str) -> Self {
        self.tables.extend(Self::to(name).tables);
        self
    }

    pub fn trusting(mut self, ca_file: &std::path::Path) -> Self {
        for (_, table) in &mut self.tables {
            table.ca_file = Some(ca_file.to_owned());
        }
        self
    }

    pub fn with_login(mut self, user: &str, password: &str) -> Self {
        self.login = login(Some((user, password)));
        self
    }

    /// Runs on a core with io_uring if the system lets us have it, and on one with epoll.
    pub fn on_each_driver(&self, work: impl AsyncFn(&Upstream, Target<'_>)) {
        if monoio::utils::detect_uring() {
            RuntimeBuilder::<IoUringDriver>::new()
                .enable_timer()
                .build()
                .expect("the kernel has io_uring")
                .block_on(self.run(&work));
        }
        self.on_a_core(work);
    }

    pub fn on_a_core<T>(&self, work: impl AsyncFn(&Upstream, Target<'_>) -> T) -> T {
        RuntimeBuilder::<LegacyDriver>::new()
            .enable_timer()
            .build()
            .expect("epoll is everywhere")
            .block_on(self.run(&work))
    }

    async fn run<T>(&self, work: &impl AsyncFn(&Upstream, Target<'_>) -> T) -> T {
        let pool = Pool::start().expect("threads");
        let dialer = Dialer::new(Arc::clone(&pool), *self.options.connect_timeout);
        let transfer = Transfer::new(Arc::clone(&pool), 4);
        let exchange = Exchange::new(dialer, transfer, self.options.clone());
        let tables: Vec<_> = self
            .tables
            .iter()
            .map(|(name, table)| (name.parse().expect("a pattern"), table.clone()))
            .collect();
        let endpoints = Endpoints::load(&tables, Addresses::Public, true)
            .unwrap_or_else(|_| panic!("good tables"));
        let authorizer = Authorizer::new(pool);
        let upstream = Upstream::new(
            Arc::new(endpoints),
            authorizer,
            exchange,
            self.options.clone(),
        );
        let (name, _) = self.tables.first().expect("a registry");
        let registry: Registry = name.parse().expect("a registry's name");
        let repository: Repository = "acme/app".parse().expect("a repository's name");
        let target = Target {
            registry: &registry,
            repository: &repository,
            login: &self.login,
        };
        work(&upstream, target).await
    }
}

fn login(pair: Option<(&str, &str)>) -> Login {
    Login {
        identity: pair.map_or("nobody", |(user, _)| user).into(),
        credentials: pair.map(|(username, password)| Credentials {
            username: username.to_owned(),
            password: Secret::new(password.to_owned()),
        }),
        renewal: None,
    }
}

/// A blob in a file, which is handed out in pieces of one kind and then of the other.
pub struct Source {
    pub digest: Digest,
    pub size: u64,
    /// Where it was told to go.
    pub seeks: Vec<u64>,
    bytes: Bytes,
    file: Arc<File>,
    position: u64,
    piece: u64,
    before_next: Box<dyn FnMut(u64)>,
    is_given_up: Box<dyn Fn() -> bool>,
}

impl Source {
    pub fn of(size: u64) -> Self {
        let mut state = size ^ 0x9e37_79b9_7f4a_7c15;
        let mut bytes = Vec::with_capacity(size as usize + 8);
        while (bytes.len() as u64) < size {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            bytes.extend(state.to_le_bytes());
        }
        bytes.truncate(size as usize);
        let mut file = tempfile::tempfile().expect("a temporary file");
        file.write_all(&bytes).expect("room for a blob");
        Self {
            digest: Digest::of(&bytes),
            size,
            seeks: Vec::new(),
            bytes: bytes.into(),
            file: Arc::new(file),
            position: 0,
            piece: 3 << 20,
            before_next: Box::new(|_| {}),
            is_given_up: Box::new(|| false),
        }
    }

    /// Called before a piece is handed out, with its place.
    pub fn before_next(mut self, act: impl FnMut(u64) + 'static) -> Self {
        self.before_next = Box::new(act);
        self
    }

    /// Given up as soon as this is so, whatever the registry does.
    pub fn given_up_when(mut self, is_so: impl Fn() -> bool + 'static) -> Self {
        self.is_given_up = Box::new(is_so);
        self
    }

    /// Says to be of a size that it is not.
    pub fn claiming(mut self, size: u64) -> Self {
        self.size = size;
        self
    }

    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }
}

impl Upload for Source {
    async fn seek(&mut self, position: u64) -> Result<(), UploadError> {
        self.seeks.push(position);
        self.position = position;
        Ok(())
    }

    async fn next(&mut self) -> Result<Option<Piece>, UploadError> {
        let start = self.position;
        (self.before_next)(start);
        let end = (self.bytes.len() as u64).min(start + self.piece);
        if start == end {
            return Ok(None);
        }
        self.position = end;
        let is_odd = (start / self.piece) % 2 == 1;
        Ok(Some(match is_odd {
            true => Piece::Bytes(self.bytes.slice(start as usize..end as usize)),
            false => Piece::File {
                file: Arc::clone(&self.file),
                range: start..end,
                is_complete: true,
            },
        }))
    }

    async fn given_up(&mut self) -> UploadError {
        while !(self.is_given_up)() {
            monoio::time::sleep(Duration::from_millis(10)).await;
        }
        UploadError {
            cause: "given up".to_owned(),
            is_transient: false,
        }
    }
}
