//! The rules that a container request must keep. Pure: who asks, and whether the image exists, is found out elsewhere.
//!
//! Their order is part of the API: of several broken rules the first one is told. They come in steps: sizes and names, what
//! a mirror may have, then (when it is known who asks) what excludes what, and last what this server cannot do.

use super::{
    layers::PostedLayer,
    route::ApiVersion,
    submission::{ContainerConfig, Format, Rejection, Submission, present},
};
use crate::{
    mirror::{NameError, Place},
    oci::{Platform, Platforms, Reference, TagOrDigest},
    requests::DurableKind,
};

const LONGEST_CONDA_FILE: usize = 50_000;
/// In base64, as it is posted.
const LONGEST_CONTAINER_FILE: usize = 10_000;
const LONGEST_LAYER: usize = 14_000_000;
const MOST_INCLUDES: usize = 10;
/// What a kernel passes to a program is bounded, at 2 MiB mostly; a request is kept in memory and on disk.
const LARGEST_SETTINGS: usize = 256 << 10;
/// Well above any Platform's; they are kept with the request.
const LONGEST_RUN_ID: usize = 256;
const LONGEST_TOKEN: usize = 64 << 10;
const LONGEST_ENDPOINT: usize = 2048;

/// What is left of a submission that keeps the rules.
pub(super) struct Wanted {
    pub image: Reference,
    pub platforms: Option<Platforms>,
    pub additions: Option<Additions>,
    /// An image that stays, and no name for one.
    pub kept: Option<Kept>,
}

/// An image that is put into a repository of the caller's.
pub(super) struct Kept {
    pub kind: DurableKind,
    pub place: Place,
    /// Only what would be is asked.
    pub is_dry_run: bool,
}

/// What is to be put on the image.
pub(super) struct Additions {
    pub config: ContainerConfig,
    pub includes: Vec<Reference>,
}

fn invalid(message: impl Into<String>) -> Rejection {
    Rejection::Invalid(message.into())
}

/// The first rule that is broken, in the order in which they are listed.
fn none_of<const N: usize>(broken: [(bool, &str); N]) -> Result<(), Rejection> {
    match broken.into_iter().find(|(is_broken, _)| *is_broken) {
        Some((_, message)) => Err(invalid(message)),
        None => Ok(()),
    }
}

impl Submission {
    /// The rules that need not know who asks.
    pub(super) fn check_before_identity(&self, version: ApiVersion) -> Result<(), Rejection> {
        self.check_sizes()?;
        if let Some(image) = present(&self.container_image) {
            parse_image("containerImage", image)?;
        }
        if self.is_mirror() {
            return self.check_mirror(version);
        }
        for (field, repository) in [
            ("buildRepository", &self.build_repository),
            ("cacheRepository", &self.cache_repository),
        ] {
            if let Some(repository) = present(repository) {
                check_repository(field, repository)?;
            }
        }
        Ok(())
    }

    fn check_sizes(&self) -> Result<(), Rejection> {
        let of = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        let longest = |name: &str, size: usize, most: usize| match size > most {
            true => Err(invalid(format!("{name} is longer than {most} characters"))),
            false => Ok(()),
        };
        longest("condaFile", of(&self.conda_file), LONGEST_CONDA_FILE)?;
        longest(
            "containerFile",
            of(&self.container_file),
            LONGEST_CONTAINER_FILE,
        )?;
        let location = |layer: &PostedLayer| of(&layer.location);
        for (number, layer) in (1..).zip(self.layers()) {
            longest(&format!("layer {number}"), location(layer), LONGEST_LAYER)?;
        }
        let context = self.build_context.as_ref();
        longest("buildContext", context.map_or(0, location), LONGEST_LAYER)?;
        let config = self.container_config.as_ref();
        if config.is_some_and(|config| config.settings_size() > LARGEST_SETTINGS) {
            return Err(invalid(format!(
                "containerConfig has more than {LARGEST_SETTINGS} bytes of entrypoint, cmd, env and workingDir"
            )));
        }
        longest("workflowId", of(&self.workflow_id), LONGEST_RUN_ID)?;
        longest("towerEndpoint", of(&self.tower_endpoint), LONGEST_ENDPOINT)?;
        for (name, token) in [
            ("towerAccessToken", &self.tower_access_token),
            ("towerRefreshToken", &self.tower_refresh_token),
        ] {
            let size = token.as_ref().map_or(0, |token| token.expose().len());
            longest(name, size, LONGEST_TOKEN)?;
        }
        Ok(())
    }

