//! A small reader of Markdown: code blocks, code spans, headings and links.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::engine::hash;

/// A Markdown file.
pub(super) struct Document {
    /// Path in the repository.
    pub(super) name: PathBuf,
    /// Lines of all code blocks, fenced or indented; a line that ends in a backslash is joined with
    /// the next one.
    pub(super) code_lines: Vec<String>,
    /// Paragraphs of the running text, tables included; the lines of each are joined.
    pub(super) paragraphs: Vec<String>,
    /// Headings without their number signs.
    headings: Vec<String>,
}

/// Reads all Markdown files of the repository.
///
/// # Errors
///
/// Fails if a file cannot be read.
pub(super) fn documents(repo: &Path) -> Result<Vec<Document>> {
    let mut documents = Vec::new();
    for name in hash::walk(repo)? {
        let foreign = name.components().any(|c| c.as_os_str() == "node_modules");
        if name.extension().is_some_and(|e| e == "md") && !foreign {
            let text = std::fs::read_to_string(repo.join(&name))
                .with_context(|| format!("cannot read {}", name.display()))?;
            documents.push(Document::parse(name, &text));
        }
    }
    Ok(documents)
}

impl Document {
    /// Splits a text.
    pub(super) fn parse(name: PathBuf, text: &str) -> Self {
        let (mut code, mut paragraphs, mut headings) = (String::new(), vec![String::new()], vec![]);
        let (mut fenced, mut in_paragraph) = (false, false);
        for line in text.lines() {
            let trimmed = line.trim();
            if trimmed.starts_with("```") {
                fenced = !fenced;
                in_paragraph = false;
            } else if fenced || (line.starts_with("    ") && !in_paragraph) {
                code.push_str(trimmed);
                code.push('\n');
            } else if trimmed.is_empty() || trimmed.starts_with('|') {
                paragraphs.push(trimmed.to_owned());
                in_paragraph = false;
            } else if let Some(heading) = line.strip_prefix('#') {
                headings.push(heading.trim_start_matches('#').trim().to_owned());
                paragraphs.push(heading.to_owned());
                paragraphs.push(String::new());
                in_paragraph = false;
            } else if let Some(paragraph) = paragraphs.last_mut() {
                paragraph.push(' ');
                paragraph.push_str(trimmed);
                in_paragraph = true;
            }
        }
        let code_lines = code.replace("\\\n", " ").lines().map(str::to_owned).collect();
        Self { name, code_lines, paragraphs, headings }
    }

    /// Returns the code spans of the running text.
    pub(super) fn code_spans(&self) -> impl Iterator<Item = &str> {
        self.paragraphs.iter().flat_map(|paragraph| paragraph.split('`').skip(1).step_by(2))
    }

    /// Returns the targets of all links and images of the running text.
    pub(super) fn link_targets(&self) -> Vec<&str> {
        let mut targets = Vec::new();
        for paragraph in &self.paragraphs {
            let prose: Vec<&str> = paragraph.split('`').step_by(2).collect();
            for text in prose {
                targets.extend(
                    text.split("](").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0)),
                );
            }
        }
        targets
    }

    /// Returns whether a heading has this anchor, in the form that GitHub gives it.
    pub(super) fn has_anchor(&self, anchor: &str) -> bool {
        let slug = |heading: &String| -> String {
            heading
                .to_lowercase()
                .chars()
                .filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c))
                .map(|c| if c == ' ' { '-' } else { c })
                .collect()
        };
        self.headings.iter().any(|heading| slug(heading) == anchor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_text_and_headings_are_told_apart() {
        let text = "# The `one` title\n\nText `a\nb` and [x](y.md#z).\n    not code\n\n    \
                    code 1 \\\n      goes on\n\n```sh\ncode 2\n```\n\
                    | `cell` | ![p](q.svg) |\n";
        let document = Document::parse("d.md".into(), text);
        assert_eq!(document.code_lines, ["code 1  goes on", "code 2"]);
        assert_eq!(document.code_spans().collect::<Vec<_>>(), ["one", "a b", "cell"]);
        assert_eq!(document.link_targets(), ["y.md#z", "q.svg"]);
        assert!(document.has_anchor("the-one-title") && !document.has_anchor("the-title"));
    }
}
