//! Authorization at registries: passwords (RFC 7617, Basic) and tokens of the registries' token
//! services (RFC 6750, Bearer; distribution, "Token Authentication Specification").
//!
//! Invariants:
//! - A registry's password goes only to the registry itself, and to a token service that a
//!   challenge of the registry itself names and that is one of the hosts that node.toml allows
//!   ([`config::Registry::allowed_token_hosts`]). Both are accessed with TLS.
//! - A host that a redirect leads to gets an anonymous token at most.
//! - A token is shown only to the host whose challenge it answers.

use std::collections::BTreeSet;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use config::Registry;
use hyper::http::HeaderValue;
use hyper::{HeaderMap, StatusCode};
use serde::Deserialize;
use serde_json::Value;

use super::budget::Budget;
use super::challenge::{Challenge, challenges};
use super::error::{ChallengeError, HttpError};
use super::host::origin_name;
use super::http::{HttpClient, Route};
use super::tokens::Authorization;

const MAX_TOKEN_BYTES: u64 = 64 * 1024;
/// Lifetime of a token whose service names none (distribution, "Token Authentication
/// Specification").
const DEFAULT_TOKEN_LIFETIME: Duration = Duration::from_secs(60);
/// Time for which a password is sent without another challenge.
const PASSWORD_LIFETIME: Duration = Duration::from_secs(3600);
/// Scopes of a challenge that are asked for.
const MAX_SCOPES: usize = 4;

/// Password of a registry, and the hosts that may get it as the registry's token service.
pub(super) struct Credentials {
    basic: HeaderValue,
    /// Names of origins with TLS.
    token_hosts: BTreeSet<String>,
}

impl Credentials {
    /// Returns the credentials that node.toml has for a registry, if there are any.
    pub(super) fn of(registry: &Registry) -> Option<Self> {
        let (user, password) = (registry.user.as_ref()?, registry.password.as_ref()?);
        let basic =
            secret(&format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}"))))?;
        let hosts = registry.allowed_token_hosts();
        let token_hosts = hosts.iter().map(|host| origin_name(host, true)).collect();
        Some(Self { basic, token_hosts })
    }
}

/// Answers the challenges of a host: with a token, or with the password if it has one.
/// `credentials` are what node.toml has for the host. They are used only if no redirect led to it.
///
/// # Errors
///
/// Returns [`HttpError::Unauthorized`] if no challenge can be answered, and another [`HttpError`]
/// if the token service does not answer.
pub(super) async fn answer(
    http: &HttpClient,
    route: &Route,
    credentials: Option<&Credentials>,
    repository: &str,
    headers: &HeaderMap,
    budget: &mut Budget,
) -> Result<Authorization, HttpError> {
    let unauthorized = |source| HttpError::Unauthorized { host: route.host.name.clone(), source };
    let credentials = credentials.filter(|_| route.is_own && route.host.tls.is_some());
    let challenges = challenges(headers);
    let with_scheme =
        |scheme| challenges.iter().filter(move |challenge| challenge.scheme == scheme);
    let mut problem = None;
    for challenge in with_scheme("bearer") {
        let request = match token_request(http, route, credentials, challenge, repository) {
            Ok(request) => request,
            Err(error) => {
                problem = problem.or(Some(error));
                continue;
            }
        };
        match fetch_token(http, request, budget).await {
            Ok(token) => return Ok(token),
            Err(error @ HttpError::Budget { .. }) => return Err(error),
            Err(error) => problem = problem.or(Some(error)),
        }
    }
    if with_scheme("basic").next().is_some() {
        if let Some(credentials) = credentials {
            let value = credentials.basic.clone();
            return Ok(Authorization { value, lifetime: PASSWORD_LIFETIME });
        }
        let error = if route.is_own {
            ChallengeError::NoPassword
        } else {
            ChallengeError::PasswordAfterRedirect
        };
        problem = problem.or(Some(unauthorized(error)));
    }
    Err(problem.unwrap_or_else(|| {
        let schemes = challenges.into_iter().map(|challenge| challenge.scheme).collect();
        unauthorized(ChallengeError::Unsupported { schemes })
    }))
}

