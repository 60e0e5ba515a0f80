//! The configuration keys of `lib/config` and the tables that document them.
//!
//! The keys come from the fields of the types, in the order serde reads them: a table is a field
//! whose type is another struct of the crate (or an enum with a tag), and a key is any other field.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use super::rust_source::blank_comments_and_literals;

/// A type that a configuration file is read as, and the document with the table of its keys.
const DOCUMENTED: [(&str, &str); 2] =
    [("RawNode", "docs/node-toml.md"), ("RawModule", "docs/modules.md")];
/// The type of node.toml on the boot partition, whose keys the column "boot" of the table marks.
const OVERRIDES: (&str, &str) = ("NodeOverrides", "docs/node-toml.md");
/// Heading of the column with the keys.
const KEY: &str = "key";

/// Returns one line for each key without a row, and for each row without a key.
///
/// # Errors
///
/// Fails if a file cannot be read, or a type or a table is not found.
pub(super) fn check(repo: &Path) -> Result<Vec<String>> {
    let mut source = String::new();
    for entry in std::fs::read_dir(repo.join("lib/config/src"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "rs") {
            source.push_str(&std::fs::read_to_string(&path)?);
        }
    }
    let types = Types::parse(&source);
    let mut problems = Vec::new();
    for (name, document) in DOCUMENTED {
        let text = std::fs::read_to_string(repo.join(document))
            .with_context(|| format!("cannot read {document}"))?;
        let rows = rows(&text).with_context(|| format!("{document} has no table of keys"))?;
        let documented: BTreeSet<&str> = rows.iter().map(|row| row.key.as_str()).collect();
        let keys = types.keys(name)?;
        let known: BTreeSet<&str> = keys.iter().map(String::as_str).collect();
        for key in known.difference(&documented) {
            problems.push(format!("{document}: no row for the key {key} of lib/config"));
        }
        for key in documented.difference(&known) {
            problems.push(format!("{document}: lib/config has no key {key}"));
        }
    }
    let (name, document) = OVERRIDES;
    let text = std::fs::read_to_string(repo.join(document))?;
    let overrides: BTreeSet<String> = types.keys(name)?.into_iter().collect();
    for row in rows(&text).unwrap_or_default() {
        if row.boot != overrides.contains(&row.key) {
            problems.push(format!(
                "{document}: the column boot of {} and lib/config's {name} differ",
                row.key
            ));
        }
    }
    Ok(problems)
}

/// A row of a table of keys.
struct Row {
    key: String,
    /// Whether the column "boot" begins with "yes".
    boot: bool,
}

/// Returns the rows of the first table whose first column is "key".
fn rows(text: &str) -> Option<Vec<Row>> {
    let cells = |line: &str| -> Vec<String> {
        line.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect()
    };
    let mut lines = text.lines().map(str::trim).skip_while(|line| {
        !line.starts_with('|') || cells(line).first().is_none_or(|cell| cell != KEY)
    });
    let boot = cells(lines.next()?).iter().position(|cell| cell == "boot");
    let mut rows = Vec::new();
    for line in lines.skip(1).take_while(|line| line.starts_with('|')) {
        let cells = cells(line);
        let key = cells.first()?.trim_matches('`').to_owned();
        let boot = boot.and_then(|n| cells.get(n)).is_some_and(|cell| cell.starts_with("yes"));
        rows.push(Row { key, boot });
    }
    Some(rows)
}

/// The fields of the structs of a crate, and of its enums that have fields.
struct Types(BTreeMap<String, Definition>);

#[derive(Default)]
struct Definition {
    /// Name of the tag and its presence among the keys, for an enum.
    tag: Option<String>,
    /// Type that the text is read as, if not as this one.
    read_as: Option<String>,
    /// Fields and their types.
    fields: Vec<(String, String)>,
}

impl Types {
    /// Reads the definitions in formatted source text.
    fn parse(source: &str) -> Self {
        let mut types = BTreeMap::new();
        let code = blank_comments_and_literals(source);
        let (mut attributes, mut current): (String, Option<(String, Definition)>) =
            Default::default();
        // Literals are needed in attributes and nowhere else.
        for (line, code) in source.lines().zip(code.lines()) {
            let indented = code.starts_with(' ');
            let code = code.trim();
            if code.starts_with("#[") || (code.starts_with('#') && !code.is_empty()) {
                attributes.push_str(line.trim());
                continue;
            }
            if code.is_empty() {
                continue;
            }
            if let Some((name, definition)) = &mut current {
                if !indented {
                    types.insert(std::mem::take(name), std::mem::take(definition));
                    current = None;
                } else if let Some((field, kind)) = field(code) {
                    let name = attribute(&attributes, "rename").unwrap_or(field.replace('_', "-"));
                    definition.fields.push((name, kind.to_owned()));
                }
            } else if let Some(name) = opened_type(code) {
                let tag = attribute(&attributes, "tag");
                let read_as = attribute(&attributes, "try_from").or(attribute(&attributes, "from"));
                current = Some((name.to_owned(), Definition { tag, read_as, fields: Vec::new() }));
            }
            attributes.clear();
        }
        Self(types)
    }

