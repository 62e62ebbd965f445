//! Where the cores have logins exchanged for what registries take.
//!
//! What is known is there at once. The rest is an errand, on threads of its own: those who want the same wait for one,
//! without a thread, and a cloud that does not answer keeps nobody from what is somebody else's.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use super::{Ecr, FindError, Login, ecr::Order};
use crate::{
    aws::AwsError,
    blocking::{Errand, Pool, PoolError, Sender, lock, oneshot},
    oci::{Credentials, Registry},
    telemetry::metrics::{self, Counter},
};

/// Runtimes give up on us at 30 s. Whoever has waited for so long for his turn is not helped by the call itself.
const LONGEST_QUEUE: Duration = Duration::from_secs(12);
/// For one answer: as many as other errands have room for.
const MOST_WAITING: usize = 4096;

type Answer = Result<Login, FindError>;

/// One for the process, shared by all cores.
pub struct Exchange {
    ecr: Ecr,
    pool: Arc<Pool>,
    asked: Mutex<HashMap<Order, Vec<Sender<Answer>>>>,
}

/// A login that a registry takes.
#[derive(Clone, Debug)]
pub struct Exchanged {
    pub login: Login,
    /// It was made for a while, and when it has ended there is another: `Exchange::renew`.
    pub is_renewable: bool,
}

impl Exchange {
    pub fn new(ecr: Ecr, pool: Arc<Pool>) -> Arc<Self> {
        Arc::new(Self {
            ecr,
            pool,
            asked: Mutex::default(),
        })
    }

    /// Tells the operator's log whom a cloud takes tidegate for, where that matters.
    pub fn introduce(self: &Arc<Self>) -> Result<(), PoolError> {
        let exchange = Arc::clone(self);
        self.pool
            .send(Errand::Aws, move || exchange.ecr.introduce())
    }

    /// From what the keyring found to what the registry takes; mostly that is the same.
    pub async fn login(
        self: &Arc<Self>,
        registry: &Registry,
        found: Login,
    ) -> Result<Result<Exchanged, FindError>, PoolError> {
        let order = match self.ecr.order(registry, &found) {
            Ok(Some(order)) => order,
            Ok(None) => {
                return Ok(Ok(Exchanged {
                    login: found,
                    is_renewable: false,
                }));
            }
            Err(error) => return Ok(Err(error)),
        };
        let answer = match self.ecr.known(&order) {
            Some(answer) => answer,
            None => self.ask(order).await?,
        };
        Ok(answer.map(|login| Exchanged {
            login,
            is_renewable: true,
        }))
    }

    /// The registry says that `spent`, made of `found`, has ended.
    pub async fn renew(
        self: &Arc<Self>,
        registry: &Registry,
        found: Login,
        spent: &Credentials,
    ) -> Result<Result<Exchanged, FindError>, PoolError> {
        if let Ok(Some(order)) = self.ecr.order(registry, &found) {
            self.ecr.forget(&order, spent);
        }
        self.login(registry, found).await
    }

    async fn ask(self: &Arc<Self>, order: Order) -> Result<Answer, PoolError> {
        let (sender, receiver) = oneshot();
        if self.join(&order, sender)? {
            let asking = Asking {
                exchange: Arc::clone(self),
                order: Some(order),
                since: Instant::now(),
            };
            // A refused errand is dropped, and lets go who waits for it.
            self.pool.send(Errand::Aws, move || asking.answer())?;
        }
        let answer = receiver.receive().await;
        answer.ok_or(PoolError::Panicked(Errand::Aws))
    }

    /// Whether the order is the joiner's to place.
    fn join(&self, order: &Order, sender: Sender<Answer>) -> Result<bool, PoolError> {
        let mut asked = lock(&self.asked);
        match asked.get_mut(order) {
            Some(waiting) if waiting.len() >= MOST_WAITING => {
                metrics::add(Counter::ErrandsRefused, 1);
                Err(PoolError::Full(Errand::Aws))
            }
            Some(waiting) => {
                waiting.push(sender);
                Ok(false)
            }
            None => {
                asked.insert(order.clone(), vec![sender]);
                Ok(true)
            }
        }
    }
}

/// Those who wait are let go when this is dropped, whatever happens.
struct Asking {
    exchange: Arc<Exchange>,
    /// Until they are: the same may be asked for anew by then.
    order: Option<Order>,
    since: Instant,
}

impl Asking {
    fn answer(mut self) {
        let Some(order) = &self.order else { return };
        let answer = match self.since.elapsed() < LONGEST_QUEUE {
            true => self.exchange.ecr.ask(order),
            false => Err(order.failed(AwsError::Late)),
        };
        for sender in self.let_go() {
            sender.send(answer.clone());
        }
    }

    fn let_go(&mut self) -> Vec<Sender<Answer>> {
        let Some(order) = self.order.take() else {
            return Vec::new();
        };
        let mut asked = lock(&self.exchange.asked);
        asked.remove(&order).unwrap_or_default()
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        drop(self.let_go());
    }
}
