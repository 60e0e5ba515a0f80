//! HTTP client for third parties: witnesses and the nodes of a chain.

use std::time::Duration;

const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Characters of a third party's text that an error message shows.
const MAX_EXCERPT_CHARS: usize = 200;

/// Returns a client that follows no redirects and returns error statuses as answers.
pub(crate) fn agent() -> ureq::Agent {
    ureq::Agent::config_builder()
        .timeout_global(Some(REQUEST_TIMEOUT))
        .http_status_as_error(false)
        .max_redirects(0)
        .build()
        .into()
}

/// Returns the beginning of a text without control characters, for an error message.
pub(crate) fn excerpt(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(MAX_EXCERPT_CHARS).collect()
}