    /// Returns the keys of a file that is read as a type, with the names of their tables.
    fn keys(&self, name: &str) -> Result<Vec<String>> {
        let definition = self.0.get(name);
        let definition = definition.with_context(|| format!("lib/config has no type {name}"))?;
        if let Some(read_as) = &definition.read_as {
            return self.keys(read_as);
        }
        ensure!(!definition.fields.is_empty(), "the type {name} of lib/config has no fields");
        let mut keys: Vec<String> = definition.tag.iter().cloned().collect();
        for (field, kind) in &definition.fields {
            let inner = inner_type(kind);
            if self.is_table(inner) {
                keys.extend(self.keys(inner)?.iter().map(|key| format!("{field}.{key}")));
            } else {
                keys.push(field.clone());
            }
        }
        Ok(keys)
    }
}

impl Types {
    /// Returns whether a type is read as a table.
    fn is_table(&self, name: &str) -> bool {
        self.0.get(name).is_some_and(|definition| match &definition.read_as {
            Some(read_as) => self.is_table(read_as),
            None => !definition.fields.is_empty(),
        })
    }
}

/// Returns the name of the struct or enum whose braces a line opens.
fn opened_type(code: &str) -> Option<&str> {
    let code = code.strip_suffix('{')?.trim();
    let code = code.strip_prefix("pub(crate) ").or(code.strip_prefix("pub ")).unwrap_or(code);
    code.strip_prefix("struct ").or(code.strip_prefix("enum "))
}

/// Returns the name and the type of a field.
fn field(code: &str) -> Option<(&str, &str)> {
    let code = code.strip_prefix("pub(crate) ").or(code.strip_prefix("pub ")).unwrap_or(code);
    let (name, kind) = code.strip_suffix(',')?.split_once(": ")?;
    let plain = name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    plain.then_some((name, kind))
}

/// Returns the type inside of `Option` and `Vec`.
fn inner_type(kind: &str) -> &str {
    for wrapper in ["Option<", "Vec<"] {
        if let Some(inner) = kind.strip_prefix(wrapper) {
            return inner_type(inner.strip_suffix('>').unwrap_or(inner));
        }
    }
    kind
}

/// Returns the value of `name = "value"` in attributes.
fn attribute(attributes: &str, name: &str) -> Option<String> {
    let (_, rest) = attributes.split_once(&format!("{name} = \""))?;
    let before = attributes.find(&format!("{name} = \""))?;
    let separate = attributes[..before].ends_with([' ', '(', ',']);
    separate.then(|| rest.split('"').next().unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str = "
/// A file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, try_from = \"Raw\", into = \"Raw\")]
pub struct File {
    /// Not a key: x_y: u8,
    pub other: Table,
}

#[derive(Deserialize)]
#[serde(rename_all = \"kebab-case\")]
struct Raw {
    #[serde(default, skip_serializing_if = \"Vec::is_empty\")]
    two_words: Vec<String>,
    table: Option<Table>,
    lists: Vec<Item>,
    kind: Network,
    choice: Choice,
    text: Parsed,
}

pub struct Table {
    pub a: u8,
    #[serde(rename = \"b\")]
    pub other_name: u8,
}

struct Item {
    name: String,
}

#[serde(tag = \"kind\")]
pub enum Network {
    None,
    Static {
        address: String,
    },
}

enum Choice {
    One,
}

#[serde(try_from = \"String\")]
struct Parsed {
    part: u8,
}
";

    #[test]
    fn keys_have_the_names_of_their_tables() {
        let types = Types::parse(SOURCE);
        let expected = [
            "two-words",
            "table.a",
            "table.b",
            "lists.name",
            "kind.kind",
            "kind.address",
            "choice",
            "text",
        ];
        assert_eq!(types.keys("File").unwrap(), expected);
        assert!(types.keys("Missing").is_err());
    }

    #[test]
    fn missing_rows_wrong_rows_and_wrong_marks_are_reported() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("lib/config/src")).unwrap();
        std::fs::create_dir_all(dir.path().join("docs")).unwrap();
        let source = "struct RawNode {\n    a: u8,\n    b: u8,\n}\n\
                      struct RawModule {\n    m: u8,\n}\nstruct NodeOverrides {\n    b: u8,\n}\n";
        std::fs::write(dir.path().join("lib/config/src/lib.rs"), source).unwrap();
        let write = |name: &str, rows: &str| {
            let head = "| file | scope |\n|---|---|\n| x | y |\n\n| key | boot |\n|---|---|\n";
            std::fs::write(dir.path().join("docs").join(name), format!("{head}{rows}\n")).unwrap();
        };
        write("modules.md", "| `m` | no |");
        write("node-toml.md", "| `a` | no |\n| `b` | yes, not empty |");
        assert_eq!(check(dir.path()).unwrap(), [""; 0]);
        write("node-toml.md", "| `a` | yes |\n| `c` | no |");
        assert_eq!(
            check(dir.path()).unwrap(),
            [
                "docs/node-toml.md: no row for the key b of lib/config",
                "docs/node-toml.md: lib/config has no key c",
                "docs/node-toml.md: the column boot of a and lib/config's NodeOverrides differ",
            ]
        );
    }
}
