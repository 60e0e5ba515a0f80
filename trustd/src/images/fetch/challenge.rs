//! Challenges of hosts that demand authorization (RFC 9110, section 11.6.1). One answer can carry
//! several, in several headers and in one.
//!
//! A header comes from a host that is not trusted: what does not follow the grammar is left out,
//! and the numbers of challenges and parameters are bounded.

use hyper::HeaderMap;
use hyper::header::WWW_AUTHENTICATE;

const MAX_CHALLENGES: usize = 8;
const MAX_PARAMETERS: usize = 16;

/// Challenge of one authentication scheme.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Challenge {
    /// Name of the scheme in lower case.
    pub(super) scheme: String,
    parameters: Vec<(String, String)>,
}

impl Challenge {
    /// Returns the first value of a parameter, whose name is given in lower case.
    pub(super) fn parameter(&self, name: &str) -> Option<&str> {
        let mut found = self.parameters.iter().filter(|(key, _)| key == name);
        found.next().map(|(_, value)| value.as_str())
    }
}

/// Returns the challenges of a response, in the order in which the host sent them.
pub(super) fn challenges(headers: &HeaderMap) -> Vec<Challenge> {
    let texts = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
    texts.flat_map(parse).take(MAX_CHALLENGES).collect()
}

fn parse(text: &str) -> Vec<Challenge> {
    let mut challenges: Vec<Challenge> = Vec::new();
    let mut rest = text;
    while challenges.len() <= MAX_CHALLENGES {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let (name, after) = split_while(rest, is_token_char);
        if name.is_empty() {
            break;
        }
        if let Some(value) = after.trim_start_matches([' ', '\t']).strip_prefix('=') {
            let Some((value, after)) = split_value(value.trim_start_matches([' ', '\t'])) else {
                break;
            };
            // A parameter before the first scheme belongs to nothing.
            let Some(challenge) = challenges.last_mut() else { break };
            if challenge.parameters.len() < MAX_PARAMETERS {
                challenge.parameters.push((name.to_ascii_lowercase(), value));
            }
            rest = after;
        } else {
            let scheme = name.to_ascii_lowercase();
            challenges.push(Challenge { scheme, parameters: Vec::new() });
            rest = skip_token68(after);
        }
    }
    challenges
}

/// Splits a parameter's value from what follows. Returns `None` if a quotation does not end.
///
/// Registries also send values without quotation marks that are no tokens, such as addresses. Such a
/// value ends at a comma or a space.
fn split_value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let (value, rest) = split_while(text, |c| !matches!(c, ',' | ' ' | '\t' | '"'));
        return Some((value.to_owned(), rest));
    };
    let (mut value, mut is_escaped) = (String::new(), false);
    for (at, c) in quoted.char_indices() {
        match c {
            '\\' if !is_escaped => is_escaped = true,
            '"' if !is_escaped => return Some((value, &quoted[at + 1..])),
            other => {
                value.push(other);
                is_escaped = false;
            }
        }
    }
    None
}

/// Skips the one value without a name that a scheme can have instead of parameters.
fn skip_token68(text: &str) -> &str {
    let is_char = |c: char| c.is_ascii_alphanumeric() || "-._~+/".contains(c);
    let (value, rest) = split_while(text.trim_start_matches([' ', '\t']), is_char);
    let rest = rest.trim_start_matches('=').trim_start_matches([' ', '\t']);
    let is_token68 = !value.is_empty() && (rest.is_empty() || rest.starts_with(','));
    if is_token68 { rest } else { text }
}

fn split_while(text: &str, predicate: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(|c| !predicate(c)).unwrap_or(text.len()))
}

/// Reports whether a character can be part of a token (RFC 9110, section 5.6.2).
fn is_token_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns schemes and realms.
    fn parsed(text: &str) -> Vec<(String, Option<String>)> {
        let realm = |challenge: &Challenge| challenge.parameter("realm").map(str::to_owned);
        parse(text).iter().map(|challenge| (challenge.scheme.clone(), realm(challenge))).collect()
    }

    fn one(scheme: &str, realm: &str) -> (String, Option<String>) {
        (scheme.into(), Some(realm.into()))
    }

    #[test]
    fn parameters_of_a_challenge_are_parsed() {
        let challenges = parse(
            "Bearer realm=\"https://auth.example/token\",service=\"registry\" , \
             Scope=\"repository:a/b:pull,push\", error = invalid_token",
        );
        assert_eq!(challenges.len(), 1);
        let parameter = |name| challenges[0].parameter(name).unwrap();
        assert_eq!(challenges[0].scheme, "bearer");
        assert_eq!(parameter("realm"), "https://auth.example/token");
        assert_eq!(parameter("scope"), "repository:a/b:pull,push");
        assert_eq!(parameter("error"), "invalid_token");
    }

    #[test]
    fn every_challenge_of_an_answer_is_found() {
        assert_eq!(
            parsed("Basic realm=\"r\", Bearer realm=\"t\",service=\"s\""),
            [one("basic", "r"), one("bearer", "t")]
        );
        assert_eq!(
            parsed("Negotiate, Bearer realm=\"t\""),
            [("negotiate".into(), None), one("bearer", "t")]
        );
        assert_eq!(
            parsed("Negotiate YII=, NTLM abc , Basic realm=r,, BASIC realm=\"x, Bearer realm=y\""),
            [
                ("negotiate".into(), None),
                ("ntlm".into(), None),
                one("basic", "r"),
                one("basic", "x, Bearer realm=y")
            ]
        );
        let mut headers = HeaderMap::new();
        headers.append(WWW_AUTHENTICATE, "Negotiate".parse().unwrap());
        headers.append(WWW_AUTHENTICATE, "Bearer realm=t".parse().unwrap());
        assert_eq!(challenges(&headers)[1].parameter("realm"), Some("t"));
    }

    #[test]
    fn quotations_can_contain_every_character() {
        assert_eq!(parsed(r#"Basic realm="a \"b\" \\ =,c""#), [one("basic", r#"a "b" \ =,c"#)]);
        assert_eq!(
            parsed("Bearer realm=http://h:1/t?a=b,x=y"),
            [one("bearer", "http://h:1/t?a=b")]
        );
        // The first of two values counts.
        assert_eq!(parsed("Bearer realm=a,realm=b"), [one("bearer", "a")]);
    }

    #[test]
    fn what_does_not_follow_the_grammar_is_left_out() {
        for text in ["", ",, ,", "realm=\"x\"", "=", "\"Basic\"", "é"] {
            assert_eq!(parse(text), [], "{text}");
        }
        assert_eq!(parsed("Bearer realm=\"never ends"), [("bearer".into(), None)]);
        assert_eq!(parsed("Bearer realm"), [("bearer".into(), None)]);
        let mut headers = HeaderMap::new();
        headers.append(WWW_AUTHENTICATE, "a,".repeat(1000).parse().unwrap());
        assert_eq!(challenges(&headers).len(), MAX_CHALLENGES);
        let many = format!("Bearer {}realm=r", "a=b,".repeat(1000));
        assert_eq!(parse(&many)[0].parameters.len(), MAX_PARAMETERS);
    }
}
