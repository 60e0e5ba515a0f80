//! OCI registries that images are fetched from.

use serde::{Deserialize, Serialize};

use crate::host::{canonical_host, check_host, known_token_host, repository_on};
use crate::{ConfigProblem, InvalidValue};

/// Largest number of bytes of a repository's name (OCI distribution-spec 1.1, "Pulling manifests").
const MAX_REPOSITORY_BYTES: usize = 255;

/// Access to a registry. A registry that is not listed is accessed over TLS with the well-known
/// certificate authorities.
///
/// A registry is not trusted: the node checks all of its data against the digest that the ledger
/// approved.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Registry {
    /// Name of the registry in the files of modules: `HOST[:PORT]`.
    pub host: String,
    /// Mirrors that are tried first, in this order: `HOST[:PORT]`, each with a repository of the
    /// same name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mirrors: Vec<String>,
    /// HTTP without TLS. An eavesdropper then sees which images are fetched.
    #[serde(default)]
    pub plain: bool,
    /// Certificates (PEM) that replace the well-known authorities: those of authorities, or the
    /// server's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
    /// User name for the registry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Password of the user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<String>,
    /// Hosts besides the registry that may get the password when a challenge of the registry names
    /// them as its token service: `HOST[:PORT]`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub token_hosts: Vec<String>,
}

impl Registry {
    pub(crate) fn check(&self) -> Result<(), ConfigProblem> {
        let hosts = std::iter::once(&self.host).chain(&self.mirrors).chain(&self.token_hosts);
        for host in hosts {
            check_host(host).map_err(|reason| {
                InvalidValue::text("HOST[:PORT]", host).because(reason).at("registries")
            })?;
        }
        let reject =
            |expected, found| Err(InvalidValue::new(expected, found).at(self.key("registries")));
        match (&self.user, &self.password) {
            (Some(_), None) => return reject("user and password together", "only user"),
            (None, Some(_)) => return reject("user and password together", "only password"),
            (None, None) if !self.token_hosts.is_empty() => {
                return reject("user and password, which token-hosts are for", "only token-hosts");
            }
            // A colon ends the name (RFC 7617, section 2), so another user would be meant.
            (Some(user), _) if user.contains(':') => {
                return reject("a user without a colon", "a user with one");
            }
            _ => {}
        }
        match (self.plain, &self.ca, &self.user) {
            (true, Some(_), _) => reject("TLS, or no certificates", "plain = true and ca"),
            (true, _, Some(_)) => {
                reject("TLS, or no password to send in the clear", "plain = true and password")
            }
            _ => Ok(()),
        }
    }

    /// Returns the form of the registry's name that [`Repository::host`] has.
    #[must_use]
    pub fn canonical_host(&self) -> String {
        canonical_host(&self.host)
    }

    /// Returns the hosts that may get the password as the registry's token service, in canonical
    /// form: the registry, Docker Hub's token service if it is Docker Hub, and `token-hosts`.
    #[must_use]
    pub fn allowed_token_hosts(&self) -> Vec<String> {
        let own = self.canonical_host();
        let known = known_token_host(&own).map(str::to_owned);
        let listed = self.token_hosts.iter().map(|host| canonical_host(host));
        std::iter::once(own).chain(known).chain(listed).collect()
    }

    fn key(&self, table: &str) -> String {
        format!("{table} ({})", self.host)
    }
}

/// A repository of a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repository {
    /// `HOST[:PORT]` in the form of [`canonical_host`].
    pub host: String,
    /// Name of the repository on that host: components separated by `/`.
    pub name: String,
}

/// Parses `HOST[:PORT]/REPOSITORY` (OCI distribution-spec 1.1, "Pulling manifests": the form of
/// `<name>`). Names of images on Docker Hub become those of its registry: `docker.io/alpine` is
/// `registry-1.docker.io` and `library/alpine`.
///
/// # Errors
///
/// Returns [`InvalidValue`] if the text has another form, such as one with a tag or a digest.
pub fn parse_repository(text: &str) -> Result<Repository, InvalidValue> {
    let reject = |reason: &'static str| {
        InvalidValue::text("HOST[:PORT]/REPOSITORY without tag or digest", text).because(reason)
    };
    let (host, name) = text.split_once('/').ok_or_else(|| reject("no repository"))?;
    check_host(host).map_err(reject)?;
    if name.len() > MAX_REPOSITORY_BYTES || !name.split('/').all(is_component) {
        return Err(reject("invalid repository"));
    }
    let host = canonical_host(host);
    let name = repository_on(&host, name);
    Ok(Repository { host, name })
}

/// Reports whether a text is one component of a repository's name: lower-case letters and digits,
/// separated by `.`, `_`, `__` or any number of `-`.
fn is_component(text: &str) -> bool {
    let is_alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let is_separator = |text: &str| {
        matches!(text, "." | "_" | "__") || (!text.is_empty() && text.bytes().all(|b| b == b'-'))
    };
    let first_and_last = text.starts_with(is_alphanumeric) && text.ends_with(is_alphanumeric);
    first_and_last
        && text.split(is_alphanumeric).filter(|between| !between.is_empty()).all(is_separator)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> (String, String) {
        let Repository { host, name } = parse_repository(text).unwrap();
        (host, name)
    }

    #[test]
    fn names_of_images_on_docker_hub_lead_to_its_registry() {
        for (text, name) in [
            ("docker.io/alpine", "library/alpine"),
            ("docker.io/library/alpine", "library/alpine"),
            ("index.docker.io/team/app", "team/app"),
            ("Docker.io/team/app", "team/app"),
            ("registry-1.docker.io/library/alpine", "library/alpine"),
        ] {
            assert_eq!(parsed(text), ("registry-1.docker.io".into(), name.into()), "{text}");
        }
        // Only Docker Hub has that namespace.
        assert_eq!(parsed("h.example/alpine"), ("h.example".into(), "alpine".into()));
    }

    #[test]
    fn repositories_have_the_form_of_the_distribution_specification() {
        assert_eq!(parsed("[::1]:5000/a/b"), ("[::1]:5000".into(), "a/b".into()));
        assert_eq!(parsed("H.Example:5000/a"), ("h.example:5000".into(), "a".into()));
        for good in ["a", "a.b", "a_b", "a__b", "a---b", "a/b-c/d_e.f", "0/1"] {
            parse_repository(&format!("h/{good}")).unwrap();
        }
        for bad in [
            "", "/", "a/", "/a", "a//b", "..", "a..b", "a___b", "a.-b", "-a", "a_", "A", "a%2f",
            "a?b",
        ] {
            assert!(parse_repository(&format!("h/{bad}")).is_err(), "{bad}");
        }
        assert!(parse_repository(&format!("h/{}", "a".repeat(256))).is_err());
    }

    #[test]
    fn a_password_is_for_the_registry_and_its_known_token_service() {
        let registry = |host: &str, token_hosts: &[&str]| Registry {
            host: host.into(),
            token_hosts: token_hosts.iter().map(|&host| host.into()).collect(),
            ..Registry::default()
        };
        assert_eq!(registry("H.example", &[]).allowed_token_hosts(), ["h.example"]);
        assert_eq!(
            registry("docker.io", &["Auth.example:5001"]).allowed_token_hosts(),
            ["registry-1.docker.io", "auth.docker.io", "auth.example:5001"]
        );
    }
}
