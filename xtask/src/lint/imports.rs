//! Import cycles between the modules of a crate, and the layers of a crate.
//!
//! A module is a file. A module imports another one if its code names a path into it, outside of
//! tests: in a `use` declaration or in an expression. The declaration `mod x;` is no import. A
//! re-export (`pub use`) is none either, unless the module uses the name itself, and an import of a
//! re-exported name counts as an import of the module that defines it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::rust_source::{blank_comments_and_literals, blank_tests, is_identifier, words};

/// The top modules of xtask. Each may import only itself and those in front of it.
pub const XTASK_LAYERS: [&str; 6] = ["engine", "lint", "image", "rules", "qemu", "cmd"];

/// Path of a module below the root of its crate; empty for the root.
type ModulePath = Vec<String>;

/// Modules that each module imports.
type Imports = BTreeMap<ModulePath, BTreeSet<ModulePath>>;

/// Returns one line for each import cycle between the modules of a package.
///
/// # Errors
///
/// Fails if a source file cannot be read.
pub fn check_crate(package: &Path, name: &str) -> Result<Vec<String>> {
    let mut problems = Vec::new();
    for root in crate_roots(package) {
        let imports = Crate::read(&root)?.imports();
        for cycle in cycles(&imports) {
            let shown: Vec<String> = cycle.iter().map(display).collect();
            problems.push(format!("{name}: import cycle {}", shown.join(" -> ")));
        }
    }
    Ok(problems)
}

/// Returns one line for each import of a package that points from a layer to one above it.
///
/// # Errors
///
/// Fails if a source file cannot be read.
pub fn check_layers(package: &Path, layers: &[&str]) -> Result<Vec<String>> {
    let imports = Crate::read(&package.join("src/lib.rs"))?.imports();
    let layer =
        |module: &ModulePath| layers.iter().position(|l| module.first().is_some_and(|m| m == l));
    let mut problems = Vec::new();
    for (module, targets) in &imports {
        for target in targets {
            if let (Some(from), Some(to)) = (layer(module), layer(target))
                && from < to
            {
                problems.push(format!(
                    "{} imports {}, which is in a layer above it (xtask/src/lib.rs)",
                    display(module),
                    display(target)
                ));
            }
        }
    }
    Ok(problems)
}

fn display(module: &ModulePath) -> String {
    if module.is_empty() { "the root".into() } else { module.join("::") }
}

/// Returns the root files of the crates that a package consists of.
fn crate_roots(package: &Path) -> Vec<PathBuf> {
    let mut roots = vec![package.join("src/lib.rs"), package.join("src/main.rs")];
    for entry in std::fs::read_dir(package.join("src/bin")).into_iter().flatten().flatten() {
        roots.push(entry.path());
    }
    roots.retain(|root| root.is_file());
    roots
}

/// The modules of a crate and their code, without comments, literals and tests.
struct Crate {
    code: BTreeMap<ModulePath, String>,
}

impl Crate {
    /// Reads the root file of a crate and all modules that it declares.
    fn read(root: &Path) -> Result<Self> {
        let dir = root.parent().context("a crate root without a folder")?.to_owned();
        let mut code = BTreeMap::new();
        let mut todo = vec![(ModulePath::new(), root.to_owned(), dir)];
        while let Some((module, file, dir)) = todo.pop() {
            let text = std::fs::read_to_string(&file)
                .with_context(|| format!("cannot read {}", file.display()))?;
            let text = blank_tests(&blank_comments_and_literals(&text));
            for declaration in declared_modules(&text) {
                let child = declaration.name;
                let path = [&module[..], &[child.to_owned()]].concat();
                if declaration.elsewhere {
                    code.insert(path, String::new());
                    continue;
                }
                let (alone, folder) = (dir.join(format!("{child}.rs")), dir.join(child));
                let file = if alone.is_file() { alone } else { folder.join("mod.rs") };
                todo.push((path, file, folder));
            }
            code.insert(module, text);
        }
        Ok(Self { code })
    }

