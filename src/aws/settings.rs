//! `[aws]`, and what the environment and the shared files say where it says nothing.

use serde::Deserialize;

use super::{
    AwsError, Region,
    call::Target,
    environment::Environment,
    profile::Profiles,
    region::{Kind, Service, host},
    role::RoleArn,
};

/// `[aws]`: tidegate's own identity in AWS, and where AWS is asked.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Where tidegate's own keys come from. `"auto"`: the first that is set up of `"environment"`, `"profile"` (the
    /// shared files), `"web-identity"`, `"container"` and `"imds"` (an EC2 instance's metadata).
    pub source: SourceChoice,
    /// Of the shared files. Default: `AWS_PROFILE`, or `default`.
    pub profile: Option<String>,
    /// For STS; ECR is always asked in the registry's region. Default: `AWS_REGION`, `AWS_DEFAULT_REGION`, the
    /// profile's, or the registry's.
    pub region: Option<String>,
    /// A role that tidegate assumes before it assumes any other.
    pub jump_role: Option<String>,
    /// Let users' logins name a role without an external id. Whoever learns the role's ARN could then use it.
    pub allow_roles_without_external_id: bool,
    /// Ask hosts that are validated for FIPS 140. Also by `AWS_USE_FIPS_ENDPOINT=true`.
    pub use_fips: bool,
    /// Ask hosts that have IPv6 addresses too. Also by `AWS_USE_DUALSTACK_ENDPOINT=true`.
    pub use_dual_stack: bool,
    /// URLs to ask instead of AWS's own. Default: `AWS_ENDPOINT_URL_ECR` and so on, `AWS_ENDPOINT_URL`, the profile's.
    pub ecr_endpoint: Option<String>,
    pub ecr_public_endpoint: Option<String>,
    pub sts_endpoint: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SourceChoice {
    #[default]
    Auto,
    Environment,
    Profile,
    WebIdentity,
    Container,
    Imds,
}

impl Options {
    /// What is wrong with it, by key.
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let mut problems = Vec::new();
        if let Some(region) = &self.region
            && let Err(error) = region.parse::<Region>()
        {
            problems.push(("region", error.to_string()));
        }
        if let Some(role) = &self.jump_role
            && let Err(error) = role.parse::<RoleArn>()
        {
            problems.push(("jump_role", error.to_string()));
        }
        for (key, url) in [
            ("ecr_endpoint", &self.ecr_endpoint),
            ("ecr_public_endpoint", &self.ecr_public_endpoint),
            ("sts_endpoint", &self.sts_endpoint),
        ] {
            if let Some(url) = url
                && !is_endpoint(url)
            {
                problems.push((
                    key,
                    format!("`{url}` is not a URL as https://sts.eu-west-1.amazonaws.com is"),
                ));
            }
        }
        if self
            .profile
            .as_ref()
            .is_some_and(|name| name.trim().is_empty())
        {
            problems.push(("profile", "is empty".to_owned()));
        }
        problems
    }
}

fn is_endpoint(url: &str) -> bool {
    let parsed: Option<ureq::http::Uri> = url.parse().ok();
    parsed.is_some_and(|uri| {
        matches!(uri.scheme_str(), Some("http" | "https"))
            && uri.host().is_some_and(|host| !host.is_empty())
            && uri.query().is_none()
            // A name and password there would end in messages.
            && !url.contains('@')
    })
}

/// What holds for this process.
pub(super) struct Settings {
    pub(super) options: Options,
    pub(super) environment: Environment,
    /// Of STS.
    region: Option<Region>,
    kind: Kind,
    endpoints: [Option<String>; 3],
}

impl Settings {
    pub(super) fn new(options: Options, environment: Environment) -> Result<Self, AwsError> {
        let profiles = Profiles::load(&environment)?;
        let profile = profile_name(&options, &environment);
        let of_profile = |key: &str| {
            let value = profiles.get(&profile)?.get(key)?;
            Some(value.expose().clone())
        };
        let region = options
            .region
            .clone()
            .or_else(|| environment.get("AWS_REGION"))
            .or_else(|| environment.get("AWS_DEFAULT_REGION"))
            .or_else(|| of_profile("region"));
        let region: Option<Region> = match region.map(|text| text.parse()) {
            None => None,
            Some(Ok(region)) => Some(region),
            Some(Err(error)) => return Err(AwsError::Setting(format!("AWS region: {error}"))),
        };
        let is_ignored = environment.is_on("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS");
        let endpoint = |explicit: &Option<String>, service: Service| {
            let (variable, section) = match service {
                Service::Ecr => ("AWS_ENDPOINT_URL_ECR", "ecr"),
                Service::EcrPublic => ("AWS_ENDPOINT_URL_ECR_PUBLIC", "ecr_public"),
                Service::Sts => ("AWS_ENDPOINT_URL_STS", "sts"),
            };
            let found = || {
                environment
                    .get(variable)
                    .or_else(|| profiles.service_endpoint(&profile, section))
                    .or_else(|| environment.get("AWS_ENDPOINT_URL"))
                    .or_else(|| of_profile("endpoint_url"))
            };
            match explicit {
                Some(url) => Some(url.clone()),
                None if is_ignored => None,
                None => found(),
            }
        };
        let endpoints = [
            endpoint(&options.ecr_endpoint, Service::Ecr),
            endpoint(&options.ecr_public_endpoint, Service::EcrPublic),
            endpoint(&options.sts_endpoint, Service::Sts),
        ];
        if let Some(url) = endpoints.iter().flatten().find(|url| !is_endpoint(url)) {
            return Err(AwsError::Setting(format!(
                "the endpoint `{url}` for AWS is not a URL"
            )));
        }
        let is_on = |variable: &str, key: &str| {
            environment.is_on(variable)
                || of_profile(key).is_some_and(|value| value.eq_ignore_ascii_case("true"))
        };
        let kind = Kind {
            is_fips: options.use_fips || is_on("AWS_USE_FIPS_ENDPOINT", "use_fips_endpoint"),
            is_dual_stack: options.use_dual_stack
                || is_on("AWS_USE_DUALSTACK_ENDPOINT", "use_dualstack_endpoint"),
        };
        Ok(Self {
            region,
            kind,
            endpoints,
            options,
            environment,
        })
    }

