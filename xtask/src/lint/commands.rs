//! Command lines of `cargo xtask` in the documentation.
//!
//! A line of a code block must be a complete command. A code span of the running text may leave out
//! required arguments, because it may only name the command. Words in capitals are placeholders;
//! `…` as an argument stands for nothing.

use super::markdown::Document;

/// Parses the arguments of `cargo xtask` without running the command. The error is clap's text.
pub type ParseArguments = fn(&[String]) -> Result<(), ArgumentError>;

/// Reason why clap rejects arguments.
pub struct ArgumentError {
    /// Whether nothing is wrong except that required arguments are missing.
    pub incomplete: bool,
    /// The message for the user.
    pub message: String,
}

/// Returns one line for each command line that the parser of `cargo xtask` rejects.
pub(super) fn check(documents: &[Document], parse: ParseArguments) -> Vec<String> {
    let mut problems = Vec::new();
    for document in documents {
        let lines = document.code_lines.iter().map(|line| (line.as_str(), true));
        let spans = document.code_spans().filter(|span| span.starts_with("cargo xtask "));
        for (text, complete) in lines.chain(spans.map(|span| (span, false))) {
            for arguments in xtask_arguments(text) {
                if let Err(error) = parse(&arguments)
                    && (complete || !error.incomplete)
                {
                    problems.push(format!(
                        "{}: `cargo xtask {}`: {}",
                        document.name.display(),
                        arguments.join(" "),
                        error.message.lines().next().unwrap_or_default()
                    ));
                }
            }
        }
    }
    problems
}

/// Returns the number of command lines in code blocks.
pub(super) fn count(documents: &[Document]) -> usize {
    let lines = documents.iter().flat_map(|document| &document.code_lines);
    lines.map(|line| xtask_arguments(line).len()).sum()
}

/// Returns the arguments of each `cargo xtask` in a line of shell.
fn xtask_arguments(line: &str) -> Vec<Vec<String>> {
    let mut commands = Vec::new();
    for words in shell_commands(line) {
        let Some(start) = words.windows(2).position(|pair| pair == ["cargo", "xtask"]) else {
            continue;
        };
        // Only assignments of variables may stand in front: elsewhere, the words are arguments.
        if words[..start].iter().all(|word| word.contains('=') || word == "$") {
            let arguments =
                words[start + 2..].iter().filter(|word| !["…", "..."].contains(&word.as_str()));
            commands.push(arguments.map(|word| placeholder(word)).collect());
        }
    }
    commands
}

/// Replaces placeholders that stand for a number.
fn placeholder(word: &str) -> String {
    let word = word.trim_start_matches('[').trim_end_matches(']');
    if ["N", "NUMBER", "SECONDS", "PORT"].contains(&word) { "1".into() } else { word.to_owned() }
}

/// Splits a line of shell into commands, and each into words. Comments are removed.
fn shell_commands(line: &str) -> Vec<Vec<String>> {
    let mut commands = vec![vec![]];
    let (mut word, mut quote, mut quoted) = (String::new(), None, false);
    for c in line.chars().chain([' ']) {
        match c {
            '\'' | '"' if quote == Some(c) => quote = None,
            '\'' | '"' if quote.is_none() => (quote, quoted) = (Some(c), true),
            _ if quote.is_some() => word.push(c),
            '#' if word.is_empty() => break,
            ' ' | '\t' | ';' | '&' | '|' => {
                if let Some(words) = commands.last_mut()
                    && (quoted || !word.is_empty())
                {
                    words.push(std::mem::take(&mut word));
                }
                quoted = false;
                if !c.is_whitespace() {
                    commands.push(Vec::new());
                }
            }
            _ => word.push(c),
        }
    }
    if let Some(words) = commands.last_mut()
        && !word.is_empty()
    {
        words.push(word);
    }
    commands.retain(|words| !words.is_empty());
    commands
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Accepts `build STEP [--fast]`.
    fn parse(arguments: &[String]) -> Result<(), ArgumentError> {
        let error =
            |incomplete, message: &str| Err(ArgumentError { incomplete, message: message.into() });
        match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["build", step] | ["build", step, "--fast"] if !step.starts_with('-') => Ok(()),
            ["build"] => error(true, "missing"),
            _ => error(false, "unknown"),
        }
    }

    #[test]
    fn wrong_commands_are_reported_and_names_of_commands_are_not() {
        let text = "`cargo xtask build`, `cargo xtask bulid x`, `cargo build`.\n\n    \
                    A=1 cargo xtask build x --fast   # comment\n    cd y && cargo xtask build\n    \
                    cargo xtask build 'x y' | cat\n    git commit -m \"cargo xtask nothing\"\n";
        let document = Document::parse("d.md".into(), text);
        assert_eq!(
            check(&[document], parse),
            ["d.md: `cargo xtask build`: missing", "d.md: `cargo xtask bulid x`: unknown"]
        );
    }
}
