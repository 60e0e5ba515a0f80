//! Container images: the store of verified blobs, and the registry client that fetches them.

pub mod fetch;
pub mod store;
