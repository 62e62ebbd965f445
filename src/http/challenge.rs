//! `WWW-Authenticate` (RFC 9110 §11.6.1): how a registry wants to be asked.

use super::headers::trim_blanks;

/// Of all lines together. Real ones have a few hundred bytes.
const MAX_CHALLENGES_SIZE: usize = 8 * 1024;

/// The schemes that can be satisfied here; others are left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Challenge {
    /// A token of the realm. An empty `service`, `scope` or `error` counts as none.
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
        error: Option<String>,
    },
    Basic {
        realm: Option<String>,
    },
}

/// All challenges of all lines, in their order. What cannot be understood is left out, a line that would
/// exceed the bound with everything after it.
pub fn parse_challenges<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<Challenge> {
    let mut left = MAX_CHALLENGES_SIZE;
    let mut challenges = Vec::new();
    for line in lines {
        match left.checked_sub(line.len()) {
            Some(rest) => left = rest,
            None => break,
        }
        challenges.extend(parse_line(line).into_iter().filter_map(Draft::finish));
    }
    challenges
}

/// A challenge whose parameters are still coming.
struct Draft<'a> {
    scheme: &'a str,
    parameters: Vec<(&'a str, String)>,
}

impl Draft<'_> {
    fn finish(self) -> Option<Challenge> {
        // The first of a repeated parameter counts.
        let find = |name: &str| {
            let found = |(known, _): &&(&str, String)| known.eq_ignore_ascii_case(name);
            let (_, value) = self.parameters.iter().find(found)?;
            Some(value.clone()).filter(|value| !value.is_empty())
        };
        if self.scheme.eq_ignore_ascii_case("bearer") {
            Some(Challenge::Bearer {
                realm: find("realm")?,
                service: find("service"),
                scope: find("scope"),
                error: find("error"),
            })
        } else if self.scheme.eq_ignore_ascii_case("basic") {
            Some(Challenge::Basic {
                realm: find("realm"),
            })
        } else {
            None
        }
    }
}

/// One line may hold several challenges. Commas separate them as well as their parameters: a token that
/// follows a comma and is followed by `=` is a parameter, any other opens a new challenge.
fn parse_line(line: &str) -> Vec<Draft<'_>> {
    let mut drafts: Vec<Draft<'_>> = Vec::new();
    let mut rest = line;
    loop {
        let unseparated = trim_blanks(rest);
        rest = unseparated.trim_start_matches([' ', '\t', ',']);
        let follows_comma = drafts.is_empty() || rest.len() < unseparated.len();
        if rest.is_empty() {
            return drafts;
        }
        let (word, after) = split_token(rest);
        let after = after.trim_start_matches([' ', '\t']);
        match after.strip_prefix('=') {
            Some(value) if !word.is_empty() => {
                let Some((value, after)) = split_value(value.trim_start_matches([' ', '\t']))
                else {
                    return drafts; // A quotation without end: nothing after it can be told apart.
                };
                if let Some(draft) = drafts.last_mut() {
                    draft.parameters.push((word, value));
                }
                rest = after;
            }
            None if !word.is_empty() && follows_comma => {
                drafts.push(Draft {
                    scheme: word,
                    parameters: Vec::new(),
                });
                rest = after;
            }
            // A token68, or rubbish: up to the next comma.
            _ => {
                rest = after
                    .find(',')
                    .and_then(|comma| after.get(comma..))
                    .unwrap_or_default()
            }
        }
    }
}

fn split_token(text: &str) -> (&str, &str) {
    let end = text
        .find(|character: char| !is_token_character(character))
        .unwrap_or(text.len());
    text.split_at_checked(end).unwrap_or((text, ""))
}

fn is_token_character(character: char) -> bool {
    character.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(character)
}

