//! Test that every command line of `trustctl` in the documentation parses.
//!
//! Rules for what is read in a Markdown file:
//! - In a code block, a command is a line, or a part of one between `&&`, `;`, `|` and the like,
//!   that starts `trustctl`. A comment, a prompt (`$`), assignments of variables and redirections
//!   are removed, and lines that end in a backslash are joined.
//! - In running text, a command is a code span that starts with `trustctl `. It may leave out
//!   required arguments and the value of its last option, because it may only name them.
//! - `target/debug/trustctl` and `cargo run -qp trustctl --` count as `trustctl`.
//! - `a|b` stands for two commands, `[x]` for `x`, `…` as an argument for nothing, and words in
//!   capitals and values with `…` for a value of the option before them.

use std::path::{Path, PathBuf};

use clap::Parser as _;
use clap::error::{ContextKind, ContextValue, ErrorKind};

use super::command::Cli;

/// Number of commands that the documentation has at least; fewer mean that this test reads it
/// wrongly.
const MIN_COMMANDS: usize = 30;

/// A command line in a document.
#[derive(Debug, PartialEq)]
struct DocumentedCommand {
    /// Arguments after the program's name.
    args: Vec<String>,
    /// Whether the arguments must be complete.
    complete: bool,
}

#[test]
fn every_documented_command_line_parses() {
    let mut count = 0;
    let mut problems = Vec::new();
    for path in documents() {
        let text = std::fs::read_to_string(&path).unwrap();
        for command in commands(&text) {
            count += 1;
            if let Err(problem) = parse(&command) {
                let name = path.file_name().unwrap().to_string_lossy();
                problems.push(format!("{name}: trustctl {}: {problem}", command.args.join(" ")));
            }
        }
    }
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
    assert!(count >= MIN_COMMANDS, "found {count} commands, expected at least {MIN_COMMANDS}");
}

/// Returns the Markdown files of the repository's root and of `docs`. The change log is left out,
/// because it names commands of earlier versions.
fn documents() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut documents = Vec::new();
    for folder in [root.clone(), root.join("docs")] {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let is_markdown = path.extension().is_some_and(|extension| extension == "md");
            if is_markdown && !path.ends_with("CHANGELOG.md") {
                documents.push(path);
            }
        }
    }
    documents.sort();
    documents
}

fn parse(command: &DocumentedCommand) -> Result<(), String> {
    let args = std::iter::once("trustctl").chain(command.args.iter().map(String::as_str));
    let Err(error) = Cli::try_parse_from(args) else { return Ok(()) };
    let value_is_missing =
        error.get(ContextKind::InvalidValue) == Some(&ContextValue::String(String::new()));
    let is_incomplete = match error.kind() {
        ErrorKind::MissingRequiredArgument
        | ErrorKind::MissingSubcommand
        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => true,
        ErrorKind::InvalidValue => value_is_missing,
        _ => false,
    };
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Ok(()),
        _ if is_incomplete && !command.complete => Ok(()),
        _ => Err(error.to_string()),
    }
}

/// Returns the commands in a Markdown text.
fn commands(text: &str) -> Vec<DocumentedCommand> {
    let (blocks, paragraphs) = split_markdown(text);
    let mut commands = Vec::new();
    for line in blocks.replace("\\\n", " ").lines() {
        commands.extend(commands_of_line(line, true));
    }
    for paragraph in paragraphs {
        for span in paragraph.split('`').skip(1).step_by(2) {
            if span.starts_with("trustctl ") || span.starts_with("target/debug/trustctl ") {
                commands.extend(commands_of_line(&span.replace("\\|", "|"), false));
            }
        }
    }
    commands
}

/// Returns the lines of all code blocks, and the paragraphs of the running text.
fn split_markdown(text: &str) -> (String, Vec<String>) {
    let (mut blocks, mut paragraphs, mut fenced) = (String::new(), vec![String::new()], false);
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if fenced || line.starts_with("    ") {
            blocks += &format!("{}\n", line.trim());
        } else if line.trim().is_empty() || line.starts_with('|') {
            paragraphs.push(line.to_owned());
        } else if let Some(paragraph) = paragraphs.last_mut() {
            *paragraph += &format!(" {}", line.trim());
        }
    }
    (blocks, paragraphs)
}

/// Returns the commands of `trustctl` in a line of shell.
fn commands_of_line(line: &str, complete: bool) -> Vec<DocumentedCommand> {
    let mut commands = Vec::new();
    for words in shell_commands(line) {
        let Some(args) = trustctl_args(&words) else { continue };
        for args in alternatives(&args) {
            let args = with_samples(&args);
            commands.push(DocumentedCommand { args, complete });
        }
    }
    commands
}

/// Splits a line of shell into its commands, and these into words.
fn shell_commands(line: &str) -> Vec<Vec<String>> {
    let mut commands = vec![Vec::new()];
    let (mut word, mut quote, mut redirected) = (String::new(), None, false);
    let line = line.trim_start().trim_start_matches("$ ");
    let mut chars = line.chars().peekable();
    let mut previous = ' ';
    while let Some(c) = chars.next() {
        let spaced = previous.is_whitespace() && chars.peek().is_none_or(|c| c.is_whitespace());
        let ends_command = match c {
            _ if quote.is_some() => false,
            ';' | '&' | '(' | ')' => true,
            // Without spaces it separates alternatives.
            '|' => spaced || previous == '|' || chars.peek() == Some(&'|'),
            _ => false,
        };
        let ends_word = quote.is_none() && (c.is_whitespace() || "<>".contains(c)) || ends_command;
        if ends_word {
            if let (false, false, Some(words)) = (word.is_empty(), redirected, commands.last_mut())
            {
                words.push(std::mem::take(&mut word));
            }
            word.clear();
        }
        match c {
            '\'' | '"' if quote == Some(c) => quote = None,
            '\'' | '"' if quote.is_none() => quote = Some(c),
            '#' if quote.is_none() && previous.is_whitespace() => break,
            '\\' if quote.is_none() => word.extend(chars.next()),
            '<' | '>' if quote.is_none() => redirected = true,
            _ if ends_command => {
                commands.push(Vec::new());
                redirected = false;
            }
            _ if ends_word => {}
            _ => word.push(c),
        }
        previous = c;
    }
    if let (false, false, Some(words)) = (word.is_empty(), redirected, commands.last_mut()) {
        words.push(word);
    }
    commands
}

