//! `tidegate mirror`: an exact copy of an image in another repository, made by this process.

use std::{process::ExitCode, sync::Arc};

use super::{
    copy::{self, Answer, Failure, Surroundings, caller, destination, unless_cancelled},
    output::Output,
};
use crate::{
    app::Core,
    mirror::{Place, Plan, Progress},
    oci::{Platform, Platforms, Reference, TagOrDigest},
    pull::Access,
};

const EXAMPLES: &str = "\
Examples:
  tidegate mirror quay.io/biocontainers/bwa:0.7.17 registry.example.com/kept
      All of the image, as it is, is registry.example.com/kept/biocontainers/bwa:0.7.17 then: the same digest, the same tag,
      every platform, and the signatures and bills of materials that refer to it.
  docker pull $(tidegate mirror -q alpine localhost:5000)
      localhost:5000/library/alpine:latest. Registries on this machine are spoken with over plain HTTP, as Docker does.
  tidegate mirror alpine quay.io/acme --platform linux/arm64 --no-referrers
      The image for one platform alone, which has another digest than the index.
  tidegate mirror alpine quay.io/acme --dry-run
      What it would be called, and whether the login may push there.
  tidegate mirror alpine reg.internal:5000/kept --plain-http reg.internal:5000 -o json | jq -r .digest

-o json is {targetImage, sourceImage, digest, cached, dryRun, manifests, copied, mounted, present, bytes}: blobs that were
copied, that the registry took from another of its repositories, and that were there, and the bytes that were sent. The
last five are missing where there was nothing to do (cached) or nothing was done (dryRun).

";

/// Copy an image to another registry as it is, and print the copy's name.
#[derive(clap::Args)]
#[command(after_long_help = format!("{EXAMPLES}{}", copy::ENVIRONMENT))]
pub(super) struct Arguments {
    /// The image: quay.io/acme/app:v1
    #[arg(value_parser = copy::image)]
    image: Reference,

    /// Where the copy goes, below which it keeps its own name: registry.example.com/kept
    to: Place,

    /// The image for this platform alone: linux/arm64
    #[arg(long = "platform", value_name = "PLATFORM", value_delimiter = ',')]
    platforms: Vec<Platform>,

    /// Leave out signatures and what else refers to the image
    #[arg(long)]
    no_referrers: bool,

    /// Only say what it would be called, and find out whether it could be done
    #[arg(long)]
    dry_run: bool,

    /// The name alone, or all that came of it
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,

    #[command(flatten)]
    surroundings: Surroundings,
}

struct Job {
    image: Reference,
    target: Reference,
    platforms: Option<Platforms>,
    referrers: bool,
    is_rehearsal: bool,
}

pub(super) fn run(arguments: Arguments) -> ExitCode {
    let Arguments {
        image,
        to,
        platforms,
        no_referrers,
        dry_run,
        output,
        surroundings,
    } = arguments;
    let target = to.mirrored(&image);
    copy::run(&surroundings, output, move |core, progress| async move {
        let job = Job {
            target: target.map_err(|error| Failure::Arguments(error.to_string()))?,
            image,
            platforms: single(platforms)?,
            referrers: !no_referrers,
            is_rehearsal: dry_run,
        };
        job.run(&core, &progress).await
    })
}

/// Some of an image's platforms make another index, which nobody has seen before.
fn single(platforms: Vec<Platform>) -> Result<Option<Platforms>, Failure> {
    if platforms.is_empty() {
        return Ok(None);
    }
    match Platforms::of(platforms) {
        Ok(platforms) if !platforms.are_several() => Ok(Some(platforms)),
        Ok(_) | Err(_) => Err(Failure::Arguments(
            "--platform: an index with some of an image's platforms is another image and no mirror of it; name one \
             platform, leave it out for all of them, or let `tidegate freeze` make that index"
                .to_owned(),
        )),
    }
}

impl Job {
    async fn run(&self, core: &Core, progress: &Arc<Progress>) -> Result<Answer, Failure> {
        let (image, target) = (&self.image, &self.target);
        if self.image == self.target {
            let message = format!("{target} is the image itself; name another place for the copy");
            return Err(Failure::Arguments(message));
        }
        // What it means now is copied, even if the tag moves meanwhile.
        let caller = caller();
        let digest = core.pull.resolve(&caller, image);
        let digest = unless_cancelled(progress, digest).await??;
        let plan = Plan {
            source: Access::by_caller(&caller, image.registry.clone(), image.repository.clone()),
            version: TagOrDigest::Digest(digest),
            destination: destination(target),
            platforms: self.platforms.clone(),
            referrers: self.referrers,
        };
        // An image of one platform has a digest that only the index knows.
        let digest = match &plan.platforms {
            Some(_) => unless_cancelled(progress, core.mirror.outcome(&plan)).await??,
            None => digest,
        };
        let standing = core.mirror.standing(&plan.destination);
        let is_there = unless_cancelled(progress, standing).await?? == Some(digest);
        if !is_there {
            core.mirror.may_push(&plan.destination).await?;
        }
        if self.is_rehearsal {
            return Ok(Answer::rehearsed(image, target, &digest, is_there));
        }
        if is_there && !self.referrers {
            return Ok(Answer::standing(image, target, &digest));
        }
        let copied = copy::copy(core, &plan, progress).await?;
        Ok(Answer::copied(image, target, &copied, is_there))
    }
}
