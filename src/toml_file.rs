//! TOML that people write: the configuration, the directory file. Reads one into a type and reports everything that
//! is wrong with it at once, each problem with its line and key, and with what was probably meant.
//!
//! serde stops at the first error. So a faulty entry is reported and left out, and the rest is read again, until it
//! is read whole. No message repeats a value of the wrong type or one under a secret key: these lines end in logs.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, mem,
    ops::Range,
    path::{Path, PathBuf},
};

use serde::de::{DeserializeOwned, IntoDeserializer};
use toml::{
    Spanned,
    de::{DeArray, DeTable, DeValue},
};

/// Enough for anyone to read; also bounds the work that a hostile file can cause.
const MOST_PROBLEMS: usize = 100;

/// What stands under these keys is never repeated, nor is what stands in the table of accounts.
const SECRET_KEYS: [&str; 5] = [
    "password",
    "token",
    "access_token",
    "token_sha256",
    "accounts",
];

/// One thing to mend in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub file: PathBuf,
    /// From 1; 0 if it is about the file as a whole.
    pub line: usize,
    /// Dotted, as one would write it: `registry."quay.io".endpoint`. Empty if it is about no key.
    pub key: String,
    pub message: String,
}

impl Problem {
    pub fn of_file(file: &Path, message: impl fmt::Display) -> Self {
        Self {
            file: file.to_owned(),
            line: 0,
            key: String::new(),
            message: message.to_string(),
        }
    }

    /// Whether it is about this table or something in it.
    pub fn is_within(&self, table: &[&str]) -> bool {
        self.key
            .strip_prefix(&dotted(&keys(table)))
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    }
}

/// `FILE:LINE: key: message`
impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:", self.file.display())?;
        if self.line > 0 {
            write!(formatter, "{}:", self.line)?;
        }
        if !self.key.is_empty() {
            write!(formatter, " {}:", self.key)?;
        }
        write!(formatter, " {}", self.message)
    }
}

/// What came of a file.
#[derive(Debug)]
pub struct Reading<T> {
    /// What is left without the entries that have problems, so that the caller's own rules can be applied to the
    /// rest; `None` if nothing could be made of it.
    pub value: Option<T>,
    /// In the order of their lines.
    pub problems: Vec<Problem>,
    pub lines: KeyLines,
}

pub fn read<T: DeserializeOwned>(file: &Path, text: &str) -> Reading<T> {
    let mut lines = KeyLines {
        file: file.to_owned(),
        lines: BTreeMap::new(),
    };
    let document = match DeTable::parse(text) {
        Ok(document) => document,
        Err(error) => {
            let problem = Problem {
                file: file.to_owned(),
                line: line_at(text, error.span().map_or(0, |span| span.start)),
                key: duplicate(&error, text).unwrap_or_default(),
                message: error.message().to_owned(),
            };
            return Reading {
                value: None,
                problems: vec![problem],
                lines,
            };
        }
    };

    let nodes = Node::all_of(document.get_ref());
    for node in &nodes {
        let start = node.key_span.as_ref().unwrap_or(&node.span).start;
        lines.lines.insert(dotted(&node.path), line_at(text, start));
    }

    let mut left_out = LeftOut::default();
    let mut problems = Vec::new();
    let value = loop {
        let mut rest = document.clone();
        left_out.take_from(rest.get_mut());
        let error = match T::deserialize(rest.into_deserializer()) {
            Ok(value) => break Some(value),
            Err(error) => error,
        };
        if problems.len() == MOST_PROBLEMS {
            break None;
        }
        let fault = Fault::locate(&error, &nodes, &left_out);
        if let Some((key, message)) = fault.description(&error, &left_out) {
            problems.push(Problem {
                file: file.to_owned(),
                line: line_at(text, fault.position),
                key,
                message,
            });
        }
        if !left_out.add(&fault) {
            break None;
        }
    };
    problems.sort_by_key(|problem| problem.line);
    Reading {
        value,
        problems,
        lines,
    }
}

/// Where each key of a file stands, for rules that serde does not know.
#[derive(Clone, Debug)]
pub struct KeyLines {
    file: PathBuf,
    lines: BTreeMap<String, usize>,
}

impl KeyLines {
    /// A problem of the key at this path, or of the nearest table around it if the file does not have the key.
    pub fn problem(&self, path: &[&str], message: impl fmt::Display) -> Problem {
        let path = keys(path);
        let line = (1..=path.len())
            .rev()
            .find_map(|length| self.lines.get(&dotted(path.get(..length)?)).copied());
        Problem {
            file: self.file.clone(),
            line: line.unwrap_or(0),
            key: dotted(&path),
            message: message.to_string(),
        }
    }
}