/// Returns the value of a header that must not be printed.
fn secret(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Request for a token.
struct TokenRequest<'a> {
    /// Host whose challenge the token answers.
    registry: &'a str,
    route: Route,
    credentials: Option<&'a Credentials>,
}

/// Returns the request that a challenge asks for.
fn token_request<'a>(
    http: &HttpClient,
    from: &'a Route,
    credentials: Option<&'a Credentials>,
    challenge: &Challenge,
    repository: &str,
) -> Result<TokenRequest<'a>, HttpError> {
    let registry = from.host.name.as_str();
    let unauthorized = |source| HttpError::Unauthorized { host: registry.to_owned(), source };
    let realm =
        challenge.parameter("realm").ok_or_else(|| unauthorized(ChallengeError::NoRealm))?;
    let mut route = http
        .resolve(from, realm)
        .map_err(|error| unauthorized(ChallengeError::Realm { source: Box::new(error) }))?;
    // The first request for the token goes there, so it is that route's own host.
    route.is_own = true;
    let is_allowed = |credentials: &Credentials| {
        route.host.tls.is_some() && credentials.token_hosts.contains(&route.host.name)
    };
    if credentials.is_some_and(|credentials| !is_allowed(credentials)) {
        let token_host = route.host.name.clone();
        return Err(unauthorized(ChallengeError::ForeignTokenHost { token_host }));
    }
    let service = challenge.parameter("service");
    route.path = token_path(&route.path, &scopes(challenge, repository), service);
    Ok(TokenRequest { registry, route, credentials })
}

/// Returns the scopes to ask for: those of the challenge with no other action than `pull`, or that
/// of the repository.
fn scopes(challenge: &Challenge, repository: &str) -> Vec<String> {
    let named = challenge.parameter("scope").unwrap_or_default().split_ascii_whitespace();
    let mut scopes: Vec<String> = named
        .take(MAX_SCOPES)
        .map(|scope| match scope.rsplit_once(':') {
            Some((name, _)) if name.starts_with("repository:") => format!("{name}:pull"),
            _ => scope.to_owned(),
        })
        .collect();
    if scopes.is_empty() && !repository.is_empty() {
        scopes.push(format!("repository:{repository}:pull"));
    }
    scopes.dedup();
    scopes
}

/// Adds scopes and service to a realm, which can have a query of its own.
fn token_path(realm: &str, scopes: &[String], service: Option<&str>) -> String {
    let query = realm.split_once('?').map(|(_, query)| query).unwrap_or_default();
    let has = |key| url::form_urlencoded::parse(query.as_bytes()).any(|(name, _)| name == key);
    let scopes = scopes.iter().filter(|_| !has("scope")).map(|scope| ("scope", scope.as_str()));
    let service = service.filter(|_| !has("service")).map(|service| ("service", service));
    let pairs = scopes.chain(service);
    let added = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish();
    match (query.is_empty(), added.is_empty()) {
        (_, true) => realm.to_owned(),
        (true, false) => format!("{}?{added}", realm.trim_end_matches('?')),
        (false, false) => format!("{realm}&{added}"),
    }
}

async fn fetch_token(
    http: &HttpClient,
    request: TokenRequest<'_>,
    budget: &mut Budget,
) -> Result<Authorization, HttpError> {
    let password = request.credentials.map(|credentials| &credentials.basic);
    let response = http.get(request.route, password, budget).await?;
    let token_host = response.host.clone();
    match response.status {
        StatusCode::OK => {}
        status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => {
            let source = ChallengeError::TokenDenied {
                token_host,
                status,
                with_password: password.is_some(),
            };
            return Err(HttpError::Unauthorized { host: request.registry.to_owned(), source });
        }
        _ => return Err(response.into_error().await),
    }
    let body = response.read_all(MAX_TOKEN_BYTES).await?;
    budget.take_bytes(&token_host, body.len())?;
    parse_token(&body).ok_or(HttpError::Token { host: token_host })
}

