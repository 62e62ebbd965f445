//! Media types of manifests, and how to tell one without its label.

pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub const DOCKER_SCHEMA1: &str = "application/vnd.docker.distribution.manifest.v1+json";
pub const DOCKER_SCHEMA1_SIGNED: &str = "application/vnd.docker.distribution.manifest.v1+prettyjws";
/// Withdrawn from the specification, still stored in places.
pub const OCI_ARTIFACT: &str = "application/vnd.oci.artifact.manifest.v1+json";

/// What we ask an upstream for. Always the whole list: what a tag names may depend on it, and the
/// answer is shared.
pub const ACCEPT_MANIFESTS: &str = "application/vnd.docker.distribution.manifest.v2+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.oci.image.manifest.v1+json, \
     application/vnd.oci.image.index.v1+json, \
     application/vnd.oci.artifact.manifest.v1+json, \
     */*";

/// Whether a client that sends these `Accept` lines takes a manifest of this type. Clients list the types that they
/// know, on one line or on several; quality values do not matter to any registry. A list without any type of a manifest
/// was not meant for us.
pub fn is_accepted<'a>(media_type: &str, lines: impl Iterator<Item = &'a str>) -> bool {
    let mut names_manifests = false;
    for range in lines.flat_map(|line| line.split(',')) {
        let range = range.split(';').next().unwrap_or_default().trim();
        if range == media_type || matches!(range, "*/*" | "application/*") {
            return true;
        }
        names_manifests |= range.starts_with("application/vnd.");
    }
    !names_manifests
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_accept_lines_count() {
        for (lines, expected) in [
            (vec![], true),
            (vec!["*/*"], true),
            (vec!["application/json"], true),
            (vec![DOCKER_MANIFEST, OCI_INDEX], true),
            (
                vec![
                    "application/vnd.oci.image.manifest.v1+json;q=0.1, application/vnd.oci.image.index.v1+json",
                ],
                true,
            ),
            (vec![DOCKER_MANIFEST, "*/*;q=0.1"], true),
            (vec![DOCKER_MANIFEST, DOCKER_LIST], false),
        ] {
            assert_eq!(
                is_accepted(OCI_INDEX, lines.iter().copied()),
                expected,
                "{lines:?}"
            );
        }
    }
}
