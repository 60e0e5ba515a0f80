//! Selects the mirrors of Debian's packages: those in `BASALT_MIRROR`, then those of the host's
//! apt.

use std::path::Path;

use anyhow::{Result, bail};

/// Returns the base URLs that serve `archive` (`debian` or `debian-security`), the preferred first.
///
/// # Errors
///
/// Fails if a URL of `BASALT_MIRROR` does not end in `/debian`, or if no mirror is known.
pub fn bases(archive: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    if let Ok(list) = std::env::var("BASALT_MIRROR") {
        for base in list.split_whitespace() {
            let base = base.trim_end_matches('/');
            let Some(root) = base.strip_suffix("/debian") else {
                bail!(
                    "BASALT_MIRROR: found {base:?}, expected a URL that ends in /debian (the \
                     security archive is fetched from /debian-security on the same mirror)"
                );
            };
            found.push(format!("{root}/{archive}"));
        }
    }
    for base in host_urls(Path::new("/etc/apt")) {
        if base.ends_with(&format!("/{archive}")) && !found.contains(&base) {
            found.push(base);
        }
    }
    if found.is_empty() {
        bail!(
            "no mirror of the archive {archive:?} is known: this host's apt sources have none (is \
             it Debian?);\nset one with BASALT_MIRROR=URL cargo xtask ...   where URL is any \
             Debian mirror, ending in /debian"
        );
    }
    Ok(found)
}

/// Returns all URLs in the host's apt sources, of the one-line and of the deb822 format.
fn host_urls(etc: &Path) -> Vec<String> {
    let mut files = vec![etc.join("sources.list")];
    if let Ok(dir) = std::fs::read_dir(etc.join("sources.list.d")) {
        let mut more: Vec<_> = dir.flatten().map(|e| e.path()).collect();
        more.sort();
        files.extend(more);
    }
    let mut urls = Vec::new();
    for text in files.iter().filter_map(|f| std::fs::read_to_string(f).ok()) {
        for line in text.lines().filter(|l| !l.trim_start().starts_with('#')) {
            urls.extend(
                line.split_whitespace()
                    .filter(|w| w.starts_with("http"))
                    .map(|w| w.trim_end_matches('/').to_owned()),
            );
        }
    }
    urls
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_formats_of_sources_are_read() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("sources.list.d")).unwrap();
        std::fs::write(
            dir.path().join("sources.list"),
            "# deb http://no.example/debian x\ndeb http://a.example/debian trixie main\n",
        )
        .unwrap();
        std::fs::write(
            dir.path().join("sources.list.d/d.sources"),
            "Types: deb\nURIs: http://b.example/debian-security/\n",
        )
        .unwrap();
        assert_eq!(
            host_urls(dir.path()),
            ["http://a.example/debian", "http://b.example/debian-security"]
        );
    }
}
