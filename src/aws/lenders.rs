//! What lends keys to programs on a machine of AWS: the container service, and an EC2 instance's metadata.

use std::{fs, net::IpAddr};

use super::{
    AwsError,
    answer::{LentKeys, lent_keys},
    call::{Http, LocalMethod},
    environment::Environment,
};
use crate::{
    net::{Addresses, look_up},
    secret::Secret,
};

/// A source's keys, or why it has none: then the next one is asked.
pub(super) enum Found {
    Keys(LentKeys),
    Absent(String),
}

const CONTAINER_HOST: &str = "http://169.254.170.2";

/// ECS, Fargate and EKS Pod Identity.
pub(super) fn container(environment: &Environment, http: &Http) -> Result<Found, AwsError> {
    const RELATIVE: &str = "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI";
    const FULL: &str = "AWS_CONTAINER_CREDENTIALS_FULL_URI";
    let url = match (environment.get(RELATIVE), environment.get(FULL)) {
        (Some(path), _) if path.starts_with('/') => format!("{CONTAINER_HOST}{path}"),
        (Some(_), _) => {
            return Err(AwsError::Setting(format!(
                "{RELATIVE} does not begin with /"
            )));
        }
        (None, Some(url)) => {
            may_lend(&url).map_err(|why| AwsError::Setting(format!("{FULL}: {why}")))?;
            url
        }
        (None, None) => {
            return Ok(Found::Absent(format!("{RELATIVE} and {FULL} are not set")));
        }
    };
    let authorization = container_authorization(environment)?;
    let fields: Vec<(&str, &Secret<String>)> = authorization
        .iter()
        .map(|value| ("authorization", value))
        .collect();
    let mut asked = http.local(LocalMethod::Get, &url, &fields);
    // It is on this machine, and may just be starting.
    if asked.as_ref().is_err_and(AwsError::is_outage) {
        asked = http.local(LocalMethod::Get, &url, &fields);
    }
    let answer = asked?;
    if answer.status != 200 {
        return Err(AwsError::Setting(format!(
            "the container's credentials service at {url} answered {}; look at the role of the task or pod",
            answer.status
        )));
    }
    lent_keys(answer.body.expose())
        .map(Found::Keys)
        .ok_or(AwsError::Malformed {
            host: url,
            problem: "no keys",
        })
}

/// The file is read each time: its token is rotated.
fn container_authorization(environment: &Environment) -> Result<Option<Secret<String>>, AwsError> {
    const FILE: &str = "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE";
    const VALUE: &str = "AWS_CONTAINER_AUTHORIZATION_TOKEN";
    let (name, token) = match environment.get(FILE) {
        Some(path) => {
            let text = fs::read_to_string(&path).map_err(|error| {
                AwsError::Setting(format!("{FILE}: {path} cannot be read: {error}"))
            })?;
            let text = Secret::new(text);
            (FILE, Some(Secret::new(text.expose().trim_end().to_owned())))
        }
        None => (VALUE, environment.secret(VALUE)),
    };
    match token {
        Some(token) if !token.expose().bytes().all(|b| (b' '..=b'~').contains(&b)) => Err(
            AwsError::Setting(format!("{name}: its token cannot be sent in a header")),
        ),
        token => Ok(token),
    }
}

/// Plain HTTP only to this machine and to what AWS keeps for it: the token would go to anybody else in clear.
fn may_lend(url: &str) -> Result<(), String> {
    let uri: ureq::http::Uri = url.parse().map_err(|_| "it is no URL".to_owned())?;
    let host = uri.host().ok_or("it has no host")?;
    match uri.scheme_str() {
        Some("https") => return Ok(()),
        Some("http") => {}
        _ => return Err("it is neither http:// nor https://".to_owned()),
    }
    const LENDERS: [&str; 3] = ["169.254.170.2", "169.254.170.23", "fd00:ec2::23"];
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let is_lender = |address: IpAddr| {
        address.is_loopback() || LENDERS.iter().any(|it| it.parse() == Ok(address))
    };
    let is_good = match bare.parse::<IpAddr>() {
        Ok(address) => is_lender(address),
        Err(_) => {
            let found = look_up(host, 80, Addresses::Any).map_err(|error| error.to_string())?;
            found.iter().all(|it| it.ip().is_loopback())
        }
    };
    match is_good {
        true => Ok(()),
        false => Err(format!(
            "{host} is not this machine, and plain HTTP may be asked of no other; use https://"
        )),
    }
}

