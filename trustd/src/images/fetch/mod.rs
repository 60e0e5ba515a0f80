//! Fetching of images from registries and archives. Every byte is verified.

mod artifact;
mod auth;
mod chunk_reader;
mod download;
mod error;
mod fetcher;
mod http;
mod progress;
mod registry;
mod response;

pub use chunk_reader::ChunkReader;
pub use error::{FetchError, FileError, HttpError, RegistryError};
pub use fetcher::{Fetcher, LayersVerified};
pub use progress::ProgressCell;
pub use registry::{RegistryClient, STALL_TIMEOUT};