/// Which key there is already.
fn duplicate(error: &toml::de::Error, text: &str) -> Option<String> {
    let key = text.get(error.span()?)?.trim();
    let is_key = !key.is_empty() && !key.contains(['\n', '=']);
    (error.message() == "duplicate key" && is_key).then(|| key.to_owned())
}

fn line_at(text: &str, position: usize) -> usize {
    1 + text
        .bytes()
        .take(position)
        .filter(|&byte| byte == b'\n')
        .count()
}

/// One step from a table to an entry, or from an array to an item.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Key(String),
    Item(usize),
}

fn keys(path: &[&str]) -> Vec<Step> {
    path.iter().map(|&key| Step::Key(key.to_owned())).collect()
}

fn dotted(path: &[Step]) -> String {
    let is_bare = |key: &str| {
        !key.is_empty()
            && key
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    let mut text = String::new();
    for step in path {
        match step {
            Step::Item(index) => text.push_str(&format!("[{index}]")),
            Step::Key(key) => {
                if !text.is_empty() {
                    text.push('.');
                }
                match is_bare(key) {
                    true => text.push_str(key),
                    false => text.push_str(&format!("{key:?}")),
                }
            }
        }
    }
    text
}

/// A value of the document, and where it stands.
struct Node {
    path: Vec<Step>,
    key_span: Option<Range<usize>>,
    span: Range<usize>,
    kind: &'static str,
}

impl Node {
    /// Parents before their children.
    fn all_of(document: &DeTable<'_>) -> Vec<Self> {
        let mut nodes = Vec::new();
        Self::collect_table(&mut Vec::new(), document, &mut nodes);
        nodes
    }

    fn collect_table(path: &mut Vec<Step>, table: &DeTable<'_>, nodes: &mut Vec<Self>) {
        for (key, value) in table {
            path.push(Step::Key(key.get_ref().to_string()));
            Self::collect(path, Some(key.span()), value, nodes);
            path.pop();
        }
    }

    fn collect(
        path: &mut Vec<Step>,
        key_span: Option<Range<usize>>,
        value: &Spanned<DeValue<'_>>,
        nodes: &mut Vec<Self>,
    ) {
        nodes.push(Self {
            path: path.clone(),
            key_span,
            span: value.span(),
            kind: kind(value.get_ref()),
        });
        match value.get_ref() {
            DeValue::Table(table) => Self::collect_table(path, table, nodes),
            DeValue::Array(items) => {
                for (index, item) in items.iter().enumerate() {
                    path.push(Step::Item(index));
                    Self::collect(path, None, item, nodes);
                    path.pop();
                }
            }
            _ => {}
        }
    }
}

fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a decimal number",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date or time",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}

/// What is not read again, by its path in the whole document.
#[derive(Default)]
struct LeftOut {
    paths: BTreeSet<Vec<Step>>,
    /// Keys that would be missed now, though something was meant to be there.
    excused: BTreeSet<Vec<Step>>,
}

impl LeftOut {
    /// `false` if there is nothing more to leave out.
    fn add(&mut self, fault: &Fault<'_>) -> bool {
        if let (Some(candidate), Some((_, parents))) = (&fault.meant, fault.path.split_last()) {
            let mut meant = parents.to_vec();
            meant.push(Step::Key(candidate.clone()));
            self.excused.insert(meant);
        }
        self.excused.insert(fault.path.clone());
        !fault.path.is_empty() && self.paths.insert(fault.path.clone())
    }

    fn has(&self, path: &[Step]) -> bool {
        (1..=path.len()).any(|length| {
            path.get(..length)
                .is_some_and(|parent| self.paths.contains(parent))
        })
    }

    fn take_from(&self, document: &mut DeTable<'_>) {
        if !self.paths.is_empty() {
            self.take_from_table(&mut Vec::new(), document);
        }
    }

    fn take_from_table(&self, path: &mut Vec<Step>, table: &mut DeTable<'_>) {
        *table = mem::take(table)
            .into_iter()
            .filter_map(|(key, mut value)| {
                path.push(Step::Key(key.get_ref().to_string()));
                let is_kept = self.take_from_value(path, &mut value);
                path.pop();
                is_kept.then_some((key, value))
            })
            .collect();
    }

