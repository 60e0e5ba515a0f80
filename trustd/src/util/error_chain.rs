//! Errors as one line.

use std::error::Error;

/// Returns the message of `error` followed by the messages of its causes, joined by `: `.
///
/// A cause is left out if the line already ends with its message. Errors of other crates often
/// print their cause and also return it from [`Error::source`].
pub fn error_chain(error: &(dyn Error + 'static)) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let message = error.to_string();
        if !line.ends_with(&message) {
            line += ": ";
            line += &message;
        }
        cause = error.source();
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Layered {
        #[error("cannot open the store")]
        Outer(#[source] Box<Layered>),
        #[error("request failed: {0}")]
        Verbose(#[source] Box<Layered>),
        #[error("disk full")]
        Inner,
    }

    #[test]
    fn every_cause_is_printed_once() {
        let verbose = Layered::Verbose(Box::new(Layered::Inner));
        assert_eq!(error_chain(&verbose), "request failed: disk full");
        let outer = Layered::Outer(Box::new(verbose));
        assert_eq!(error_chain(&outer), "cannot open the store: request failed: disk full");
        assert_eq!(error_chain(&Layered::Inner), "disk full");
    }
}