    fn imports(&self) -> Imports {
        let declarations: BTreeMap<&ModulePath, Vec<UseDeclaration>> =
            self.code.iter().map(|(module, code)| (module, use_declarations(code))).collect();
        let mut reexports: BTreeMap<(ModulePath, String), Vec<String>> = BTreeMap::new();
        for (module, list) in &declarations {
            for declaration in list.iter().filter(|d| d.reexport) {
                for path in &declaration.paths {
                    if let (Some(target), Some(name)) = (self.absolute(module, path), path.last()) {
                        reexports.insert(((*module).clone(), name.clone()), target);
                    }
                }
            }
        }
        let mut imports = Imports::new();
        for (module, code) in &self.code {
            let list = &declarations[module];
            let rest = without(code, list);
            // The name in a declaration of a module is no use of a function with the same name.
            let declared: BTreeSet<usize> = declared_modules(&rest).iter().map(|d| d.at).collect();
            let used: BTreeSet<&str> =
                words(&rest).filter(|(at, _)| !declared.contains(at)).map(|(_, w)| w).collect();
            let mut paths: Vec<Vec<String>> = qualified_paths(&rest);
            for declaration in list {
                let counts = |path: &&Vec<String>| {
                    !declaration.reexport || path.last().is_some_and(|n| used.contains(n.as_str()))
                };
                paths.extend(declaration.paths.iter().filter(counts).cloned());
            }
            let targets = paths
                .iter()
                .filter_map(|path| self.absolute(module, path))
                .map(|path| self.resolve(&path, &reexports, 0))
                .filter(|target| target != module)
                .collect();
            imports.insert(module.clone(), targets);
        }
        imports
    }

    /// Returns a path from the root of the crate, or nothing for a path into another crate.
    fn absolute(&self, module: &ModulePath, path: &[String]) -> Option<Vec<String>> {
        let (first, rest) = path.split_first()?;
        match first.as_str() {
            "crate" => Some(rest.to_vec()),
            "self" => Some([module, rest].concat()),
            "super" => {
                let supers = path.iter().take_while(|part| *part == "super").count();
                let parent = module.get(..module.len().checked_sub(supers)?)?;
                Some([parent, &path[supers..]].concat())
            }
            _ => {
                let child = [&module[..], std::slice::from_ref(first)].concat();
                self.code.contains_key(&child).then(|| [module, path].concat())
            }
        }
    }

    /// Returns the module that defines a path: the longest prefix that is a module, after
    /// re-exports are followed.
    fn resolve(
        &self,
        path: &[String],
        reexports: &BTreeMap<(ModulePath, String), Vec<String>>,
        depth: usize,
    ) -> ModulePath {
        const MAX_DEPTH: usize = 8;
        let length = (0..=path.len()).rev().find(|n| self.code.contains_key(&path[..*n]));
        let (module, rest) = path.split_at(length.unwrap_or(0));
        let target = rest.first().and_then(|name| reexports.get(&(module.to_vec(), name.clone())));
        match target {
            Some(target) if depth < MAX_DEPTH => {
                self.resolve(&[target, &rest[1..]].concat(), reexports, depth + 1)
            }
            _ => module.to_vec(),
        }
    }
}

/// A declaration `mod NAME;`.
struct ModDeclaration<'a> {
    name: &'a str,
    /// Position of the name.
    at: usize,
    /// Whether the attribute `path` names a file, which belongs to another crate.
    elsewhere: bool,
}

fn declared_modules(code: &str) -> Vec<ModDeclaration<'_>> {
    let all: Vec<(usize, &str)> = words(code).collect();
    let elsewhere = |at: usize| {
        let before = without_visibility(&code[..at]);
        let attribute = before.strip_suffix(']').and_then(|text| text.rsplit_once("#["));
        attribute.is_some_and(|(_, attribute)| attribute.starts_with("path"))
    };
    all.windows(2)
        .filter(|pair| pair[0].1 == "mod")
        .filter(|pair| code[pair[1].0 + pair[1].1.len()..].trim_start().starts_with(';'))
        .map(|pair| ModDeclaration {
            name: pair[1].1,
            at: pair[1].0,
            elsewhere: elsewhere(pair[0].0),
        })
        .collect()
}

/// Returns code without a `pub` or `pub(...)` at its end.
fn without_visibility(code: &str) -> &str {
    let code = code.trim_end();
    let plain = match code.strip_suffix(')').and_then(|inner| inner.rsplit_once('(')) {
        Some((outer, _)) => outer.trim_end(),
        None => code,
    };
    plain.strip_suffix("pub").map_or(code, str::trim_end)
}

/// A `use` declaration.
struct UseDeclaration {
    /// First and last byte of its text.
    range: std::ops::Range<usize>,
    /// Whether it is public, in the crate or beyond.
    reexport: bool,
    /// Paths that it imports, without aliases; a glob ends in `*`.
    paths: Vec<Vec<String>>,
}

