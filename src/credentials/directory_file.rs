//! From the directory's file to the directory, with all of its problems at once.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    fs::File,
    io::{self, Read},
    ops::Range,
    path::{Path, PathBuf},
};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};
use zeroize::Zeroizing;

use super::{
    Directory, Entry, Scope,
    embedded::{User, Workspace},
    hash_access_token, load_password,
    password::exposure,
};
use crate::{oci::Digest, secret::Secret, toml_file::Problem, units::MIB};

#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    #[error("the directory file {} cannot be read: {cause}", path.display())]
    File { path: PathBuf, cause: io::Error },
    #[error("{}", problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Problems { problems: Vec<Problem> },
}

pub(super) fn load(path: &Path) -> Result<(Directory, Vec<String>), DirectoryError> {
    let failed = |cause| DirectoryError::File {
        path: path.to_owned(),
        cause,
    };
    let (text, file) = read(path).map_err(failed)?;
    let mut loader = Loader::new(path, &text);
    let directory = loader.directory();
    if loader.has_inline_password {
        loader
            .warnings
            .extend(exposure(&file, path).map_err(failed)?);
    }
    if loader.problems.is_empty() {
        Ok((directory, loader.warnings))
    } else {
        // As a reader goes through the file, not as the rules were checked.
        loader.problems.sort_by_key(|problem| problem.line);
        Err(DirectoryError::Problems {
            problems: loader.problems,
        })
    }
}

/// Passwords may stand in it, so its text is wiped.
fn read(path: &Path) -> io::Result<(Zeroizing<String>, File)> {
    /// Guessed: tens of thousands of users.
    const LARGEST_FILE: u64 = 16 * MIB;
    let file = File::open(path)?;
    let size = file.metadata().map_or(0, |metadata| metadata.len());
    let size = usize::try_from(size.min(LARGEST_FILE)).unwrap_or_default();
    let mut text = Zeroizing::new(String::with_capacity(size + 1));
    let size = (&file).take(LARGEST_FILE + 1).read_to_string(&mut text)?;
    if size as u64 > LARGEST_FILE {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            "it is larger than 16 MiB",
        ));
    }
    Ok((text, file))
}

type Span = Range<usize>;
type Table<'t> = Spanned<&'t DeTable<'t>>;

/// Walks the file and collects what is wrong; what is good it keeps, to find more.
struct Loader<'a> {
    path: &'a Path,
    text: &'a str,
    problems: Vec<Problem>,
    warnings: Vec<String>,
    has_inline_password: bool,
}

impl<'a> Loader<'a> {
    fn new(path: &'a Path, text: &'a str) -> Self {
        Self {
            path,
            text,
            problems: Vec::new(),
            warnings: Vec::new(),
            has_inline_password: false,
        }
    }

    fn directory(&mut self) -> Directory {
        let (file, syntax_errors) = DeTable::parse_recoverable(self.text);
        for error in syntax_errors {
            // Its message alone: its display repeats the line, which may have a password in it.
            self.report(error.span().unwrap_or_default(), "", error.message());
        }
        if !self.problems.is_empty() {
            // What the parser made of the rest is a guess, and complaints about it would be, too.
            return Directory::default();
        }
        let file = Spanned::new(file.span(), file.get_ref());
        self.known_keys(&file, "", &["user", "workspace"]);
        let mut directory = Directory::default();
        for workspace in self.tables(&file, "", "workspace") {
            self.workspace(&workspace, &mut directory);
        }
        let mut names = HashMap::new();
        for user in self.tables(&file, "", "user") {
            self.user(&user, &mut directory, &mut names);
        }
        directory
    }

    fn workspace(&mut self, table: &Table<'_>, directory: &mut Directory) {
        self.known_keys(table, "workspace", &["id", "name", "credentials"]);
        let id = self.required(table, "workspace", "id", Self::integer);
        let name = self.required(table, "workspace", "name", Self::filled_string);
        let entries = self.entries(table, "workspace");
        let Some(id) = id else {
            return;
        };
        // Without a name, too, so that its members are not told that it does not exist.
        let workspace = Workspace {
            name: name.map(Spanned::into_inner).unwrap_or_default(),
            entries,
        };
        if directory
            .workspaces
            .insert(*id.get_ref(), workspace)
            .is_some()
        {
            let message = format!("another workspace has the id {}", id.get_ref());
            self.report(id.span(), "workspace.id", &message);
        }
    }

