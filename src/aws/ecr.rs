//! ECR and ECR Public: a registry's password for keys.

use super::{
    AwsError, Client, EcrHost, Keys, Lease, Region, answer::authorization_token, call::Call,
    error::Action, region::Service,
};
use crate::secret::Secret;

const JSON: &str = "application/x-amz-json-1.1";

/// Where a registry's passwords come from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct PasswordSource {
    pub(super) service: Service,
    pub(super) region: Region,
}

impl PasswordSource {
    /// Of a private registry its own region, whoever asks; of the public one always the same.
    pub(super) fn of(host: &EcrHost) -> Self {
        match host {
            EcrHost::Private(host) => Self {
                service: Service::Ecr,
                region: host.region.clone(),
            },
            EcrHost::Public => Self {
                service: Service::EcrPublic,
                region: Region::us_east_1(),
            },
        }
    }
}

impl Client {
    pub(super) fn registry_password(
        &self,
        keys: &Keys,
        source: &PasswordSource,
    ) -> Result<Lease<Secret<String>>, AwsError> {
        let (action, operation) = match source.service {
            Service::EcrPublic => (
                Action::EcrPublicLogin,
                "SpencerFrontendService.GetAuthorizationToken",
            ),
            _ => (
                Action::EcrLogin,
                "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken",
            ),
        };
        let call = Call {
            content_type: JSON,
            operation: Some(operation),
            body: &Secret::new("{}".to_owned()),
            secret: None,
        };
        let target = self.settings.target(source.service, &source.region);
        let answer = self
            .http
            .call(&target, Some(keys), &call)
            .map_err(|error| error.explain(action, Some(keys)))?;
        let found = authorization_token(answer.body.expose()).ok_or(AwsError::Malformed {
            host: target.url,
            problem: "no registry login",
        })?;
        let life = answer.life_until(found.expires).unwrap_or_default();
        Ok(Lease::lasting(found.password, life, life / 2))
    }
}