/// A quoted string, or everything up to the next comma or blank: some registries forget to quote a URL.
fn split_value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        let (value, rest) = text.split_at_checked(end)?;
        return Some((value.to_owned(), rest));
    };
    let mut value = String::new();
    let mut characters = quoted.chars();
    loop {
        match characters.next()? {
            '"' => return Some((value, characters.as_str())),
            '\\' => value.push(characters.next()?),
            character => value.push(character),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(realm: &str, service: &str, scope: &str) -> Challenge {
        let some = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        Challenge::Bearer {
            realm: realm.to_owned(),
            service: some(service),
            scope: some(scope),
            error: None,
        }
    }

    fn basic(realm: &str) -> Challenge {
        Challenge::Basic {
            realm: Some(realm.to_owned()).filter(|realm| !realm.is_empty()),
        }
    }

    #[test]
    fn challenges_are_read_as_registries_send_them() {
        for (lines, challenges) in [
            (
                &[
                    r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/alpine:pull,push""#,
                ][..],
                vec![bearer(
                    "https://auth.docker.io/token",
                    "registry.docker.io",
                    "repository:library/alpine:pull,push",
                )],
            ),
            (
                &[r#"bearer  SCOPE = "a b" , Service=s ,realm="r""#],
                vec![bearer("r", "s", "a b")],
            ),
            (
                &[r#"BASIC realm="Sonatype Nexus""#],
                vec![basic("Sonatype Nexus")],
            ),
            (&["Basic"], vec![basic("")]),
            (&["Basic realm=\"\""], vec![basic("")]),
            (
                &[r#"Bearer realm="r",service="s", Basic realm="b""#],
                vec![bearer("r", "s", ""), basic("b")],
            ),
            (
                &[r#"Basic realm="b""#, r#"Bearer realm="r""#],
                vec![basic("b"), bearer("r", "", "")],
            ),
            (
                &[r#"Basic, Bearer realm="r""#],
                vec![basic(""), bearer("r", "", "")],
            ),
            (
                &[r#"Negotiate, NTLM TlRMTVNTUAAB/+==, Basic realm="b""#],
                vec![basic("b")],
            ),
            (
                &[r#"Digest realm="d", nonce="n, Basic realm=x", Basic realm="b""#],
                vec![basic("b")],
            ),
            (
                &[r#"Bearer realm="a\"b\\c""#],
                vec![bearer(r#"a"b\c"#, "", "")],
            ),
            (
                &["Bearer realm=https://h/token?a=b,service=s"],
                vec![bearer("https://h/token?a=b", "s", "")],
            ),
            (
                &[r#"Bearer realm="r" service="s""#],
                vec![bearer("r", "s", "")],
            ),
            (
                &[r#"Bearer realm="r",scope="",service="""#],
                vec![bearer("r", "", "")],
            ),
            (
                &[r#"Bearer realm="first",realm="second""#],
                vec![bearer("first", "", "")],
            ),
            (&[r#",, Bearer ,realm="r",,"#], vec![bearer("r", "", "")]),
            (
                &["Bearer realm=\"caf\u{e9}\""],
                vec![bearer("café", "", "")],
            ),
            (
                &[r#"Bearer realm="r",scope="open"#],
                vec![bearer("r", "", "")],
            ),
            (&[r#"Negotiate Basic"#], vec![]),
            (&[r#"Bearer service="s""#], vec![]),
            (&[r#"Bearer realm="""#], vec![]),
            (&[r#"Bearer realm="open"#], vec![]),
            (&[r#"realm="r""#], vec![]),
            (
                &["=", "\"", "\u{fffd}", "Bearer =x", "Bearer realm="],
                vec![],
            ),
            (&[""], vec![]),
            (&[], vec![]),
        ] {
            assert_eq!(
                parse_challenges(lines.iter().copied()),
                challenges,
                "{lines:?}"
            );
        }
    }

    #[test]
    fn the_reason_of_a_refusal_is_kept() {
        let line = r#"Bearer realm="r",error="insufficient_scope",error_description="no""#;
        assert!(matches!(
            parse_challenges([line].into_iter()).as_slice(),
            [Challenge::Bearer { error: Some(error), .. }] if error == "insufficient_scope"
        ));
    }

    #[test]
    fn challenges_beyond_the_bound_are_not_read() {
        let long = format!("Basic realm=\"{}\"", "x".repeat(MAX_CHALLENGES_SIZE));
        let lines = [r#"Basic realm="b""#, long.as_str(), r#"Bearer realm="r""#];
        assert_eq!(parse_challenges(lines.into_iter()), [basic("b")]);
    }
}