    /// A copy stays as it is.
    fn check_mirror(&self, version: ApiVersion) -> Result<(), Rejection> {
        let token = self.tower_access_token.as_ref();
        let repository = present(&self.build_repository);
        none_of([
            (
                version == ApiVersion::V1Alpha1,
                "mirror needs the endpoint /v1alpha2/container",
            ),
            (
                present(&self.container_image).is_none(),
                "mirror needs a containerImage",
            ),
            (
                token.is_none_or(|token| token.expose().is_empty()),
                "mirror needs a towerAccessToken",
            ),
            (self.is_frozen(), "mirror and freeze exclude each other"),
            (
                present(&self.container_file).is_some(),
                "mirror and containerFile exclude each other",
            ),
            (
                self.has_includes(),
                "mirror and containerIncludes exclude each other",
            ),
            (
                self.has_config(),
                "mirror and containerConfig exclude each other",
            ),
            (repository.is_none(), "mirror needs a buildRepository"),
        ])?;
        let (Some(image), Some(repository)) = (present(&self.container_image), repository) else {
            return Ok(());
        };
        let source = parse_image("containerImage", image)?.registry;
        if parse_place(repository)?.registry == source {
            return Err(invalid(format!(
                "mirror copies from one registry to another, and both images are at {source}"
            )));
        }
        Ok(())
    }

    /// The rules that come after it.
    pub(super) fn into_wanted(self, version: ApiVersion) -> Result<Wanted, Rejection> {
        self.check_combinations(version)?;
        let platforms = self.check_platforms()?;
        let has_image = present(&self.container_image).is_some();
        none_of([
            (!has_image && !self.is_build(), "containerImage is missing"),
            (
                has_image && present(&self.container_file).is_some(),
                "containerImage and containerFile exclude each other",
            ),
            (
                has_image && self.is_build(),
                "containerImage excludes packages and condaFile: an image is built of them",
            ),
        ])?;
        let image = present(&self.container_image)
            .map(|image| parse_image("containerImage", image))
            .transpose()?;
        let is_digest = image
            .as_ref()
            .is_some_and(|image| matches!(image.version, TagOrDigest::Digest(_)));
        let is_changed = self.has_config() || self.has_includes();
        none_of([
            (
                is_digest && is_changed && !self.is_frozen(),
                "an image named by digest cannot have a containerConfig or containerIncludes: its digest would change",
            ),
            (
                self.format == Some(Format::Sif) && !self.is_frozen(),
                "format sif needs freeze",
            ),
        ])?;
        if self.scan_mode.is_some() {
            return Err(Rejection::Unsupported("scanMode"));
        }
        let includes = self.parse_includes()?;
        self.ensure_supported()?;
        let Some(image) = image else {
            return Err(invalid("containerImage is missing"));
        };
        let kept = self.kept()?;
        let additions = is_changed.then(|| Additions {
            config: self.container_config.unwrap_or_default(),
            includes,
        });
        Ok(Wanted {
            image,
            platforms,
            additions,
            kept,
        })
    }

    fn kept(&self) -> Result<Option<Kept>, Rejection> {
        let kind = match (self.is_mirror(), self.is_frozen()) {
            (true, _) => DurableKind::Mirror,
            (false, true) => DurableKind::Freeze,
            (false, false) => return Ok(None),
        };
        let place = parse_place(present(&self.build_repository).unwrap_or_default())?;
        if kind == DurableKind::Freeze {
            place.repository().map_err(of_place)?;
        }
        Ok(Some(Kept {
            kind,
            place,
            is_dry_run: self.dry_run.unwrap_or_default(),
        }))
    }

