//! Why AWS gave nothing, in sentences that name the permission or the setting to change.

use std::time::{Duration, SystemTime};

use super::{Keys, answer::ErrorText, role::RoleArn};

/// None of these has a secret in it. Some name accounts and owners of keys: for whoever these belong to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AwsError {
    /// AWS says no, or we do before it is asked.
    #[error("{0}")]
    Refused(String),
    /// The temporary keys have ended: others may do.
    #[error("{0}")]
    Expired(String),
    /// On this machine something is missing, or is not what it should be.
    #[error("{0}")]
    Setting(String),
    #[error("{host} cannot be reached: {cause}; this says nothing about the credentials")]
    Unreachable { host: String, cause: String },
    #[error("AWS throttles {action}; it was asked several times, and will be again")]
    Throttled { action: &'static str },
    #[error("AWS has a fault of its own ({said}); this says nothing about the credentials")]
    Fault { said: String },
    #[error("{host} sent {problem}")]
    Malformed { host: String, problem: &'static str },
    #[error("AWS was not asked in time, since calls before this one took too long")]
    Late,
}

impl AwsError {
    /// Nothing was said about the credentials, and the next try may fare better.
    pub fn is_outage(&self) -> bool {
        match self {
            Self::Unreachable { .. }
            | Self::Throttled { .. }
            | Self::Fault { .. }
            | Self::Malformed { .. }
            | Self::Late => true,
            Self::Refused(_) | Self::Expired(_) | Self::Setting(_) => false,
        }
    }
}

/// What AWS was asked to do.
#[derive(Clone, Copy, Debug)]
pub(super) enum Action<'a> {
    AssumeRole(&'a RoleArn),
    AssumeRoleWithWebIdentity(&'a RoleArn),
    EcrLogin,
    EcrPublicLogin,
    CallerIdentity,
}

impl Action<'_> {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::AssumeRole(_) => "sts:AssumeRole",
            Self::AssumeRoleWithWebIdentity(_) => "sts:AssumeRoleWithWebIdentity",
            Self::EcrLogin => "ecr:GetAuthorizationToken",
            Self::EcrPublicLogin => "ecr-public:GetAuthorizationToken",
            Self::CallerIdentity => "sts:GetCallerIdentity",
        }
    }
}

/// An answer other than 200.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub(super) status: u16,
    pub(super) text: ErrorText,
    /// AWS's clock, when it answered.
    pub(super) date: Option<SystemTime>,
}

/// Beyond it AWS takes no signature.
const MOST_SKEW: Duration = Duration::from_secs(5 * 60);

impl Failure {
    fn code(&self) -> &str {
        self.text.code.as_deref().unwrap_or_default()
    }

    pub(super) fn is_throttled(&self) -> bool {
        self.status == 429
            || matches!(
                self.code(),
                "Throttling"
                    | "ThrottlingException"
                    | "RequestLimitExceeded"
                    | "TooManyRequestsException"
            )
    }

    /// Another try may do.
    pub(super) fn is_passing(&self) -> bool {
        self.status >= 500 || self.is_throttled() || self.code() == "IDPCommunicationError"
    }

    /// The token of the web identity may have been replaced meanwhile.
    pub(super) fn is_about_the_web_identity(&self) -> bool {
        matches!(
            self.code(),
            "IDPRejectedClaim" | "InvalidIdentityToken" | "ExpiredTokenException"
        )
    }

