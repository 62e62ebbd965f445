//! JSON that clients post: from bytes to a value, or to words that name the field that is wrong.

use serde::de::DeserializeOwned;

/// `what`: for messages. They quote nothing of the body but the names of its fields, since there may be a token in it.
pub(super) fn parse_json<T: DeserializeOwned>(body: &[u8], what: &str) -> Result<T, String> {
    if body.is_empty() {
        return Err(format!("the body is empty; it should be {what} in JSON"));
    }
    // serde takes a list for an object too.
    if body.trim_ascii_start().first() == Some(&b'[') {
        return Err(format!("the body is not {what} in JSON: it is a list"));
    }
    serde_json::from_slice(body).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        // The error may quote what it met. What it expected comes after that.
        let text = error.to_string();
        let expected = text
            .rsplit_once("expected ")
            .and_then(|(_, rest)| rest.split(" at line ").next());
        let at = match (field_before(body, line, column), expected) {
            (Some(field), Some(expected)) => format!("{field} must be {}, ", in_words(expected)),
            (Some(field), None) => format!("near {field}, "),
            (None, _) => String::new(),
        };
        format!("the body is not {what} in JSON: {at}line {line}, column {column}")
    })
}

/// serde says it in Rust's.
fn in_words(expected: &str) -> &str {
    match expected {
        "a string" | "string or map" => "a text",
        "a sequence" => "a list",
        "i64" | "u64" => "a whole number",
        structure if structure.starts_with("struct ") => "an object",
        other => other,
    }
}

/// The last property's name before a place in the body; names are the API's, not secrets, if they are among them.
fn field_before(body: &[u8], line: usize, column: usize) -> Option<&str> {
    let start: usize = body
        .split_inclusive(|byte| *byte == b'\n')
        .take(line.checked_sub(1)?)
        .map(<[u8]>::len)
        .sum();
    let before = str::from_utf8(body.get(..(start + column).min(body.len()))?).ok()?;
    let name = before.get(..before.rfind("\":")?)?.rsplit('"').next()?;
    let is_name =
        !name.is_empty() && name.len() <= 32 && name.bytes().all(|byte| byte.is_ascii_alphabetic());
    is_name.then_some(name)
}

#[cfg(test)]
mod tests {
    use super::super::submission::Submission;
    use super::*;

    #[test]
    fn what_is_wrong_is_named() {
        for (body, expected) in [
            ("", "the body is empty"),
            ("[]", "it is a list"),
            ("{", "line 1, column 1"),
            ("{\"containerImage\":", "near containerImage"),
            (r#"{"containerImage":7}"#, "containerImage must be a text"),
            (r#"{"freeze":"yes"}"#, "freeze must be a boolean"),
            (
                r#"{"towerWorkspaceId":"7"}"#,
                "towerWorkspaceId must be a whole number",
            ),
            (
                r#"{"towerWorkspaceId":9223372036854775808}"#,
                "towerWorkspaceId must be a whole number",
            ),
            (
                r#"{"containerConfig":7}"#,
                "containerConfig must be an object",
            ),
            (r#"{"containerConfig":{"env":"A=b"}}"#, "env must be a list"),
            (r#"{"containerConfig":{"env":[1]}}"#, "env must be a text"),
            (
                r#"{"scanMode":"maybe"}"#,
                "scanMode must be one of `none`, `async`, `required`",
            ),
            (r#"{"format":"iso"}"#, "format must be `docker` or `sif`"),
            (
                r#"{"nameStrategy":"odd"}"#,
                "nameStrategy must be one of `none`, `tagPrefix`, `imageSuffix`",
            ),
            (
                r#"{"packages":{"type":"PIP"}}"#,
                "type must be `CONDA` or `CRAN`",
            ),
            (
                r#"{"buildCompression":{"mode":"rar"}}"#,
                "mode must be one of `gzip`, `estargz`, `zstd`",
            ),
            (
                r#"{"scanLevels":["SOME"]}"#,
                "scanLevels must be one of `LOW`, `MEDIUM`, `HIGH`, `CRITICAL`",
            ),
            (r#"{"dryRun":1}"#, "dryRun must be a boolean"),
        ] {
            match parse_json::<Submission>(body.as_bytes(), "a container request") {
                Err(message) => assert!(message.contains(expected), "{body}: {message}"),
                Ok(_) => panic!("{body}: taken"),
            }
        }
    }

    #[test]
    fn a_malformed_body_is_not_quoted() {
        let body = br#"{"towerAccessToken":"hunter2","freeze":"hunter2"}"#;
        let Err(text) = parse_json::<Submission>(body, "a container request") else {
            panic!("taken")
        };
        assert!(!text.contains("hunter2"), "{text}");
        assert!(text.contains("freeze must be a boolean"), "{text}");
    }
}
