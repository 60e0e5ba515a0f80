//! Locations of logs and bundles.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::InvalidValue;
use crate::host::check_host;

/// Location of a newer log, or of the bundles of a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogSource {
    /// File on the node.
    File(PathBuf),
    /// Resource of an HTTP server.
    Http {
        /// HTTPS instead of HTTP.
        tls: bool,
        /// `HOST[:PORT]`.
        host: String,
        /// Path and query, percent-encoded.
        path: String,
    },
    /// Artifact in an OCI registry; its first layer is the file.
    Oci {
        /// `HOST[:PORT]/REPOSITORY`.
        registry: String,
        /// Tag of the artifact.
        tag: String,
    },
}

impl FromStr for LogSource {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let reject = |reason: &'static str| {
            let expected = "https://HOST[:PORT]/PATH, http://HOST[:PORT]/PATH, file:/PATH or \
                            oci:HOST[:PORT]/REPOSITORY:TAG";
            InvalidValue::text(expected, text).because(reason)
        };
        if let Some(artifact) = text.strip_prefix("oci:") {
            let (registry, tag) = artifact
                .rsplit_once(':')
                .filter(|(_, tag)| is_tag(tag))
                .ok_or_else(|| reject("no tag"))?;
            crate::parse_repository(registry)
                .map_err(|e| reject(e.reason.unwrap_or("invalid repository")))?;
            return Ok(Self::Oci { registry: registry.to_owned(), tag: tag.to_owned() });
        }
        if let Some(path) = text.strip_prefix("file:") {
            let absolute = path.starts_with('/');
            return absolute
                .then(|| Self::File(path.into()))
                .ok_or_else(|| reject("the path is not absolute"));
        }
        let (tls, rest) = match (text.strip_prefix("https://"), text.strip_prefix("http://")) {
            (Some(rest), _) => (true, rest),
            (_, Some(rest)) => (false, rest),
            _ => return Err(reject("unknown scheme")),
        };
        let (host, path) = rest.split_once('/').ok_or_else(|| reject("no path"))?;
        check_host(host).map_err(reject)?;
        if path.bytes().any(|b| !b.is_ascii_graphic() || b == b'#') {
            return Err(reject("the path is not percent-encoded"));
        }
        Ok(Self::Http { tls, host: host.to_owned(), path: format!("/{path}") })
    }
}

/// Reports whether a text is a tag (OCI distribution-spec 1.1, "Pulling manifests").
fn is_tag(tag: &str) -> bool {
    let first = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    (1..=128).contains(&tag.len())
        && tag.bytes().next().is_some_and(first)
        && tag.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

impl fmt::Display for LogSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Oci { registry, tag } => write!(f, "oci:{registry}:{tag}"),
            Self::Http { tls, host, path } => {
                write!(f, "{}://{host}{path}", if *tls { "https" } else { "http" })
            }
        }
    }
}
