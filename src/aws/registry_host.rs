//! ECR by the name of a registry's host. Pure.

use super::region::{Partition, Region};

/// A registry of AWS.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum EcrHost {
    Private(PrivateHost),
    Public,
}

/// What the name of a private registry tells.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PrivateHost {
    /// Twelve digits.
    pub account: String,
    pub region: Region,
    /// `aws`, `aws-cn`, …
    pub partition: &'static str,
    pub is_fips: bool,
}

const PUBLIC: [&str; 2] = ["public.ecr.aws", "ecr-public.aws.com"];

impl EcrHost {
    /// The whole name, lower-case, without a port: a part of it could be anybody's.
    pub fn parse(host: &str) -> Option<Self> {
        if PUBLIC.contains(&host) {
            return Some(Self::Public);
        }
        let (account, rest) = host.split_once('.')?;
        if account.len() != 12 || !account.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let rest = rest
            .strip_prefix("dkr.ecr")
            .or_else(|| rest.strip_prefix("dkr-ecr"))?;
        let (is_fips, rest) = match rest.strip_prefix("-fips") {
            Some(rest) => (true, rest),
            None => (false, rest),
        };
        let (region, suffix) = rest.strip_prefix('.')?.split_once('.')?;
        let partition = Partition::of_registry(suffix, region)?;
        Some(Self::Private(PrivateHost {
            account: account.to_owned(),
            region: region.parse().ok()?,
            partition: partition.id,
            is_fips,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_registries_are_known_by_their_names() {
        for (host, region, partition, is_fips) in [
            (
                "123456789012.dkr.ecr.eu-west-1.amazonaws.com",
                "eu-west-1",
                "aws",
                false,
            ),
            (
                "123456789012.dkr.ecr-fips.us-east-1.amazonaws.com",
                "us-east-1",
                "aws",
                true,
            ),
            (
                "123456789012.dkr-ecr.eu-west-1.on.aws",
                "eu-west-1",
                "aws",
                false,
            ),
            (
                "123456789012.dkr-ecr-fips.us-gov-west-1.on.aws",
                "us-gov-west-1",
                "aws-us-gov",
                true,
            ),
            (
                "123456789012.dkr.ecr.us-gov-east-1.amazonaws.com",
                "us-gov-east-1",
                "aws-us-gov",
                false,
            ),
            (
                "123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn",
                "cn-north-1",
                "aws-cn",
                false,
            ),
            (
                "123456789012.dkr-ecr.cn-north-1.on.amazonwebservices.com.cn",
                "cn-north-1",
                "aws-cn",
                false,
            ),
            (
                "123456789012.dkr.ecr.eusc-de-east-1.amazonaws.eu",
                "eusc-de-east-1",
                "aws-eusc",
                false,
            ),
            (
                "123456789012.dkr.ecr.us-iso-east-1.c2s.ic.gov",
                "us-iso-east-1",
                "aws-iso",
                false,
            ),
            (
                "123456789012.dkr.ecr.us-isob-east-1.sc2s.sgov.gov",
                "us-isob-east-1",
                "aws-iso-b",
                false,
            ),
            (
                "123456789012.dkr.ecr.eu-isoe-west-1.cloud.adc-e.uk",
                "eu-isoe-west-1",
                "aws-iso-e",
                false,
            ),
            (
                "123456789012.dkr.ecr.us-isof-south-1.csp.hci.ic.gov",
                "us-isof-south-1",
                "aws-iso-f",
                false,
            ),
            (
                "123456789012.dkr.ecr.xx-new-1.amazonaws.com",
                "xx-new-1",
                "aws",
                false,
            ),
        ] {
            let Some(EcrHost::Private(found)) = EcrHost::parse(host) else {
                panic!("{host} was not known");
            };
            assert_eq!(found.account, "123456789012", "{host}");
            assert_eq!(found.region.as_str(), region, "{host}");
            assert_eq!(
                (found.partition, found.is_fips),
                (partition, is_fips),
                "{host}"
            );
        }
        assert_eq!(EcrHost::parse("public.ecr.aws"), Some(EcrHost::Public));
        assert_eq!(EcrHost::parse("ecr-public.aws.com"), Some(EcrHost::Public));
    }

    #[test]
    fn what_only_looks_like_ecr_is_not() {
        for host in [
            "",
            "amazonaws.com",
            "12345678901.dkr.ecr.eu-west-1.amazonaws.com",
            "1234567890123.dkr.ecr.eu-west-1.amazonaws.com",
            "x123456789012.dkr.ecr.eu-west-1.amazonaws.com",
            "123456789012.dkr.ecr.eu-west-1.amazonaws.com.evil.org",
            "123456789012.dkr.ecr.eu-west-1.evil.org",
            "evil.123456789012.dkr.ecr.eu-west-1.amazonaws.com",
            "123456789012.dkrxecr.eu-west-1.amazonaws.com",
            "123456789012.dkr.ecr.amazonaws.com",
            "123456789012.dkr.ecr.eu.west.amazonaws.com",
            "123456789012.dkr.ecr-fipsx.eu-west-1.amazonaws.com",
            "123456789012.dkr.ecr.eu-west-1.amazonaws.com:443",
            "public.ecr.aws.evil.org",
            "xpublic.ecr.aws",
        ] {
            assert_eq!(EcrHost::parse(host), None, "{host}");
        }
    }
}
