//! Fetching a blob, or a part of it, from the registry into the cache, for whoever follows. It belongs to no client,
//! takes a broken download up again, goes on where an earlier one stopped, and ends when nobody wants its bytes.

use std::{
    cell::RefCell,
    io,
    ops::Range,
    rc::Rc,
    time::{Duration, Instant},
};

use super::{
    Access, Pull, PullError,
    body::{BodyError, Passing},
};
use crate::{
    blocking::without_panic,
    cache::{Course, FillError, Run, Writing},
    oci::Digest,
    telemetry::metrics::{self, Counter},
    upstream::{BlobBody, FetchError, FetchedBlob},
};

/// A download that breaks again after this many bytes has not failed, its connections are short.
const PROGRESS: u64 = 4 << 20;
/// What is read past rather than asked for anew.
const MOST_SKIPPED: u64 = 1 << 20;

/// Fetches parts of one blob with the credentials of somebody who wants them.
#[derive(Clone)]
pub(super) struct Filler {
    pull: Rc<Pull>,
    access: Rc<Access>,
    digest: Digest,
    /// Why the registry gave these credentials nothing. It may give others what they ask for.
    refusal: Rc<RefCell<Option<String>>>,
}

/// Why a body was read no further.
enum Stop {
    /// The run says how it goes on.
    Turn(Course),
    Unwanted,
    /// The registry's side, which may do better next time.
    Broke(io::Error),
    Failed(FillError),
}

/// What a run has come to.
#[derive(Default)]
struct Gain {
    received: u64,
    /// Bytes that were not there before.
    written: u64,
}

/// What a registry's answer is worth to a run.
enum Answer {
    Body(Box<BlobBody>),
    Turn(Course),
}

impl Filler {
    pub(super) fn new(pull: &Rc<Pull>, access: &Access, digest: &Digest) -> Self {
        Self {
            pull: Rc::clone(pull),
            access: Rc::new(access.clone()),
            digest: *digest,
            refusal: Rc::default(),
        }
    }

    /// Detached from the client that caused it. `body`: what the registry has begun to send already.
    pub(super) fn start(&self, run: Run, body: Option<Box<BlobBody>>) {
        let filler = self.clone();
        monoio::spawn(without_panic("a fill", async move {
            filler.fill(run, body).await;
        }));
    }

    /// Asks the registry now, so that a refusal can be told in words, and goes on in the background.
    pub(super) async fn start_after_answer(&self, run: Run) -> Result<(), PullError> {
        match self.request(&run).await {
            Ok(FetchedBlob::Inline(body)) => {
                self.pull
                    .proofs
                    .note_allowed(&self.access, self.digest, body.size);
                self.start(run, Some(body));
                Ok(())
            }
            Ok(FetchedBlob::Redirect { .. }) => Err(self.malformed("a redirect").into()),
            Err(error) => {
                // The others who wait for the same bytes need not find out one by one.
                if let PullError::Fetch(error @ FetchError::Unreachable { .. }) = &error {
                    run.fail(FillError::Source(error.to_string()));
                }
                Err(error)
            }
        }
    }

    pub(super) fn refusal(&self) -> Option<String> {
        self.refusal.borrow().clone()
    }

    /// The blob once more, for one client alone, because the cache can take no more of it.
    pub(super) async fn past_the_cache(&self, range: Range<u64>) -> Result<Passing, BodyError> {
        metrics::add(Counter::BlobBypasses, 1);
        let fetched = self.pull.fetch(&self.access, &self.digest, None).await;
        match fetched {
            Ok(FetchedBlob::Inline(body)) => Ok(Passing::new(self.digest, body.body, range)),
            Ok(FetchedBlob::Redirect { .. }) => Err(BodyError::Fill(
                "the registry redirects what it used to send".to_owned(),
            )),
            Err(error) => Err(BodyError::Fill(error.to_string())),
        }
    }

