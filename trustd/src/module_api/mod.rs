//! The API of modules: each module has its own Unix socket, which is mounted into its container.
//!
//! | file | content |
//! |---|---|
//! | `sockets.rs` | the sockets of all modules |
//! | `serve.rs` | the thread of one socket, its connections and timeouts |
//! | `peer.rs` | which container the process at the other end runs in |
//! | `caller.rs` | an identified container with its keys and permissions |
//! | `gate.rs` | the end of all answers to a container |
//! | `service.rs` | quotas, permissions and batches of one module |
//! | `calls.rs` | each call: request, computation, answer |
//!
//! Invariants:
//! - The caller is the container of the process that connected. It is answered only if trustd
//!   itself started it as this module. No request can name another module's key.
//! - A container whose gate is closed gets no answer: on no connection, also an open one, and to no
//!   request, also one that is being computed.
//! - Each module has its own thread, so the kernel shares the processors between modules, and a
//!   module that floods its socket slows down only itself. Its memory in trustd is bounded.

mod caller;
mod calls;
mod gate;
mod peer;
mod serve;
mod service;
mod sockets;

pub use self::caller::Caller;
pub use self::service::Shared;
pub use self::sockets::Sockets;
