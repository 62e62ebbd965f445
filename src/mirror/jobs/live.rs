//! A job between its beginning and its end: where it stands, and what its log says so far.

use std::{
    sync::{Arc, Mutex},
    time::Instant,
};

use super::{
    Ended, Job, JobRecord, Outcome,
    journal::{Journal, told},
};
use crate::{blocking::lock, mirror::Progress};

/// A job between its beginning and its end.
pub(super) struct Live {
    pub(super) job: Job,
    pub(super) progress: Arc<Progress>,
    pub(super) journal: Mutex<Journal>,
    pub(super) state: Mutex<LiveState>,
}

#[derive(Debug, Default)]
pub(super) struct LiveState {
    pub(super) phase: Phase,
    /// Of all processes that began it.
    pub(super) attempts: u32,
    /// Of this one: that a process was killed is no fault of the job.
    pub(super) tries: u32,
    /// When the first attempt of this process began.
    pub(super) started: Option<Instant>,
    /// Why it is to end before its time, although its copy may not have seen it yet.
    pub(super) given_up: Option<Outcome>,
}

/// The life of a job in a process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Phase {
    /// In line.
    #[default]
    Waiting,
    Running {
        core: usize,
    },
    /// Until the next attempt, in no line.
    Pausing,
    /// One before it, which is to end, has not left the target yet. In no line.
    Behind,
    /// It was given up, and whoever did that is about to end it. No turn comes to it any more.
    Ending,
    Ended(Ended),
}

impl Live {
    pub(super) fn of(job: Job, journal: Journal, attempts: u32) -> Self {
        Self {
            job,
            progress: Arc::default(),
            journal: Mutex::new(journal),
            state: Mutex::new(LiveState {
                attempts,
                ..LiveState::default()
            }),
        }
    }

    pub(super) fn note(&self, line: &str) {
        lock(&self.journal).line(line);
    }

    pub(super) fn record(&self) -> JobRecord {
        let state = lock(&self.state);
        JobRecord {
            job: self.job.clone(),
            attempts: state.attempts,
            ended: match &state.phase {
                Phase::Ended(ended) => Some(ended.clone()),
                Phase::Waiting
                | Phase::Running { .. }
                | Phase::Pausing
                | Phase::Behind
                | Phase::Ending => None,
            },
        }
    }

    pub(super) fn log(&self) -> String {
        let mut text = lock(&self.journal).text();
        if matches!(lock(&self.state).phase, Phase::Running { .. }) {
            for item in &self.progress.snapshot().items {
                text.push_str(&told(item));
                text.push('\n');
            }
        }
        text
    }
}
