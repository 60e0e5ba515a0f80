//! The image that is fetched, the registry that serves it as it should, and the node's fetcher.

use std::sync::Arc;
use std::time::{Duration, Instant};

use basalt_trustd::images::fetch::{FetchError, Fetcher, ProgressCell, RegistryClient};
use basalt_trustd::images::store::Store;
use basalt_trustd::reader::Readers;
use basalt_trustd::sandbox::Landlock;
use basalt_trustd::util::error_chain::error_chain;
use config::{ImageSource, Registry};
use oci::Limits;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::server::{Answer, Request};

/// Stall timeout of the node.
pub(crate) const STALL: Duration = Duration::from_secs(1);
/// Time within which every case ends, however the registry behaves: the time of one budget and
/// what the last request may take beyond it, for each of the image's three blobs.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);
/// Bytes of the layer's file. More than a broken transfer needs to count as progress.
const LAYER_BYTES: usize = 300_000;
/// Repository of the image.
pub(crate) const REPOSITORY: &str = "team/app";

pub(crate) fn sha(data: &[u8]) -> String {
    format!("sha256:{}", measure::hex(&Sha256::digest(data)))
}

/// Image with one layer.
pub(crate) struct Image {
    pub(crate) manifest: Vec<u8>,
    config: Vec<u8>,
    pub(crate) layer: Vec<u8>,
}

impl Image {
    pub(crate) fn new() -> Arc<Self> {
        Self::with_file_of(LAYER_BYTES)
    }

    pub(crate) fn with_file_of(bytes: usize) -> Arc<Self> {
        let mut tar = tar::Builder::new(Vec::new());
        let data: Vec<u8> = (0..bytes).map(|n| (n * n / 7) as u8).collect();
        let mut header = tar::Header::new_ustar();
        header.set_size(data.len() as u64);
        header.set_mode(0o755);
        tar.append_data(&mut header, "app", data.as_slice()).unwrap();
        let layer = tar.into_inner().unwrap();
        let config = json!({
            "architecture": "amd64",
            "os": "linux",
            "config": { "Entrypoint": ["/app"] },
            "rootfs": { "type": "layers", "diff_ids": [sha(&layer)] },
        });
        let config = config.to_string().into_bytes();
        let descriptor = |media_type: &str, blob: &[u8]| {
            let media_type = format!("application/vnd.oci.image.{media_type}");
            json!({ "mediaType": media_type, "digest": sha(blob), "size": blob.len() })
        };
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("config.v1+json", &config),
            "layers": [descriptor("layer.v1.tar", &layer)],
        });
        Arc::new(Self { manifest: manifest.to_string().into_bytes(), config, layer })
    }

    pub(crate) fn digest(&self) -> String {
        sha(&self.manifest)
    }

    /// Returns the blob that a path ends with.
    pub(crate) fn blob(&self, target: &str) -> Option<&[u8]> {
        let blobs = [&self.manifest, &self.config, &self.layer];
        blobs.into_iter().find(|blob| target.ends_with(&sha(blob))).map(Vec::as_slice)
    }

    /// Reports whether a request is for the layer.
    pub(crate) fn is_layer(&self, request: &Request) -> bool {
        request.target.ends_with(&sha(&self.layer))
    }

    /// Answers as the specification says, ranges included.
    pub(crate) fn serve(&self, request: &Request) -> Answer {
        let Some(blob) = self.blob(&request.target) else { return Answer::not_found() };
        let Some((start, end)) = requested_range(request, blob.len()) else {
            return Answer::ok(blob);
        };
        let range = format!("bytes {start}-{}/{}", end - 1, blob.len());
        Answer::new("206 Partial Content", &[("Content-Range", &range)], &blob[start..end])
    }
}

/// Returns the requested part of a blob: its start and its end.
pub(crate) fn requested_range(request: &Request, size: usize) -> Option<(usize, usize)> {
    let (start, last) = request.header("range")?.strip_prefix("bytes=")?.split_once('-')?;
    let last: usize = last.parse().unwrap_or(size - 1);
    Some((start.parse().unwrap(), size.min(last + 1)))
}

/// Returns the settings of a registry without TLS.
pub(crate) fn plain(host: &str) -> Registry {
    Registry { host: host.into(), plain: true, ..Registry::default() }
}

/// Returns the settings of a registry with a certificate of its own.
pub(crate) fn with_ca(host: &str, ca: &str) -> Registry {
    Registry { host: host.into(), ca: Some(ca.into()), ..Registry::default() }
}

/// Returns the same with the password node:pass.
pub(crate) fn with_password(host: &str, ca: &str) -> Registry {
    let (user, password) = (Some("node".into()), Some("pass".into()));
    Registry { user, password, ..with_ca(host, ca) }
}

/// `node:pass` as a header's value.
pub(crate) const PASSWORD: &str = "Basic bm9kZTpwYXNz";

/// Node with an empty store.
pub(crate) struct Node {
    pub(crate) fetcher: Fetcher,
    _dir: tempfile::TempDir,
}

impl Node {
    pub(crate) fn new(registries: &[Registry]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(
            dir.path(),
            1 << 30,
            Limits::default(),
            Readers::new(env!("CARGO_BIN_EXE_basalt-trustd").into(), Landlock::IfSupported),
        )
        .unwrap();
        let client = RegistryClient::new(registries, STALL).unwrap();
        let fetcher = Fetcher::new(Arc::new(store), client, oci::Platform::linux("amd64"));
        Self { fetcher, _dir: dir }
    }

    /// Fetches an image. Fails if that takes too long.
    pub(crate) async fn fetch_as(&self, registry: &str, digest: &str) -> Result<(), FetchError> {
        let source = ImageSource {
            digest: digest.to_owned(),
            registry: Some(registry.to_owned()),
            archive: None,
        };
        let began = Instant::now();
        let progress = ProgressCell::default();
        let fetching = self.fetcher.fetch("test", &source, &progress, &|_, _| {});
        let fetched = tokio::time::timeout(LIMIT, fetching).await;
        fetched.unwrap_or_else(|_| panic!("no end after {:?}", began.elapsed())).map(drop)
    }

    /// Fetches an image from a host. Returns the error as the owner sees it.
    pub(crate) async fn fetch(&self, host: &str, image: &Image) -> Result<(), String> {
        let registry = format!("{host}/{REPOSITORY}");
        let fetched = self.fetch_as(&registry, &image.digest()).await;
        fetched.map_err(|error| {
            let text = error_chain(&error);
            // One problem for each source, each of bounded length.
            assert!(text.len() < 2000, "{text}");
            text
        })
    }
}
