//! `tidegate freeze`: an image that stays, made of another one with layers and settings put on it, by this process.

use std::{
    net::{IpAddr, Ipv4Addr},
    ops::Deref,
    process::ExitCode,
    sync::Arc,
    time::SystemTime,
};

use super::{
    MISCONFIGURED,
    changes::Changes,
    copy::{self, Answer, Failure, Surroundings, caller, destination, unless_cancelled},
    layer::{self, Layer},
    output::Output,
};
use crate::{
    app::Core,
    augment::{self, Compression, NamedOverlay, Overlay},
    blocking::Errand,
    mirror::{Frozen, Place, Plan, Progress},
    oci::{Digest, Platform, Platforms, Reference, TagOrDigest},
    pull::{Access, PullError},
    requests::{ContainerRequest, InlineLayer, Purpose, RequestDetails},
    units::ByteSize,
};

/// All layers together, packed: they are in memory at once. Guessed.
const LARGEST_LAYERS: ByteSize = ByteSize::mib(512);

const EXAMPLES: &str = "\
Examples:
  tidegate freeze ubuntu quay.io/acme/tools --layer ./tools --env PATH=/opt/tools/bin:/usr/bin:/bin
      The files of ./tools laid over the image: ./tools/opt/tools/bin/start becomes /opt/tools/bin/start in it. The same files
      give the same layer, whatever their times and owners; modes are kept. No builder is involved.
  tidegate freeze ubuntu quay.io/acme/tools --include quay.io/acme/fusion:v2 --entrypoint /usr/bin/fusion
      With the layers of another image.
  tidegate freeze ubuntu quay.io/acme/tools --cmd sh --cmd -c --cmd 'echo hello'
      --entrypoint and --cmd take one word each time, or all words as a JSON list: --cmd '[\"sh\", \"-c\", \"echo hello\"]'
  tidegate freeze ubuntu quay.io/acme/tools --platform linux/amd64,linux/arm64 --layer ./scripts
      An index with the images for these platforms, each with the same layer on it.
      Of an --include each gets the layers for its own platform.
  docker run $(tidegate freeze -q alpine localhost:5000/kept --env GREETING=hello) env

The tag is made of all that goes into the image: the digest that its source's name means now, platforms, layers and
settings. So the same freeze gives the same name, and nothing is copied if it is there.

-o json is {targetImage, sourceImage, digest, cached, dryRun, manifests, copied, mounted, present, bytes}: blobs that were
copied, that the registry took from another of its repositories, and that were there, and the bytes that were sent. The
last five are missing where there was nothing to do (cached) or nothing was done (dryRun).

";

/// Put layers and settings on an image, push it to a repository, and print its name.
#[derive(clap::Args)]
#[command(after_long_help = format!("{EXAMPLES}{}", copy::ENVIRONMENT))]
pub(super) struct Arguments {
    /// The image: quay.io/acme/app:v1
    #[arg(value_parser = copy::image)]
    image: Reference,

    /// Where the result goes; its tag is made for it: quay.io/acme/kept
    to: Place,

    /// The image for this platform, if there are several; may be repeated, and makes an index of all that are named
    #[arg(
        long = "platform",
        value_name = "PLATFORM",
        value_delimiter = ',',
        default_value = "linux/amd64"
    )]
    platforms: Vec<Platform>,

    /// Only say what it would be called, and find out whether it could be done
    #[arg(long)]
    dry_run: bool,

    /// The name alone, or all that came of it
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,

    #[command(flatten)]
    changes: Changes,

    #[command(flatten)]
    surroundings: Surroundings,
}

struct Job {
    image: Reference,
    to: Place,
    platforms: Platforms,
    changes: Changes,
    layers: Vec<Layer>,
    includes: Vec<Reference>,
    is_rehearsal: bool,
}

pub(super) fn run(arguments: Arguments) -> ExitCode {
    let Arguments {
        image,
        to,
        platforms,
        dry_run,
        output,
        changes,
        surroundings,
    } = arguments;
    let job = match Job::of(image, to, platforms, changes) {
        Ok(job) => Job {
            is_rehearsal: dry_run,
            ..job
        },
        Err(message) => {
            eprintln!("tidegate: {message}");
            return ExitCode::from(MISCONFIGURED);
        }
    };
    copy::run(&surroundings, output, move |core, progress| async move {
        job.run(&core, &progress).await
    })
}

impl Job {
    fn of(
        image: Reference,
        to: Place,
        platforms: Vec<Platform>,
        changes: Changes,
    ) -> Result<Self, String> {
        to.repository().map_err(|error| error.to_string())?;
        let platforms = Platforms::of(platforms).map_err(|error| format!("--platform: {error}"))?;
        let includes = changes.includes.iter();
        let includes = includes
            .map(|name| copy::image(name).map_err(|error| format!("--include {name}: {error}")));
        Ok(Self {
            includes: includes.collect::<Result<_, _>>()?,
            layers: layer::pack_all(&changes.layers, LARGEST_LAYERS)
                .map_err(|error| error.to_string())?,
            image,
            to,
            platforms,
            changes,
            is_rehearsal: false,
        })
    }

