//! Who asks, and whether for what he was given: from a route's name to an `Access`.

use std::{net::IpAddr, sync::Arc, time::Instant};

use super::{
    Api, Response,
    error_response::{self, Shape},
    route::Name,
};
use crate::{
    blocking::Errand,
    limits::client_key,
    oci::ErrorCode,
    pull::Access,
    requests::{Grant, Token},
    sys::coarse_time,
    telemetry::metrics::{self, Counter},
};

impl Api {
    pub(super) async fn authorize(&self, name: &Name, client: IpAddr) -> Result<Access, Response> {
        match name {
            Name::Ephemeral { token, repository } => {
                let grant = self.grant(token, Shape::Registry, client).await?;
                if !grant.allows(repository) {
                    // To a stranger with a token of his own, another's repository does not exist.
                    return Err(self.refuse_token(Shape::Registry, client));
                }
                Ok(Access::by_grant(&grant))
            }
            Name::Direct {
                registry,
                repository,
            } => {
                let endpoint = self.pull.upstream().endpoint(registry);
                match endpoint {
                    Ok(endpoint) if endpoint.anonymous_pull => {
                        Ok(Access::anonymous(registry.clone(), repository.clone()))
                    }
                    _ => Err(error_response::registry(
                        403,
                        ErrorCode::Denied,
                        &format!(
                            "{registry} is not open to pulls without a token here; submit a container request, or let \
                             the operator set anonymous_pull = true under [registry.\"{registry}\"]"
                        ),
                    )),
                }
            }
        }
    }

    /// The container request behind a token. Most are in memory; the store is asked on the pool.
    pub(super) async fn grant(
        &self,
        token: &Token,
        shape: Shape,
        client: IpAddr,
    ) -> Result<Arc<Grant>, Response> {
        let now = coarse_time();
        if let Some(grant) = self.shared.requests.recent(token, now) {
            return Ok(grant);
        }
        self.may_guess(shape, client)?;
        let (requests, wanted) = (Arc::clone(&self.shared.requests), *token);
        let found = self
            .shared
            .pool
            .run(Errand::Grants, move || requests.find(&wanted, now))
            .await;
        match found {
            Ok(Ok(Some(grant))) => Ok(grant),
            Ok(Ok(None)) => {
                metrics::add(Counter::UnknownTokens, 1);
                Err(self.refuse_token(shape, client))
            }
            Ok(Err(error)) => Err(error_response::of_store(shape, &error)),
            Err(error) => Err(error_response::of_pool(shape, error)),
        }
    }

    /// Somebody who has guessed too often learns nothing more, not even from a right guess.
    pub(super) fn may_guess(&self, shape: Shape, client: IpAddr) -> Result<(), Response> {
        let budget = self.shared.guesses.peek(client_key(client), Instant::now());
        budget.map_err(|wait| error_response::too_many_guesses(shape, wait))
    }
}
