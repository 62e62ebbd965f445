//! Regions, the partitions that they belong to, and where AWS's services are reached in them. Pure.

use std::{fmt, str::FromStr};

/// An island of AWS with names and accounts of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Partition {
    pub(super) id: &'static str,
    /// Where it is asked when nothing says another.
    first_region: &'static str,
    /// How its regions' names begin, but for a place and a number. They do not overlap, since those have no `-`.
    regions: &'static [&'static str],
    domain: &'static str,
    dual_stack_domain: &'static str,
    /// Under which its registries have a name for IPv6 too.
    dual_stack_registries: Option<&'static str>,
}

const PARTITIONS: [Partition; 8] = [
    Partition {
        id: "aws",
        first_region: "us-east-1",
        regions: &["us", "eu", "ap", "sa", "ca", "me", "af", "il", "mx"],
        domain: "amazonaws.com",
        dual_stack_domain: "api.aws",
        dual_stack_registries: Some("on.aws"),
    },
    Partition {
        id: "aws-cn",
        first_region: "cn-north-1",
        regions: &["cn"],
        domain: "amazonaws.com.cn",
        dual_stack_domain: "api.amazonwebservices.com.cn",
        dual_stack_registries: Some("on.amazonwebservices.com.cn"),
    },
    Partition {
        id: "aws-us-gov",
        first_region: "us-gov-west-1",
        regions: &["us-gov"],
        domain: "amazonaws.com",
        dual_stack_domain: "api.aws",
        dual_stack_registries: Some("on.aws"),
    },
    Partition {
        id: "aws-eusc",
        first_region: "eusc-de-east-1",
        regions: &["eusc-de"],
        domain: "amazonaws.eu",
        dual_stack_domain: "api.amazonwebservices.eu",
        dual_stack_registries: None,
    },
    Partition {
        id: "aws-iso",
        first_region: "us-iso-east-1",
        regions: &["us-iso"],
        domain: "c2s.ic.gov",
        dual_stack_domain: "api.aws.ic.gov",
        dual_stack_registries: None,
    },
    Partition {
        id: "aws-iso-b",
        first_region: "us-isob-east-1",
        regions: &["us-isob"],
        domain: "sc2s.sgov.gov",
        dual_stack_domain: "api.aws.scloud",
        dual_stack_registries: None,
    },
    Partition {
        id: "aws-iso-e",
        first_region: "eu-isoe-west-1",
        regions: &["eu-isoe"],
        domain: "cloud.adc-e.uk",
        dual_stack_domain: "api.cloud-aws.adc-e.uk",
        dual_stack_registries: None,
    },
    Partition {
        id: "aws-iso-f",
        first_region: "us-isof-south-1",
        regions: &["us-isof"],
        domain: "csp.hci.ic.gov",
        dual_stack_domain: "api.aws.hci.ic.gov",
        dual_stack_registries: None,
    },
];

impl Partition {
    /// `us-gov` and a place and a number: `us-gov-west-1`.
    fn has(&self, region: &str) -> bool {
        self.regions.iter().any(|start| {
            let rest = region
                .strip_prefix(start)
                .and_then(|rest| rest.strip_prefix('-'));
            rest.and_then(|rest| rest.split_once('-'))
                .is_some_and(|(place, number)| {
                    !place.is_empty()
                        && place.bytes().all(|b| b.is_ascii_alphanumeric())
                        && !number.is_empty()
                        && number.bytes().all(|b| b.is_ascii_digit())
                })
        })
    }

    fn has_registries_under(&self, suffix: &str) -> bool {
        self.domain == suffix || self.dual_stack_registries == Some(suffix)
    }

    /// `suffix` is that of a registry's host. New regions come, with starts that are not known here.
    pub(super) fn of_registry(suffix: &str, region: &str) -> Option<Self> {
        let fits = |it: &&Self| it.has_registries_under(suffix);
        let known = PARTITIONS.iter().filter(fits).find(|it| it.has(region));
        known.or_else(|| PARTITIONS.iter().find(fits)).copied()
    }
}

/// A region's name: part of host names, so no more than that.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Region(String);

#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not a region's name, as eu-west-1 is")]
pub struct RegionError(String);

impl FromStr for Region {
    type Err = RegionError;

    fn from_str(text: &str) -> Result<Self, RegionError> {
        const LONGEST: usize = 32;
        let is_name = !text.is_empty()
            && text.len() <= LONGEST
            && !text.starts_with('-')
            && !text.ends_with('-')
            && text
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        match is_name {
            true => Ok(Self(text.to_owned())),
            false => Err(RegionError(text.chars().take(LONGEST).collect())),
        }
    }
}

impl Region {
    /// Where all of ECR Public's logins come from.
    pub(super) fn us_east_1() -> Self {
        Self("us-east-1".to_owned())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Of a partition's id.
    pub(super) fn first_of(partition: &str) -> Self {
        let [default, ..] = PARTITIONS;
        let known = PARTITIONS.into_iter().find(|it| it.id == partition);
        Self(known.unwrap_or(default).first_region.to_owned())
    }

    /// Of one that is not known, the largest.
    pub(super) fn partition(&self) -> Partition {
        let [default, ..] = PARTITIONS;
        let known = PARTITIONS.into_iter().find(|it| it.has(&self.0));
        known.unwrap_or(default)
    }
}

impl fmt::Display for Region {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Service {
    Ecr,
    EcrPublic,
    Sts,
}

impl Service {
    pub(super) fn signing_name(self) -> &'static str {
        match self {
            Self::Ecr => "ecr",
            Self::EcrPublic => "ecr-public",
            Self::Sts => "sts",
        }
    }
}

/// Which kind of a service's hosts to ask.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Kind {
    pub(super) is_fips: bool,
    pub(super) is_dual_stack: bool,
}

