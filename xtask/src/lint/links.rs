//! Relative links of the documentation.

use std::path::Path;

use anyhow::Result;

use super::markdown::Document;

/// Returns one line for each relative link whose file, or heading, does not exist.
///
/// # Errors
///
/// Never fails today; the signature is that of the other checks.
pub(super) fn check(repo: &Path, documents: &[Document]) -> Result<Vec<String>> {
    let mut problems = Vec::new();
    for document in documents {
        for target in document.link_targets() {
            if let Some(problem) = check_target(repo, documents, document, target) {
                problems.push(format!("{}: {problem}", document.name.display()));
            }
        }
    }
    Ok(problems)
}

fn check_target(
    repo: &Path,
    documents: &[Document],
    document: &Document,
    target: &str,
) -> Option<String> {
    let external = target.contains("://") || target.starts_with("mailto:");
    if external {
        return None;
    }
    let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
    let folder = document.name.parent().unwrap_or(Path::new(""));
    let name = if file.is_empty() { document.name.clone() } else { folder.join(file) };
    let Ok(path) = repo.join(&name).canonicalize() else {
        return Some(format!("the link to {target} leads to no file"));
    };
    let linked = documents
        .iter()
        .find(|other| repo.join(&other.name).canonicalize().is_ok_and(|other| other == path));
    match linked {
        Some(linked) if !anchor.is_empty() && !linked.has_anchor(anchor) => {
            Some(format!("the link to {target} names no heading of {}", linked.name.display()))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_to_missing_files_and_headings_are_reported() {
        let dir = tempfile::tempdir().unwrap();
        let texts = [
            (
                "README.md",
                "# Top\n[a](docs/a.md) [b](docs/a.md#part-1) [c](#top) [d](https://x.example/y)",
            ),
            (
                "docs/a.md",
                "## Part 1\n[up](../README.md) [code](../src.rs) [bad](b.md) [x](#part-2)",
            ),
        ];
        std::fs::create_dir(dir.path().join("docs")).unwrap();
        std::fs::write(dir.path().join("src.rs"), "").unwrap();
        let documents: Vec<Document> = texts
            .iter()
            .map(|(name, text)| {
                std::fs::write(dir.path().join(name), text).unwrap();
                Document::parse(name.into(), text)
            })
            .collect();
        assert_eq!(
            check(dir.path(), &documents).unwrap(),
            [
                "docs/a.md: the link to b.md leads to no file",
                "docs/a.md: the link to #part-2 names no heading of docs/a.md",
            ]
        );
    }
}