    async fn run(mut self, core: &Core, progress: &Arc<Progress>) -> Result<Answer, Failure> {
        let caller = caller();
        let digest = core.pull.resolve(&caller, &self.image);
        let digest = unless_cancelled(progress, digest).await??;
        let overlay = unless_cancelled(progress, self.overlay(core)).await??;
        let name = self.to.frozen(&Frozen {
            source: &digest,
            platforms: &self.platforms,
            overlay: overlay.as_deref().map(Deref::deref),
        });
        let target = name.map_err(|error| Failure::Arguments(error.to_string()))?;
        let destination = destination(&target);
        let standing = core.mirror.standing(&destination);
        match unless_cancelled(progress, standing).await?? {
            Some(standing) if self.is_rehearsal => {
                return Ok(Answer::rehearsed(&self.image, &target, &standing, true));
            }
            Some(standing) => return Ok(Answer::standing(&self.image, &target, &standing)),
            None => core.mirror.may_push(&destination).await?,
        }
        let plan = Plan {
            source: self.source(core, digest, overlay).await?,
            version: TagOrDigest::Digest(digest),
            destination,
            platforms: Some(self.platforms.clone()),
            // They speak of the image as it was.
            referrers: false,
        };
        if self.is_rehearsal {
            let digest = unless_cancelled(progress, core.mirror.outcome(&plan)).await??;
            return Ok(Answer::rehearsed(&self.image, &target, &digest, false));
        }
        let copied = copy::copy(core, &plan, progress).await?;
        Ok(Answer::copied(&self.image, &target, &copied, false))
    }

    /// `None`: the image stays as it is.
    async fn overlay(&self, core: &Core) -> Result<Option<Arc<NamedOverlay>>, Failure> {
        let own = self.layers.iter().map(|layer| augment::Layer {
            digest: layer.digest,
            size: layer.bytes.len() as u64,
            diff_id: layer.diff_id,
            compression: Compression::Gzip,
            place: augment::Place::Inline,
            only_for: None,
        });
        let mut overlay = Overlay {
            entrypoint: self.changes.entrypoint(),
            cmd: self.changes.cmd(),
            working_dir: self.changes.workdir.clone(),
            env: self.changes.env.clone(),
            layers: own.collect(),
            platforms: self.platforms.clone(),
        };
        let caller = caller();
        for image in &self.includes {
            let included = core.pull.layers_of(&caller, image, &self.platforms).await;
            let included = included.map_err(|error| Failure::of_include(image, error))?;
            overlay.layers.extend(included);
            ensure_room(&overlay)?;
        }
        ensure_room(&overlay)?;
        let nothing = Overlay {
            entrypoint: Vec::new(),
            cmd: Vec::new(),
            working_dir: None,
            env: Vec::new(),
            layers: Vec::new(),
            platforms: self.platforms.clone(),
        };
        Ok((overlay != nothing).then(|| Arc::new(overlay.into())))
    }

    /// What a server's clients would pull by a name with this overlay.
    async fn source(
        &mut self,
        core: &Core,
        digest: Digest,
        overlay: Option<Arc<NamedOverlay>>,
    ) -> Result<Access, Failure> {
        let Reference {
            registry,
            repository,
            ..
        } = self.image.clone();
        let Some(overlay) = overlay else {
            return Ok(Access::by_caller(&caller(), registry, repository));
        };
        let layers = self.layers.drain(..).map(|layer| InlineLayer {
            digest: layer.digest,
            bytes: layer.bytes,
        });
        let request = ContainerRequest {
            image: Reference {
                registry,
                repository,
                version: TagOrDigest::Digest(digest),
            },
            caller: caller(),
            overlay: Some(overlay),
            layers: layers.collect(),
            purpose: Purpose::Name,
            details: RequestDetails {
                container_image: self.image.to_string(),
                platform: None,
                tower_endpoint: None,
                workflow_id: None,
                fingerprint: None,
                timestamp: None,
                address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            },
        };
        let requests = Arc::clone(&core.requests);
        let issue = move || requests.issue(request, Some(digest), SystemTime::now());
        let grant = core.pool.run(Errand::Grants, issue).await;
        let grant = grant.map_err(PullError::Busy)??;
        Ok(Access::by_grant(&grant))
    }
}

fn ensure_room(overlay: &Overlay) -> Result<(), Failure> {
    let excess = |excess| Failure::Arguments(format!("--layer and --include come to {excess}"));
    overlay.ensure_room().map_err(excess)
}