/// Returns the arguments of a command if its program is `trustctl`.
fn trustctl_args(words: &[String]) -> Option<Vec<String>> {
    let is_assignment = |word: &String| {
        let name = word.split_once('=').map_or("", |(name, _)| name);
        !name.is_empty() && name.chars().all(|c| c.is_ascii_uppercase() || c == '_')
    };
    let start = words.iter().position(|word| !is_assignment(word))?;
    let words = &words[start..];
    let program = words.first()?;
    if program == "trustctl" || program.ends_with("/trustctl") {
        return Some(words[1..].to_vec());
    }
    let separator = words.iter().position(|word| word == "--")?;
    let (cargo, args) = (&words[..separator], &words[separator + 1..]);
    let runs_trustctl = program == "cargo" && cargo.iter().any(|word| word == "trustctl");
    runs_trustctl.then(|| args.to_vec())
}

/// Returns one command for each combination of the alternatives `a|b`.
fn alternatives(args: &[String]) -> Vec<Vec<String>> {
    args.iter().fold(vec![Vec::new()], |commands, arg| {
        let choices: Vec<&str> = arg.split('|').collect();
        let with = |choice: &&str| {
            commands
                .iter()
                .map(|command| [&command[..], &[(*choice).to_owned()]].concat())
                .collect()
        };
        choices.iter().flat_map(|choice| -> Vec<Vec<String>> { with(choice) }).collect()
    })
}

/// Replaces placeholders by values that parse.
fn with_samples(args: &[String]) -> Vec<String> {
    let (mut replaced, mut option) = (Vec::new(), "");
    for arg in args {
        let arg = arg.trim_start_matches('[').trim_end_matches(']');
        if arg != "…" && arg != "..." {
            replaced.push(sample(option, arg));
        }
        option = if arg.starts_with("--") { arg } else { "" };
    }
    replaced
}

fn sample(option: &str, arg: &str) -> String {
    let is_placeholder = arg.contains('…')
        || arg.contains("...")
        || arg.chars().any(|c| c.is_ascii_uppercase())
            && arg
                .chars()
                .all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || ":_+".contains(c));
    if !is_placeholder {
        return arg.to_owned();
    }
    match (option, arg) {
        ("--contract" | "--approver" | "--from", _) => format!("0x{}", "1".repeat(40)),
        ("--checkpoint", _) => format!("0x{}", "1".repeat(64)),
        ("--listen", _) => "127.0.0.1:7480".into(),
        ("--node", _) | (_, "HOST:PORT" | "HOST:7443" | "ADDRESS") => "node.example:7443".into(),
        (_, "N" | "NUMBER" | "SECONDS") => "1".into(),
        (_, "ROLE") => "owner".into(),
        (_, "SHELL") => "bash".into(),
        _ if arg == "DIGEST" || arg.starts_with("sha256:") => format!("sha256:{}", "1".repeat(64)),
        _ => arg.to_lowercase(),
    }
}

#[test]
fn the_definition_of_the_arguments_is_consistent() {
    <Cli as clap::CommandFactory>::command().debug_assert();
}

#[test]
fn finds_commands_in_blocks_and_in_running_text() {
    let text = "\
Run `trustctl log cosign`, `trustctl module stop|start` and `cargo xtask run`:

    $ BASALT_NODE=h:1 target/debug/trustctl status --html 'a file' > out  # comment
    cargo run -qp trustctl -- revoke sha256:… && trustctl log \\
        push | cat

```sh
source <(trustctl completions bash)
trustctl recovery save FILE [--keys DIR]
```
";
    let expected = [
        "status --html a file",
        &format!("revoke sha256:{}", "1".repeat(64)),
        "log push",
        "completions bash",
        "recovery save file --keys dir",
        "log cosign",
        "module stop",
        "module start",
    ];
    let found: Vec<String> = commands(text).iter().map(|found| found.args.join(" ")).collect();
    assert_eq!(found, expected);
    let is_complete: Vec<bool> = commands(text).iter().map(|found| found.complete).collect();
    assert_eq!(is_complete, [true, true, true, true, true, false, false, false]);
}

#[test]
fn rejects_an_unknown_option_and_an_incomplete_command() {
    let parse_line = |line: &str, complete| parse(&commands_of_line(line, complete)[0]);
    assert!(parse_line("trustctl status --htm page.html", true).is_err());
    assert!(parse_line("trustctl relay", true).is_err());
    assert!(parse_line("trustctl statuss", false).is_err());
    assert_eq!(parse_line("trustctl relay", false), Ok(()));
    assert_eq!(parse_line("trustctl attest --expect", false), Ok(()));
    assert!(parse_line("trustctl attest --expect", true).is_err());
    assert!(parse_line("trustctl attest --expec", false).is_err());
    assert_eq!(parse_line("trustctl help log", true), Ok(()));
}
