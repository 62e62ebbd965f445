//! The modules import downwards only, in the layers that `src/lib.rs` lists, and what ARCHITECTURE.md says of each; the kinds
//! of code stay where they belong.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    ops::RangeInclusive,
    path::{Path, PathBuf},
};

/// A module's row in the table of ARCHITECTURE.md.
struct Row {
    module: String,
    layer: u32,
    /// What it imports.
    names: Vec<String>,
    /// All of these as well, as it needs them.
    layers: RangeInclusive<u32>,
}

fn table() -> Vec<Row> {
    let text = read("ARCHITECTURE.md");
    let rows = text
        .lines()
        .skip_while(|line| !line.starts_with("| layer |"));
    let mut layer = None;
    let mut table = Vec::new();
    for line in rows.skip(2).take_while(|line| line.starts_with('|')) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [_, number, modules, _, _, imports, _] = cells[..] else {
            panic!("five columns: {line}");
        };
        layer = number
            .chars()
            .next()
            .and_then(|it| it.to_digit(10))
            .or(layer);
        let layers = imports.split_once("layers ").and_then(|(_, range)| {
            let mut ends = range.split(" to ").map(|end| identifier(end).parse());
            Some(ends.next()?.ok()?..=ends.next()?.ok()?)
        });
        for module in quoted(modules) {
            table.push(Row {
                module,
                layer: layer.expect("a layer before it"),
                names: quoted(imports).collect(),
                #[expect(clippy::reversed_empty_ranges, reason = "no layer at all")]
                layers: layers.clone().unwrap_or(1..=0),
            });
        }
    }
    assert!(table.len() > 10, "the table was not found");
    table
}

fn quoted(text: &str) -> impl Iterator<Item = String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned)
}

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).expect("a readable file")
}

struct Source {
    path: PathBuf,
    /// `cache` for `src/cache/fill.rs` and for `src/cache.rs`.
    module: String,
    /// Without tests and without comments.
    code: String,
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut sources = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a readable folder") {
            let path = entry.expect("a readable folder").path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            if path.extension().is_none_or(|extension| extension != "rs") {
                continue;
            }
            let below = path.strip_prefix(&root).expect("a path below src");
            if below
                .iter()
                .any(|part| part == "tests" || part == "tests.rs")
            {
                continue;
            }
            let text = fs::read_to_string(&path).expect("a readable file");
            let text = text
                .split("#[cfg(test)]\nmod tests")
                .next()
                .unwrap_or_default();
            let code = text
                .lines()
                .map(|line| line.split("//").next().unwrap_or_default())
                .collect::<Vec<_>>()
                .join("\n");
            let first = below.iter().next().expect("a name").to_string_lossy();
            let module = first.trim_end_matches(".rs").to_owned();
            let path = below.to_owned();
            sources.push(Source { path, module, code });
        }
    }
    assert!(sources.len() > 10, "the sources were not found");
    sources
}

/// The modules named after `crate::`, alone or in braces.
fn imports(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let is_macro_path = code[..at].ends_with(|character: char| {
            character == '$' || character == '_' || character.is_alphanumeric()
        });
        if is_macro_path {
            continue;
        }
        let rest = &code[at + "crate::".len()..];
        if let Some(group) = rest.strip_prefix('{') {
            let mut depth = 0;
            let mut name = String::new();
            for character in group.chars() {
                match character {
                    '}' if depth == 0 => break,
                    '{' => depth += 1,
                    '}' => depth -= 1,
                    ',' if depth == 0 => found.push(std::mem::take(&mut name)),
                    _ if depth == 0 => name.push(character),
                    _ => {}
                }
            }
            found.push(name);
        } else {
            found.push(rest.to_owned());
        }
    }
    found
        .iter()
        .map(|path| identifier(path))
        .filter(|name| !name.is_empty())
        .collect()
}

fn identifier(text: &str) -> String {
    text.trim()
        .chars()
        .take_while(|character| character.is_alphanumeric() || *character == '_')
        .collect()
}

#[test]
fn imports_are_found_in_all_their_forms() {
    let code = "use crate::oci::Digest; use crate::{units::{A, B}, secret, net::x}; fn f(a: crate::sys::File) {}";
    assert_eq!(imports(code), ["oci", "units", "secret", "net", "sys"]);
}

