//! Small images in every form that image builders produce.

use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";

/// Static program that prints the content of the file `/word` and acts on it.
const PROGRAM: &str = r#"
fn main() {
    let word = std::fs::read_to_string("/word").unwrap_or_default();
    let word = word.trim();
    if std::env::args().any(|a| a == "check") {
        std::process::exit(if word.starts_with("sick") { 1 } else { 0 });
    }
    println!("{word}");
    if word.starts_with("ends") { std::process::exit(7); }
    if let Some(path) = std::env::args().nth(1) {
        let before = std::fs::read_to_string(&path).unwrap_or_default();
        std::fs::write(&path, format!("{before}{word}\n")).unwrap();
    }
    if word.starts_with("serves") {
        let listener = std::net::TcpListener::bind("0.0.0.0:80").unwrap();
        loop {
            if let Ok((mut stream, _)) = listener.accept() {
                let _ = std::io::Write::write_all(&mut stream, word.as_bytes());
            }
        }
    }
    if let Some(peer) = word.strip_prefix("asks ") {
        for _ in 0..600 {
            if let Ok(mut stream) = std::net::TcpStream::connect((peer, 80)) {
                let mut answer = String::new();
                let _ = std::io::Read::read_to_string(&mut stream, &mut answer);
                println!("{peer} answered: {answer}");
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
    }
    loop { std::thread::park() }
}
"#;

pub(crate) fn program() -> &'static [u8] {
    static BUILT: OnceLock<Vec<u8>> = OnceLock::new();
    BUILT.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("stay.rs");
        std::fs::write(&source, PROGRAM).unwrap();
        let output = dir.path().join("stay");
        let status = Command::new("rustc")
            .args(["-O", "-Cstrip=symbols", "-Ctarget-feature=+crt-static", "-o"])
            .arg(&output)
            .arg(&source)
            .status();
        assert!(status.unwrap().success());
        std::fs::read(output).unwrap()
    })
}

pub(crate) fn sha(data: &[u8]) -> String {
    format!("sha256:{}", measure::hex(&Sha256::digest(data)))
}

fn descriptor(media_type: &str, blob: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": sha(blob), "size": blob.len() })
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

/// Image as blobs.
#[derive(Debug, Clone)]
pub(crate) struct TestImage {
    /// Layers, config and manifest.
    pub(crate) blobs: Vec<Vec<u8>>,
    /// Digest of the manifest.
    pub(crate) digest: String,
    /// Digests of the packed layers.
    pub(crate) layers: Vec<String>,
    pub(crate) manifest: Vec<u8>,
}

/// Returns an image of one layer whose program acts on `word`.
pub(crate) fn image(word: &str) -> TestImage {
    image_with_layers(word, &[Compression::Gzip], 0)
}

/// Returns an image with one layer for each compression. Each layer has `padding` random bytes.
pub(crate) fn image_with_layers(
    word: &str,
    compressions: &[Compression],
    padding: usize,
) -> TestImage {
    let mut blobs = Vec::new();
    let (mut layers, mut diff_ids, mut listed) = (Vec::new(), Vec::new(), Vec::new());
    for (n, compression) in compressions.iter().enumerate() {
        let mut tar = tar::Builder::new(Vec::new());
        let mut file = |name: &str, mode: u32, data: &[u8]| {
            let mut header = tar::Header::new_ustar();
            header.set_size(data.len() as u64);
            header.set_mode(mode);
            header.set_mtime(0);
            tar.append_data(&mut header, name, data).unwrap();
        };
        if n == 0 {
            file("stay", 0o755, program());
            file("word", 0o644, word.as_bytes());
            file("run/basalt/.keep", 0o644, b"");
            file("var/lib/app/.keep", 0o644, b"");
        }
        file(&format!("layer{n}"), 0o644, &random_bytes(n as u64, padding));
        let layer = tar.into_inner().unwrap();
        let (kind, bytes) = match compression {
            Compression::None => ("application/vnd.oci.image.layer.v1.tar", layer.clone()),
            Compression::Gzip => {
                let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                gz.write_all(&layer).unwrap();
                ("application/vnd.oci.image.layer.v1.tar+gzip", gz.finish().unwrap())
            }
            Compression::Zstd => (
                "application/vnd.oci.image.layer.v1.tar+zstd",
                zstd::encode_all(layer.as_slice(), 3).unwrap(),
            ),
        };
        listed.push(descriptor(kind, &bytes));
        diff_ids.push(sha(&layer));
        layers.push(sha(&bytes));
        blobs.push(bytes);
    }
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": { "Entrypoint": ["/stay"], "User": "65532:65532" },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    })
    .to_string()
    .into_bytes();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": listed,
    })
    .to_string()
    .into_bytes();
    blobs.extend([config, manifest.clone()]);
    TestImage { digest: sha(&manifest), blobs, layers, manifest }
}

