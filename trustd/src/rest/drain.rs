//! Bodies of requests that are answered before they were read.
//!
//! Many answers need no body: an unknown path, a quota, a body that is too long, an archive that is
//! already known to be invalid. The server would have to close the connection in the middle of
//! such a request. Its client then fails to send the rest, and often loses the answer.
//!
//! Invariants:
//! - The answer does not wait for the rest of the body.
//! - The rest is read and discarded within limits of bytes and time, then the connection is closed.
//! - A client that waits for permission to send the body (RFC 9110, section 10.1.1) is not asked
//!   for it.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::header::EXPECT;
use futures_util::StreamExt as _;
use hyper::body::{Frame, SizeHint};

/// Time within which the rest of a body must arrive.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// Adds the reading of what a handler leaves of its request's body, up to `max_bytes`. It must be
/// the last layer of a router, because it is for the answers of the other layers too.
pub(crate) fn drain_bodies<S: Clone + Send + Sync + 'static>(
    router: Router<S>,
    max_bytes: usize,
) -> Router<S> {
    let replace_body = move |request: Request| {
        let waits = request.headers().contains_key(EXPECT);
        let drained = |body| Body::new(DrainedBody { body: Some(body), waits, max_bytes });
        std::future::ready(request.map(drained))
    };
    router.layer(axum::middleware::map_request(replace_body))
}

/// A body whose rest is read when it is dropped.
struct DrainedBody {
    /// The body; none once it ended.
    body: Option<Body>,
    /// Whether the client sends the body only after the first read.
    waits: bool,
    max_bytes: usize,
}

impl HttpBody for DrainedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.waits = false;
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let frame = std::task::ready!(Pin::new(body).poll_frame(context));
        if !matches!(frame, Some(Ok(_))) {
            self.body = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), HttpBody::size_hint)
    }
}

impl Drop for DrainedBody {
    fn drop(&mut self) {
        let is_complete = self.is_end_stream();
        let Some(body) = self.body.take().filter(|_| !is_complete && !self.waits) else { return };
        // Outside of a runtime there is no connection either.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let rest = discard(body, self.max_bytes);
            runtime.spawn(tokio::time::timeout(DRAIN_TIMEOUT, rest));
        }
    }
}

/// Reads a body until it ends, fails or has more than `max_bytes`.
async fn discard(body: Body, max_bytes: usize) {
    let mut chunks = body.into_data_stream();
    let mut left = max_bytes;
    while let Some(Ok(chunk)) = chunks.next().await {
        match left.checked_sub(chunk.len()) {
            Some(rest) => left = rest,
            None => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::extract::DefaultBodyLimit;
    use axum::http::StatusCode;
    use axum::routing::{post, put};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{UnixListener, UnixStream};

    use super::*;

    /// Longer than the bytes that a server reads ahead and a socket buffers.
    const HALF_BYTES: usize = 2 << 20;
    const MAX_BYTES: usize = 8 << 20;

    /// Connects to a server with calls that do not read their bodies.
    async fn connect(dir: &std::path::Path) -> UnixStream {
        let socket = dir.join("socket");
        let listener = UnixListener::bind(&socket).unwrap();
        let router = Router::new()
            .route("/ignored", post(async || StatusCode::CONFLICT))
            .route("/limited", put(async |_: Bytes| StatusCode::OK))
            .fallback(async || StatusCode::NOT_FOUND)
            .layer(DefaultBodyLimit::max(1024));
        let router = drain_bodies(router, MAX_BYTES);
        tokio::spawn(axum::serve(listener, router).into_future());
        UnixStream::connect(&socket).await.unwrap()
    }

    fn head(call: &str, bytes: usize) -> String {
        format!("{call} HTTP/1.1\r\nhost: x\r\ncontent-length: {bytes}\r\n\r\n")
    }

    async fn answer(client: &mut UnixStream) -> String {
        let mut answer = [0; 4096];
        let length = client.read(&mut answer).await.unwrap();
        String::from_utf8_lossy(&answer[..length]).into_owned()
    }

    #[tokio::test]
    async fn an_early_answer_is_sent_at_once_and_the_connection_stays_open() {
        let dir = tempfile::tempdir().unwrap();
        let mut client = connect(dir.path()).await;
        let half = vec![b' '; HALF_BYTES];
        for (call, status) in [
            ("POST /ignored", "409"),
            ("PUT /limited", "413"),
            ("POST /unknown", "404"),
            ("DELETE /ignored", "405"),
        ] {
            client.write_all(head(call, 2 * HALF_BYTES).as_bytes()).await.unwrap();
            client.write_all(&half).await.unwrap();
            let text = answer(&mut client).await;
            assert!(text.starts_with(&format!("HTTP/1.1 {status} ")), "{call}: {text}");
            client.write_all(&half).await.unwrap_or_else(|error| panic!("{call}: {error}"));
        }
    }

    #[tokio::test]
    async fn a_body_without_end_is_not_read_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let mut client = connect(dir.path()).await;
        client.write_all(head("POST /ignored", usize::MAX >> 1).as_bytes()).await.unwrap();
        let chunk = vec![b' '; HALF_BYTES];
        let mut sent = 0;
        while client.write_all(&chunk).await.is_ok() {
            sent += chunk.len();
            assert!(sent < 4 * MAX_BYTES, "the server still reads");
        }
        assert!(sent > MAX_BYTES / 2, "the server read {sent} bytes");
    }

    #[tokio::test]
    async fn a_client_that_waits_for_permission_is_not_asked_for_the_body() {
        let dir = tempfile::tempdir().unwrap();
        let mut client = connect(dir.path()).await;
        let head =
            head("POST /ignored", HALF_BYTES).replace("host", "expect: 100-continue\r\nhost");
        client.write_all(head.as_bytes()).await.unwrap();
        let text = answer(&mut client).await;
        assert!(text.starts_with("HTTP/1.1 409 "), "{text}");
        // The server does not wait for the body either.
        let end = tokio::time::timeout(DRAIN_TIMEOUT / 2, answer(&mut client)).await;
        assert_eq!(end.as_deref(), Ok(""));
    }
}
