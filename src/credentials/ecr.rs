//! Logins for AWS's registries: from what the keyring found to what the registry takes.
//!
//! ECR knows one user, `AWS`, whose password AWS gives for keys or a role, for some hours. So a login for it is a pair of
//! access key id and secret key, or of a role and its external id; or none, where the operator lends tidegate's own
//! identity. The login's identity is that of what it was made from, and does not change when it is renewed.

use std::collections::HashSet;

use super::{FindError, Login, OperatorLogin, Side, identity};
use crate::{
    aws::{Aws, AwsError, EcrHost, ExternalId, Keys, REGISTRY_USER, RoleArn, SessionName, Source},
    oci::{Credentials, Registry, RegistryPattern},
    secret::Secret,
};

/// What the configuration says of a registry, or of all that fit.
#[derive(Clone, Debug)]
pub struct EcrTable {
    pub pattern: RegistryPattern,
    /// Which registry of AWS it stands for, if its name does not tell.
    pub host: Option<EcrHost>,
    /// For the operator's side, where it has no login.
    pub own: Option<Source>,
    /// Assumed before a role that a login names.
    pub jump: Option<RoleArn>,
}

pub struct Ecr {
    aws: Aws,
    /// The most precise first.
    tables: Vec<EcrTable>,
    /// Assumed before a role that a login names.
    jump: Option<RoleArn>,
    allows_roles_without_external_id: bool,
    /// Roles that trust tidegate for the operator's sake.
    reserved: HashSet<RoleArn>,
}

impl Ecr {
    /// A table for every registry of the configuration: the most precise one counts, and no other.
    pub fn new(
        aws: Aws,
        mut tables: Vec<EcrTable>,
        jump: Option<RoleArn>,
        allows_roles_without_external_id: bool,
    ) -> Self {
        tables.sort_by_key(|table| std::cmp::Reverse(table.pattern.precision()));
        let mut reserved: HashSet<RoleArn> = jump.iter().cloned().collect();
        for table in &tables {
            reserved.extend(table.jump.clone());
            if let Some(Source::Role { role, .. }) = &table.own {
                reserved.insert(role.clone());
            }
        }
        Self {
            aws,
            tables,
            jump,
            allows_roles_without_external_id,
            reserved,
        }
    }

    /// Roles that the operator's logins name are his too: many trust tidegate without an external id, and then any
    /// that a tenant makes up would do.
    pub fn reserving(mut self, logins: &[OperatorLogin]) -> Self {
        let usernames = logins.iter().map(|login| login.credentials.username.trim());
        self.reserved
            .extend(usernames.filter_map(|username| username.parse().ok()));
        self
    }

    /// Tells the operator whom AWS takes tidegate for, if that matters.
    pub(super) fn introduce(&self) {
        if self.tables.iter().all(|table| table.own.is_none()) {
            return;
        }
        match self.aws.own_identity() {
            Ok(arn) => tracing::info!(arn, "the own identity in AWS"),
            Err(error) => tracing::warn!(%error, "the own identity in AWS cannot be used"),
        }
    }

    /// What has to be exchanged at AWS before the registry takes it; `None`: the login is for another kind of registry, or
    /// is what it takes.
    pub(super) fn order(
        &self,
        registry: &Registry,
        found: &Login,
    ) -> Result<Option<Order>, FindError> {
        let table = self.tables.iter().find(|it| it.pattern.fits(registry));
        let named = table.and_then(|table| table.host.clone());
        // A name with a port is not AWS's own.
        let Some(host) = named.or_else(|| EcrHost::parse(registry.as_str())) else {
            return Ok(None);
        };
        let own = || table.and_then(|table| table.own.clone());
        let (source, identity, description) = match (&found.credentials, found.side) {
            (Some(credentials), side) => {
                let source = self.source(found, credentials, table);
                let source = source.map_err(|cause| failed(registry, side, cause))?;
                let (identity, description) = (found.identity.clone(), found.description.clone());
                (source, identity, description)
            }
            (None, Side::Operator) => match own() {
                Some(source) => {
                    let description = format!("operator: {registry} as {}", name(&source));
                    let identity = own_identity(&source);
                    (Some(source), identity, description)
                }
                None => return Ok(None),
            },
            (None, Side::Tenant) => return Ok(None),
        };
        Ok(source.map(|source| Order {
            registry: registry.clone(),
            side: found.side,
            source,
            host,
            identity,
            description,
            session: found.session.clone(),
        }))
    }

