//! A small reader of Rust source: enough to find modules, imports and fields in formatted code.

/// Replaces comments, and the contents of string and character literals, by spaces. Line breaks and
/// lengths stay the same. The quote of a lifetime becomes a space, too.
pub(super) fn blank_comments_and_literals(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut i = 0;
    while i < bytes.len() {
        let end = match bytes[i] {
            b'/' if bytes.get(i + 1) == Some(&b'/') => line_end(bytes, i),
            b'/' if bytes.get(i + 1) == Some(&b'*') => block_comment_end(bytes, i),
            b'"' => string_end(bytes, i),
            b'r' if starts_raw_string(bytes, i) => raw_string_end(bytes, i),
            b'\'' => char_end(bytes, i),
            _ => {
                i += 1;
                continue;
            }
        };
        for byte in out.iter_mut().take(end).skip(i).filter(|byte| **byte != b'\n') {
            *byte = b' ';
        }
        i = end;
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn line_end(bytes: &[u8], from: usize) -> usize {
    bytes[from..].iter().position(|b| *b == b'\n').map_or(bytes.len(), |n| from + n)
}

fn block_comment_end(bytes: &[u8], from: usize) -> usize {
    let (mut i, mut depth) = (from, 0);
    while i + 1 < bytes.len() {
        match &bytes[i..i + 2] {
            b"/*" => (i, depth) = (i + 2, depth + 1),
            b"*/" if depth == 1 => return i + 2,
            b"*/" => (i, depth) = (i + 2, depth - 1),
            _ => i += 1,
        }
    }
    bytes.len()
}

fn string_end(bytes: &[u8], from: usize) -> usize {
    let mut i = from + 1;
    while i < bytes.len() {
        match bytes[i] {
            b'\\' => i += 2,
            b'"' => return i + 1,
            _ => i += 1,
        }
    }
    bytes.len()
}

fn starts_raw_string(bytes: &[u8], at: usize) -> bool {
    let identifier_before =
        at > 0 && (bytes[at - 1].is_ascii_alphanumeric() && bytes[at - 1] != b'b');
    let hashes = bytes[at + 1..].iter().take_while(|b| **b == b'#').count();
    !identifier_before && bytes.get(at + 1 + hashes) == Some(&b'"')
}

fn raw_string_end(bytes: &[u8], from: usize) -> usize {
    let hashes = bytes[from + 1..].iter().take_while(|b| **b == b'#').count();
    let start = from + 1 + hashes + 1;
    let closing: Vec<u8> = std::iter::once(b'"').chain(std::iter::repeat_n(b'#', hashes)).collect();
    let found = bytes[start..].windows(closing.len()).position(|w| w == closing);
    found.map_or(bytes.len(), |n| start + n + closing.len())
}

/// Returns the end of a character literal, or the next byte if this is a lifetime.
fn char_end(bytes: &[u8], from: usize) -> usize {
    if bytes.get(from + 1) == Some(&b'\\') {
        let closing = bytes[from + 3..].iter().position(|b| *b == b'\'');
        return closing.map_or(bytes.len(), |n| from + 3 + n + 1);
    }
    // A character of UTF-8 has at most four bytes.
    let closing = (from + 2..bytes.len().min(from + 6)).find(|at| bytes[*at] == b'\'');
    let character = |end: usize| {
        std::str::from_utf8(&bytes[from + 1..end]).is_ok_and(|text| text.chars().count() == 1)
    };
    match closing {
        Some(end) if character(end) => end + 1,
        _ => from + 1,
    }
}

/// Replaces items that are compiled only for tests by spaces. The text must have no comments and
/// literals.
pub(super) fn blank_tests(code: &str) -> String {
    let mut out = code.to_owned();
    for marker in ["#[cfg(test)]", "#[cfg(all(test"] {
        let mut from = 0;
        while let Some(at) = out[from..].find(marker).map(|n| from + n) {
            let end = item_end(&out, at);
            let blank: String =
                out[at..end].chars().map(|c| if c == '\n' { '\n' } else { ' ' }).collect();
            out.replace_range(at..end, &blank);
            from = at + blank.len();
        }
    }
    out
}

/// Returns the end of the item that begins at a byte with an attribute: its `;`, or its last brace.
fn item_end(code: &str, from: usize) -> usize {
    let mut depth = 0_usize;
    for (at, c) in code[from..].char_indices() {
        match c {
            '{' | '(' | '[' => depth += 1,
            '}' | ')' | ']' => {
                depth = depth.saturating_sub(1);
                let rest = &code[from + at + 1..];
                if depth == 0 && c == '}' && !rest.trim_start().starts_with(';') {
                    return from + at + 1;
                }
            }
            ';' if depth == 0 => return from + at + 1,
            _ => {}
        }
    }
    code.len()
}

/// Returns whether a byte of text can be part of an identifier.
pub(super) fn is_identifier(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Returns the words of a text: its maximal runs of identifier characters, with their positions.
pub(super) fn words(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut at = 0;
    text.split(|c| !is_identifier(c)).filter_map(move |word| {
        let start = at;
        at += word.len() + text[at + word.len()..].chars().next().map_or(0, char::len_utf8);
        (!word.is_empty()).then_some((start, word))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_become_spaces() {
        let text = "a /* b /* c */ d */ e // f\n\"g \\\" h\" i r#\"j \" k\"# l 'm' '\\'' 'n \
                    n\u{e9} '\u{e9}'";
        let blank = blank_comments_and_literals(text);
        let words: Vec<&str> = blank.split_whitespace().collect();
        assert_eq!(words, ["a", "e", "i", "l", "n", "n\u{e9}"]);
        assert_eq!(blank.len(), text.len());
        assert_eq!(blank.lines().count(), 2);
    }

    #[test]
    fn items_for_tests_become_spaces() {
        let code = "use a;\n#[cfg(test)]\nmod tests {\n use b; fn x() { y(); }\n}\nuse c;\n\
                    #[cfg(test)]\nuse d::{e, f};\n#[cfg(all(test, unix))]\nmod g;\nuse h;";
        let words: Vec<String> = blank_tests(code).split_whitespace().map(str::to_owned).collect();
        assert_eq!(words, ["use", "a;", "use", "c;", "use", "h;"]);
    }

    #[test]
    fn words_have_positions() {
        let found: Vec<(usize, &str)> = words("a::b_1 \u{e9}(c)").collect();
        assert_eq!(found, [(0, "a"), (3, "b_1"), (7, "\u{e9}"), (10, "c")]);
    }
}