    fn check_combinations(&self, version: ApiVersion) -> Result<(), Rejection> {
        let has_file = present(&self.container_file).is_some();
        let has_packages = self.packages.is_some();
        match version {
            ApiVersion::V1Alpha2 => none_of([
                (
                    has_file && has_packages,
                    "containerFile and packages exclude each other",
                ),
                (
                    present(&self.conda_file).is_some(),
                    "condaFile belongs to the endpoint /container-token; use packages here",
                ),
            ])?,
            ApiVersion::V1Alpha1 => none_of([
                (
                    has_packages,
                    "packages need the endpoint /v1alpha2/container",
                ),
                (
                    self.name_strategy.is_some(),
                    "nameStrategy needs the endpoint /v1alpha2/container",
                ),
            ])?,
        }
        let has_source = has_file || has_packages || present(&self.container_image).is_some();
        none_of([(
            self.is_frozen() && has_source && present(&self.build_repository).is_none(),
            "freeze needs a buildRepository to push to",
        )])
    }

    /// Several are for freezes and for builds, and there the two that images are built for.
    fn check_platforms(&self) -> Result<Option<Platforms>, Rejection> {
        let Some(text) = present(&self.container_platform) else {
            return Ok(None);
        };
        let platforms = text
            .split(',')
            .map(|text| text.trim().parse::<Platform>())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| invalid(format!("containerPlatform: {error}")))?;
        let is_frozen_image =
            self.is_frozen() && !self.is_build() && self.format != Some(Format::Sif);
        if platforms.len() == 1 || is_frozen_image {
            let platforms = Platforms::of(platforms)
                .map_err(|error| invalid(format!("containerPlatform: {error}")))?;
            return Ok(Some(platforms));
        }
        let mut names: Vec<String> = platforms.iter().map(Platform::to_string).collect();
        names.sort_unstable();
        none_of([
            (
                names != ["linux/amd64", "linux/arm64"],
                "containerPlatform: of several platforms, only linux/amd64,linux/arm64 can be asked for",
            ),
            (
                present(&self.container_file).is_none() && self.packages.is_none(),
                "containerPlatform: several platforms are for builds and freezes; an image that is there has those that it has",
            ),
            (
                self.format == Some(Format::Sif),
                "containerPlatform: several platforms do not go into one sif file",
            ),
        ])?;
        Err(Rejection::Unsupported("building for several platforms"))
    }

    fn parse_includes(&self) -> Result<Vec<Reference>, Rejection> {
        let includes = self.container_includes.as_deref().unwrap_or_default();
        if includes.len() > MOST_INCLUDES {
            return Err(invalid(format!(
                "containerIncludes has {} images; {MOST_INCLUDES} is the most",
                includes.len()
            )));
        }
        let parse = |image: &String| parse_image("containerIncludes", image);
        includes.iter().map(parse).collect()
    }

    fn ensure_supported(&self) -> Result<(), Rejection> {
        let asked = [
            (
                self.is_build(),
                "building (containerFile, packages, condaFile)",
            ),
            (
                self.format == Some(Format::Sif),
                "building for Singularity (format sif)",
            ),
            (self.build_context.is_some(), "buildContext"),
        ];
        match asked.into_iter().find(|(is_asked, _)| *is_asked) {
            Some((_, what)) => Err(Rejection::Unsupported(what)),
            None => Ok(()),
        }
    }

    fn is_build(&self) -> bool {
        present(&self.container_file).is_some()
            || self.packages.is_some()
            || present(&self.conda_file).is_some()
    }

    fn is_frozen(&self) -> bool {
        self.freeze.unwrap_or_default()
    }

    fn has_includes(&self) -> bool {
        let includes = self.container_includes.as_ref();
        includes.is_some_and(|includes| !includes.is_empty())
    }

    fn has_config(&self) -> bool {
        let config = self.container_config.as_ref();
        config.is_some_and(|config| !config.is_empty())
    }
}

fn parse_image(field: &str, text: &str) -> Result<Reference, Rejection> {
    text.parse()
        .map_err(|error| invalid(format!("{field}: {error}")))
}

fn parse_place(text: &str) -> Result<Place, Rejection> {
    text.parse().map_err(of_place)
}

fn of_place(error: NameError) -> Rejection {
    invalid(format!("buildRepository: {error}"))
}