#[test]
fn modules_import_what_the_table_says() {
    let table = table();
    let mut imported = BTreeMap::<_, BTreeSet<_>>::new();
    let mut wrong = Vec::new();
    for source in sources() {
        if matches!(source.module.as_str(), "lib" | "main") {
            continue;
        }
        let Some(row) = table.iter().find(|row| row.module == source.module) else {
            wrong.push(format!("{} is in no layer", source.path.display()));
            continue;
        };
        for import in imports(&source.code) {
            let is_in_layers =
                |other: &Row| other.module == import && row.layers.contains(&other.layer);
            if import != source.module
                && !row.names.contains(&import)
                && !table.iter().any(is_in_layers)
            {
                wrong.push(format!("{} imports {import}", source.path.display()));
            }
            imported
                .entry(row.module.as_str())
                .or_default()
                .insert(import);
        }
    }
    for row in &table {
        let imported = imported.remove(row.module.as_str()).unwrap_or_default();
        for name in row.names.iter().filter(|&name| !imported.contains(name)) {
            wrong.push(format!("{} does not import {name}", row.module));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// `lib.rs` is the map: a comment with a number begins each layer.
#[test]
fn the_map_lists_every_module_in_its_layer() {
    let text = read("src/lib.rs");
    let mut layer = None;
    let mut layers = BTreeMap::new();
    for line in text.lines() {
        let number = line
            .strip_prefix("// ")
            .and_then(|line| line.split(' ').next()?.parse::<u32>().ok());
        layer = number.or(layer);
        if let Some(module) = line
            .strip_prefix("pub mod ")
            .or_else(|| line.strip_prefix("mod "))
        {
            layers.insert(identifier(module), layer.expect("a layer before it"));
        }
    }
    for row in table() {
        let layer = layers.get(&row.module);
        assert_eq!(layer, Some(&row.layer), "{} in ARCHITECTURE.md", row.module);
    }
    for source in sources() {
        let Some(own) = layers.get(&source.module) else {
            assert!(
                matches!(source.module.as_str(), "lib" | "main"),
                "{} is not in src/lib.rs",
                source.path.display()
            );
            continue;
        };
        for import in imports(&source.code) {
            let layer = layers.get(&import);
            assert!(
                layer.is_some_and(|layer| layer <= own),
                "{} imports {import}, of a layer above its own",
                source.path.display()
            );
        }
    }
}

#[test]
fn unsafe_code_stays_in_its_module() {
    for source in sources() {
        let words = source
            .code
            .split(|character: char| !character.is_alphanumeric() && character != '_');
        let count = words.filter(|word| *word == "unsafe").count();
        assert!(
            source.module == "sys" || count == 0,
            "{} has unsafe code",
            source.path.display()
        );
    }
}

/// Two worlds: async on the cores, blocking on the pool.
#[test]
fn neither_world_uses_the_libraries_of_the_other() {
    let blocking = [
        "database",
        "requests",
        "credentials",
        "limits",
        "platform",
        "aws",
    ];
    let on_cores = [
        "server", "api", "mirror", "pull", "upstream", "cache", "net",
    ];
    let pure = ["oci", "units", "secret", "http", "augment"];
    for source in sources() {
        let module = source.module.as_str();
        let names = |library: &str| {
            source
                .code
                .split(|character: char| !character.is_alphanumeric() && character != '_')
                .any(|word| word == library)
        };
        let path = source.path.display();
        if blocking.contains(&module) || pure.contains(&module) {
            assert!(!names("monoio"), "{path} names monoio");
        }
        let is_the_exception = source.path == Path::new("upstream/realm.rs");
        if (on_cores.contains(&module) && !is_the_exception) || pure.contains(&module) {
            assert!(!names("ureq"), "{path} names ureq");
        }
        if !matches!(module, "requests" | "database") {
            assert!(!names("redb"), "{path} names redb");
        }
        if !matches!(module, "config" | "app" | "cli" | "main" | "lib") {
            assert!(
                !imports(&source.code).contains(&"config".to_owned()),
                "{path} imports config"
            );
        }
    }
}