    /// Without asking anybody; `None`: AWS has to be asked.
    pub(super) fn known(&self, order: &Order) -> Option<Result<Login, FindError>> {
        let known = self.aws.known_password(&order.source, &order.host)?;
        Some(match known {
            Ok(password) => Ok(order.login(password)),
            Err(cause) => Err(order.failed(cause)),
        })
    }

    /// Blocks while AWS is asked.
    pub(super) fn ask(&self, order: &Order) -> Result<Login, FindError> {
        match self.aws.registry_password(&order.source, &order.host) {
            Ok(password) => Ok(order.login(password)),
            Err(cause) => {
                tracing::warn!(registry = %order.registry, login = order.description, error = %cause,
                    "AWS gave no login");
                Err(order.failed(cause))
            }
        }
    }

    /// The registry says that this login has ended.
    pub(super) fn forget(&self, order: &Order, spent: &Credentials) {
        self.aws.forget(&order.source, &order.host, &spent.password);
    }

    /// `None`: they are what the registry takes, or nothing that AWS knows.
    fn source(
        &self,
        found: &Login,
        credentials: &Credentials,
        table: Option<&EcrTable>,
    ) -> Result<Option<Source>, AwsError> {
        let username = credentials.username.trim();
        if let Ok(role) = username.parse::<RoleArn>() {
            let external_id = self.external_id(found.side, &role, &credentials.password)?;
            let own = table.and_then(|table| table.jump.clone());
            return Ok(Some(Source::Role {
                role,
                external_id,
                jump: own.or_else(|| self.jump.clone()),
                session: found.session.clone(),
            }));
        }
        Ok(is_access_key_id(username).then(|| {
            Source::Keys(Keys {
                id: username.to_owned(),
                secret: credentials.password.clone(),
                session_token: None,
            })
        }))
    }

    /// A role is assumed with tidegate's own identity, for whoever names it. So he must know what its owner agreed on
    /// for him; and it must not be one that trusts tidegate for the operator's sake.
    fn external_id(
        &self,
        side: Side,
        role: &RoleArn,
        password: &Secret<String>,
    ) -> Result<Option<ExternalId>, AwsError> {
        if side == Side::Tenant && self.reserved.contains(role) {
            return Err(AwsError::Refused(format!(
                "the role {role} is for the operator of tidegate; a login of yours cannot use it"
            )));
        }
        match password.expose().trim() {
            "" if side == Side::Operator || self.allows_roles_without_external_id => Ok(None),
            "" => Err(AwsError::Refused(format!(
                "the role {role} comes without an external id; put one into its trust policy and into the login, as \
                 its password"
            ))),
            text => match text.parse::<ExternalId>() {
                Ok(id) => Ok(Some(id)),
                Err(error) => Err(AwsError::Refused(format!("the role {role}: {error}"))),
            },
        }
    }
}

/// A login that is to be had from AWS.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Order {
    registry: Registry,
    side: Side,
    source: Source,
    host: EcrHost,
    identity: String,
    description: String,
    session: SessionName,
}

impl Order {
    fn login(&self, password: Secret<String>) -> Login {
        Login {
            credentials: Some(Credentials {
                username: REGISTRY_USER.to_owned(),
                password,
            }),
            identity: self.identity.clone(),
            description: format!("{}, by AWS", self.description),
            side: self.side,
            session: self.session.clone(),
        }
    }

    pub(super) fn failed(&self, cause: AwsError) -> FindError {
        failed(&self.registry, self.side, cause)
    }
}

fn failed(registry: &Registry, side: Side, cause: AwsError) -> FindError {
    FindError::Aws {
        registry: registry.clone(),
        is_operators: side == Side::Operator,
        cause,
    }
}