/// Where something would be pushed to; its tag is made up.
fn check_repository(field: &str, text: &str) -> Result<(), Rejection> {
    let shown: String = text.chars().take(100).collect();
    let (first, rest) = text.split_once('/').unwrap_or((text, ""));
    let is_registry = first.contains(['.', ':']) && !text.contains("://");
    if is_registry && rest.is_empty() {
        return Err(invalid(format!(
            "{field}: `{shown}` is a registry without a repository"
        )));
    }
    parse_image(field, text)?;
    let last = text.rsplit('/').next().unwrap_or_default();
    if last.contains([':', '@']) {
        return Err(invalid(format!(
            "{field}: `{shown}` ends with a tag or digest, which is made up for what is pushed there"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn judge(version: ApiVersion, body: &str) -> Result<Wanted, Rejection> {
        let submission = Submission::parse(body.as_bytes())?;
        submission.check_before_identity(version)?;
        submission.into_wanted(version)
    }

    #[test]
    fn plain_images_pass() {
        for body in [
            r#"{"containerImage":"alpine"}"#,
            r#"{"containerImage":"quay.io/a/b:1","unknown":[1],"freeze":null,"mirror":false,"containerConfig":null}"#,
            r#"{"containerImage":"alpine","containerConfig":{"env":[],"layers":null,"workingDir":""},"containerIncludes":[]}"#,
            r#"{"containerImage":"alpine","containerPlatform":"arm64","containerFile":"","towerWorkspaceId":null}"#,
            r#"{"containerImage":"alpine","dryRun":true,"format":"docker","buildRepository":"quay.io/a/b","cacheRepository":"quay.io/a/c"}"#,
            r#"{"containerImage":"alpine","buildCompression":{"mode":"zstd","level":3,"force":true},"scanLevels":["LOW"]}"#,
        ] {
            for version in [ApiVersion::V1Alpha1, ApiVersion::V1Alpha2] {
                if let Err(error) = judge(version, body) {
                    panic!("{body}: {error}");
                }
            }
        }
    }

    #[test]
    fn what_is_to_be_put_on_an_image_is_told_from_nothing() {
        for (members, is_changed) in [
            (r#""containerConfig":{}"#, false),
            (r#""containerConfig":{"cmd":[],"env":null}"#, false),
            (r#""containerConfig":{"cmd":["x"]}"#, true),
            (r#""containerConfig":{"workingDir":"/x"}"#, true),
            (
                r#""containerConfig":{"layers":[{"location":"data:x"}]}"#,
                true,
            ),
            (r#""containerIncludes":["b"]"#, true),
        ] {
            let body = format!(r#"{{"containerImage":"a",{members}}}"#);
            let plain = judge(ApiVersion::V1Alpha2, &body);
            let plain = plain.unwrap_or_else(|error| panic!("{body}: {error}"));
            assert_eq!(plain.additions.is_some(), is_changed, "{body}");
        }
    }

    #[test]
    fn only_an_image_that_is_frozen_may_be_for_several_platforms() {
        let freeze = r#""freeze":true,"buildRepository":"quay.io/a/b""#;
        for (platforms, more, expected) in [
            (
                "linux/amd64,linux/arm64",
                freeze,
                Ok("linux/amd64,linux/arm64"),
            ),
            (
                "s390x, arm64,arm/v7",
                freeze,
                Ok("linux/arm/v7,linux/arm64,linux/s390x"),
            ),
            ("amd64,x86_64", freeze, Ok("linux/amd64")),
            ("amd64,vax", freeze, Err("containerPlatform: `vax`")),
            (
                "amd64,arm64",
                r#""freeze":true,"buildRepository":"quay.io/a/b","containerIncludes":["c"]"#,
                Ok("linux/amd64,linux/arm64"),
            ),
            (
                "amd64,arm64",
                r#""containerIncludes":["c"]"#,
                Err("containerPlatform: several platforms"),
            ),
            (
                "amd64,arm64",
                r#""freeze":true,"buildRepository":"quay.io/a/b","format":"sif""#,
                Err("containerPlatform: several platforms"),
            ),
            (
                "amd64,arm64",
                r#""freeze":false"#,
                Err("containerPlatform: several platforms"),
            ),
            (
                "amd64,arm64",
                r#""mirror":true,"towerAccessToken":"t","buildRepository":"quay.io/a""#,
                Err("containerPlatform: several platforms"),
            ),
        ] {
            let body =
                format!(r#"{{"containerImage":"a","containerPlatform":"{platforms}",{more}}}"#);
            match (judge(ApiVersion::V1Alpha2, &body), expected) {
                (Ok(wanted), Ok(expected)) => {
                    let platforms = wanted.platforms.map(|platforms| platforms.to_string());
                    assert_eq!(platforms.as_deref(), Some(expected), "{body}");
                }
                (Err(Rejection::Invalid(message)), Err(told)) => {
                    assert!(message.starts_with(told), "{body}: {message}");
                }
                (other, _) => panic!("{body}: {:?}", other.err()),
            }
        }
    }

    /// The rows of a container request's validation that this module decides are in tests/it/validation.rs, all in their
    /// order and with their statuses. Here is which of two broken ones is told.
    #[test]
    fn of_two_broken_rules_the_first_is_told() {
        let long = |size: usize| "x".repeat(size + 1);
        for (members, told) in [
            (
                format!(
                    r#""containerFile":"{}","condaFile":"{}""#,
                    long(LONGEST_CONTAINER_FILE),
                    long(LONGEST_CONDA_FILE)
                ),
                "condaFile is longer",
            ),
            (
                format!(
                    r#""containerImage":"docker://a","containerFile":"{}""#,
                    long(LONGEST_CONTAINER_FILE)
                ),
                "containerFile is longer",
            ),
            (
                r#""buildRepository":"quay.io","containerImage":"docker://a""#.to_owned(),
                "containerImage: ",
            ),
            (
                r#""cacheRepository":"s3://b","buildRepository":"quay.io""#.to_owned(),
                "buildRepository: ",
            ),
            // Not looked at in a mirror.
            (
                r#""mirror":true,"cacheRepository":"s3://b""#.to_owned(),
                "mirror needs a containerImage",
            ),
            (
                r#""condaFile":"Zg==","cacheRepository":"s3://b""#.to_owned(),
                "cacheRepository: ",
            ),
            (
                r#""condaFile":"Zg==","containerFile":"Zg==","packages":{}"#.to_owned(),
                "containerFile and packages",
            ),
            (
                r#""freeze":true,"containerImage":"a","condaFile":"Zg==""#.to_owned(),
                "condaFile belongs",
            ),
            (
                r#""containerPlatform":"vax","containerImage":"a","freeze":true"#.to_owned(),
                "freeze needs",
            ),
            (
                r#""containerPlatform":"vax""#.to_owned(),
                "containerPlatform: ",
            ),
            (
                r#""format":"sif","scanMode":"none""#.to_owned(),
                "containerImage is missing",
            ),
            (
                format!(
                    r#""format":"sif","containerImage":"a@{DIGEST}","containerConfig":{{"cmd":["x"]}}"#
                ),
                "an image named by digest",
            ),
            (
                r#""scanMode":"none","format":"sif","containerImage":"a""#.to_owned(),
                "format sif",
            ),
        ] {
            let body = format!("{{{members}}}");
            match judge(ApiVersion::V1Alpha2, &body) {
                Err(Rejection::Invalid(message)) => {
                    assert!(message.starts_with(told), "{members:.100}: {message}");
                }
                other => panic!("{members:.100}: {:?}", other.err()),
            }
        }
    }

    #[test]
    fn repositories_are_told_from_images_and_registries() {
        for (text, problem) in [
            ("quay.io/acme/app", None),
            ("acme/app", None),
            ("app", None),
            ("localhost:5000/app", None),
            ("quay.io", Some("without a repository")),
            ("quay.io/", Some("without a repository")),
            ("localhost:5000", Some("without a repository")),
            ("https://quay.io/acme", Some("is a URL")),
            ("quay.io/acme/app:v1", Some("ends with a tag")),
            ("acme/app:v1", Some("ends with a tag")),
            ("quay.io/ACME/app", Some("is not a repository")),
        ] {
            match (check_repository("buildRepository", text), problem) {
                (Ok(()), None) => {}
                (Err(Rejection::Invalid(message)), Some(problem)) => {
                    assert!(message.starts_with("buildRepository: "), "{message}");
                    assert!(message.contains(problem), "{text}: {message}");
                }
                (other, _) => panic!("{text}: {other:?}"),
            }
        }
        let digest = format!("acme/app@{DIGEST}");
        assert!(check_repository("buildRepository", &digest).is_err());
    }
}