/// The role of an EC2 instance, by the second version of its metadata's protocol only.
pub(super) fn instance(environment: &Environment, http: &Http) -> Result<Found, AwsError> {
    if environment.is_on("AWS_EC2_METADATA_DISABLED") {
        return Ok(Found::Absent("AWS_EC2_METADATA_DISABLED is set".to_owned()));
    }
    let base = match environment.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") {
        Some(url) => url.trim_end_matches('/').to_owned(),
        None => match environment.get("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE") {
            Some(mode) if mode.eq_ignore_ascii_case("ipv6") => "http://[fd00:ec2::254]".to_owned(),
            _ => "http://169.254.169.254".to_owned(),
        },
    };
    let metadata = Metadata { base, http };
    let mut token = match metadata.token()? {
        Ok(token) => token,
        Err(absent) => return Ok(Found::Absent(absent)),
    };
    const ROLES: &str = "/latest/meta-data/iam/security-credentials/";
    let mut named = metadata.get(ROLES, &token)?;
    if named.status == 401 {
        // The token has ended on the way.
        token = match metadata.token()? {
            Ok(token) => token,
            Err(absent) => return Ok(Found::Absent(absent)),
        };
        named = metadata.get(ROLES, &token)?;
    }
    let role = named
        .body
        .expose()
        .lines()
        .next()
        .unwrap_or_default()
        .trim();
    let is_name = !role.is_empty()
        && role
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"_+=,.@-".contains(&b));
    match named.status {
        200 if is_name => {}
        404 => {
            return Ok(Found::Absent(
                "this instance has no role; attach an instance profile".to_owned(),
            ));
        }
        status => {
            return Ok(Found::Absent(format!(
                "the instance's metadata answered {status} to the question for its role"
            )));
        }
    }
    let lent = metadata.get(&format!("{ROLES}{role}"), &token)?;
    let keys = (lent.status == 200).then(|| lent_keys(lent.body.expose()));
    keys.flatten().map(Found::Keys).ok_or_else(|| {
        AwsError::Setting(format!(
            "the instance's metadata lends no keys of the role {role} (status {}); look at its trust policy",
            lent.status
        ))
    })
}

struct Metadata<'h> {
    base: String,
    http: &'h Http,
}

impl Metadata<'_> {
    /// Of six hours, as all programs take it. Or why there is none.
    fn token(&self) -> Result<Result<Secret<String>, String>, AwsError> {
        const FIELD: &str = "x-aws-ec2-metadata-token-ttl-seconds";
        let url = format!("{}/latest/api/token", self.base);
        let life = Secret::new("21600".to_owned());
        let answer = match self.http.local(LocalMethod::Put, &url, &[(FIELD, &life)]) {
            Ok(answer) => answer,
            Err(error) => {
                return Ok(Err(format!(
                    "no instance metadata at {}: {error}; in a container on EC2 the instance's hop limit must be 2",
                    self.base
                )));
            }
        };
        let token = Secret::new(answer.body.expose().trim().to_owned());
        let is_sendable = token.expose().bytes().all(|b| b.is_ascii_graphic());
        Ok(match answer.status {
            200 if is_sendable && !token.expose().is_empty() => Ok(token),
            status => Err(format!(
                "the instance metadata at {} answered {status} to IMDSv2's request for a token",
                self.base
            )),
        })
    }

    fn get(
        &self,
        path: &str,
        token: &Secret<String>,
    ) -> Result<super::call::LocalAnswer, AwsError> {
        let url = format!("{}{path}", self.base);
        let fields = [("x-aws-ec2-metadata-token", token)];
        self.http.local(LocalMethod::Get, &url, &fields)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_lends_over_plain_http() {
        for (url, expected) in [
            ("https://anywhere.example.com/x", true),
            ("http://127.0.0.1:8080/x", true),
            ("http://[::1]/x", true),
            ("http://localhost:8080/x", true),
            ("http://169.254.170.2/x", true),
            ("http://169.254.170.23/v1/credentials", true),
            ("http://[fd00:ec2::23]/v1/credentials", true),
            ("http://169.254.169.254/x", false),
            ("http://192.168.1.1/x", false),
            ("http://8.8.8.8/x", false),
            ("ftp://127.0.0.1/x", false),
            ("/x", false),
        ] {
            assert_eq!(may_lend(url).is_ok(), expected, "{url}");
        }
    }

    #[test]
    fn a_token_that_would_break_the_header_is_refused() {
        let variables = [("AWS_CONTAINER_AUTHORIZATION_TOKEN", "a\r\nHost: b")];
        let error =
            container_authorization(&Environment::of(&variables)).expect_err("it has a line end");
        assert!(!error.to_string().contains("Host"), "{error}");
    }
}