/// Returns an index that lists the image for amd64, and another image for arm64.
pub(crate) fn index(image: &TestImage) -> Vec<u8> {
    let entry = |architecture: &str, digest: &str, size: usize| {
        json!({
            "mediaType": MANIFEST_TYPE,
            "digest": digest,
            "size": size,
            "platform": { "os": "linux", "architecture": architecture },
        })
    };
    let manifests = [
        entry("arm64", &sha(b"elsewhere"), 9),
        entry("amd64", &image.digest, image.manifest.len()),
    ];
    json!({
        "schemaVersion": 2,
        "mediaType": INDEX_TYPE,
        "manifests": manifests,
    })
    .to_string()
    .into_bytes()
}

/// Returns bytes that no compression makes smaller.
pub(crate) fn random_bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

impl TestImage {
    /// Returns the blobs as a tar archive.
    pub(crate) fn archive(&self) -> Vec<u8> {
        archive_of(&self.blobs)
    }

    /// Returns an archive with a name, in the form of `docker save`.
    pub(crate) fn archive_with_name(&self, name: &str) -> Vec<u8> {
        let mut entry = descriptor(MANIFEST_TYPE, &self.manifest);
        entry["annotations"] =
            json!({ "io.containerd.image.name": format!("docker.io/library/{name}") });
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [entry] })
            .to_string();
        let mut tar = tar::Builder::new(Vec::new());
        let blobs =
            self.blobs.iter().map(|b| (sha(b).replace("sha256:", "blobs/sha256/"), b.as_slice()));
        let layout = [
            ("oci-layout".to_owned(), &br#"{"imageLayoutVersion":"1.0.0"}"#[..]),
            ("index.json".to_owned(), index.as_bytes()),
        ];
        for (name, data) in layout.into_iter().chain(blobs) {
            let mut header = tar::Header::new_ustar();
            header.set_size(data.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, name, data).unwrap();
        }
        tar.into_inner().unwrap()
    }

    /// Writes the image to the storage of a registry.
    pub(crate) fn publish(&self, storage: &Path, repository: &str) {
        publish(storage, repository, &self.blobs, &[&self.manifest]);
    }
}

pub(crate) fn archive_of(blobs: &[Vec<u8>]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for blob in blobs {
        let mut header = tar::Header::new_ustar();
        header.set_size(blob.len() as u64);
        header.set_mode(0o644);
        tar.append_data(
            &mut header,
            sha(blob).replace("sha256:", "blobs/sha256/"),
            blob.as_slice(),
        )
        .unwrap();
    }
    tar.into_inner().unwrap()
}

/// Writes blobs and manifests to the storage of a registry (distribution 2.8, "filesystem").
pub(crate) fn publish(storage: &Path, repository: &str, blobs: &[Vec<u8>], manifests: &[&[u8]]) {
    let root = storage.join("docker/registry/v2");
    let write = |path: std::path::PathBuf, data: &[u8]| {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, data).unwrap();
    };
    let repository = root.join("repositories").join(repository);
    for blob in blobs.iter().map(Vec::as_slice).chain(manifests.iter().copied()) {
        let digest = sha(blob);
        let hex = &digest[7..];
        write(root.join("blobs/sha256").join(&hex[..2]).join(hex).join("data"), blob);
        write(repository.join("_layers/sha256").join(hex).join("link"), digest.as_bytes());
        if manifests.contains(&blob) {
            write(
                repository.join("_manifests/revisions/sha256").join(hex).join("link"),
                digest.as_bytes(),
            );
        }
    }
}

/// Publishes an artifact: one file with a tag (OCI image-spec 1.1, "Guidelines for Artifact
/// Usage").
pub(crate) fn publish_artifact(storage: &Path, repository: &str, tag: &str, file: &[u8]) {
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": descriptor("application/vnd.oci.empty.v1+json", b"{}"),
        "layers": [descriptor("application/octet-stream", file)],
    })
    .to_string();
    publish(storage, repository, &[file.to_vec(), b"{}".to_vec()], &[manifest.as_bytes()]);
    let link = storage
        .join("docker/registry/v2/repositories")
        .join(repository)
        .join("_manifests/tags")
        .join(tag)
        .join("current/link");
    std::fs::create_dir_all(link.parent().unwrap()).unwrap();
    std::fs::write(link, sha(manifest.as_bytes())).unwrap();
}