    fn take_from_value(&self, path: &mut Vec<Step>, value: &mut Spanned<DeValue<'_>>) -> bool {
        if self.paths.contains(path) {
            return false;
        }
        match value.get_mut() {
            DeValue::Table(table) => self.take_from_table(path, table),
            DeValue::Array(items) => {
                *items = mem::replace(items, DeArray::from_iter([]))
                    .into_iter()
                    .enumerate()
                    .filter_map(|(index, mut item)| {
                        path.push(Step::Item(index));
                        let is_kept = self.take_from_value(path, &mut item);
                        path.pop();
                        is_kept.then_some(item)
                    })
                    .collect();
            }
            _ => {}
        }
        true
    }
}

/// What serde stumbled over.
struct Fault<'n> {
    /// Empty if it is the document itself.
    path: Vec<Step>,
    node: Option<&'n Node>,
    position: usize,
    /// The known key that is most like this unknown one.
    meant: Option<String>,
}

impl<'n> Fault<'n> {
    fn locate(error: &toml::de::Error, nodes: &'n [Node], left_out: &LeftOut) -> Self {
        let span = error.span().unwrap_or(0..0);
        let candidates = || nodes.iter().filter(|node| !left_out.has(&node.path));
        if let Some(node) = candidates().find(|node| node.key_span.as_ref() == Some(&span)) {
            return Self {
                path: node.path.clone(),
                node: Some(node),
                position: span.start,
                meant: unknown_name(error, "field").and_then(|unknown| unknown.meant()),
            };
        }
        // The innermost: a table that only stands in another's header may share its span.
        let node = candidates()
            .rev()
            .find(|node| node.span == span)
            .or_else(|| {
                candidates()
                    .filter(|node| node.span.start <= span.start && span.end <= node.span.end)
                    .min_by_key(|node| node.span.len())
            });
        Self {
            path: node.map(|node| node.path.clone()).unwrap_or_default(),
            node,
            position: span.start,
            meant: None,
        }
    }

    /// The key and what to say of it; `None` if it only follows from a problem that was reported before.
    fn description(&self, error: &toml::de::Error, left_out: &LeftOut) -> Option<(String, String)> {
        if let Some(field) = missing_field(error) {
            let mut path = self.path.clone();
            path.push(Step::Key(field.to_owned()));
            return (!left_out.excused.contains(&path))
                .then(|| (dotted(&path), "is missing".to_owned()));
        }
        let message = if let Some(unknown) = unknown_name(error, "field") {
            unknown.message("unknown key")
        } else if let Some(unknown) = unknown_name(error, "variant") {
            unknown.message("unknown value")
        } else if let Some(expected) = expectation(error) {
            match self.node {
                Some(node) if error.message().starts_with("invalid type") => {
                    format!("expected {expected}, found {}", node.kind)
                }
                _ => format!("expected {expected}"),
            }
        } else if self.is_secret() {
            "is not valid".to_owned()
        } else if error.message() == "invalid socket address syntax" {
            "is not an address; write an IP address and a port, as in \"127.0.0.1:5000\" or \"[::]:5000\""
                .to_owned()
        } else {
            error.message().to_owned()
        };
        Some((dotted(&self.path), message))
    }

    fn is_secret(&self) -> bool {
        self.path
            .iter()
            .any(|step| matches!(step, Step::Key(key) if SECRET_KEYS.contains(&key.as_str())))
    }
}

/// serde's words: ``missing field `name` ``.
fn missing_field(error: &toml::de::Error) -> Option<&str> {
    error
        .message()
        .strip_prefix("missing field `")?
        .strip_suffix('`')
}

struct UnknownName<'e> {
    name: &'e str,
    known: Vec<&'e str>,
}

/// serde's words: ``unknown field `listner`, expected one of `listener`, `log` ``.
fn unknown_name<'e>(error: &'e toml::de::Error, kind: &str) -> Option<UnknownName<'e>> {
    let rest = error
        .message()
        .strip_prefix("unknown ")?
        .strip_prefix(kind)?
        .strip_prefix(" `")?;
    // From the right: the unknown name is foreign and may hold anything.
    let (name, known) = rest
        .rsplit_once("`, expected ")
        .or_else(|| rest.rsplit_once("`, there are no "))?;
    Some(UnknownName {
        name,
        known: known.split('`').skip(1).step_by(2).collect(),
    })
}

