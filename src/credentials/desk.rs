//! Where the cores ask for logins.
//!
//! What is remembered is there at once. The rest is an errand, and one that may wait for another machine: it goes to a lane
//! of its own, and each Platform has but a part of that lane's threads, so that one that does not answer leaves room for
//! the others. Behind them a line forms, without threads; who stands there too long is told to come back. Those who want the
//! same stand there once.

use std::{
    collections::{HashMap, VecDeque},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use super::{Claim, FindError, IdentityError, Keyring, Login};
use crate::{
    blocking::{Errand, Pool, PoolError, Sender, lock, oneshot},
    oci::{Registry, Repository},
    platform::{self, FamilyId},
    requests::Caller,
    telemetry::metrics::{self, Counter},
};

/// In the line of one Platform, and waiting for one answer: as many as other errands have room for.
const MOST_WAITING: usize = 4096;
/// Of the lane's threads, for one Platform. A Platform that answers in a tenth of a second gets a hundred calls a second
/// with them.
const MOST_SEATS: usize = 16;

type FindAnswer = Result<Login, FindError>;
type Job = Box<dyn FnOnce() + Send>;

/// Who wants which login.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Question {
    family: FamilyId,
    workspace: Option<i64>,
    run: Option<String>,
    registry: Registry,
    repository: Repository,
}

#[derive(Default)]
struct Line {
    seats_taken: usize,
    waiting: VecDeque<Job>,
}

/// One for the process, shared by all cores.
pub struct Desk {
    keyring: Arc<Keyring>,
    pool: Arc<Pool>,
    seats: usize,
    /// From when somebody asks to his answer.
    patience: Duration,
    asked: Mutex<HashMap<Question, Vec<Sender<FindAnswer>>>>,
    /// By Platform.
    lines: Mutex<HashMap<String, Line>>,
}

impl Desk {
    pub fn new(keyring: Arc<Keyring>, pool: Arc<Pool>, options: &platform::Options) -> Arc<Self> {
        let threads = Errand::Platform.threads();
        let share = threads / options.endpoints.len().max(1);
        Arc::new(Self {
            keyring,
            pool,
            seats: share.clamp(1, MOST_SEATS),
            patience: *options.call_timeout,
            asked: Mutex::default(),
            lines: Mutex::default(),
        })
    }

    pub fn keyring(&self) -> &Arc<Keyring> {
        &self.keyring
    }

    /// How long a Platform may be waited for.
    pub fn patience(&self) -> Duration {
        self.patience
    }

    /// Who claims this, whom the keyring does not recognize by itself. `is_wanted` is asked when it is his turn.
    pub async fn authenticate(
        self: &Arc<Self>,
        claim: Claim,
        is_wanted: impl FnOnce() -> bool + Send + 'static,
    ) -> Result<Result<Caller, IdentityError>, PoolError> {
        let endpoint = match self.keyring.claimed_endpoint(&claim) {
            Ok(endpoint) => endpoint,
            Err(error) => return Ok(Err(error)),
        };
        let deadline = Instant::now() + self.patience;
        let keyring = Arc::clone(&self.keyring);
        let (sender, receiver) = oneshot();
        let job = move || {
            if sender.is_abandoned() {
                return;
            }
            sender.send(match is_wanted() {
                true => keyring.authenticate(&claim, deadline),
                false => Err(IdentityError::NoAnswer {
                    cause: "the Platform was not asked".to_owned(),
                }),
            });
        };
        self.line_up(&endpoint, Box::new(job))?;
        let answer = receiver.receive().await;
        answer.ok_or(PoolError::Panicked(Errand::Platform))
    }

    /// The login for a pull on behalf of `caller`.
    pub async fn find(
        self: &Arc<Self>,
        caller: &Arc<Caller>,
        registry: &Registry,
        repository: &Repository,
    ) -> Result<FindAnswer, PoolError> {
        let deadline = Instant::now() + self.patience;
        if let Some(login) = self.keyring.recall(caller, registry, repository) {
            if self.keyring.is_probe_due(caller)
                && let Some((endpoint, question)) = Question::of(caller, registry, repository)
            {
                // For others: nobody waits for it.
                let (sender, _) = oneshot();
                let _ = self.ask(&endpoint, question, sender, caller, deadline);
            }
            return Ok(Ok(login));
        }
        let Some((endpoint, question)) = Question::of(caller, registry, repository) else {
            let keyring = Arc::clone(&self.keyring);
            let is_helped = keyring.has_to_ask(caller, registry, repository);
            let (caller, registry, repository) =
                (Arc::clone(caller), registry.clone(), repository.clone());
            let errand = move || keyring.find(&caller, &registry, &repository, deadline);
            // Credential helpers may hang.
            let lane = match is_helped {
                true => Errand::Helpers,
                false => Errand::Grants,
            };
            return self.pool.run(lane, errand).await;
        };
        let (sender, receiver) = oneshot();
        self.ask(&endpoint, question, sender, caller, deadline)?;
        let answer = receiver.receive().await;
        answer.ok_or(PoolError::Panicked(Errand::Platform))
    }

