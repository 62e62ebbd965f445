//! What is known about registries that nobody has configured: where they are, which realms are theirs, and what those
//! understand. Other names for Docker Hub are a matter of names, and in `oci`.

/// Public ones, which may be pulled from without a token.
const OPEN_BY_DEFAULT: [&str; 5] = [
    "docker.io",
    "quay.io",
    "ghcr.io",
    "public.ecr.aws",
    "registry.k8s.io",
];

/// Pairs of a registry and its realm. What shares a domain needs no line here.
const REALMS: [(&str, &str); 2] = [
    ("docker.io", "auth.docker.io"),
    ("registry.gitlab.com", "gitlab.com"),
];

/// Under these every customer has a host of his own, and none may collect another's credentials.
const SHARED_BY_TENANTS: [&str; 11] = [
    "azurecr.io",
    "azurecr.cn",
    "azurecr.us",
    "amazonaws.com",
    "amazonaws.com.cn",
    "amazonaws.eu",
    "on.aws",
    "on.amazonwebservices.com.cn",
    "pkg.dev",
    "gcr.io",
    "jfrog.io",
];

/// Realms that answer GET for every login they know. To them a refused password is not shown a second time by POST:
/// some lock an account after a few.
const GET_ONLY: [&str; 6] = [
    "auth.docker.io",
    "quay.io",
    "ghcr.io",
    "gitlab.com",
    "public.ecr.aws",
    "gcr.io",
];

/// Registries that take a password at their realm only, and answer 400 to Basic anywhere else, without a challenge from
/// which to learn better.
const BASIC_AT_THE_REALM: [&str; 2] = ["public.ecr.aws", "ecr-public.aws.com"];

/// Where a registry is reached whose host is not its name.
pub(super) const DOCKER_HUB: &str = "https://registry-1.docker.io";

/// The user name that stands for a refresh token as password (Azure Container Registry; `az acr login` stores it so).
pub(super) const REFRESH_TOKEN_USER: &str = "00000000-0000-0000-0000-000000000000";

pub(super) fn is_open_by_default(registry: &str) -> bool {
    OPEN_BY_DEFAULT.contains(&registry)
}

pub(super) fn is_realm_of(registry: &str, realm_host: &str) -> bool {
    REALMS.contains(&(registry, realm_host))
}

pub(super) fn takes_basic_at_the_realm_only(registry_host: &str) -> bool {
    BASIC_AT_THE_REALM.contains(&registry_host)
}

pub(super) fn takes_get_only(realm_host: &str) -> bool {
    GET_ONLY.contains(&realm_host)
        || is_below(realm_host, "pkg.dev")
        || is_below(realm_host, "gcr.io")
}

/// Whether two hosts belong to the same owner, by their names. Addresses and `localhost` have no domain: they only equal
/// themselves.
pub(super) fn share_domain(left: &str, right: &str) -> bool {
    let domain = |host: &str| {
        let last = host.rsplit('.').next().unwrap_or(host);
        if host.contains(':') || last.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        if SHARED_BY_TENANTS
            .iter()
            .any(|suffix| is_below(host, suffix))
        {
            return None;
        }
        let domain = psl::Psl::domain(&psl::List, host.as_bytes())?;
        // A suffix that is on no list, such as `.internal`, tells nothing about who owns what below it.
        if !domain.suffix().is_known() {
            return None;
        }
        str::from_utf8(domain.as_bytes()).ok().map(str::to_owned)
    };
    matches!((domain(left), domain(right)), (Some(left), Some(right)) if left == right)
}

fn is_below(host: &str, suffix: &str) -> bool {
    host.strip_suffix(suffix)
        .is_some_and(|rest| rest.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_share_a_domain_if_one_owner_has_both() {
        for (left, right, expected) in [
            ("registry.corp.com", "auth.corp.com", true),
            ("registry.gitlab.com", "gitlab.com", true),
            ("registry.corp.com", "corp.com.evil.org", false),
            ("a.azurecr.io", "b.azurecr.io", false),
            ("acme.jfrog.io", "other.jfrog.io", false),
            ("europe-docker.pkg.dev", "us-docker.pkg.dev", false),
            (
                "1.dkr.ecr.eu-west-1.amazonaws.com",
                "2.dkr.ecr.eu-west-1.amazonaws.com",
                false,
            ),
            ("a.co.uk", "b.co.uk", false),
            ("a.internal", "b.internal", false),
            ("127.0.0.1", "127.0.0.2", false),
            ("[::1]", "[::2]", false),
            ("localhost", "other.localhost", false),
        ] {
            assert_eq!(share_domain(left, right), expected, "{left} {right}");
        }
    }

    #[test]
    fn only_realms_that_are_known_for_it_take_get_only() {
        for (host, expected) in [
            ("auth.docker.io", true),
            ("eu.gcr.io", true),
            ("europe-docker.pkg.dev", true),
            ("notgcr.io", false),
            ("acme.azurecr.io", false),
            ("auth.corp.com", false),
        ] {
            assert_eq!(takes_get_only(host), expected, "{host}");
        }
    }
}