fn use_declarations(code: &str) -> Vec<UseDeclaration> {
    let mut declarations = Vec::new();
    for (at, word) in words(code) {
        let Some(end) = code[at..].find(';').filter(|_| word == "use") else { continue };
        let before = code[..at].trim_end();
        let reexport = without_visibility(before).len() < before.len();
        let tree = &code[at + word.len()..at + end];
        declarations.push(UseDeclaration { range: at..at + end, reexport, paths: expand(tree) });
    }
    declarations
}

/// Returns the paths of a tree of imports: `a::{b, c::d}` has `a::b` and `a::c::d`.
fn expand(tree: &str) -> Vec<Vec<String>> {
    let tree = tree.trim();
    let Some((prefix, inner)) = tree.split_once('{') else {
        let path = tree.split(" as ").next().unwrap_or_default();
        let parts = path.split("::").map(|part| part.trim().to_owned());
        let mut parts: Vec<String> = parts.filter(|part| !part.is_empty()).collect();
        // `a::{self}` imports `a`.
        if parts.len() > 1 && parts.last().is_some_and(|last| last == "self") {
            parts.pop();
        }
        return if parts.is_empty() { Vec::new() } else { vec![parts] };
    };
    let inner = inner.trim_end().strip_suffix('}').unwrap_or(inner);
    let mut branches = vec![String::new()];
    let mut depth = 0;
    for c in inner.chars() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                branches.push(String::new());
                continue;
            }
            _ => {}
        }
        if let Some(branch) = branches.last_mut() {
            branch.push(c);
        }
    }
    branches
        .iter()
        .filter(|branch| !branch.trim().is_empty())
        .flat_map(|branch| expand(&format!("{prefix}{}", branch.trim())))
        .collect()
}

/// Returns code without its `use` declarations.
fn without(code: &str, declarations: &[UseDeclaration]) -> String {
    let mut rest = code.to_owned();
    for UseDeclaration { range, .. } in declarations.iter().rev() {
        rest.replace_range(range.clone(), &" ".repeat(range.len()));
    }
    rest
}

/// Returns the paths with at least two parts that occur in code.
fn qualified_paths(code: &str) -> Vec<Vec<String>> {
    let mut paths = Vec::new();
    let mut rest = code;
    while let Some(start) = rest.find(is_identifier) {
        let end = rest[start..]
            .find(|c: char| !is_identifier(c) && c != ':')
            .map_or(rest.len(), |n| start + n);
        let text = rest[start..end].trim_end_matches(':');
        // `::name` is a path into another crate.
        let global = rest[..start].ends_with("::");
        let parts: Vec<String> = text.split("::").map(str::to_owned).collect();
        if parts.len() > 1 && !global {
            paths.push(parts);
        }
        rest = &rest[end..];
    }
    paths
}

/// Returns one shortest cycle for each set of modules that import each other.
fn cycles(imports: &Imports) -> Vec<Vec<ModulePath>> {
    let mut reported: BTreeSet<&ModulePath> = BTreeSet::new();
    let mut cycles = Vec::new();
    for module in imports.keys() {
        if reported.contains(module) {
            continue;
        }
        let Some(cycle) = shortest_cycle(imports, module) else { continue };
        let reachable = reachable(imports, module);
        let together = reachable.iter().filter(|m| self::reachable(imports, m).contains(module));
        reported.extend(together);
        cycles.push(cycle);
    }
    cycles
}

fn reachable<'a>(imports: &'a Imports, from: &ModulePath) -> BTreeSet<&'a ModulePath> {
    let mut found = BTreeSet::new();
    let mut todo: Vec<&ModulePath> = imports.get(from).into_iter().flatten().collect();
    while let Some(module) = todo.pop() {
        if found.insert(module) {
            todo.extend(imports.get(module).into_iter().flatten());
        }
    }
    found
}

