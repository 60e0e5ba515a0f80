//! A TLS connection after its handshake, and the role of the client at the other end.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Sleep, sleep};
use tokio_rustls::server::TlsStream;

/// Time after which the connection of an anonymous client is closed, even during a request.
const ANONYMOUS_CONNECTION_LIFETIME: Duration = Duration::from_secs(60);

/// Role of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerRole {
    /// The client presented a certificate that node.toml pins.
    Owner,
    /// The client presented no certificate.
    Anonymous,
}

/// A TLS connection after its handshake.
pub struct Connection {
    stream: TlsStream<TcpStream>,
    /// Permit of an anonymous client, and the end of its connection.
    limit: Option<(OwnedSemaphorePermit, Pin<Box<Sleep>>)>,
}

impl Connection {
    /// Wraps the connection of an owner, which may last for any time.
    pub(super) fn of_owner(stream: TlsStream<TcpStream>) -> Self {
        Self { stream, limit: None }
    }

    /// Wraps the connection of an anonymous client, which releases the permit when it ends.
    pub(super) fn of_anonymous(stream: TlsStream<TcpStream>, permit: OwnedSemaphorePermit) -> Self {
        Self { stream, limit: Some((permit, Box::pin(sleep(ANONYMOUS_CONNECTION_LIFETIME)))) }
    }

    /// Fails once the connection's time is over.
    fn check_limit(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        let end = self.limit.as_mut().map(|(_, end)| end);
        if end.is_some_and(|end| end.as_mut().poll(context).is_ready()) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(())
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check_limit(context)?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check_limit(context)?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check_limit(context)?;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