    fn user(
        &mut self,
        table: &Table<'_>,
        directory: &mut Directory,
        names: &mut HashMap<String, Span>,
    ) {
        let keys = ["name", "token_sha256", "workspaces", "credentials"];
        self.known_keys(table, "user", &keys);
        let name = self.required(table, "user", "name", Self::filled_string);
        let hash = self.required(table, "user", "token_sha256", Self::token_hash);
        let workspaces = self.memberships(table, directory);
        let entries = self.entries(table, "user");
        if let Some(name) = &name
            && names.insert(name.get_ref().clone(), name.span()).is_some()
        {
            let message = format!("another user has the name `{}`", name.get_ref());
            self.report(name.span(), "user.name", &message);
        }
        let (Some(name), Some(hash)) = (name, hash) else {
            return;
        };
        let user = User {
            name: name.into_inner(),
            workspaces,
            entries,
        };
        if let Some(other) = directory.users.insert(*hash.get_ref(), user) {
            let message = format!("{} has the same access token", other.name);
            self.report(hash.span(), "user.token_sha256", &message);
        }
    }

    fn memberships(&mut self, table: &Table<'_>, directory: &Directory) -> HashSet<i64> {
        const KEY: &str = "user.workspaces";
        let Some(value) = table.get_ref().get("workspaces") else {
            return HashSet::new();
        };
        let Some(ids) = value.get_ref().as_array() else {
            self.report_type(value, KEY, "a list of workspace ids");
            return HashSet::new();
        };
        let mut memberships = HashSet::new();
        for id in ids.iter() {
            let Some(id) = self.integer(id, KEY) else {
                continue;
            };
            let number = *id.get_ref();
            if !directory.workspaces.contains_key(&number) {
                self.report(id.span(), KEY, &format!("there is no workspace {number}"));
            }
            memberships.insert(number);
        }
        memberships
    }

    fn entries(&mut self, owner: &Table<'_>, owner_key: &str) -> Vec<Entry> {
        let tables = self.tables(owner, owner_key, "credentials");
        let key = format!("{owner_key}.credentials");
        let entries = tables.iter().filter_map(|table| self.entry(table, &key));
        entries.collect()
    }

    fn entry(&mut self, table: &Table<'_>, key: &str) -> Option<Entry> {
        let sources = ["password", "password_file", "password_env"];
        let keys = [["registry", "username"].as_slice(), &sources].concat();
        self.known_keys(table, key, &keys);
        let scope = self.required(table, key, "registry", Self::scope);
        let username = self.required(table, key, "username", Self::filled_string);
        let problem_count = self.problems.len();
        let [password, file, variable] =
            sources.map(|name| self.optional(table, key, name, Self::string));
        if problem_count != self.problems.len() {
            return None;
        }
        let username = username?;
        self.has_inline_password |= password.is_some();
        let loaded = load_password(
            username.get_ref(),
            password.map(|it| Secret::new(it.into_inner())),
            file.as_ref().map(|it| Path::new(it.get_ref())),
            variable.as_ref().map(|it| it.get_ref().as_str()),
            self.path.parent().unwrap_or(Path::new("")),
        );
        let loaded = match loaded {
            Ok(loaded) => loaded,
            Err(error) => {
                let (span, name) = match (&file, &variable) {
                    (Some(file), None) => (file.span(), "password_file"),
                    (None, Some(variable)) => (variable.span(), "password_env"),
                    _ => (username.span(), "password"),
                };
                self.report(span, &format!("{key}.{name}"), &error.to_string());
                return None;
            }
        };
        self.warnings.extend(loaded.warning);
        Some(Entry {
            scope: scope?.into_inner(),
            credentials: loaded.credentials,
        })
    }

    fn scope(&mut self, value: &Spanned<DeValue<'_>>, key: &str) -> Option<Spanned<Scope>> {
        let text = self.string(value, key)?;
        self.parsed(text.get_ref().parse(), text.span(), key)
    }

    fn token_hash(&mut self, value: &Spanned<DeValue<'_>>, key: &str) -> Option<Spanned<Digest>> {
        let text = self.string(value, key)?;
        let hash = format!("sha256:{}", text.get_ref().to_ascii_lowercase());
        let hash = hash.parse::<Digest>().map_err(|_| {
            "this is no SHA-256: it is 64 hex digits, as `tidegate directory hash-token` prints them"
        });
        // Whoever sends an empty token is anonymous, so this user could never come in.
        let hash = match hash {
            Ok(hash) if hash.hex() == hash_access_token("") => Err("this is the hash of no token"),
            hash => hash,
        };
        self.parsed(hash, text.span(), key)
    }