impl UnknownName<'_> {
    fn meant(&self) -> Option<String> {
        // A third of the letters may be wrong: guessed, and enough for `listner` and `max-sise`.
        let name = self.name.replace('-', "_").to_ascii_lowercase();
        let tolerance = (name.chars().count() / 3).clamp(1, 4);
        self.known
            .iter()
            .map(|known| (strsim::damerau_levenshtein(&name, known), known))
            .filter(|(distance, _)| *distance <= tolerance)
            .min()
            .map(|(_, known)| (*known).to_owned())
    }

    fn message(&self, what: &str) -> String {
        if let Some(meant) = self.meant() {
            return format!("{what}; did you mean `{meant}`?");
        }
        let known: Vec<String> = self.known.iter().map(|name| format!("`{name}`")).collect();
        format!("{what}; known are {}", known.join(", "))
    }
}

/// serde's words: `invalid type: string "on", expected a boolean`, of which only the end is fit to be shown.
fn expectation(error: &toml::de::Error) -> Option<String> {
    let message = error.message();
    if !message.starts_with("invalid type: ") && !message.starts_with("invalid value: ") {
        return None;
    }
    let (_, expected) = message.rsplit_once(", expected ")?;
    Some(match expected {
        "a boolean" => "true or false".to_owned(),
        "a sequence" => "an array".to_owned(),
        "a map" => "a table".to_owned(),
        "u8" => whole_number(u8::MAX),
        "u16" => whole_number(u16::MAX),
        "u32" => whole_number(u32::MAX),
        "u64" | "usize" => "a whole number, 0 or more".to_owned(),
        "i64" => "a whole number".to_owned(),
        _ if expected.starts_with("struct ") => "a table".to_owned(),
        _ => expected.to_owned(),
    })
}

