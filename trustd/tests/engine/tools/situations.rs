//! Images of situations that users of other projects reported, each in a form of its own.

use serde_json::json;

use super::image_parts::{
    DOCKER_LAYER, ImageParts, OCI_LAYER, OCI_MANIFEST, PackedLayer, descriptor, program_layer,
};
use super::tar_bytes::{DIRECTORY, HARD_LINK, Header, TarBytes};
use super::toolbox::{Outcome, Source, ToolImage};
use crate::images::{program, sha};

/// Returns an image of plain layers.
fn plain(layers: &[TarBytes]) -> ImageParts {
    let layers = layers.iter().map(|l| PackedLayer::plain(&l.finish(1024))).collect();
    ImageParts::oci(layers, "/stay")
}

fn uploaded(name: &str, parts: &ImageParts, outcome: Outcome) -> ToolImage {
    let image = parts.build();
    ToolImage::new(name, &image.digest(), Source::Archive(image.archive()), outcome)
}

/// Names of members in other forms than the plain one.
pub(super) fn names() -> Vec<ToolImage> {
    let (mut absolute, mut up) = (TarBytes::default(), program_layer("", "up"));
    absolute.directory("/", 0o755).file("/stay", 0o755, program());
    absolute.file("//word", 0o644, b"absolute").link("/hard", HARD_LINK, "/stay");
    up.file("/../etc/shadow", 0o600, b"root");
    let mut inside = program_layer("", "inside");
    inside.directory("a/", 0o755).file("a/../b", 0o644, b"");
    vec![
        uploaded("absolute", &plain(&[absolute]), Outcome::Runs),
        uploaded("up", &plain(&[up]), Outcome::Refused("..")),
        uploaded("inside", &plain(&[inside]), Outcome::Refused("..")),
    ]
}

/// A directory entry that carries two hidden headers as its data. Go's `archive/tar` reads no data
/// of a directory (`isHeaderOnlyType`) and sees them as members.
pub(super) fn hidden_members() -> ToolImage {
    let mut hidden = TarBytes::default();
    hidden.file("../../evil", 0o644, b"").member(&Header::new("dev/mem", b'3', 0o600), b"");
    let mut layer = program_layer("", "hidden");
    let header = Header { size: hidden.len(), ..Header::new("x/", DIRECTORY, 0o755) };
    layer.member(&header, hidden.bytes_mut());
    uploaded("hidden-members", &plain(&[layer]), Outcome::Refused("size"))
}

/// Frames of Zstandard whose header asks for a window of this many bytes (RFC 8878, section
/// 3.1.1.1.2).
pub(super) fn zstd_windows() -> Vec<ToolImage> {
    [(0x68, "8"), (0x70, "16"), (0x78, "32"), (0x88, "128")]
        .map(|(window, mib)| {
            let name = format!("window-{mib}-mib");
            let layer = program_layer("", &name).finish(1024);
            // A frame without size, dictionary or checksum, of raw blocks.
            let mut packed = vec![0x28, 0xb5, 0x2f, 0xfd, 0, window];
            let mut blocks = layer.chunks(128 << 10).peekable();
            while let Some(block) = blocks.next() {
                let last = u32::from(blocks.peek().is_none());
                let header = (u32::try_from(block.len()).unwrap() << 3) | last;
                packed.extend(&header.to_le_bytes()[..3]);
                packed.extend(block);
            }
            let media_type = format!("{OCI_LAYER}+zstd");
            let layer = PackedLayer { media_type, packed, diff_id: sha(&layer) };
            uploaded(&name, &ImageParts::oci(vec![layer], "/stay"), Outcome::Runs)
        })
        .into()
}

/// Docker's media type for a layer with Zstandard, which the engine cannot unpack.
pub(super) fn docker_zstd() -> ToolImage {
    let layer = program_layer("", "docker-zstd").finish(1024);
    let layer = PackedLayer {
        media_type: format!("{DOCKER_LAYER}.zstd"),
        packed: zstd::encode_all(layer.as_slice(), 3).unwrap(),
        diff_id: sha(&layer),
    };
    uploaded(
        "docker-zstd",
        &ImageParts::docker(vec![layer], "/stay"),
        Outcome::Refused("oci-mediatypes=true"),
    )
}

/// Keys that differ in case only: in maps of the user and in a structure.
pub(super) fn keys() -> Vec<ToolImage> {
    let image = |name: &str| plain(&[program_layer("", name)]);
    let mut labels = image("labels");
    labels.config["config"]["Labels"] = json!({ "Release": "1", "release": "2" });
    let mut annotations = image("annotations");
    annotations.manifest["annotations"] = json!({ "Release": "1", "release": "2" });
    let two = image("two-configs");
    let config = two.config.to_string().replacen('{', "{\"Config\":{\"Cmd\":[\"/evil\"]},", 1);
    let built = two.build_with(&config, |_, _| ());
    vec![
        uploaded("labels", &labels, Outcome::Runs),
        uploaded("annotations", &annotations, Outcome::Runs),
        ToolImage::new(
            "two-configs",
            &built.digest(),
            Source::Archive(built.archive()),
            Outcome::Refused("onfig"),
        ),
    ]
}

/// Indexes whose entries name no platform, a variant, or an attestation.
pub(super) fn indexes() -> Vec<ToolImage> {
    let image = |name: &str, entry: &dyn Fn(serde_json::Value) -> Vec<serde_json::Value>| {
        let mut built = plain(&[program_layer("", name)]).build();
        let entries = entry(descriptor(OCI_MANIFEST, &built.manifest));
        let digest = built.add_index(&entries);
        ToolImage::new(name, &digest, Source::Archive(built.archive()), Outcome::Runs)
    };
    let platform = |mut entry: serde_json::Value, platform: serde_json::Value| {
        entry["platform"] = platform;
        entry
    };
    vec![
        image("no-platform", &|entry| vec![entry]),
        image("variant", &|entry| {
            let other = platform(
                descriptor(OCI_MANIFEST, b"another"),
                json!({ "os": "linux", "architecture": "arm", "variant": "v7" }),
            );
            let amd64 = json!({ "os": "linux", "architecture": "amd64", "variant": "v1" });
            vec![other, platform(entry, amd64)]
        }),
        image("attestation-first", &|entry| {
            let attestation = platform(
                descriptor(OCI_MANIFEST, b"attestation"),
                json!({ "os": "unknown", "architecture": "unknown" }),
            );
            let amd64 = json!({ "os": "linux", "architecture": "amd64" });
            vec![attestation, platform(entry, amd64)]
        }),
    ]
}

/// A layout with other files, and one archived with `./` before each name.
pub(super) fn layouts() -> Vec<ToolImage> {
    let archive = |name: &str, prefix: &str, more: &[(&str, &[u8])]| {
        let image = plain(&[program_layer("", name)]).build();
        let mut tar = TarBytes::default();
        for folder in ["", "blobs/", "blobs/sha256/"] {
            if !(prefix.is_empty() && folder.is_empty()) {
                tar.directory(&format!("{prefix}{folder}"), 0o755);
            }
        }
        for (name, content) in image.layout() {
            tar.file(&format!("{prefix}{name}"), 0o644, &content);
        }
        for (name, content) in more {
            tar.file(&format!("{prefix}{name}"), 0o644, content);
        }
        ToolImage::uploaded(name, tar.finish(10240), Outcome::Runs)
    };
    vec![
        archive("dot-slash", "./", &[]),
        archive("foreign-files", "", &[("README.md", b"read me"), ("notes/a.txt", b"note")]),
    ]
}