    /// Once for all who want to know it.
    fn ask(
        self: &Arc<Self>,
        endpoint: &str,
        question: Question,
        sender: Sender<FindAnswer>,
        caller: &Arc<Caller>,
        deadline: Instant,
    ) -> Result<(), PoolError> {
        if self.join(&question, sender)? == Joined::Another {
            return Ok(());
        }
        let answering = Answering {
            desk: Arc::clone(self),
            question,
            is_over: false,
        };
        let caller = Arc::clone(caller);
        let job = move || answering.answer(&caller, deadline);
        self.line_up(endpoint, Box::new(job))
    }

    /// The registry has just refused this login. Whether it makes sense to ask for another.
    pub fn doubt(&self, caller: &Caller, registry: &Registry, repository: &Repository) -> bool {
        self.keyring.doubt(caller, registry, repository)
    }

    fn join(&self, question: &Question, sender: Sender<FindAnswer>) -> Result<Joined, PoolError> {
        let mut asked = lock(&self.asked);
        match asked.get_mut(question) {
            Some(waiting) if waiting.len() >= MOST_WAITING => {
                metrics::add(Counter::ErrandsRefused, 1);
                Err(PoolError::Full(Errand::Platform))
            }
            Some(waiting) => {
                waiting.push(sender);
                Ok(Joined::Another)
            }
            None => {
                asked.insert(question.clone(), vec![sender]);
                Ok(Joined::First)
            }
        }
    }

    /// Runs `job` on a thread as soon as the Platform has a seat for it.
    fn line_up(self: &Arc<Self>, endpoint: &str, job: Job) -> Result<(), PoolError> {
        let job = {
            let mut lines = lock(&self.lines);
            let line = lines.entry(endpoint.to_owned()).or_default();
            if line.seats_taken < self.seats {
                line.seats_taken += 1;
                job
            } else if line.waiting.len() < MOST_WAITING {
                line.waiting.push_back(job);
                return Ok(());
            } else {
                metrics::add(Counter::ErrandsRefused, 1);
                return Err(PoolError::Full(Errand::Platform));
            }
        };
        let (desk, place) = (Arc::clone(self), endpoint.to_owned());
        let sent = self.pool.send(Errand::Platform, move || {
            let mut next = Some(job);
            while let Some(job) = next {
                // The panic's own message has been printed by then; who waits sees that no answer came.
                let _ = catch_unwind(AssertUnwindSafe(job));
                next = desk.next(&place);
            }
        });
        if sent.is_err() {
            // Nobody else is coming for those in line.
            let stranded = self.give_up_seat(endpoint);
            drop(stranded);
        }
        sent
    }

    /// The next in line, or nobody, and then the seat is free.
    fn next(&self, endpoint: &str) -> Option<Job> {
        let mut lines = lock(&self.lines);
        let line = lines.get_mut(endpoint)?;
        let next = line.waiting.pop_front();
        if next.is_none() {
            line.seats_taken -= 1;
        }
        next
    }

    fn give_up_seat(&self, endpoint: &str) -> VecDeque<Job> {
        let mut lines = lock(&self.lines);
        let Some(line) = lines.get_mut(endpoint) else {
            return VecDeque::new();
        };
        line.seats_taken -= 1;
        match line.seats_taken {
            0 => std::mem::take(&mut line.waiting),
            _ => VecDeque::new(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Joined {
    /// The question is ours to ask.
    First,
    Another,
}

/// A question that is being asked. Those who wait for it are let go when this is dropped, whatever happens.
struct Answering {
    desk: Arc<Desk>,
    question: Question,
    is_over: bool,
}

impl Answering {
    fn answer(mut self, caller: &Caller, deadline: Instant) {
        let Question {
            registry,
            repository,
            ..
        } = &self.question;
        let keyring = &self.desk.keyring;
        let answer = keyring.find(caller, registry, repository, deadline);
        for sender in self.let_go() {
            sender.send(answer.clone());
        }
    }

    fn let_go(&mut self) -> Vec<Sender<FindAnswer>> {
        if self.is_over {
            // The same question may have been asked anew.
            return Vec::new();
        }
        self.is_over = true;
        let mut asked = lock(&self.desk.asked);
        asked.remove(&self.question).unwrap_or_default()
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        drop(self.let_go());
    }
}

impl Question {
    /// `None`: no Platform knows the answer.
    fn of(caller: &Caller, registry: &Registry, repository: &Repository) -> Option<(String, Self)> {
        let user = caller.platform_user()?;
        let endpoint = &user.platform.endpoint;
        let question = Self {
            family: FamilyId::of(endpoint, user.access_token),
            workspace: user.workspace,
            run: user.platform.workflow_id.clone(),
            registry: registry.clone(),
            repository: repository.clone(),
        };
        Some((endpoint.clone(), question))
    }
}
