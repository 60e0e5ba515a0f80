//! OCI registries that images are fetched from.

use serde::{Deserialize, Serialize};

use crate::{ConfigProblem, InvalidValue};

/// Access to a registry. A registry that is not listed is accessed over TLS with the well-known
/// certificate authorities.
///
/// A registry is not trusted: the node checks all of its data against the digest that the ledger
/// approved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
    /// Certificates (PEM) that replace the well-known authorities.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
    /// User name for the registry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Password of the user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<String>,
}

impl Registry {
    pub(crate) fn check(&self) -> Result<(), ConfigProblem> {
        for host in std::iter::once(&self.host).chain(&self.mirrors) {
            check_host(host).map_err(|reason| {
                InvalidValue::text("HOST[:PORT]", host).because(reason).at("registries")
            })?;
        }
        let reject =
            |expected, found| Err(InvalidValue::new(expected, found).at(self.key("registries")));
        match (&self.user, &self.password) {
            (Some(_), None) => return reject("user and password together", "only user"),
            (None, Some(_)) => return reject("user and password together", "only password"),
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

    fn key(&self, table: &str) -> String {
        format!("{table} ({})", self.host)
    }
}

/// Checks that a text is `HOST[:PORT]`, a name or an address without any other part of a URL.
/// Returns the reason otherwise.
pub(crate) fn check_host(host: &str) -> Result<(), &'static str> {
    let (name, port) =
        host.rsplit_once(':').map_or((host, None), |(name, port)| (name, Some(port)));
    if port.is_some_and(|p| p.parse::<u16>().ok().is_none_or(|n| n == 0)) {
        return Err("no port");
    }
    let good = (1..=253).contains(&name.len())
        && name.split('.').all(|l| !l.is_empty() && !l.starts_with('-') && !l.ends_with('-'))
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-'));
    if good { Ok(()) } else { Err("no host") }
}

/// Splits `HOST[:PORT]/REPOSITORY` into host and repository (OCI distribution-spec 1.1, "Pulling
/// manifests": the form of `<name>`).
///
/// # Errors
///
/// Returns [`InvalidValue`] if the text has another form, such as one with a tag or a digest.
pub fn parse_repository(text: &str) -> Result<(&str, &str), InvalidValue> {
    let reject = |reason: &'static str| {
        InvalidValue::text("HOST[:PORT]/REPOSITORY without tag or digest", text).because(reason)
    };
    let (host, name) = text.split_once('/').ok_or_else(|| reject("no repository"))?;
    check_host(host).map_err(reject)?;
    let is_component = |c: &str| {
        let allowed =
            |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-');
        c.bytes().all(allowed)
            && c.starts_with(|c: char| c.is_ascii_alphanumeric())
            && c.ends_with(|c: char| c.is_ascii_alphanumeric())
    };
    if name.len() > 255 || !name.split('/').all(is_component) {
        return Err(reject("invalid repository"));
    }
    Ok((host, name))
}
