//! Health check of a container, as the module file defines it.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bollard::models::HealthStatusEnum;
use config::Health;

use crate::engine::Inspection;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Reports whether a container is healthy that has run for `age`.
pub(super) async fn is_healthy(health: &Health, inspection: &Inspection, age: Duration) -> bool {
    if !inspection.running {
        return false;
    }
    match health.port {
        Some(port) => match inspection.address {
            Some(address) => accepts_connections(address, port).await,
            None => false,
        },
        None if !health.command.is_empty() => inspection.health == Some(HealthStatusEnum::HEALTHY),
        None => age >= Duration::from_secs(health.stays_s.into()),
    }
}

async fn accepts_connections(address: IpAddr, port: u16) -> bool {
    let connect = tokio::net::TcpStream::connect(SocketAddr::new(address, port));
    matches!(tokio::time::timeout(CONNECT_TIMEOUT, connect).await, Ok(Ok(_)))
}
