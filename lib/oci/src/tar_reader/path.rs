//! Paths of members, as containerd cleans them before it unpacks a member.

use super::error::Problem;
use super::{MAX_COMPONENT_BYTES, MAX_PATH_BYTES};

/// Returns a path relative to the root: without slashes at the start and the end, empty components
/// and `.`. The root itself is empty.
///
/// # Errors
///
/// Returns a [`Problem`] for an empty path, a component `..`, and a path that Linux does not
/// support.
pub(super) fn clean(path: &[u8]) -> Result<Vec<u8>, Problem> {
    if path.is_empty() {
        return Err(Problem::EmptyPath);
    }
    let mut cleaned = Vec::with_capacity(path.len().min(MAX_PATH_BYTES));
    for component in path.split(|b| *b == b'/') {
        match component {
            b"" | b"." => continue,
            b".." => return Err(Problem::Parent),
            _ if component.len() > MAX_COMPONENT_BYTES => return Err(Problem::PathTooLong),
            _ => {}
        }
        if !cleaned.is_empty() {
            cleaned.push(b'/');
        }
        cleaned.extend_from_slice(component);
        if cleaned.len() > MAX_PATH_BYTES {
            return Err(Problem::PathTooLong);
        }
    }
    Ok(cleaned)
}

/// Reports whether only a folder can have this path, because it ends with a slash or with `.`.
pub(super) fn names_folder(path: &[u8]) -> bool {
    matches!(path.rsplit(|b| *b == b'/').next(), Some(b"" | b"."))
}

/// Checks components that begin with `.wh.`. containerd deletes what the last component names, or
/// everything in the folder for `.wh..wh..opq`, whatever the kind of the member is.
pub(super) fn check_whiteout(path: &[u8], file: bool) -> Result<(), Problem> {
    let mut components = path.rsplit(|b| *b == b'/');
    let last = components.next().unwrap_or_default();
    let valid = match last.strip_prefix(b".wh.") {
        None => true,
        Some(b"" | b"." | b"..") => false,
        Some(_) => file,
    };
    if valid && !components.any(|c| c.starts_with(b".wh.")) {
        Ok(())
    } else {
        Err(Problem::Whiteout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_relative_to_the_root() {
        for (path, cleaned) in [
            ("a", "a"),
            ("/a", "a"),
            ("//a//b/", "a/b"),
            ("./a/./b/.", "a/b"),
            (".//a", "a"),
            ("/./a", "a"),
            ("/", ""),
            ("./", ""),
            (".", ""),
            ("...", "..."),
            ("..a/b..", "..a/b.."),
            ("a\\..\\b", "a\\..\\b"),
        ] {
            assert_eq!(clean(path.as_bytes()).unwrap(), cleaned.as_bytes(), "{path}");
        }
        for path in ["..", "a/..", "/../a", "a/../b", "./../a", "a/b/../.."] {
            assert_eq!(clean(path.as_bytes()), Err(Problem::Parent), "{path}");
        }
        assert_eq!(clean(b""), Err(Problem::EmptyPath));
        assert_eq!(clean(&[b'a'; 256]), Err(Problem::PathTooLong));
        assert_eq!(clean(&b"abcd/".repeat(800)), Err(Problem::PathTooLong));
    }

    #[test]
    fn deletions_are_plain_files_with_a_name() {
        for (path, file, valid) in [
            ("a/.wh.b", true, true),
            (".wh..wh..opq", true, true),
            ("a/.wh.b", false, false),
            (".wh.", true, false),
            (".wh..", true, false),
            ("a/.wh...", true, false),
            (".wh.a/b", true, false),
            ("a.wh.b/c", false, true),
        ] {
            assert_eq!(check_whiteout(path.as_bytes(), file).is_ok(), valid, "{path}");
        }
    }
}
