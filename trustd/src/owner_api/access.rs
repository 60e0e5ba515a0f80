//! Access control: owners may make all calls, anonymous clients only those of attestation.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::task::{Context, Poll};

use axum::Router;
use axum::serve::IncomingStream;
use tower_service::Service;

use super::connection::PeerRole;
use super::tls::TlsListener;

/// Chooses the router of a connection by the role of its client.
#[derive(Clone)]
pub struct RoleRouter {
    /// Router for owners.
    pub owner: Router,
    /// Router for anonymous clients.
    pub anonymous: Router,
}

impl Service<IncomingStream<'_, TlsListener>> for RoleRouter {
    type Response = Router;
    type Error = Infallible;
    type Future = Ready<Result<Router, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, incoming: IncomingStream<'_, TlsListener>) -> Self::Future {
        ready(Ok(match incoming.remote_addr() {
            PeerRole::Owner => self.owner.clone(),
            PeerRole::Anonymous => self.anonymous.clone(),
        }))
    }
}