    pub(super) fn explain(
        &self,
        action: Action<'_>,
        keys: Option<&Keys>,
        now: SystemTime,
    ) -> AwsError {
        let id = keys.map_or("", |keys| keys.id.as_str());
        if self.is_throttled() {
            return AwsError::Throttled {
                action: action.name(),
            };
        }
        let said = match self.code() {
            "" => self.status.to_string(),
            code => format!("{} {code}", self.status),
        };
        let refused = match self.code() {
            _ if self.status >= 500 => return AwsError::Fault { said },
            "IDPCommunicationError" => return AwsError::Fault { said },
            "ExpiredToken" | "ExpiredTokenException" if keys.is_some() => {
                return AwsError::Expired(format!("the temporary keys {id} have ended"));
            }
            // Its message repeats all that was signed, the session's token too.
            "SignatureDoesNotMatch" | "InvalidSignatureException" | "RequestTimeTooSkewed"
            | "RequestExpired" => match self.skew(now) {
                Some(skew) => skew,
                None => format!("the secret key does not belong to the access key {id}"),
            },
            "UnrecognizedClientException" | "InvalidClientTokenId" | "InvalidAccessKeyId" => {
                unknown_keys(id, keys)
            }
            "AccessDenied" | "AccessDeniedException" => self.denied(action, id),
            "MissingAuthenticationToken" | "MissingAuthenticationTokenException"
            | "IncompleteSignature" | "IncompleteSignatureException" => {
                "no credentials reached AWS; something between here and there takes the Authorization field away"
                    .to_owned()
            }
            "OptInRequired" | "RegionDisabledException" => {
                "the region is not enabled for the account; enable it there, or STS for it, or set `aws.region` to another"
                    .to_owned()
            }
            "ValidationError" | "ValidationException" | "InvalidParameterException" => {
                format!("AWS takes {} for malformed{}", subject(action), self.words())
            }
            "UnsupportedCommandException" => {
                "ECR Public knows the call in us-east-1 only; look at `aws.ecr_public_endpoint`".to_owned()
            }
            "InvalidIdentityToken" | "IDPRejectedClaim" | "ExpiredTokenException" => format!(
                "AWS does not take the web identity's token for {}: it has ended, or its issuer or audience is not \
                 what the role and its identity provider in IAM expect{}",
                subject(action),
                self.words()
            ),
            _ => format!("AWS answered {said} to {}{}", action.name(), self.words()),
        };
        AwsError::Refused(refused)
    }

    fn denied(&self, action: Action<'_>, id: &str) -> String {
        let whose = match id {
            "" => "the identity".to_owned(),
            id => format!("the identity of the keys {id}"),
        };
        let words = self.words();
        match action {
            Action::AssumeRole(role) => format!(
                "cannot assume {role}: it does not exist, or its trust policy does not name {whose}, or the external \
                 id is another, or that identity lacks sts:AssumeRole for it{words}"
            ),
            Action::AssumeRoleWithWebIdentity(role) => format!(
                "cannot assume {role} with the web identity: it does not exist, or its trust policy lacks the issuer, \
                 audience or subject of the token, or sts:AssumeRoleWithWebIdentity{words}"
            ),
            Action::EcrLogin => format!(
                "{whose} lacks the permission ecr:GetAuthorizationToken on resource *{words}"
            ),
            Action::EcrPublicLogin => format!(
                "{whose} lacks one of the permissions ecr-public:GetAuthorizationToken and \
                 sts:GetServiceBearerToken, and needs both; the second is not in the managed policy \
                 AmazonElasticContainerRegistryPublicReadOnly{words}"
            ),
            Action::CallerIdentity => format!("{whose} may not ask who it is{words}"),
        }
    }

    fn words(&self) -> String {
        let message = self.text.message.as_ref();
        message
            .map(|it| format!(" (AWS said: {it})"))
            .unwrap_or_default()
    }

    fn skew(&self, now: SystemTime) -> Option<String> {
        let date = self.date?;
        let (skew, direction) = match now.duration_since(date) {
            Ok(ahead) => (ahead, "ahead of"),
            Err(behind) => (behind.duration(), "behind"),
        };
        let seconds = Duration::from_secs(skew.as_secs());
        (skew > MOST_SKEW).then(|| {
            format!(
                "this machine's clock is {} {direction} AWS's, which takes no signature that is off by more than \
                 5 minutes; set the clock (NTP)",
                humantime::format_duration(seconds)
            )
        })
    }
}

fn subject(action: Action<'_>) -> String {
    match action {
        Action::AssumeRole(role) | Action::AssumeRoleWithWebIdentity(role) => {
            format!("the request to assume {role}")
        }
        _ => format!("the call of {}", action.name()),
    }
}