    pub(super) fn profile(&self) -> String {
        profile_name(&self.options, &self.environment)
    }

    /// Whether somebody said so, and it must be there.
    pub(super) fn is_profile_chosen(&self) -> bool {
        self.options.profile.is_some() || self.environment.get("AWS_PROFILE").is_some()
    }

    pub(super) fn target(&self, service: Service, region: &Region) -> Target {
        let [ecr, ecr_public, sts] = &self.endpoints;
        let chosen = match service {
            Service::Ecr => ecr,
            Service::EcrPublic => ecr_public,
            Service::Sts => sts,
        };
        Target {
            url: match chosen {
                Some(url) => url.clone(),
                None => format!("https://{}", host(service, region, self.kind)),
            },
            region: region.to_string(),
            service,
        }
    }

    /// Where STS is asked for something that is to serve in `wanted`: our own region, unless it is of another
    /// partition, where nobody knows our keys' region.
    pub(super) fn sts_region(&self, wanted: &Region) -> Region {
        match &self.region {
            Some(own) if own.partition() == wanted.partition() => own.clone(),
            _ => wanted.clone(),
        }
    }
}

fn profile_name(options: &Options, environment: &Environment) -> String {
    options
        .profile
        .clone()
        .or_else(|| environment.get("AWS_PROFILE"))
        .unwrap_or_else(|| "default".to_owned())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn endpoints_are_chosen_in_order() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("config");
        fs::write(
            &file,
            "[default]\nregion = eu-north-1\nendpoint_url = http://profile\nservices = s\n[services s]\nsts =\n  endpoint_url = http://section\n",
        )
        .expect("our own folder");
        let file = file.display().to_string();
        let config = ("AWS_CONFIG_FILE", file.as_str());
        let none = ("AWS_SHARED_CREDENTIALS_FILE", "/nowhere");
        let explicit = Options {
            sts_endpoint: Some("http://explicit".to_owned()),
            ..Options::default()
        };
        for (options, variables, expected) in [
            (
                Options::default(),
                vec![none],
                "https://sts.eu-west-1.amazonaws.com",
            ),
            (Options::default(), vec![config, none], "http://section"),
            (
                Options::default(),
                vec![config, none, ("AWS_ENDPOINT_URL_STS", "http://own")],
                "http://own",
            ),
            (
                Options::default(),
                vec![none, ("AWS_ENDPOINT_URL", "http://all")],
                "http://all",
            ),
            (
                Options::default(),
                vec![
                    config,
                    none,
                    ("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "true"),
                ],
                "https://sts.eu-north-1.amazonaws.com",
            ),
            (
                explicit,
                vec![config, none, ("AWS_ENDPOINT_URL_STS", "http://own")],
                "http://explicit",
            ),
            (
                Options::default(),
                vec![none, ("AWS_USE_FIPS_ENDPOINT", "true")],
                "https://sts-fips.eu-west-1.amazonaws.com",
            ),
            (
                Options::default(),
                vec![none, ("AWS_REGION", " ")],
                "https://sts.eu-west-1.amazonaws.com",
            ),
        ] {
            let text = format!("{variables:?}");
            let settings = Settings::new(options, Environment::of(&variables))
                .unwrap_or_else(|error| panic!("{text}: {error}"));
            let region = settings.sts_region(&"eu-west-1".parse().expect("a region"));
            assert_eq!(
                settings.target(Service::Sts, &region).url,
                expected,
                "{text}"
            );
        }
    }

    #[test]
    fn sts_is_asked_in_the_partition_of_the_registry() {
        let variables = [("AWS_REGION", "us-west-2")];
        let settings =
            Settings::new(Options::default(), Environment::of(&variables)).expect("good settings");
        for (registry, expected) in [("eu-west-1", "us-west-2"), ("cn-north-1", "cn-north-1")] {
            let region = settings.sts_region(&registry.parse().expect("a region"));
            assert_eq!(region.as_str(), expected, "{registry}");
        }
    }
}
