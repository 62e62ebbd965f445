//! The story without a server: one core in a command's own process, for whoever runs the command. He is nobody's tenant,
//! so private addresses are as good to him as others, and the operator's logins are his own.

use std::{
    collections::HashSet,
    path::PathBuf,
    rc::Rc,
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use super::{
    StartError,
    runtime::{self, Choice},
    scratch::Scratch,
    spawn,
    story::{self, Logins, Story},
};
use crate::{
    blocking::Pool,
    cache::{Cache, Intent, Selection},
    config::Config,
    mirror::{Kind, Mirror, Progress, PushRule, Snapshot, State},
    net::{Addresses, Transfer, pipes_for_each},
    oci::Digest,
    pull::Pull,
    requests::Requests,
    sys,
    units::HumanDuration,
};

/// How often whoever watches is shown how far it is.
const TICK: Duration = Duration::from_millis(100);
/// What was cancelled takes back what it has begun at registries, and they may be slow.
const CANCEL_GRACE: Duration = Duration::from_secs(15);

pub struct Standalone {
    story: Arc<Story>,
    signals: sys::Signals,
    choice: Choice,
    config: Config,
    keeps_cache: bool,
    scratch: Scratch,
}

/// What work is done with, on its core.
pub struct Core {
    pub pool: Arc<Pool>,
    pub pull: Rc<Pull>,
    pub mirror: Rc<Mirror>,
    /// In memory of this run only.
    pub requests: Arc<Requests>,
}

/// How work ended.
pub struct Ended<T> {
    /// `None`: it was given up.
    pub answer: Option<T>,
    /// That came meanwhile.
    pub signal: Option<i32>,
}

enum Event<T> {
    Done(T),
    /// Its panic's message has been printed.
    Broken,
    Signal(i32),
}

impl Standalone {
    /// Blobs are kept in `cache` if there is one, else not longer than they are needed. Also says what is to be known about
    /// files with logins. To be called before any thread is started.
    pub fn start(
        mut config: Config,
        cache: Option<PathBuf>,
    ) -> Result<(Self, Vec<String>), StartError> {
        let signals = sys::Signals::block_termination().map_err(StartError::Thread)?;
        sys::raise_open_files();
        let choice = runtime::choose(config.driver).map_err(StartError::Driver)?;
        let scratch = Scratch::create().map_err(StartError::Scratch)?;
        config.anonymous = true;
        // Whoever runs the command has all to himself.
        config.tokens.max_layers_size_per_tenant = Some(config.tokens.max_layers_size);
        // A command does not live for so long.
        config.cache.scrub_interval = HumanDuration::seconds(0);
        let pool = Pool::start().map_err(StartError::Thread)?;
        let endpoints = story::endpoints(&config, Addresses::Any)?;
        let (logins, warnings) = Logins::load(&config, &pool)?;
        let keyring = logins.keyring(&config, None);
        let requests = Requests::open(&scratch.path().join("state"), &config.tokens)?;
        let keeps_cache = cache.is_some();
        let cache = match cache {
            Some(folder) => Cache::load(folder, &config.cache, Arc::clone(&pool)),
            None => Cache::scratch(
                scratch.path().join("cache"),
                &config.cache,
                Arc::clone(&pool),
            ),
        };
        let cache = cache.map_err(StartError::Cache)?;
        let story = Story::new(
            &config,
            pool,
            endpoints,
            (logins, keyring),
            Arc::new(requests),
            cache,
        );
        let standalone = Self {
            story: Arc::new(story),
            signals,
            choice,
            config,
            keeps_cache,
            scratch,
        };
        Ok((standalone, warnings))
    }

    /// Does `work` on a core, and shows meanwhile how far it is. SIGINT, SIGTERM and SIGHUP cancel it; a second one does not wait.
    /// What it leaves behind is gone when this returns.
    pub fn run<T, F>(
        self,
        progress: &Arc<Progress>,
        work: impl FnOnce(Core, Arc<Progress>) -> F + Send + 'static,
        mut show: impl FnMut(&Snapshot),
    ) -> Result<Ended<T>, StartError>
    where
        T: Send + 'static,
        F: Future<Output = T>,
    {
        let (events, told) = mpsc::channel();
        let (signals, to_main) = (self.signals, events.clone());
        let wait = move || while to_main.send(Event::Signal(signals.wait().number())).is_ok() {};
        spawn("signals", wait)?;
        let (story, options) = (Arc::clone(&self.story), self.config.mirror.clone());
        let (choice, tracked) = (self.choice.clone(), Arc::clone(progress));
        spawn("core-0", move || {
            let broken = Broken(events.clone());
            let mut core = match runtime::build(&choice) {
                Ok(core) => core,
                Err(error) => {
                    eprintln!("tidegate: a core has no runtime: {error}");
                    return;
                }
            };
            core.block_on(async move {
                let transfer = Transfer::new(Arc::clone(&story.pool), pipes_for_each(1));
                let pull = story.on_this_core(&transfer);
                monoio::spawn(story::close_idle(Rc::clone(&pull)));
                let rule = PushRule {
                    is_shared: true,
                    ..PushRule::default()
                };
                let core = Core {
                    pool: Arc::clone(&story.pool),
                    mirror: Mirror::new(&pull, &options, rule, &Arc::default()),
                    requests: Arc::clone(&story.requests),
                    pull,
                };
                // Stacks are small.
                let answer = Box::pin(work(core, tracked)).await;
                let _ = events.send(Event::Done(answer));
            });
            // The kernel may still write into buffers of this runtime; the process ends as a whole.
            std::mem::forget(broken);
            loop {
                thread::park();
            }
        })?;

        let mut passing = match self.keeps_cache {
            true => None,
            false => Some(Passing::default()),
        };
        let mut ended = Ended {
            answer: None,
            signal: None,
        };
        let mut deadline = None;
        loop {
            match told.recv_timeout(TICK) {
                Ok(Event::Done(answer)) => {
                    ended.answer = Some(answer);
                    break;
                }
                Ok(Event::Broken) => break,
                Ok(Event::Signal(number)) => {
                    if ended.signal.replace(number).is_some() {
                        break;
                    }
                    progress.cancel();
                    deadline = Some(Instant::now() + CANCEL_GRACE);
                }
                Err(_) => {}
            }
            if deadline.is_some_and(|deadline| Instant::now() > deadline) {
                break;
            }
            let snapshot = progress.snapshot();
            show(&snapshot);
            if let Some(passing) = &mut passing {
                passing.let_go(&self.story.cache, &snapshot);
            }
        }
        show(&progress.snapshot());
        if self.keeps_cache {
            self.story.cache.close();
        }
        drop(self.scratch);
        Ok(ended)
    }
}

/// Tells if the core ends without an answer.
struct Broken<T>(mpsc::Sender<Event<T>>);

impl<T> Drop for Broken<T> {
    fn drop(&mut self) {
        let _ = self.0.send(Event::Broken);
    }
}

/// Layers that are only passed on: what the destination has is not kept.
#[derive(Default)]
struct Passing {
    gone: HashSet<Digest>,
}

impl Passing {
    fn let_go(&mut self, cache: &Cache, snapshot: &Snapshot) {
        for item in &snapshot.items {
            if item.state == State::Copied
                && item.kind == Kind::Layer
                && self.gone.insert(item.digest)
            {
                let selection = Selection {
                    digest: Some(item.digest),
                    ..Selection::default()
                };
                cache.remove(&selection, 0, Intent::Do);
            }
        }
    }
}
