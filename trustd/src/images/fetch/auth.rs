//! Authorization at registries: passwords (RFC 7617, Basic) and tokens of the registries' token
//! services (RFC 6750, Bearer).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use config::Registry;
use serde::Deserialize;

use super::error::HttpError;
use super::http::{Host, HttpClient};
use super::response::redact;
use crate::util::lock::lock;

const MAX_TOKEN_BYTES: u64 = 64 * 1024;

/// Values of the authorization header, by host and repository.
#[derive(Clone, Default)]
pub(super) struct TokenCache(Arc<Mutex<BTreeMap<(String, String), HeaderValue>>>);

impl TokenCache {
    pub(super) fn get(&self, host: &str, repository: &str) -> Option<HeaderValue> {
        lock(&self.0).get(&(host.to_owned(), repository.to_owned())).cloned()
    }

    pub(super) fn set(&self, host: &str, repository: &str, token: HeaderValue) {
        lock(&self.0).insert((host.to_owned(), repository.to_owned()), token);
    }
}

/// Returns the value of the authorization header that answers a host's challenge, or `None` if
/// there is no answer. `registry` has the settings of the host, with the password.
pub(super) async fn answer_challenge(
    http: &HttpClient,
    host: &Host,
    registry: Option<&Registry>,
    repository: &str,
    headers: &HeaderMap,
) -> Result<Option<HeaderValue>, HttpError> {
    let challenge = headers.get(WWW_AUTHENTICATE).and_then(|value| value.to_str().ok());
    let Some((scheme, rest)) = challenge.and_then(|text| text.split_once(' ')) else {
        return Ok(None);
    };
    let password = registry.and_then(basic_credentials);
    if scheme.eq_ignore_ascii_case("basic") {
        return Ok(password);
    }
    let parameters = parse_parameters(rest);
    match parameters.get("realm") {
        Some(realm) if scheme.eq_ignore_ascii_case("bearer") => {
            let service = parameters.get("service").map(String::as_str);
            let (token_host, path) = token_request(http, host, realm, repository, service)?;
            fetch_token(http, &token_host, &path, password).await
        }
        _ => Ok(None),
    }
}

fn basic_credentials(registry: &Registry) -> Option<HeaderValue> {
    let (user, password) = (registry.user.as_ref()?, registry.password.as_ref()?);
    secret(&format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}"))))
}

fn secret(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Returns host and path of the request for a token (distribution, "Token Authentication
/// Specification").
fn token_request(
    http: &HttpClient,
    host: &Host,
    realm: &str,
    repository: &str,
    service: Option<&str>,
) -> Result<(Host, String), HttpError> {
    let reject =
        |reason| HttpError::Redirect { host: host.name.clone(), to: redact(realm), reason };
    let uri: Uri = realm.parse().map_err(|_| reject("the address is invalid"))?;
    let authority = uri.authority().ok_or_else(|| reject("the address has no host"))?.as_str();
    let token_host = match (uri.scheme_str(), host.tls.is_some()) {
        (Some("https"), _) => {
            let known = http.host(authority);
            Host { tls: known.tls.clone().or_else(|| host.tls.clone()), ..known }
        }
        (Some("http"), false) => Host { name: authority.to_owned(), tls: None },
        _ => return Err(reject("a token must be requested over TLS")),
    };
    let scope = escape(&format!("repository:{repository}:pull"));
    let mut path = format!("{}?scope={scope}", uri.path());
    if let Some(service) = service {
        path += &format!("&service={}", escape(service));
    }
    Ok((token_host, path))
}

async fn fetch_token(
    http: &HttpClient,
    host: &Host,
    path: &str,
    password: Option<HeaderValue>,
) -> Result<Option<HeaderValue>, HttpError> {
    let headers: Vec<_> = password.map(|value| (AUTHORIZATION, value)).into_iter().collect();
    let response = http.get(host, path, &headers).await?;
    if response.status != StatusCode::OK {
        return Err(response.into_error().await);
    }
    let body = response.read_all(MAX_TOKEN_BYTES).await?;
    let found: TokenResponse =
        serde_json::from_slice(&body).map_err(|_| HttpError::Token { host: host.name.clone() })?;
    let token = found.token.or(found.access_token);
    Ok(token.and_then(|token| secret(&format!("Bearer {token}"))))
}

#[derive(Deserialize)]
struct TokenResponse {
    token: Option<String>,
    access_token: Option<String>,
}

/// Parses the `key="value"` pairs of a challenge (RFC 9110, section 11.2), as far as registries use
/// them.
fn parse_parameters(text: &str) -> BTreeMap<String, String> {
    let mut parameters = BTreeMap::new();
    let mut rest = text;
    while let Some((key, after)) = rest.split_once('=') {
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => after.split_once(',').unwrap_or((after, "")),
        };
        parameters.insert(key.trim_matches([' ', ',']).to_ascii_lowercase(), value.to_owned());
        rest = after;
    }
    parameters
}

/// Percent-encodes every byte that is not unreserved (RFC 3986, section 2.3).
fn escape(text: &str) -> String {
    text.bytes()
        .map(|b| {
            if b.is_ascii_alphanumeric() || b"-._~".contains(&b) {
                char::from(b).to_string()
            } else {
                format!("%{b:02X}")
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_of_challenges_are_parsed() {
        let p = parse_parameters(
            "realm=\"https://auth.example/token\",service=\"registry\",\
             scope=\"repository:a/b:pull,push\"",
        );
        assert_eq!(p["realm"], "https://auth.example/token");
        assert_eq!(p["scope"], "repository:a/b:pull,push");
        assert_eq!(parse_parameters("realm=x, a=b")["a"], "b");
        assert!(parse_parameters("").is_empty());
        assert_eq!(parse_parameters("realm=\"never ends")["realm"], "never ends");
    }

    #[test]
    fn values_in_addresses_are_escaped() {
        assert_eq!(escape("repository:a/b:pull"), "repository%3Aa%2Fb%3Apull");
        assert_eq!(escape("a&b=c d"), "a%26b%3Dc%20d");
    }
}
