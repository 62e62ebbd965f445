//! A core's part: it runs the jobs that it is given, each as a task of its own.

use std::{
    rc::Rc,
    sync::Arc,
    time::{Duration, SystemTime},
};

use monoio::time::{sleep, timeout};

use super::{Job, Jobs, course::Attempt, live::Live};
use crate::{
    blocking::{Errand, PoolError, lock, without_panic},
    mirror::{Destination, Mirror, Plan},
    oci::TagOrDigest,
    pull::Access,
    requests::{DurableKind, Grant},
};

/// When a full pool is worth another try.
const BUSY_PAUSE: Duration = Duration::from_millis(500);
/// For what has run out of time to take back what it has begun at the target, which may be slow.
const CANCEL_GRACE: Duration = Duration::from_secs(15);

/// Without an end.
pub async fn run(jobs: Arc<Jobs>, core: usize, mirror: Rc<Mirror>) {
    let Some(inbox) = jobs.cores.get(core) else {
        return;
    };
    loop {
        let live = inbox.take().await;
        let job = Running {
            jobs: Arc::clone(&jobs),
            live,
            is_told: false,
        };
        monoio::spawn(without_panic("a job", job.run(Rc::clone(&mirror))));
    }
}

/// Whatever becomes of the task, the job is told to have ended.
struct Running {
    jobs: Arc<Jobs>,
    live: Arc<Live>,
    is_told: bool,
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.is_told {
            return;
        }
        let (jobs, live) = (Arc::clone(&self.jobs), Arc::clone(&self.live));
        let told = self.jobs.pool.send(Errand::Commit, move || {
            jobs.attempted(&live, Attempt::Lost, SystemTime::now());
        });
        if let Err(error) = told {
            tracing::error!(job = %self.live.job.id, %error, "a job was lost; it runs again after a restart");
        }
    }
}

impl Running {
    async fn run(mut self, mirror: Rc<Mirror>) {
        let started = lock(&self.live.state).started;
        let limit = *self.jobs.options.job_timeout;
        let left = limit.saturating_sub(started.map(|it| it.elapsed()).unwrap_or_default());
        let attempt = self.attempt_within(left, &mirror).await;
        let pause = self.tell(attempt).await;
        let Some(pause) = pause else {
            return;
        };
        sleep(pause).await;
        let jobs = Arc::clone(&self.jobs);
        jobs.resume(&self.live);
    }

    /// One that is only dropped leaves its uploads open at the target.
    async fn attempt_within(&self, limit: Duration, mirror: &Rc<Mirror>) -> Attempt {
        let mut attempt = Box::pin(self.attempt(mirror));
        if let Ok(attempt) = timeout(limit, &mut attempt).await {
            return attempt;
        }
        self.live.progress.cancel();
        match timeout(CANCEL_GRACE, attempt).await {
            Ok(Attempt::Copied(copied)) => Attempt::Copied(copied),
            Ok(_) | Err(_) => Attempt::TimedOut,
        }
    }

    async fn attempt(&self, mirror: &Rc<Mirror>) -> Attempt {
        let job = &self.live.job;
        let grant = match self.reading().await {
            Ok(grant) => grant,
            Err(reason) => return Attempt::Unreadable(reason),
        };
        let plan = plan(job, &grant, self.jobs.options.mirror_referrers);
        match mirror.copy(&plan, &self.live.progress).await {
            Ok(copied) => Attempt::Copied(copied),
            Err(error) => Attempt::Failed(error),
        }
    }

    async fn reading(&self) -> Result<Arc<Grant>, String> {
        loop {
            let (jobs, live) = (Arc::clone(&self.jobs), Arc::clone(&self.live));
            let found = self.jobs.pool.run(Errand::Grants, move || {
                jobs.reading(&live, SystemTime::now())
            });
            match found.await {
                Ok(Ok(Some(grant))) => return Ok(grant),
                Ok(Ok(None)) => {
                    return Err("it waited for too long, and what it reads from has expired".into());
                }
                Ok(Err(reason)) => return Err(reason),
                Err(PoolError::Full(_)) => sleep(BUSY_PAUSE).await,
                Err(error) => return Err(format!("tidegate failed: {error}")),
            }
        }
    }

    /// Written to disk, so on the pool; however full that is.
    async fn tell(&mut self, attempt: Attempt) -> Option<Duration> {
        let told = Arc::new(std::sync::Mutex::new(Some(attempt)));
        loop {
            let (jobs, live, attempt) = (
                Arc::clone(&self.jobs),
                Arc::clone(&self.live),
                Arc::clone(&told),
            );
            let pause = self.jobs.pool.run(Errand::Commit, move || {
                let attempt = lock(&attempt).take()?;
                jobs.attempted(&live, attempt, SystemTime::now())
            });
            match pause.await {
                Ok(pause) => {
                    self.is_told = true;
                    return pause;
                }
                Err(PoolError::Full(_)) => sleep(BUSY_PAUSE).await,
                // Dropping tells it.
                Err(PoolError::Panicked(_)) => return None,
            }
        }
    }
}

fn plan(job: &Job, grant: &Arc<Grant>, mirror_referrers: bool) -> Plan {
    let source = match &grant.overlay {
        Some(_) => Access::by_grant(grant),
        None => {
            let image = &grant.image;
            Access::by_caller(
                &grant.caller,
                image.registry.clone(),
                image.repository.clone(),
            )
        }
    };
    Plan {
        source,
        version: TagOrDigest::Digest(job.digest),
        destination: Destination {
            registry: job.target.registry.clone(),
            repository: job.target.repository.clone(),
            version: job.target.version.clone(),
            caller: Arc::clone(&grant.caller),
        },
        platforms: job.platform.clone(),
        // They are about the source, which a frozen image is not.
        referrers: mirror_referrers && job.kind == DurableKind::Mirror,
    }
}
