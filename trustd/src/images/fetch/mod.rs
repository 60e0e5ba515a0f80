//! Fetching of images from registries and archives. Every byte is verified.

mod artifact;
mod auth;
mod budget;
mod challenge;
mod chunk_reader;
mod download;
mod error;
mod fetcher;
mod file_stream;
mod headers;
mod host;
mod http;
mod pauses;
mod progress;
mod registry;
mod response;
mod source;
mod tls;
mod tokens;

pub use chunk_reader::ChunkReader;
pub use error::{BudgetPart, ChallengeError, FetchError, FileError, HttpError, RegistryError};
pub use fetcher::{Fetcher, LayersVerified};
pub(crate) use file_stream::FileStream;
pub use progress::ProgressCell;
pub use registry::{RegistryClient, STALL_TIMEOUT};
