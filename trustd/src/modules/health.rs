//! Whether a container is healthy, as its module's file defines it.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bollard::models::HealthStatusEnum;
use config::Health;

use crate::engine::Look;

const CONNECT_WITHIN: Duration = Duration::from_secs(1);

/// Whether it is healthy after having run for `age`.
pub(super) async fn healthy(health: &Health, look: &Look, age: Duration) -> bool {
    if !look.running {
        return false;
    }
    match health.port {
        Some(port) => match look.address {
            Some(address) => answers(address, port).await,
            None => false,
        },
        None if !health.command.is_empty() => look.health == Some(HealthStatusEnum::HEALTHY),
        None => age >= Duration::from_secs(health.stays_s.into()),
    }
}

async fn answers(address: IpAddr, port: u16) -> bool {
    let connecting = tokio::net::TcpStream::connect(SocketAddr::new(address, port));
    matches!(tokio::time::timeout(CONNECT_WITHIN, connecting).await, Ok(Ok(_)))
}
