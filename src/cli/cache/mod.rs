//! `tidegate cache …`: what is in the cache, is it right, and away with it.
//!
//! `keeper.rs` finds out whether a server runs and does or asks; here is what each command says, `table.rs` how it looks.

mod keeper;
mod table;

use std::{
    io::{self, BufWriter, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::{Subcommand, ValueEnum};
use serde::Serialize;

use super::{MISCONFIGURED, print_problems, progress::Progress};
use crate::{
    cache::{Checked, Gone, Intent, Listed, Pin, Selection},
    config::listen_address,
    oci::{Digest, Registry},
    units::ByteSize,
};
use keeper::{FindError, Keeper, KeeperError};

const LS_EXAMPLES: &str = "\
Examples:
  tidegate cache ls --sort size | head
      The largest blobs.
  tidegate cache ls --registry quay.io -o json | jq -r '.[] | select(.pinned | not) | .digest'

-o json is an array of {registry, digest, size, last_use, uses, pinned, verified}. `uses` counts those since the cache
last looked for what to remove, up to 3; `verified` blobs have been hashed since the server's start, or by this command.";

const DU_EXAMPLES: &str = "\
Examples:
  tidegate cache du
  tidegate cache du -o json | jq '.used / .max_size'

-o json is {directory, folder_id, max_size, used, blobs, count, pinned, reserved, partials: {count, size}, free, registries:
[{registry, count, size}], complete}, sizes in bytes on disk. `reserved` is what downloads hold, `partials` those that
stopped half-way and are part of it; `complete` is false while a server still lists its files after a power failure.";

const VERIFY_EXAMPLES: &str = "\
Examples:
  tidegate cache verify
      Reads and hashes every blob.
  tidegate cache verify --dry-run sha256:b5bb9d8014a0f9b1d61e21e796d78dccdf1352f23cd32812f4850b878ae4944c
      Only says whether this one is right.

Exit codes: 0 all are right; 1 some are damaged (and removed, unless --dry-run), or could not be read; 2 wrong arguments.";

const GC_EXAMPLES: &str = "\
Examples:
  tidegate cache gc
      Down to cache.low_watermark, as the server does by itself.
  tidegate cache gc --to 10GiB --dry-run
      Which blobs would go.

What is pinned or being read stays, so more than --to may be left. What has been used least goes first.";

const RM_EXAMPLES: &str = "\
Examples:
  tidegate cache rm sha256:b5bb9d8014a0f9b1d61e21e796d78dccdf1352f23cd32812f4850b878ae4944c
      Of every registry that has it.
  tidegate cache rm --registry quay.io --dry-run
  tidegate cache rm --repository quay.io/acme/app
      Blobs that this repository used last. One that it shares with others may count as theirs.

Whoever is reading a blob gets all of it; whoever asks for it later has it fetched again.";

const PIN_EXAMPLES: &str = "\
Examples:
  tidegate cache pin quay.io/acme/base
  tidegate cache pins

Blobs that a pinned repository has used stay until it is unpinned. Of a blob that others have used since, the repository's
next pull will tell. Pinned blobs count as used space.";

/// Look after the cache, beside the running server or on a stopped one.
#[derive(Subcommand)]
pub(super) enum Command {
    /// List the blobs.
    #[command(after_long_help = LS_EXAMPLES)]
    Ls(Ls),
    /// Show how much is used, and what for.
    #[command(after_long_help = DU_EXAMPLES)]
    Du(Du),
    /// Read and hash blobs; those that are damaged are removed, and fetched again when they are asked for.
    #[command(after_long_help = VERIFY_EXAMPLES)]
    Verify(Verify),
    /// Remove what is used least.
    #[command(after_long_help = GC_EXAMPLES)]
    Gc(Gc),
    /// Remove certain blobs.
    #[command(after_long_help = RM_EXAMPLES)]
    Rm(Rm),
    /// Keep the blobs of a repository.
    #[command(after_long_help = PIN_EXAMPLES)]
    Pin(PinOne),
    /// No longer keep them.
    #[command(after_long_help = PIN_EXAMPLES)]
    Unpin(PinOne),
    /// List the pinned repositories.
    #[command(after_long_help = PIN_EXAMPLES)]
    Pins(Pins),
}

/// Which cache, and what the answer looks like.
#[derive(clap::Args)]
struct Common {
    /// The server's settings; without it all have their defaults
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Where the blobs are, instead of cache.directory
    #[arg(long, value_name = "DIR")]
    cache_dir: Option<PathBuf>,

    /// Ask the server whose admin listener is here, wherever its cache is [default: the folder decides: if a server uses
    /// it, that one is asked at listener.admin]
    #[arg(long, value_name = "ADDR", value_parser = listen_address, conflicts_with = "cache_dir")]
    admin: Option<std::net::SocketAddr>,

    /// For people or for programs
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Sort {
    /// The one used last first
    Use,
    /// The largest first
    Size,
    Digest,
}

#[derive(clap::Args)]
pub(super) struct Ls {
    /// Only blobs of this registry
    #[arg(long, value_name = "HOST")]
    registry: Option<Registry>,

    /// Only blobs that this repository used last
    #[arg(long, value_name = "HOST/REPOSITORY")]
    repository: Option<Pin>,

    #[arg(long, value_enum, default_value = "use")]
    sort: Sort,

    #[command(flatten)]
    common: Common,
}

#[derive(clap::Args)]
pub(super) struct Du {
    #[command(flatten)]
    common: Common,
}

#[derive(clap::Args)]
pub(super) struct Verify {
    /// Which blobs; all if none is named
    #[arg(value_name = "DIGEST")]
    digests: Vec<Digest>,

    /// Only blobs of this registry
    #[arg(long, value_name = "HOST")]
    registry: Option<Registry>,

    /// Say what is damaged, and leave it
    #[arg(long)]
    dry_run: bool,

    #[command(flatten)]
    common: Common,
}

#[derive(clap::Args)]
pub(super) struct Gc {
    /// Until no more than this is used, as in 10GiB [default: cache.low_watermark of cache.max_size]
    #[arg(long, value_name = "SIZE")]
    to: Option<ByteSize>,

    /// Say what would go, and leave it
    #[arg(long)]
    dry_run: bool,

    #[command(flatten)]
    common: Common,
}

#[derive(clap::Args)]
#[command(group = clap::ArgGroup::new("which").required(true).args(["digests", "registry", "repository"]).multiple(true))]
pub(super) struct Rm {
    /// Which blobs
    #[arg(value_name = "DIGEST", conflicts_with = "repository")]
    digests: Vec<Digest>,

    /// All of this registry, or only its copy of each DIGEST
    #[arg(long, value_name = "HOST", conflicts_with = "repository")]
    registry: Option<Registry>,

    /// All that this repository used last
    #[arg(long, value_name = "HOST/REPOSITORY")]
    repository: Option<Pin>,

    /// Say what would go, and leave it
    #[arg(long)]
    dry_run: bool,

    #[command(flatten)]
    common: Common,
}

#[derive(clap::Args)]
pub(super) struct PinOne {
    /// With its registry and without a tag, as in quay.io/acme/app
    #[arg(value_name = "HOST/REPOSITORY")]
    pin: Pin,

    #[command(flatten)]
    common: Common,
}

#[derive(clap::Args)]
pub(super) struct Pins {
    #[command(flatten)]
    common: Common,
}

/// Why a command ends early.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Find(#[from] FindError),
    #[error(transparent)]
    Keeper(#[from] KeeperError),
    /// Whoever was to read the answer is gone.
    #[error("{0}")]
    Output(#[from] io::Error),
}

pub(super) fn run(command: &Command) -> ExitCode {
    let done = match command {
        Command::Ls(ls) => ls.run(),
        Command::Du(du) => du.run(),
        Command::Verify(verify) => verify.run(),
        Command::Gc(gc) => gc.run(),
        Command::Rm(rm) => rm.run(),
        Command::Pin(one) => one.pin(),
        Command::Unpin(one) => one.unpin(),
        Command::Pins(pins) => pins.run(),
    };
    match done {
        Ok(code) => code,
        Err(Failure::Find(FindError::Config(problems))) => {
            print_problems(&problems);
            ExitCode::from(MISCONFIGURED)
        }
        Err(Failure::Output(_)) => ExitCode::FAILURE,
        Err(failure) => {
            eprintln!("tidegate: {failure}");
            ExitCode::FAILURE
        }
    }
}

impl Ls {
    fn run(&self) -> Result<ExitCode, Failure> {
        let keeper = Keeper::find(&self.common)?;
        let report = keeper.report()?;
        let selection = Selection {
            registry: self.registry.clone(),
            repository: self.repository.clone(),
            digest: None,
        };
        let mut progress = Progress::new("listing", report.usage.blob_count, 0);
        let mut blobs = Vec::new();
        let mut from = Some(0);
        while let Some(start) = from {
            let page = keeper.list(&selection, start)?;
            progress.add(page.blobs.len() as u64, 0);
            blobs.extend(page.blobs);
            from = page.next;
        }
        drop(progress);
        sort(&mut blobs, self.sort);
        if !report.is_complete {
            eprintln!("tidegate: the server still lists its files, so some blobs are missing here");
        }
        self.common.print(&blobs, |to| table::blobs(to, &blobs))
    }
}

fn sort(blobs: &mut [Listed], sort: Sort) {
    blobs.sort_unstable_by(|one, other| {
        let order = match sort {
            Sort::Use => other.last_use.cmp(&one.last_use),
            Sort::Size => other.size.cmp(&one.size),
            Sort::Digest => std::cmp::Ordering::Equal,
        };
        let name = |blob: &Listed| (blob.key.digest, blob.key.registry.clone());
        order.then_with(|| name(one).cmp(&name(other)))
    });
}

impl Du {
    fn run(&self) -> Result<ExitCode, Failure> {
        let report = Keeper::find(&self.common)?.report()?;
        self.common.print(&report, |to| table::usage(to, &report))
    }
}

impl Verify {
    fn run(&self) -> Result<ExitCode, Failure> {
        let keeper = Keeper::find(&self.common)?;
        let usage = keeper.report()?.usage;
        let (count, bytes) = match (&self.registry, self.digests.len()) {
            (None, 0) => (usage.blob_count, usage.blob_bytes),
            (Some(registry), 0) => usage
                .registries
                .iter()
                .find(|usage| usage.registry == *registry)
                .map_or((0, 0), |usage| (usage.blob_count, usage.bytes)),
            (_, count) => (count as u64, 0),
        };
        let mut progress = Progress::new("verifying", count, bytes);
        let mut all = Checked::default();
        let mut is_missing = false;
        for selection in selections(&self.digests, self.registry.as_ref(), None) {
            let before = all.count;
            let mut from = Some(0);
            while let Some(start) = from {
                let checked = keeper.check(&selection, start, intent(self.dry_run))?;
                progress.add(checked.count, checked.bytes);
                all.count += checked.count;
                all.bytes += checked.bytes;
                all.damaged.extend(checked.damaged);
                all.unread.extend(checked.unread);
                from = checked.next;
            }
            if all.count == before {
                is_missing |= say_missing(&selection);
            }
        }
        drop(progress);
        let is_right = all.damaged.is_empty() && all.unread.is_empty() && !is_missing;
        let printed = self
            .common
            .print(&all, |to| table::checked(to, &all, intent(self.dry_run)))?;
        Ok(if is_right { printed } else { ExitCode::FAILURE })
    }
}

impl Gc {
    fn run(&self) -> Result<ExitCode, Failure> {
        let keeper = Keeper::find(&self.common)?;
        let gone = keeper.gc(self.to, intent(self.dry_run))?;
        self.common
            .print(&gone, |to| table::gone(to, &gone, intent(self.dry_run)))
    }
}

impl Rm {
    fn run(&self) -> Result<ExitCode, Failure> {
        let keeper = Keeper::find(&self.common)?;
        let mut progress = Progress::new("removing", 0, 0);
        let mut all = Gone::default();
        let mut is_missing = false;
        let selections = selections(
            &self.digests,
            self.registry.as_ref(),
            self.repository.as_ref(),
        );
        for selection in selections {
            let before = all.count;
            let mut from = Some(0);
            while let Some(start) = from {
                let gone = keeper.remove(&selection, start, intent(self.dry_run))?;
                progress.add(gone.count, gone.bytes);
                all.count += gone.count;
                all.bytes += gone.bytes;
                all.blobs.extend(gone.blobs);
                from = gone.next;
            }
            if all.count == before {
                is_missing |= say_missing(&selection);
            }
        }
        drop(progress);
        let printed = self
            .common
            .print(&all, |to| table::gone(to, &all, intent(self.dry_run)))?;
        Ok(if is_missing {
            ExitCode::FAILURE
        } else {
            printed
        })
    }
}

impl PinOne {
    fn pin(&self) -> Result<ExitCode, Failure> {
        let pinned = Keeper::find(&self.common)?.pin(&self.pin)?;
        self.common
            .print(&pinned, |to| table::pinned(to, &pinned, "pinned"))
    }

    fn unpin(&self) -> Result<ExitCode, Failure> {
        let unpinned = Keeper::find(&self.common)?.unpin(&self.pin)?;
        self.common.print(&unpinned, |to| {
            table::pinned(to, &unpinned, "no longer pinned")
        })
    }
}

impl Pins {
    fn run(&self) -> Result<ExitCode, Failure> {
        let pins = Keeper::find(&self.common)?.pins()?;
        self.common.print(&pins, |to| table::pins(to, &pins))
    }
}

impl Common {
    fn print(
        &self,
        value: &impl Serialize,
        table: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<ExitCode, Failure> {
        let mut to = BufWriter::new(io::stdout().lock());
        match self.output {
            Output::Table => table(&mut to)?,
            Output::Json => {
                serde_json::to_writer(&mut to, value).map_err(io::Error::from)?;
                writeln!(to)?;
            }
        }
        to.flush()?;
        Ok(ExitCode::SUCCESS)
    }
}

fn intent(is_dry_run: bool) -> Intent {
    match is_dry_run {
        true => Intent::DryRun,
        false => Intent::Do,
    }
}

/// One for each digest, or one for all.
fn selections(
    digests: &[Digest],
    registry: Option<&Registry>,
    repository: Option<&Pin>,
) -> Vec<Selection> {
    let selection = |digest: Option<Digest>| Selection {
        registry: registry.cloned(),
        repository: repository.cloned(),
        digest,
    };
    match digests {
        [] => vec![selection(None)],
        digests => digests.iter().copied().map(Some).map(selection).collect(),
    }
}

/// A blob that was named should be there; of all others there may be none.
fn say_missing(selection: &Selection) -> bool {
    if let Some(digest) = selection.digest {
        eprintln!("tidegate: {digest} is not in the cache");
    }
    selection.digest.is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blobs_are_sorted_as_asked() {
        let blob = |content: &[u8], size, last_use| Listed {
            key: crate::cache::Key {
                registry: Registry::docker_hub(),
                digest: Digest::of(content),
            },
            size,
            last_use,
            frequency: 0,
            is_pinned: false,
            is_verified: true,
        };
        let (one, two, three) = (blob(b"1", 5, 10), blob(b"2", 9, 30), blob(b"3", 9, 20));
        let sorted = |by| {
            let mut blobs = vec![one.clone(), two.clone(), three.clone()];
            sort(&mut blobs, by);
            blobs
        };
        assert_eq!(sorted(Sort::Use), [two.clone(), three.clone(), one.clone()]);
        assert_eq!(sorted(Sort::Size).last(), Some(&one));
        let by_digest = sorted(Sort::Digest);
        assert!(by_digest.is_sorted_by_key(|blob| blob.key.digest));
    }

    #[test]
    fn each_digest_is_asked_for_by_itself() {
        let digests = [Digest::of(b"1"), Digest::of(b"2")];
        assert_eq!(selections(&digests, None, None).len(), 2);
        let of_nothing = selections(&[], None, None);
        assert!(matches!(of_nothing.as_slice(), [all] if all.is_everything()));
    }
}
