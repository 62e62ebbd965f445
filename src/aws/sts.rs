//! STS: keys for a while, of a role.

use std::{fs, path::Path, time::Duration};

use super::{
    AwsError, Client, ExternalId, Keys, Lease, Region, RoleArn, SessionName,
    answer::{assumed_role, caller_identity},
    call::{Answer, Call, CallError, form},
    error::Action,
    region::Service,
};
use crate::secret::Secret;

/// What AWS's own programs do; a role assumed by way of another has no longer sessions.
const SESSION: &str = "3600";
/// Before a session's end.
pub(super) const EARLY: Duration = Duration::from_secs(15 * 60);
const FORM: &str = "application/x-www-form-urlencoded; charset=utf-8";
const VERSION: &str = "2011-06-15";
/// What is asked for besides a role.
#[derive(Clone, Copy, Default)]
pub(super) struct Session<'a> {
    pub(super) external_id: Option<&'a ExternalId>,
    pub(super) name: Option<&'a str>,
    pub(super) seconds: Option<&'a str>,
}

impl Client {
    pub(super) fn assume_role(
        &self,
        keys: &Keys,
        role: &RoleArn,
        session: Session<'_>,
        region: &Region,
    ) -> Result<Lease<Keys>, AwsError> {
        let own = SessionName::own();
        let mut pairs = vec![
            ("Action", "AssumeRole"),
            ("Version", VERSION),
            ("RoleArn", role.as_str()),
            ("RoleSessionName", session.name.unwrap_or(own.as_str())),
            ("DurationSeconds", session.seconds.unwrap_or(SESSION)),
        ];
        if let Some(id) = session.external_id {
            pairs.push(("ExternalId", id.expose()));
        }
        let action = Action::AssumeRole(role);
        let answer = self
            .ask_sts(
                &pairs,
                session.external_id.map(ExternalId::expose),
                Some(keys),
                region,
            )
            .map_err(|error| error.explain(action, Some(keys)))?;
        self.session(&answer, region)
    }

    /// The token's file is read anew each time, and once more if its token is refused: it is rotated.
    pub(super) fn assume_role_with_web_identity(
        &self,
        token_file: &Path,
        role: &RoleArn,
        session: Session<'_>,
        region: &Region,
    ) -> Result<Lease<Keys>, AwsError> {
        let action = Action::AssumeRoleWithWebIdentity(role);
        let own = SessionName::own();
        let ask = || {
            let token = read_token(token_file)?;
            let mut pairs = vec![
                ("Action", "AssumeRoleWithWebIdentity"),
                ("Version", VERSION),
                ("RoleArn", role.as_str()),
                ("RoleSessionName", session.name.unwrap_or(own.as_str())),
                ("WebIdentityToken", token.expose()),
            ];
            if let Some(seconds) = session.seconds {
                pairs.push(("DurationSeconds", seconds));
            }
            self.ask_sts(&pairs, Some(token.expose()), None, region)
        };
        let answer = match ask() {
            Err(CallError::Failed(failure)) if failure.is_about_the_web_identity() => ask(),
            answer => answer,
        };
        let answer = answer.map_err(|error| error.explain(action, None))?;
        self.session(&answer, region)
    }

    /// Who these keys belong to: an ARN.
    pub(super) fn caller_identity(&self, keys: &Keys, region: &Region) -> Result<String, AwsError> {
        let action = Action::CallerIdentity;
        let pairs = [("Action", "GetCallerIdentity"), ("Version", VERSION)];
        let answer = self
            .ask_sts(&pairs, None, Some(keys), region)
            .map_err(|error| error.explain(action, Some(keys)))?;
        caller_identity(answer.body.expose()).ok_or_else(|| self.malformed(region, "no identity"))
    }

    fn ask_sts(
        &self,
        pairs: &[(&str, &str)],
        secret: Option<&str>,
        keys: Option<&Keys>,
        region: &Region,
    ) -> Result<Answer, CallError> {
        let call = Call {
            content_type: FORM,
            operation: None,
            body: &form(pairs),
            secret,
        };
        let target = self.settings.target(Service::Sts, region);
        self.http.call(&target, keys, &call)
    }

    fn session(&self, answer: &Answer, region: &Region) -> Result<Lease<Keys>, AwsError> {
        let lent = assumed_role(answer.body.expose())
            .ok_or_else(|| self.malformed(region, "no keys of the role"))?;
        let life = answer.life_until(lent.expires).unwrap_or_default();
        Ok(Lease::lasting(lent.keys, life, EARLY))
    }

    fn malformed(&self, region: &Region, problem: &'static str) -> AwsError {
        AwsError::Malformed {
            host: self.settings.target(Service::Sts, region).url,
            problem,
        }
    }
}

fn read_token(file: &Path) -> Result<Secret<String>, AwsError> {
    let shown = file.display();
    let text = fs::read_to_string(file).map_err(|error| {
        AwsError::Setting(format!(
            "the web identity's token {shown} cannot be read: {error}"
        ))
    })?;
    let text = Secret::new(text);
    match text.expose().trim() {
        "" => Err(AwsError::Setting(format!(
            "the web identity's token {shown} is empty"
        ))),
        token => Ok(Secret::new(token.to_owned())),
    }
}
