//! Answers in the form that was asked for: for people, or as JSON or YAML for programs.

use clap::ValueEnum;
use serde_json::Value;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    Text,
    Json,
    Yaml,
}

/// Every JSON text is YAML too (YAML 1.2 §1.3), but people who ask for it want its lines. Texts are quoted as in JSON
/// wherever a reader could take them for something else.
pub(super) fn yaml(value: &Value) -> String {
    let mut text = String::new();
    write_value(&mut text, value, 0);
    text
}

/// Behind `key:` or `-`, or at the start.
fn write_value(text: &mut String, value: &Value, depth: usize) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (index, (name, value)) in fields.iter().enumerate() {
                if index > 0 {
                    indent(text, depth);
                }
                text.push_str(&scalar(name));
                text.push(':');
                let is_nested = match value {
                    Value::Object(fields) => !fields.is_empty(),
                    Value::Array(values) => !values.is_empty(),
                    _ => false,
                };
                if is_nested {
                    text.push('\n');
                    indent(text, depth + 1);
                } else {
                    text.push(' ');
                }
                write_value(text, value, depth + 1);
            }
        }
        Value::Array(values) if !values.is_empty() => {
            for (index, value) in values.iter().enumerate() {
                if index > 0 {
                    indent(text, depth);
                }
                text.push_str("- ");
                write_value(text, value, depth + 1);
            }
        }
        Value::String(content) => {
            text.push_str(&scalar(content));
            text.push('\n');
        }
        // Numbers, true, false, null, [] and {} are written alike.
        other => {
            text.push_str(&other.to_string());
            text.push('\n');
        }
    }
}

fn indent(text: &mut String, depth: usize) {
    text.extend(std::iter::repeat_n("  ", depth));
}

fn scalar(content: &str) -> String {
    match is_plain(content) {
        true => content.to_owned(),
        false => quoted(content),
    }
}

/// Words, paths and names of images. What begins with a digit may be a number or a time, and a few words are values.
fn is_plain(content: &str) -> bool {
    const VALUES: [&str; 9] = ["y", "n", "yes", "no", "on", "off", "true", "false", "null"];
    content.starts_with(|first: char| first.is_ascii_alphabetic() || first == '/')
        && content
            .chars()
            .all(|it| it.is_ascii_alphanumeric() || "-_./:@+=".contains(it))
        && !content.ends_with(':')
        && !VALUES.contains(&content.to_ascii_lowercase().as_str())
}

fn quoted(content: &str) -> String {
    let json = Value::from(content).to_string();
    // JSON lets stand what YAML does not count as printable (§5.1).
    let mut text = String::with_capacity(json.len());
    for character in json.chars() {
        match character {
            '\u{7f}'..='\u{9f}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}' => {
                text.push_str(&format!("\\u{:04x}", u32::from(character)));
            }
            other => text.push(other),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn yaml_has_a_line_for_each_value() {
        let value = json!({
            "targetImage": "localhost:5000/wt/k3v9x0q2m7ab/acme/app:v1",
            "expiration": "2026-03-05T17:06:07Z",
            "succeeded": true,
            "none": null,
            "empty": {"list": [], "object": {}},
            "list": ["a", "b c", {"x": 1, "y": [2, 3]}, [4, [5]]],
        });
        let expected = "\
empty:
  list: []
  object: {}
expiration: \"2026-03-05T17:06:07Z\"
list:
  - a
  - \"b c\"
  - x: 1
    \"y\":
      - 2
      - 3
  - - 4
    - - 5
none: null
succeeded: true
targetImage: localhost:5000/wt/k3v9x0q2m7ab/acme/app:v1
";
        assert_eq!(yaml(&value), expected);
    }

    #[test]
    fn what_could_be_misread_is_quoted() {
        for (content, written) in [
            ("alpine", "alpine"),
            ("PATH=/bin:/usr/bin", "PATH=/bin:/usr/bin"),
            ("/bin/sh", "/bin/sh"),
            ("", "\"\""),
            ("no", "\"no\""),
            ("True", "\"True\""),
            ("1.0", "\"1.0\""),
            ("1e3", "\"1e3\""),
            ("- a", "\"- a\""),
            ("a: b", "\"a: b\""),
            ("a:", "\"a:\""),
            ("a #b", "\"a #b\""),
            ("*", "\"*\""),
            ("~", "\"~\""),
            ("a\nb", "\"a\\nb\""),
            ("\u{85}", "\"\\u0085\""),
        ] {
            assert_eq!(scalar(content), written, "{content:?}");
        }
    }
}
