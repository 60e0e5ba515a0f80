//! Tests of the light client: on a simulated chain and on data of third parties.

mod light_client;
mod rejection;
mod simulated_chain;
mod third_party;
