//! Who is let in where: owners, known by their certificates, to everything; strangers to
//! attestation, few at a time and not for long.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::serve::IncomingStream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Sleep, sleep};
use tokio_rustls::server::TlsStream;
use tower_service::Service;

use super::tls::TlsListener;

/// A stranger's connection ends after this long, whatever it is doing.
const STRANGER_STAYS: Duration = Duration::from_secs(60);

/// Who is on the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guest {
    /// Showed a certificate that node.toml pins.
    Owner,
    Stranger,
}

/// One router for each.
#[derive(Clone)]
pub struct Doors {
    pub owner: Router,
    pub stranger: Router,
}

impl Service<IncomingStream<'_, TlsListener>> for Doors {
    type Response = Router;
    type Error = Infallible;
    type Future = Ready<Result<Router, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, incoming: IncomingStream<'_, TlsListener>) -> Self::Future {
        ready(Ok(match incoming.remote_addr() {
            Guest::Owner => self.owner.clone(),
            Guest::Stranger => self.stranger.clone(),
        }))
    }
}

/// A connection whose handshake is done.
pub struct Connection {
    stream: TlsStream<TcpStream>,
    /// A stranger's place, and when it has to go.
    visit: Option<(OwnedSemaphorePermit, Pin<Box<Sleep>>)>,
}

impl Connection {
    pub(super) fn owner(stream: TlsStream<TcpStream>) -> Self {
        Self { stream, visit: None }
    }

    pub(super) fn stranger(stream: TlsStream<TcpStream>, place: OwnedSemaphorePermit) -> Self {
        Self { stream, visit: Some((place, Box::pin(sleep(STRANGER_STAYS)))) }
    }

    fn over(&mut self, context: &mut Context<'_>) -> bool {
        self.visit.as_mut().is_some_and(|(_, end)| end.as_mut().poll(context).is_ready())
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.over(context) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.over(context) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.over(context) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