    fn parsed<T>(
        &mut self,
        outcome: Result<T, impl fmt::Display>,
        span: Span,
        key: &str,
    ) -> Option<Spanned<T>> {
        match outcome {
            Ok(value) => Some(Spanned::new(span, value)),
            Err(error) => {
                self.report(span, key, &error.to_string());
                None
            }
        }
    }

    fn filled_string(
        &mut self,
        value: &Spanned<DeValue<'_>>,
        key: &str,
    ) -> Option<Spanned<String>> {
        let text = self.string(value, key)?;
        if text.get_ref().trim().is_empty() {
            self.report(text.span(), key, "this is empty");
            return None;
        }
        Some(text)
    }

    fn string(&mut self, value: &Spanned<DeValue<'_>>, key: &str) -> Option<Spanned<String>> {
        match value.get_ref().as_str() {
            Some(text) => Some(Spanned::new(value.span(), text.to_owned())),
            None => {
                self.report_type(value, key, "a text in quotes");
                None
            }
        }
    }

    fn integer(&mut self, value: &Spanned<DeValue<'_>>, key: &str) -> Option<Spanned<i64>> {
        let number = value
            .get_ref()
            .as_integer()
            .and_then(|number| i64::from_str_radix(number.as_str(), number.radix()).ok());
        match number {
            Some(number) => Some(Spanned::new(value.span(), number)),
            None => {
                self.report_type(value, key, "a whole number of 64 bits");
                None
            }
        }
    }

    /// The elements of `[[…]]`; none if there are none.
    fn tables<'t>(&mut self, parent: &Table<'t>, parent_key: &str, name: &str) -> Vec<Table<'t>> {
        let Some(value) = parent.get_ref().get(name) else {
            return Vec::new();
        };
        let key = join(parent_key, name);
        let Some(elements) = value.get_ref().as_array() else {
            self.report_type(value, &key, &format!("a list: write [[{key}]]"));
            return Vec::new();
        };
        let mut tables = Vec::new();
        for element in elements.iter() {
            match element.get_ref().as_table() {
                Some(table) => tables.push(Spanned::new(element.span(), table)),
                None => self.report_type(element, &key, &format!("a table: write [[{key}]]")),
            }
        }
        tables
    }

    fn required<T>(
        &mut self,
        table: &Table<'_>,
        table_key: &str,
        name: &str,
        read: impl Fn(&mut Self, &Spanned<DeValue<'_>>, &str) -> Option<T>,
    ) -> Option<T> {
        if !table.get_ref().contains_key(name) {
            self.report(table.span(), &join(table_key, name), "this is missing");
        }
        self.optional(table, table_key, name, read)
    }

    fn optional<T>(
        &mut self,
        table: &Table<'_>,
        table_key: &str,
        name: &str,
        read: impl Fn(&mut Self, &Spanned<DeValue<'_>>, &str) -> Option<T>,
    ) -> Option<T> {
        read(self, table.get_ref().get(name)?, &join(table_key, name))
    }

    fn known_keys(&mut self, table: &Table<'_>, table_key: &str, known: &[&str]) {
        for key in table.get_ref().keys() {
            let name = key.get_ref();
            if known.contains(&name.as_ref()) {
                continue;
            }
            let closest = known
                .iter()
                .map(|it| (strsim::osa_distance(name, it), it))
                .min();
            let message = match closest {
                Some((distance, closest)) if distance <= 3 => {
                    format!("there is no such key; did you mean `{closest}`?")
                }
                _ => format!("there is no such key; there are {}", known.join(", ")),
            };
            self.report(key.span(), &join(table_key, name), &message);
        }
    }

    fn report_type(&mut self, value: &Spanned<DeValue<'_>>, key: &str, expected: &str) {
        self.report(value.span(), key, &format!("this has to be {expected}"));
    }

    fn report(&mut self, span: Span, key: &str, message: &str) {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        let line = before.matches('\n').count() + 1;
        self.problems.push(Problem {
            file: self.path.to_owned(),
            line,
            key: key.to_owned(),
            message: message.to_owned(),
        });
    }
}

fn join(table_key: &str, name: &str) -> String {
    if table_key.is_empty() {
        name.to_owned()
    } else {
        format!("{table_key}.{name}")
    }
}
