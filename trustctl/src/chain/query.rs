//! Requests for bundles: the query of `GET /v1/bundle`.

use ledger::ethereum::{Hash, HexError, MAX_DIGESTS};

use super::encoding::{EncodingError, parse_digest};

/// Where a node is on the chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StartingPoint {
    /// The node follows nothing yet and has this checkpoint's block root pinned.
    Checkpoint(Hash),
    /// The node needs the updates from this sync committee period on.
    Period(u64),
}

/// Request of a node for a bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BundleRequest {
    /// Where the node is.
    pub from: StartingPoint,
    /// Digests of the images whose records the node needs.
    pub digests: Vec<Hash>,
}

/// The query of a request is malformed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// A parameter has no `=`.
    #[error("expected KEY=VALUE, found {0:?}")]
    Pair(String),
    /// The key of a parameter is unknown.
    #[error("expected checkpoint, period or digest, found {0:?}")]
    Key(String),
    /// The checkpoint is not a block root.
    #[error("checkpoint: {0}")]
    Checkpoint(HexError),
    /// The period is not a number.
    #[error("period: expected a number, found {0:?}")]
    Period(String),
    /// A digest is malformed.
    #[error("digest: {0}")]
    Digest(EncodingError),
    /// There are too many digests.
    #[error("expected at most {MAX_DIGESTS} digests, found {0}")]
    TooManyDigests(usize),
    /// There is neither a checkpoint nor a period.
    #[error("expected checkpoint=ROOT or period=NUMBER")]
    NoStartingPoint,
}

impl BundleRequest {
    /// Parses the part of a request's URL after the `?`: `checkpoint=0x…` or `period=N`, and any
    /// number of `digest=…`.
    ///
    /// # Errors
    /// Returns a [`QueryError`] for the first parameter that is malformed.
    pub fn parse(query: &str) -> Result<Self, QueryError> {
        let (mut from, mut digests) = (None, Vec::new());
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) =
                pair.split_once('=').ok_or_else(|| QueryError::Pair(pair.to_owned()))?;
            match key {
                "checkpoint" => {
                    let root = value.parse().map_err(QueryError::Checkpoint)?;
                    from = Some(StartingPoint::Checkpoint(root));
                }
                "period" => {
                    let period = value.parse();
                    let period = period.map_err(|_| QueryError::Period(value.to_owned()))?;
                    from = Some(StartingPoint::Period(period));
                }
                "digest" => digests.push(parse_digest(value).map_err(QueryError::Digest)?),
                other => return Err(QueryError::Key(other.to_owned())),
            }
        }
        if digests.len() > MAX_DIGESTS {
            return Err(QueryError::TooManyDigests(digests.len()));
        }
        Ok(Self { from: from.ok_or(QueryError::NoStartingPoint)?, digests })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_queries_and_rejects_malformed_ones() {
        let root = format!("0x{}", "ab".repeat(32));
        let digest = "cd".repeat(32);
        let query = format!("checkpoint={root}&digest=sha256:{digest}&digest=0x{digest}");
        let request = BundleRequest::parse(&query).unwrap();
        assert_eq!(request.from, StartingPoint::Checkpoint(root.parse().unwrap()));
        assert_eq!(request.digests.len(), 2);
        assert_eq!(BundleRequest::parse("period=7").unwrap().from, StartingPoint::Period(7));
        let many = vec![format!("digest=0x{digest}"); MAX_DIGESTS + 1].join("&");
        for bad in [
            "",
            "period",
            "period=x",
            "period=-1",
            "checkpoint=0x12",
            "period=1&digest=12",
            "period=1&x=1",
            &format!("period=1&{many}"),
        ] {
            assert!(BundleRequest::parse(bad).is_err(), "{bad:.40}");
        }
    }
}