    async fn fill(&self, mut run: Run, first: Option<Box<BlobBody>>) {
        let started = Instant::now();
        let mut gain = Gain::default();
        let (mut broken, mut broken_at) = (0, 0);
        let mut source = first;
        loop {
            let answer = match source.take() {
                Some(body) => self.accept(&run, body).map_err(PullError::from),
                None => self.ask(&run).await,
            };
            let stop = match answer {
                Ok(Answer::Body(body)) => self.copy(&mut run, *body, &mut gain, started).await,
                Ok(Answer::Turn(course)) => Stop::Turn(course),
                Err(error) => Stop::Failed(FillError::Source(error.to_string())),
            };
            match stop {
                Stop::Turn(Course::Complete) => return run.finish().await,
                Stop::Turn(Course::Done) | Stop::Unwanted => return,
                Stop::Turn(Course::GoOn | Course::MoveTo(_)) => {}
                Stop::Failed(error) => return run.fail(error),
                Stop::Broke(error) => {
                    if gain.written - broken_at >= PROGRESS {
                        broken = 0;
                    }
                    broken_at = gain.written;
                    let text = format!("the registry's connection broke: {error}");
                    if broken >= self.pull.upstream.retry_count() {
                        return run.fail(FillError::Source(text));
                    }
                    broken += 1;
                    tracing::info!(digest = %self.digest, registry = %self.access.sender(), at = run.part().start, %error,
                        "a download broke and is taken up again");
                }
            }
        }
    }

    /// What the run needs next. A refusal of these credentials ends the run, not the fill: others may have better ones.
    async fn ask(&self, run: &Run) -> Result<Answer, PullError> {
        match self.request(run).await {
            Ok(FetchedBlob::Inline(body)) if body.coding.is_some() && !run.is_sealed() => {
                Err(self.malformed("encoded bytes").into())
            }
            Ok(FetchedBlob::Inline(body)) => Ok(self.accept(run, body)?),
            Ok(FetchedBlob::Redirect { .. }) => {
                Err(self.malformed("a redirect instead of the rest").into())
            }
            // It has no answer to a question for a part.
            Err(PullError::Fetch(FetchError::Failed { .. } | FetchError::Malformed { .. }))
                if run.is_divisible() && !is_whole(run) =>
            {
                Ok(Answer::Turn(run.cannot_be_divided()))
            }
            Err(PullError::Fetch(error)) if concerns_everybody(&error) => Err(error.into()),
            Err(error) => {
                *self.refusal.borrow_mut() = Some(error.to_string());
                Ok(Answer::Turn(Course::Done))
            }
        }
    }

    async fn request(&self, run: &Run) -> Result<FetchedBlob, PullError> {
        let part = (run.is_divisible() || run.size().is_none())
            .then(|| asked(run.part(), run.size()))
            .flatten();
        self.pull.fetch(&self.access, &self.digest, part).await
    }

    /// Containerd and others do not check what part they were sent; we do.
    fn accept(&self, run: &Run, body: Box<BlobBody>) -> Result<Answer, FetchError> {
        let (part, size) = (run.part(), run.size());
        let is_another_size =
            matches!((size, body.size), (Some(size), Some(stated)) if size != stated);
        if body.start > part.start || (is_another_size && body.start > 0) {
            // It was not asked for a part, or for all that is left; asking so once more would go on for ever.
            if !run.is_divisible() {
                return Err(self.malformed("another part than it was asked for"));
            }
            return Ok(Answer::Turn(run.cannot_be_divided()));
        }
        if body.start + MOST_SKIPPED < part.start && run.is_divisible() {
            // All of it, although a part was asked for. If another run is on the way, this one is not needed.
            if let course @ (Course::Done | Course::Complete) = run.cannot_be_divided() {
                return Ok(Answer::Turn(course));
            }
        }
        Ok(Answer::Body(body))
    }