fn whole_number(largest: impl fmt::Display) -> String {
    format!("a whole number from 0 to {largest}")
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, net::SocketAddr};

    use serde::Deserialize;

    use super::*;
    use crate::{secret::Secret, units::HumanDuration};

    #[derive(Debug, Default, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct House {
        name: String,
        door: Door,
        room: BTreeMap<String, Room>,
        #[serde(rename = "guest")]
        guests: Vec<Guest>,
        paint: Option<Paint>,
    }

    #[derive(Debug, Default, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Door {
        width: u32,
        open: bool,
        delay: HumanDuration,
        addresses: Vec<SocketAddr>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only read")]
    struct Room {
        size: i64,
        password: Option<Secret<String>>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only read")]
    struct Guest {
        name: String,
        #[serde(default)]
        nights: Vec<u8>,
        token_sha256: Option<HumanDuration>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Paint {
        Red,
        Green,
    }

    fn problems_of(text: &str) -> Vec<String> {
        let problems = read::<House>(Path::new("house.toml"), text).problems;
        problems.iter().map(Problem::to_string).collect()
    }

    #[test]
    fn each_fault_is_named_with_its_line_and_key() {
        for (text, problem) in [
            ("[dor]\n", ":1: dor: unknown key; did you mean `door`?"),
            (
                "zzzz = 1",
                ":1: zzzz: unknown key; known are `name`, `door`, `room`, `guest`, `paint`",
            ),
            (
                "\n[door]\nwidht = 3",
                ":3: door.widht: unknown key; did you mean `width`?",
            ),
            (
                "door.Open = true",
                ":1: door.Open: unknown key; did you mean `open`?",
            ),
            (
                "[door]\nwidth = \"wide\"",
                ":2: door.width: expected a whole number from 0 to 4294967295, found a string",
            ),
            (
                "[door]\nwidth = -1",
                ":2: door.width: expected a whole number from 0 to 4294967295",
            ),
            (
                "[door]\nopen = \"yes\"",
                ":2: door.open: expected true or false, found a string",
            ),
            (
                "[door]\ndelay = \"soon\"",
                ":2: door.delay: `soon` is not a duration; write a number and a unit, as in \"500ms\", \"30s\" or \"36h\"",
            ),
            (
                "[door]\ndelay = 30",
                ":2: door.delay: expected a duration with its unit, as in \"30s\", found a whole number",
            ),
            (
                "[door]\naddresses = [\n  \"127.0.0.1:1\",\n  \"here\",\n]",
                ":4: door.addresses[1]: is not an address; write an IP address and a port, as in \"127.0.0.1:5000\" or \"[::]:5000\"",
            ),
            (
                "door = 3",
                ":1: door: expected a table, found a whole number",
            ),
            (
                "[name.x]\ny = 1",
                ":1: name: expected a string, found a table",
            ),
            (
                "[room.\"a.b\"]\nsize = 1\nsise = 2",
                ":3: room.\"a.b\".sise: unknown key; did you mean `size`?",
            ),
            ("[room.x]\n", ":1: room.x.size: is missing"),
            (
                "[[guest]]\nname = \"a\"\n[[guest]]\n",
                ":3: guest[1].name: is missing",
            ),
            (
                "paint = \"gren\"",
                ":1: paint: unknown value; did you mean `green`?",
            ),
            (
                "paint = \"blue\"",
                ":1: paint: unknown value; known are `red`, `green`",
            ),
            (
                "\u{e9} = `1`",
                ":1: invalid unquoted key, expected letters, numbers, `-`, `_`",
            ),
            ("name = \"a\"\nname = \"b\"", ":2: name: duplicate key"),
        ] {
            assert_eq!(
                problems_of(text),
                [format!("house.toml{problem}")],
                "{text}"
            );
        }
    }

    #[test]
    fn all_faults_are_reported_at_once_and_nothing_that_follows_from_them() {
        let text = r#"
name = 1
[dor]
width = "not looked at"
[door]
width = "x"
open = 1
[room.kitchen]
size = "large"
password = 1
[room.hall]
sise = 2
[[guest]]
name = "ada"
nights = [1, 300, "x"]
[[guest]]
name = 7
nights = []
[[guest]]
"#;
        let keys: Vec<(usize, String)> = read::<House>(Path::new("house.toml"), text)
            .problems
            .into_iter()
            .map(|problem| (problem.line, problem.key))
            .collect();
        let expected = [
            (2, "name"),
            (3, "dor"),
            (6, "door.width"),
            (7, "door.open"),
            (9, "room.kitchen.size"),
            (10, "room.kitchen.password"),
            (12, "room.hall.sise"),
            (15, "guest[0].nights[1]"),
            (15, "guest[0].nights[2]"),
            (17, "guest[1].name"),
            (19, "guest[2].name"),
        ]
        .map(|(line, key)| (line, key.to_owned()));
        assert_eq!(keys, expected);
    }

    #[test]
    fn what_is_not_at_fault_is_still_read() {
        let reading = read::<House>(
            Path::new("house.toml"),
            "name = \"home\"\n[door]\nwidth = 3\nopen = 3\n",
        );
        let house = reading.value.expect("the rest is good");
        assert_eq!((house.name.as_str(), house.door.width), ("home", 3));
        assert_eq!(reading.problems.len(), 1);
    }

    #[test]
    fn no_message_repeats_a_secret() {
        for text in [
            "[room.x]\nsize = 1\npassword = [\"hunter2\"]",
            "[room.x]\nsize = 1\npassword = { x = \"hunter2\" }",
            "[room.x]\nsize = 1\npasword = \"hunter2\"",
            "[room.x]\nsize = 1\npassword = \"hunter2",
            "[room.x]\nsize = 1\npassword = hunter2",
            "[room]\nx = \"hunter2\"",
            "[[guest]]\nname = \"ada\"\ntoken_sha256 = \"hunter2\"",
        ] {
            let problems = problems_of(text);
            assert!(!problems.is_empty(), "{text}");
            assert!(!problems.join("\n").contains("hunter2"), "{problems:?}");
        }
    }

    #[test]
    fn a_file_full_of_faults_is_given_up_on() {
        let text: String = (0..2 * MOST_PROBLEMS)
            .map(|index| format!("fault_{index} = 1\n"))
            .collect();
        assert_eq!(problems_of(&text).len(), MOST_PROBLEMS);
    }

    #[test]
    fn a_problem_belongs_to_the_tables_around_it() {
        for (key, is_within) in [
            ("room.\"a.b\"", true),
            ("room.\"a.b\".size", true),
            ("room.\"a.b\"[0]", true),
            ("room.\"a.b.c\".size", false),
            ("room", false),
            ("rooms", false),
        ] {
            let problem = Problem {
                key: key.to_owned(),
                ..Problem::of_file(Path::new("house.toml"), "")
            };
            assert_eq!(problem.is_within(&["room", "a.b"]), is_within, "{key}");
        }
    }

    #[test]
    fn rules_of_the_caller_find_the_line_of_a_key_or_of_its_table() {
        let reading = read::<House>(
            Path::new("house.toml"),
            "name = \"\"\n\n[room.\"a.b\"]\nsize = 1\n",
        );
        for (path, problem) in [
            (&["name"][..], "house.toml:1: name: is odd"),
            (
                &["room", "a.b", "size"],
                "house.toml:4: room.\"a.b\".size: is odd",
            ),
            (
                &["room", "a.b", "password"],
                "house.toml:3: room.\"a.b\".password: is odd",
            ),
            (&["paint"], "house.toml: paint: is odd"),
        ] {
            assert_eq!(reading.lines.problem(path, "is odd").to_string(), problem);
        }
    }
}