fn unknown_keys(id: &str, keys: Option<&Keys>) -> String {
    let is_temporary = id.starts_with("ASIA");
    match keys.and_then(|keys| keys.session_token.as_ref()) {
        None if is_temporary => format!(
            "the access key {id} is a temporary one, which is good with its session token only; use a long-term key or \
             a role"
        ),
        Some(_) => format!(
            "the access key {id} is unknown or inactive in this partition of AWS, or its session token is not its own"
        ),
        None => format!("the access key {id} is unknown or inactive in this partition of AWS"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secret;

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;

    fn keys(id: &str, token: Option<&str>) -> Keys {
        Keys {
            id: id.to_owned(),
            secret: Secret::new("wJalr".to_owned()),
            session_token: token.map(|token| Secret::new(token.to_owned())),
        }
    }

    fn failure(status: u16, code: &str, message: &str, date: SystemTime) -> Failure {
        Failure {
            status,
            text: ErrorText {
                code: Some(code.to_owned()),
                message: Some(message.to_owned()),
            },
            date: Some(date),
        }
    }

    #[test]
    fn sentences_name_what_to_change() {
        let role: RoleArn = "arn:aws:iam::123456789012:role/pull"
            .parse()
            .expect("an ARN");
        let long = keys("AKIAEXAMPLE", None);
        let short = keys("ASIAEXAMPLE", Some("session"));
        let bare = keys("ASIAEXAMPLE", None);
        let denied = "User: arn:aws:iam::123456789012:user/ada is not authorized";
        for (action, keys, status, code, message, wanted) in [
            (
                Action::EcrLogin,
                &long,
                400,
                "AccessDeniedException",
                denied,
                "lacks the permission ecr:GetAuthorizationToken",
            ),
            (
                Action::EcrLogin,
                &long,
                400,
                "AccessDeniedException",
                denied,
                "user/ada",
            ),
            (
                Action::EcrPublicLogin,
                &long,
                400,
                "AccessDeniedException",
                denied,
                "sts:GetServiceBearerToken",
            ),
            (
                Action::AssumeRole(&role),
                &long,
                403,
                "AccessDenied",
                denied,
                "cannot assume arn:aws:iam::123456789012:role/pull",
            ),
            (
                Action::AssumeRole(&role),
                &long,
                403,
                "AccessDenied",
                denied,
                "external id",
            ),
            (
                Action::EcrLogin,
                &long,
                400,
                "UnrecognizedClientException",
                "",
                "AKIAEXAMPLE is unknown or inactive",
            ),
            (
                Action::EcrLogin,
                &short,
                403,
                "InvalidClientTokenId",
                "",
                "its session token is not its own",
            ),
            (
                Action::EcrLogin,
                &bare,
                403,
                "InvalidClientTokenId",
                "",
                "long-term key or a role",
            ),
            (
                Action::EcrLogin,
                &long,
                403,
                "SignatureDoesNotMatch",
                "x-amz-security-token:session",
                "secret key does not belong",
            ),
            (
                Action::EcrLogin,
                &short,
                400,
                "ExpiredTokenException",
                "",
                "ASIAEXAMPLE have ended",
            ),
            (
                Action::EcrLogin,
                &long,
                500,
                "ServerException",
                "",
                "a fault of its own (500 ServerException)",
            ),
            (
                Action::EcrLogin,
                &long,
                400,
                "ThrottlingException",
                "",
                "throttles ecr:GetAuthorizationToken",
            ),
            (
                Action::AssumeRole(&role),
                &long,
                403,
                "RegionDisabledException",
                "",
                "aws.region",
            ),
            (
                Action::AssumeRole(&role),
                &long,
                400,
                "ValidationError",
                "DurationSeconds",
                "malformed (AWS said: DurationSeconds)",
            ),
            (
                Action::EcrLogin,
                &long,
                418,
                "Teapot",
                "short",
                "AWS answered 418 Teapot",
            ),
        ] {
            let told = failure(status, code, message, NOW).explain(action, Some(keys), NOW);
            let text = told.to_string();
            assert!(text.contains(wanted), "{code}: {text}");
            assert!(
                !text.contains("wJalr") && !text.contains("x-amz-security-token"),
                "{text}"
            );
        }
    }

    #[test]
    fn a_wrong_clock_is_named() {
        let keys = keys("AKIAEXAMPLE", None);
        let ten_minutes = Duration::from_secs(600);
        for (code, here, expected) in [
            (
                "SignatureDoesNotMatch",
                NOW + ten_minutes,
                "is 10m ahead of AWS's",
            ),
            (
                "RequestTimeTooSkewed",
                NOW + ten_minutes,
                "is 10m ahead of AWS's",
            ),
            ("SignatureDoesNotMatch", NOW, "secret key"),
        ] {
            let told = failure(403, code, "", NOW).explain(Action::EcrLogin, Some(&keys), here);
            assert!(told.to_string().contains(expected), "{code}: {told}");
        }
        let told = failure(403, "SignatureDoesNotMatch", "", NOW + ten_minutes);
        let told = told.explain(Action::EcrLogin, Some(&keys), NOW).to_string();
        assert!(told.contains("is 10m behind AWS's"), "{told}");
    }
}