/// Returns the shortest path from a module back to itself.
fn shortest_cycle(imports: &Imports, start: &ModulePath) -> Option<Vec<ModulePath>> {
    let mut queue = VecDeque::from([vec![start.clone()]]);
    let mut visited = BTreeSet::new();
    while let Some(path) = queue.pop_front() {
        for target in path.last().and_then(|last| imports.get(last)).into_iter().flatten() {
            let longer = [&path[..], std::slice::from_ref(target)].concat();
            if target == start {
                return Some(longer);
            }
            if visited.insert(target) {
                queue.push_back(longer);
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join("src").join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        dir
    }

    fn problems(files: &[(&str, &str)]) -> Vec<String> {
        check_crate(package(files).path(), "c").unwrap()
    }

    #[test]
    fn a_cycle_is_reported_once() {
        let found = problems(&[
            ("lib.rs", "mod a;\nmod b;\nmod c;"),
            ("a.rs", "use crate::b::B;"),
            ("b/mod.rs", "fn f() -> crate::c::C { g() }"),
            ("c.rs", "use super::{a::{self, A}, b};\n"),
        ]);
        assert_eq!(found, ["c: import cycle a -> b -> c -> a"]);
    }

    #[test]
    fn a_child_and_its_parent_can_form_a_cycle() {
        let parent = |code: &str| {
            problems(&[
                ("lib.rs", "pub mod a;"),
                ("a/mod.rs", &format!("mod child;\n{code}")),
                ("a/child.rs", "use super::Thing;\npub struct Child;"),
            ])
        };
        assert_eq!(
            parent("pub struct Thing(child::Child);"),
            ["c: import cycle a -> a::child -> a"]
        );
        assert_eq!(parent("use child::Child;\npub struct Thing(Child);").len(), 1);
        assert_eq!(parent("pub use child::Child;\npub struct Thing(Child);").len(), 1);
        assert_eq!(parent("pub struct Thing;"), [""; 0], "a declaration is no import");
        assert_eq!(
            parent("pub use child::Child;\npub struct Thing;"),
            [""; 0],
            "a re-export alone"
        );
    }

    #[test]
    fn an_import_through_a_reexport_counts_for_the_defining_module() {
        let files = |other: &'static str| {
            problems(&[
                ("lib.rs", "mod a;\nmod b;\npub use a::A;\npub(crate) use b::B;"),
                ("a.rs", "use crate::B;\npub struct A(B);"),
                ("b.rs", other),
            ])
        };
        assert_eq!(files("pub struct B;"), [""; 0]);
        assert_eq!(files("use crate::A;\npub struct B(A);"), ["c: import cycle a -> b -> a"]);
    }

    #[test]
    fn tests_comments_and_other_crates_do_not_count() {
        let found = problems(&[
            ("lib.rs", "mod a;\nmod b;"),
            (
                "a.rs",
                "#[path = \"../x.rs\"]\nmod x;\nuse crate::b::B;\nfn f() { ::b::g(); x::y(); }",
            ),
            (
                "b.rs",
                "// use crate::a::A;\nuse other::a;\nconst S: &str = \"crate::a::A\";\n\
                 #[cfg(test)]\nmod tests {\n use crate::a;\n}",
            ),
        ]);
        assert_eq!(found, [""; 0]);
    }

    #[test]
    fn programs_of_a_package_are_checked_too() {
        let found = problems(&[
            ("lib.rs", ""),
            ("main.rs", "mod x;\nmod y;\nfn main() {}"),
            ("x.rs", "use crate::y;"),
            ("y.rs", "use crate::x;"),
        ]);
        assert_eq!(found, ["c: import cycle x -> y -> x"]);
    }

    #[test]
    fn the_imports_of_this_crate_are_found() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs");
        let imports = Crate::read(&root).unwrap().imports();
        let path = |text: &str| text.split("::").map(str::to_owned).collect::<ModulePath>();
        let disk = &imports[&path("rules::disk")];
        for module in ["engine::graph", "image::bmap", "rules::kernel"] {
            assert!(disk.contains(&path(module)), "{module}: {disk:?}");
        }
        assert!(imports.len() > 40, "{} modules", imports.len());
    }

    #[test]
    fn an_import_of_an_upper_layer_is_reported() {
        let dir = package(&[
            ("lib.rs", "mod low;\nmod high;"),
            ("low/mod.rs", "pub mod a;"),
            ("low/a.rs", "use crate::high::H;"),
            ("high.rs", "pub struct H;"),
        ]);
        let found = check_layers(dir.path(), &["low", "high"]).unwrap();
        assert!(found.len() == 1 && found[0].starts_with("low::a imports high"), "{found:?}");
        assert_eq!(check_layers(dir.path(), &["high", "low"]).unwrap(), [""; 0]);
    }
}