/// The host of a service, by AWS's rules.
pub(super) fn host(service: Service, region: &Region, kind: Kind) -> String {
    let partition = region.partition();
    let (domain, dual) = (partition.domain, partition.dual_stack_domain);
    match (service, kind.is_fips, kind.is_dual_stack) {
        (Service::Ecr, false, false) => format!("api.ecr.{region}.{domain}"),
        (Service::Ecr, false, true) => format!("ecr.{region}.{dual}"),
        // AWS's own lists disagree; `aws.ecr_endpoint` is for those who know better.
        (Service::Ecr, true, false) => format!("ecr-fips.{region}.{domain}"),
        (Service::Ecr, true, true) => format!("ecr-fips.{region}.{dual}"),
        // It has no FIPS host.
        (Service::EcrPublic, _, false) => format!("api.ecr-public.{region}.{domain}"),
        (Service::EcrPublic, _, true) => format!("ecr-public.{region}.{dual}"),
        // All of its hosts there are FIPS.
        (Service::Sts, true, false) if partition.id == "aws-us-gov" => {
            format!("sts.{region}.{domain}")
        }
        (Service::Sts, true, false) => format!("sts-fips.{region}.{domain}"),
        (Service::Sts, true, true) => format!("sts-fips.{region}.{dual}"),
        (Service::Sts, false, false) => format!("sts.{region}.{domain}"),
        (Service::Sts, false, true) => format!("sts.{region}.{dual}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(text: &str) -> Region {
        text.parse().unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn regions_belong_to_partitions() {
        for (text, id) in [
            ("us-east-1", "aws"),
            ("eu-west-1", "aws"),
            ("mx-central-1", "aws"),
            ("us-gov-west-1", "aws-us-gov"),
            ("us-iso-east-1", "aws-iso"),
            ("us-isob-east-1", "aws-iso-b"),
            ("us-isof-south-1", "aws-iso-f"),
            ("eu-isoe-west-1", "aws-iso-e"),
            ("eusc-de-east-1", "aws-eusc"),
            ("cn-north-1", "aws-cn"),
            ("xx-new-1", "aws"),
        ] {
            assert_eq!(region(text).partition().id, id, "{text}");
        }
        for text in ["", "EU-west-1", "eu.west", "eu-west-1/", "-eu", "eu west"] {
            assert!(text.parse::<Region>().is_err(), "{text}");
        }
    }

    #[test]
    fn services_are_reached_by_their_rules() {
        use Service::{Ecr, EcrPublic, Sts};
        for (service, text, is_fips, is_dual_stack, expected) in [
            (
                Ecr,
                "eu-west-1",
                false,
                false,
                "api.ecr.eu-west-1.amazonaws.com",
            ),
            (Ecr, "eu-west-1", false, true, "ecr.eu-west-1.api.aws"),
            (
                Ecr,
                "us-east-1",
                true,
                false,
                "ecr-fips.us-east-1.amazonaws.com",
            ),
            (Ecr, "us-east-1", true, true, "ecr-fips.us-east-1.api.aws"),
            (
                Ecr,
                "cn-north-1",
                false,
                false,
                "api.ecr.cn-north-1.amazonaws.com.cn",
            ),
            (
                Ecr,
                "cn-north-1",
                false,
                true,
                "ecr.cn-north-1.api.amazonwebservices.com.cn",
            ),
            (
                Ecr,
                "eusc-de-east-1",
                false,
                false,
                "api.ecr.eusc-de-east-1.amazonaws.eu",
            ),
            (
                Ecr,
                "us-iso-east-1",
                false,
                false,
                "api.ecr.us-iso-east-1.c2s.ic.gov",
            ),
            (
                Ecr,
                "us-isob-east-1",
                false,
                false,
                "api.ecr.us-isob-east-1.sc2s.sgov.gov",
            ),
            (
                EcrPublic,
                "us-east-1",
                false,
                false,
                "api.ecr-public.us-east-1.amazonaws.com",
            ),
            (
                EcrPublic,
                "us-east-1",
                true,
                true,
                "ecr-public.us-east-1.api.aws",
            ),
            (
                Sts,
                "eu-west-1",
                false,
                false,
                "sts.eu-west-1.amazonaws.com",
            ),
            (Sts, "eu-west-1", false, true, "sts.eu-west-1.api.aws"),
            (
                Sts,
                "us-west-2",
                true,
                false,
                "sts-fips.us-west-2.amazonaws.com",
            ),
            (
                Sts,
                "us-gov-west-1",
                true,
                false,
                "sts.us-gov-west-1.amazonaws.com",
            ),
            (
                Sts,
                "us-isof-south-1",
                false,
                false,
                "sts.us-isof-south-1.csp.hci.ic.gov",
            ),
        ] {
            let kind = Kind {
                is_fips,
                is_dual_stack,
            };
            assert_eq!(
                host(service, &region(text), kind),
                expected,
                "{service:?} {text}"
            );
        }
    }
}
