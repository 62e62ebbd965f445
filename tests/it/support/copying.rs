//! The product's copies in this process: one core with all that a copy needs, and nobody's server.

use std::{path::Path, rc::Rc, sync::Arc};

use monoio::{IoUringDriver, LegacyDriver, RuntimeBuilder};
use tempfile::TempDir;
use tidegate::{
    aws::{self, Aws, Environment},
    blocking::Pool,
    cache::{self, Cache},
    credentials::{Desk, Ecr, Exchange, Keyring},
    mirror::{Destination, Mirror, Options, Plan, PushRule},
    net::{Dialer, Transfer},
    oci::Reference,
    platform,
    pull::{self, Access, Common, Pull},
    requests::{self, Caller, Requests},
    upstream::{self, Authorizer, Endpoints, RegistryOptions, Upstream},
};

pub struct Copier {
    pub cache: cache::Options,
    pub mirror: Options,
    names: Vec<String>,
    folder: TempDir,
}

impl Copier {
    /// Reaches these registries, and other servers on this machine.
    pub fn between(names: &[&str]) -> Self {
        Self {
            cache: cache::Options::default(),
            mirror: Options::default(),
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            folder: tempfile::tempdir().expect("a temporary folder"),
        }
    }

    /// Runs on a core with io_uring if the system lets us have it, and on one with epoll. Each has a cache of its own.
    pub fn on_each_driver(&self, work: impl AsyncFn(&str, &Rc<Mirror>)) {
        if monoio::utils::detect_uring() {
            RuntimeBuilder::<IoUringDriver>::new()
                .enable_timer()
                .build()
                .expect("the kernel has io_uring")
                .block_on(async { work("uring", &self.start("uring")).await });
        }
        self.on_a_core(async |mirror| work("epoll", mirror).await);
    }

    pub fn on_a_core<T>(&self, work: impl AsyncFn(&Rc<Mirror>) -> T) -> T {
        RuntimeBuilder::<LegacyDriver>::new()
            .enable_timer()
            .build()
            .expect("epoll is everywhere")
            .block_on(async { work(&self.start("epoll")).await })
    }

    fn start(&self, name: &str) -> Rc<Mirror> {
        let home = self.folder.path().join(name);
        let pool = Pool::start().expect("threads");
        let options = upstream::Options::default();
        let dialer = Dialer::new(Arc::clone(&pool), *options.connect_timeout);
        let transfer = Transfer::new(Arc::clone(&pool), 4);
        let exchange = upstream::Exchange::new(dialer, transfer, options.clone());
        let upstream = Upstream::new(
            Arc::new(self.endpoints()),
            Authorizer::new(Arc::clone(&pool)),
            exchange,
            options,
        );
        let cache = Cache::load(home.join("cache"), &self.cache, Arc::clone(&pool));
        let common = common(&home, pool);
        let pull = Pull::new(upstream, cache.expect("a folder"), common);
        let rule = PushRule {
            is_shared: true,
            ..PushRule::default()
        };
        Mirror::new(&pull, &self.mirror, rule, &Arc::default())
    }

    fn endpoints(&self) -> Endpoints {
        let table = RegistryOptions {
            allow_private: true,
            ..RegistryOptions::default()
        };
        let tables: Vec<_> = self
            .names
            .iter()
            .map(|name| (name.parse().expect("a pattern"), table.clone()))
            .collect();
        Endpoints::load(&tables, tidegate::net::Addresses::Public, true)
            .unwrap_or_else(|_| panic!("good tables"))
    }
}

fn common(home: &Path, pool: Arc<Pool>) -> Common {
    let aws = Aws::new(aws::Options::default(), Environment::of_process());
    let ecr = Ecr::new(aws, Vec::new(), None, false);
    let keyring = Arc::new(Keyring::new(Vec::new(), None, true));
    let requests = Requests::open(&home.join("state"), &requests::Options::default());
    Common {
        desk: Desk::new(keyring, Arc::clone(&pool), &platform::Options::default()),
        exchange: Exchange::new(ecr, Arc::clone(&pool)),
        requests: Arc::new(requests.expect("a folder")),
        proofs: Arc::default(),
        shelf: Arc::default(),
        options: pull::Options::default(),
        pool,
    }
}

/// From one reference to another, as nobody in particular.
pub fn plan(from: &str, to: &str) -> Plan {
    let reference = |text: &str| -> Reference { text.parse().expect("a reference") };
    let (source, target) = (reference(from), reference(to));
    let caller = Arc::new(Caller::Anonymous);
    Plan {
        source: Access::by_caller(&caller, source.registry, source.repository),
        version: source.version,
        destination: Destination {
            registry: target.registry,
            repository: target.repository,
            version: target.version,
            caller,
        },
        platforms: None,
        referrers: true,
    }
}