/// `AKIA…`, `ASIA…`, and what emulators make up.
fn is_access_key_id(text: &str) -> bool {
    (16..=128).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_uppercase() || b.is_ascii_digit())
}

fn name(source: &Source) -> String {
    match source {
        Source::Keys(keys) => keys.id.clone(),
        Source::Own => "tidegate's own identity".to_owned(),
        Source::Role { role, .. } => role.to_string(),
    }
}

/// No login's, since it is longer than theirs.
fn own_identity(source: &Source) -> String {
    let (role, external_id, jump) = match source {
        Source::Keys(_) | Source::Own => ("", "", ""),
        Source::Role {
            role,
            external_id,
            jump,
            session: _,
        } => (
            role.as_str(),
            external_id.as_ref().map_or("", ExternalId::expose),
            jump.as_ref().map_or("", RoleArn::as_str),
        ),
    };
    let of = identity::of(&Credentials {
        username: format!("{role} {jump}"),
        password: Secret::new(external_id.to_owned()),
    });
    format!("aws-{of}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aws::{Environment, Options, SourceChoice};

    const HOST: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";
    const ROLE: &str = "arn:aws:iam::123456789012:role/pull";

    /// Nobody answers there, so whoever gets so far is told that AWS cannot be reached.
    fn ecr(tables: Vec<EcrTable>) -> Ecr {
        let nowhere = Some("http://127.0.0.1:1".to_owned());
        let options = Options {
            ecr_endpoint: nowhere.clone(),
            sts_endpoint: nowhere,
            ..Options::default()
        };
        let environment = Environment::of(&[
            ("AWS_ACCESS_KEY_ID", "AKIAOWNOWNOWNOWN"),
            ("AWS_SECRET_ACCESS_KEY", "s"),
        ]);
        Ecr::new(Aws::new(options, environment), tables, None, false)
    }

    fn table(pattern: &str, own: Option<Source>) -> EcrTable {
        EcrTable {
            pattern: pattern.parse().expect(pattern),
            host: None,
            own,
            jump: None,
        }
    }

    fn found(side: Side, pair: Option<(&str, &str)>) -> Login {
        let credentials = pair.map(|(username, password)| Credentials {
            username: username.to_owned(),
            password: Secret::new(password.to_owned()),
        });
        Login {
            identity: credentials
                .as_ref()
                .map_or_else(|| identity::ANONYMOUS.to_owned(), identity::of),
            description: String::new(),
            credentials,
            side,
            session: SessionName::own(),
        }
    }

    fn login(ecr: &Ecr, registry: &Registry, found: &Login) -> Result<Option<Login>, FindError> {
        match ecr.order(registry, found)? {
            Some(order) => ecr.ask(&order).map(Some),
            None => Ok(None),
        }
    }

    fn own_role() -> Option<Source> {
        Some(Source::Role {
            role: ROLE.parse().expect("an ARN"),
            external_id: None,
            jump: None,
            session: SessionName::own(),
        })
    }

    #[test]
    fn what_is_for_aws_is_exchanged_and_nothing_else() {
        let ecr = ecr(vec![table("*.dkr.ecr.*.amazonaws.com", Some(Source::Own))]);
        let keys = Some(("AKIAEXAMPLEEXAMPLE", "secret"));
        let other = "arn:aws:iam::123456789012:role/tenant";
        for (side, registry, pair, expected) in [
            (Side::Tenant, HOST, keys, Some("cannot be reached")),
            (Side::Operator, HOST, keys, Some("cannot be reached")),
            (Side::Tenant, "quay.io", keys, None),
            (Side::Tenant, "localhost:5000", keys, None),
            (Side::Tenant, HOST, Some(("AWS", "password")), None),
            (Side::Tenant, HOST, Some(("ada", "hunter2")), None),
            (
                Side::Tenant,
                HOST,
                Some((other, "agreed")),
                Some("cannot be reached"),
            ),
            (
                Side::Tenant,
                HOST,
                Some((other, "")),
                Some("without an external id"),
            ),
            (
                Side::Tenant,
                HOST,
                Some((other, "a b")),
                Some("external id is not"),
            ),
            // Its own identity is the operator's to lend.
            (Side::Tenant, HOST, None, None),
            (Side::Operator, HOST, None, Some("cannot be reached")),
            (Side::Operator, "quay.io", None, None),
        ] {
            let registry: Registry = registry.parse().expect(registry);
            let login = login(&ecr, &registry, &found(side, pair));
            match expected {
                None => assert_eq!(login, Ok(None), "{side:?} {registry} {pair:?}"),
                Some(part) => {
                    let error = login.expect_err(part).to_string();
                    assert!(
                        error.contains(part),
                        "{side:?} {registry} {pair:?}: {error}"
                    );
                    assert!(!error.contains("secret"), "{error}");
                }
            }
        }
    }

    #[test]
    fn the_operators_roles_are_not_for_tenants() {
        let ecr = ecr(vec![table(HOST, own_role())]);
        let registry: Registry = HOST.parse().expect(HOST);
        let error = login(&ecr, &registry, &found(Side::Tenant, Some((ROLE, "guess"))));
        let error = error.expect_err("it is reserved");
        assert!(error.to_string().contains("for the operator"), "{error}");
        // The operator's own words are not for anonymous callers.
        let error = login(&ecr, &registry, &found(Side::Operator, None));
        let error = error.expect_err("nobody answers");
        assert!(
            !error.to_caller().contains("127.0.0.1"),
            "{}",
            error.to_caller()
        );
    }

    #[test]
    fn a_role_of_an_operators_login_is_not_for_tenants() {
        let registry: Registry = HOST.parse().expect(HOST);
        let operators = found(Side::Operator, Some((ROLE, "")));
        let ecr = ecr(vec![table(HOST, None)]).reserving(&[OperatorLogin {
            registry: registry.clone(),
            prefix: None,
            credentials: operators.credentials.clone().expect("it has some"),
        }]);
        let made_up = found(Side::Tenant, Some((ROLE, "made-up")));
        let error = login(&ecr, &registry, &made_up).expect_err("it is reserved");
        assert!(error.to_string().contains("for the operator"), "{error}");
        let error = login(&ecr, &registry, &operators).expect_err("nobody answers");
        assert!(error.to_string().contains("cannot be reached"), "{error}");
    }

    #[test]
    fn tenants_are_not_told_what_is_wrong_with_this_machine() {
        let nobody = Environment::of(&[("AWS_EC2_METADATA_DISABLED", "true")]);
        let options = Options {
            source: SourceChoice::Environment,
            ..Options::default()
        };
        let ecr = Ecr::new(
            Aws::new(options, nobody),
            vec![table(HOST, None)],
            None,
            false,
        );
        let registry: Registry = HOST.parse().expect(HOST);
        let error = login(
            &ecr,
            &registry,
            &found(Side::Tenant, Some((ROLE, "agreed"))),
        );
        let error = error.expect_err("there is no identity");
        assert!(error.to_string().contains("AWS_ACCESS_KEY_ID"), "{error}");
        let told = error.to_caller();
        assert!(told.contains("the operator's log says why"), "{told}");
    }

    #[test]
    fn the_most_precise_table_counts() {
        let ecr = ecr(vec![
            table("*.dkr.ecr.*.amazonaws.com", Some(Source::Own)),
            table(HOST, None),
        ]);
        let registry: Registry = HOST.parse().expect(HOST);
        let login = login(&ecr, &registry, &found(Side::Operator, None));
        assert_eq!(login, Ok(None));
    }

    #[test]
    fn each_own_source_has_an_identity_of_its_own() {
        let with_id = Source::Role {
            role: ROLE.parse().expect("an ARN"),
            external_id: Some("agreed".parse().expect("an id")),
            jump: None,
            session: SessionName::own(),
        };
        let all = [Source::Own, own_role().expect("a role"), with_id];
        let names: HashSet<String> = all.iter().map(own_identity).collect();
        assert_eq!(names.len(), all.len());
        assert!(names.iter().all(|name| name.len() > 32), "{names:?}");
    }
}