    async fn copy(&self, run: &mut Run, body: BlobBody, gain: &mut Gain, started: Instant) -> Stop {
        let size = run.size();
        let (mut at, mut stream) = (body.start, body.body);
        let mut writing: Option<Writing> = None;
        let mut spare = Vec::new();
        loop {
            let piece = {
                let receiving = async { stream.next().await.map(|piece| piece.map(<[u8]>::len)) };
                monoio::select! {
                    piece = receiving => Some(piece),
                    () = run.unwanted() => None,
                }
            };
            let Some(piece) = piece else {
                // Whoever goes on with the file must not meet a write that is still on its way.
                return match writing {
                    Some(writing) => match writing.done().await {
                        Ok((_, Course::Complete)) => Stop::Turn(Course::Complete),
                        Ok(_) => Stop::Unwanted,
                        Err(error) => Stop::Failed(error),
                    },
                    None => Stop::Unwanted,
                };
            };
            // One piece is written while the next one comes.
            if let Some(writing) = writing.take() {
                match writing.done().await {
                    Ok((buffer, Course::GoOn)) => spare = buffer,
                    Ok((buffer, Course::MoveTo(_)))
                        if piece.as_ref().is_ok_and(Option::is_some) =>
                    {
                        spare = buffer;
                    }
                    Ok((_, course)) if size.is_some() => return Stop::Turn(course),
                    Ok((buffer, _)) => spare = buffer,
                    Err(error) => return Stop::Failed(error),
                }
            }
            let length = match piece {
                Ok(Some(length)) => length as u64,
                Ok(None) => {
                    if size.is_none() {
                        run.learn_size(at);
                    }
                    return match run.course() {
                        // A part that is shorter than it was asked to be.
                        Course::GoOn => Stop::Broke(io::ErrorKind::UnexpectedEof.into()),
                        course => Stop::Turn(course),
                    };
                }
                Err(error) => return Stop::Broke(error),
            };
            metrics::add(Counter::BytesFetched, length);
            gain.received += length;
            let end = at + length;
            if let Some(size) = size
                && end > size
            {
                return Stop::Failed(FillError::WrongSize {
                    received: end,
                    size,
                });
            }
            let part = run.part();
            if at > part.start {
                return Stop::Turn(Course::MoveTo(part.start));
            }
            let missing = part.start - at;
            if missing >= length {
                if missing - length > MOST_SKIPPED && run.is_divisible() {
                    return Stop::Turn(Course::MoveTo(part.start));
                }
            } else {
                spare.clear();
                let piece = stream.take_piece(std::mem::take(&mut spare));
                let skip = usize::try_from(missing).unwrap_or(usize::MAX);
                match run.write(piece, skip) {
                    Ok((started, count)) => {
                        gain.written += count;
                        writing = Some(started);
                    }
                    Err(error) => return Stop::Failed(error),
                }
            }
            at = end;
            if is_crawling(gain.received, started.elapsed(), size) {
                return Stop::Failed(FillError::Source("it was too slow".to_owned()));
            }
        }
    }

    fn malformed(&self, problem: &str) -> FetchError {
        FetchError::Malformed {
            registry: self.access.sender().clone(),
            problem: format!("{problem} for {}", self.digest),
        }
    }
}

/// The part to ask for; all of it is asked for without one.
pub(super) fn asked(part: Range<u64>, size: Option<u64>) -> Option<Range<u64>> {
    match size {
        Some(size) if part == (0..size) => None,
        None if part.start == 0 => None,
        Some(size) if part.end >= size => Some(part.start..u64::MAX),
        _ => Some(part),
    }
}

fn is_whole(run: &Run) -> bool {
    asked(run.part(), run.size()).is_none()
}

/// It would hold its bytes of the cache for nothing.
fn is_crawling(received: u64, elapsed: Duration, size: Option<u64>) -> bool {
    const SMALL: u64 = 8 << 20;
    const SLOWEST_PER_SECOND: u64 = 16 << 10;
    const TIME_TO_GET_GOING: Duration = Duration::from_secs(60);
    size.is_none_or(|size| size > SMALL)
        && elapsed > TIME_TO_GET_GOING
        && received / elapsed.as_secs().max(1) < SLOWEST_PER_SECOND
}

/// Whether another caller, with other credentials, would fare the same.
pub(super) fn concerns_everybody(error: &FetchError) -> bool {
    match error {
        FetchError::Unreachable { .. } | FetchError::Malformed { .. } => true,
        FetchError::Failed { .. }
        | FetchError::Unknown { .. }
        | FetchError::Refused { .. }
        | FetchError::RateLimited { .. }
        | FetchError::Forbidden { .. }
        | FetchError::Busy(_) => false,
    }
}