/// Reads the answer of a token service. Members of another type count as missing.
fn parse_token(body: &[u8]) -> Option<Authorization> {
    let found: TokenResponse = serde_json::from_slice(body).ok()?;
    let text = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    let token = text(&found.token).or_else(|| text(&found.access_token))?;
    let lifetime = found.expires_in.as_u64().map(Duration::from_secs);
    let lifetime = lifetime.unwrap_or(DEFAULT_TOKEN_LIFETIME);
    Some(Authorization { value: secret(&format!("Bearer {token}"))?, lifetime })
}

#[derive(Deserialize)]
struct TokenResponse {
    #[serde(default)]
    token: Value,
    #[serde(default)]
    access_token: Value,
    #[serde(default)]
    expires_in: Value,
}

#[cfg(test)]
mod tests {
    use hyper::header::WWW_AUTHENTICATE;

    use super::*;

    fn challenge(text: &str) -> Challenge {
        let headers = [(WWW_AUTHENTICATE, text.parse().unwrap())].into_iter().collect();
        challenges(&headers).remove(0)
    }

    #[test]
    fn scopes_are_those_of_the_challenge_without_more_rights_than_pull() {
        for (text, expected) in [
            ("Bearer realm=r", vec!["repository:a/b:pull"]),
            ("Bearer realm=r,scope=\"repository:c/d:pull,push\"", vec!["repository:c/d:pull"]),
            (
                "Bearer scope=\"repository:a:* repository:b:pull\"",
                vec!["repository:a:pull", "repository:b:pull"],
            ),
            ("Bearer scope=\"aws\"", vec!["aws"]),
        ] {
            assert_eq!(scopes(&challenge(text), "a/b"), expected, "{text}");
        }
        let many = format!("Bearer scope=\"{}\"", "a:b:c d:e:f ".repeat(100));
        assert_eq!(scopes(&challenge(&many), "a").len(), MAX_SCOPES);
        assert!(scopes(&challenge("Bearer realm=r"), "").is_empty());
    }

    #[test]
    fn a_realm_keeps_its_query() {
        let scopes = ["repository:a/b:pull".to_owned()];
        for (realm, service, expected) in [
            ("/t", Some("s&c=x"), "/t?scope=repository%3Aa%2Fb%3Apull&service=s%26c%3Dx"),
            ("/t?tenant=a", None, "/t?tenant=a&scope=repository%3Aa%2Fb%3Apull"),
            ("/t?service=x", Some("y"), "/t?service=x&scope=repository%3Aa%2Fb%3Apull"),
            ("/t?scope=z&service=x", Some("y"), "/t?scope=z&service=x"),
        ] {
            assert_eq!(token_path(realm, &scopes, service), expected);
        }
        assert_eq!(token_path("/t", &[], None), "/t");
    }

    #[test]
    fn tokens_have_two_names_and_a_lifetime() {
        let parse = |text: &str| {
            let found = parse_token(text.as_bytes())?;
            Some((found.value.to_str().unwrap().to_owned(), found.lifetime.as_secs()))
        };
        let found = |token: &str, seconds| Some((format!("Bearer {token}"), seconds));
        assert_eq!(parse(r#"{"token":"a"}"#), found("a", 60));
        assert_eq!(parse(r#"{"access_token":"b","expires_in":300}"#), found("b", 300));
        assert_eq!(parse(r#"{"token":null,"access_token":"b"}"#), found("b", 60));
        assert_eq!(parse(r#"{"token":"a","access_token":"b","expires_in":"x"}"#), found("a", 60));
        for bad in ["", "{}", "[]", r#"{"token":""}"#, r#"{"token":7}"#, r#"{"token":"a\nb"}"#] {
            assert_eq!(parse(bad), None, "{bad}");
        }
        assert!(parse_token(br#"{"token":"a"}"#).unwrap().value.is_sensitive());
    }
}
