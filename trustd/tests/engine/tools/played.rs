//! Images in the forms of tools that no package registry has, written from those tools' sources.
//!
//! Each function names the file that defines the form. Where the tool itself calls a program that
//! Debian has (GNU tar, bsdtar, Skopeo), that program is run.

use std::io::Write as _;

use serde_json::json;

use super::image_parts::{
    DOCKER_LAYER, ImageParts, OCI_LAYER, OCI_MANIFEST, PackedLayer, program_layer,
};
use super::tar_bytes::{DIRECTORY, FILE, HARD_LINK, Header, SYMLINK, TarBytes};
use super::toolbox::{Outcome, Source, ToolBox, ToolImage, text};
use crate::images::{program, publish, sha};

/// Part of the answer to an archive that has no manifest.
const NO_MANIFEST: &str = "skopeo copy docker-archive:";
/// Bytes of a record of an archive of GNU tar, Python and Commons Compress.
const RECORD: usize = 10240;

/// kaniko writes the root folder as `/`, members relative to it and hard links with absolute
/// targets; a deleted file is a member without a mode (`pkg/util/tar_util.go`). From an empty base
/// the image has Docker's types (`empty.Image` of go-containerregistry).
pub(super) fn kaniko(tools: &ToolBox) -> Vec<ToolImage> {
    let name = "kaniko";
    let mut layer = TarBytes::default();
    layer.directory("/", 0o755).directory("app/", 0o755);
    layer.file("app/stay", 0o755, program()).file("app/gone", 0o644, b"");
    layer.link("app/hard", HARD_LINK, "/app/stay").file("word", 0o644, name.as_bytes());
    let mut second = TarBytes::default();
    second.directory("/", 0o755).directory("app/", 0o755).file("app/.wh.gone", 0, b"");
    let kind = format!("{DOCKER_LAYER}.gzip");
    let layers = [&layer, &second].map(|l| PackedLayer::gzip(&kind, &l.finish(1024))).to_vec();
    let image = ImageParts::docker(layers, "/app/hard").build();
    publish(&tools.registry.storage, name, &image.blobs, &[&image.manifest]);
    let repository = Source::Repository(name.to_owned());
    let image = ToolImage::new(name, &image.digest(), repository, Outcome::Runs);
    vec![image]
}

/// Jib sorts its members, adds all parent folders, writes the type of the file into the mode as
/// Commons Compress does, uses pax headers for long names, and pads to a record
/// (`ReproducibleLayerBuilder.java`, `TarStreamBuilder.java`). `ImageTarball.java` has both forms
/// of an archive.
pub(super) fn jib(tools: &ToolBox) -> Vec<ToolImage> {
    const EPOCH_PLUS_SECOND: u64 = 1;
    let (file_type, folder_type) = (0o100_000, 0o040_000);
    let member = |tar: &mut TarBytes, name: &str, kind, mode, data: &[u8]| {
        let header = Header { mtime: EPOCH_PLUS_SECOND, ..Header::new(name, kind, mode) };
        tar.member(&header, data);
    };
    let layers = |word: &str| {
        let (mut classes, mut extra) = (TarBytes::default(), TarBytes::default());
        let long = format!("app/classes/{}.class", "Long".repeat(40));
        for folder in ["app/", "app/classes/"] {
            member(&mut classes, folder, DIRECTORY, folder_type | 0o755, b"");
        }
        classes.attributes(&[("path", &long)]);
        member(&mut classes, &long[..100], FILE, file_type | 0o644, b"class");
        member(&mut extra, "stay", FILE, file_type | 0o755, program());
        member(&mut extra, "word", FILE, file_type | 0o644, word.as_bytes());
        [classes, extra].map(|l| l.finish(RECORD))
    };
    let pack = |word, kind: &str| layers(word).map(|l| PackedLayer::gzip(kind, &l)).to_vec();

    // Pushed: Docker's types are the default.
    let name = "jib-docker";
    let image = ImageParts::docker(pack(name, &format!("{DOCKER_LAYER}.gzip")), "/stay").build();
    publish(&tools.registry.storage, name, &image.blobs, &[&image.manifest]);
    let pushed =
        ToolImage::new(name, &image.digest(), Source::Repository(name.to_owned()), Outcome::Runs);

    // `jib build --target=tar` with the format OCI.
    let name = "jib-oci-tar";
    let image = ImageParts::oci(pack(name, &format!("{OCI_LAYER}+gzip")), "/stay").build();
    let mut index = image.descriptor.clone();
    index["annotations"] = json!({ "org.opencontainers.image.ref.name": "app:latest" });
    let mut tar = TarBytes::default();
    for blob in &image.blobs {
        tar.file(&sha(blob).replace("sha256:", "blobs/sha256/"), file_type | 0o644, blob);
    }
    tar.file("oci-layout", file_type | 0o644, br#"{"imageLayoutVersion": "1.0.0"}"#);
    let index = json!({ "schemaVersion": 2, "manifests": [index] }).to_string();
    tar.file("index.json", file_type | 0o644, index.as_bytes());
    let oci = ToolImage::uploaded(name, tar.finish(RECORD), Outcome::Runs);

    // The same with Docker's format.
    let name = "jib-docker-tar";
    let layers = pack(name, "");
    let files: Vec<String> =
        layers.iter().map(|l| format!("{}.tar.gz", &sha(&l.packed)[7..])).collect();
    let config = ImageParts::docker(layers.clone(), "/stay").config.to_string();
    let mut tar = TarBytes::default();
    for (file, layer) in files.iter().zip(&layers) {
        tar.file(file, file_type | 0o644, &layer.packed);
    }
    tar.file("config.json", file_type | 0o644, config.as_bytes());
    let list = json!([{ "config": "config.json", "repoTags": ["app:latest"], "layers": files }]);
    tar.file("manifest.json", file_type | 0o644, list.to_string().as_bytes());
    let docker = ToolImage::uploaded(name, tar.finish(RECORD), Outcome::Refused(NO_MANIFEST));
    vec![pushed, oci, docker]
}

/// ko writes its data below `/var/run/ko` and its program with absolute names, except for the
/// program's folder, whose name is relative (`tarBinary` and `tarKoData` in
/// `pkg/build/gobuild.go`). `--oci-layout-path` writes a folder whose index names no platform
/// (`pkg/publish/layout.go`).
pub(super) fn ko(tools: &ToolBox) -> Vec<ToolImage> {
    let name = "ko";
    let (mut data, mut binary, mut base) =
        (TarBytes::default(), TarBytes::default(), TarBytes::default());
    base.file("word", 0o644, name.as_bytes());
    for folder in ["/var", "/var/run", "/var/run/ko"] {
        data.directory(folder, 0o555);
    }
    data.file("/var/run/ko/HEAD", 0o555, b"ref");
    binary.directory("ko-app", 0o555).file("/ko-app/app", 0o555, program());
    let layers = [&base, &data, &binary]
        .map(|l| PackedLayer::gzip(&format!("{OCI_LAYER}+gzip"), &l.finish(1024)))
        .to_vec();
    let mut parts = ImageParts::oci(layers, "/ko-app/app");
    parts.config["author"] = json!("github.com/ko-build/ko");
    parts.config["config"]["Env"] = json!(["PATH=/ko-app", "KO_DATA_PATH=/var/run/ko"]);
    parts.manifest["annotations"] = json!({ "org.opencontainers.image.base.name": "base" });
    let image = parts.build();
    write_layout(tools, "ko-layout", &image.layout());
    vec![ToolImage::uploaded(name, tools.tar_folder("ko-layout"), Outcome::Runs)]
}

/// Writes a layout as a folder.
fn write_layout(tools: &ToolBox, folder: &str, files: &[(String, Vec<u8>)]) {
    for (name, content) in files {
        let path = tools.path(folder).join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
}

/// rules_oci takes layers from the rule `tar`, which runs bsdtar with a specification in the format
/// mtree, and writes documents with jq and regctl: the manifest and its descriptor have neither a
/// platform nor annotations (`oci/private/image.sh`). `oci_load` archives the layout with bsdtar
/// or, as `tarball.sh.tpl` does, in Docker's old form.
pub(super) fn rules_oci(tools: &ToolBox) -> Vec<ToolImage> {
    let name = "rules-oci";
    let context = tools.context(name);
    let mtree = |file: &str, lines: &str| {
        std::fs::write(tools.path("spec.mtree"), format!("#mtree\n{lines}")).unwrap();
        let spec = format!("@{}", text(&tools.path("spec.mtree")));
        tools.tool("bsdtar", &["--create", "--file", file, &spec]);
        tools.read(file)
    };
    let entry = |name: &str, mode: &str, content: &str| {
        format!("{name} uid=0 gid=0 time=1672560000 mode={mode} type=file content={content}\n")
    };
    let source = |file: &str| text(&context.join(file)).to_owned();
    let layer = mtree(
        "layer.tar",
        &(entry("stay", "0755", &source("stay"))
            + &entry("word", "0644", &source("word"))
            + "app uid=0 gid=0 time=1672560000 mode=0755 type=dir\n"
            + "app/link uid=0 gid=0 time=1672560000 mode=0777 type=link link=/stay\n"
            + &entry(&format!("app/{}", "n".repeat(150)), "0644", &source("word"))),
    );
    let layers = vec![PackedLayer::gzip(&format!("{OCI_LAYER}+gzip"), &layer)];
    let image = ImageParts::oci(layers, "/app/link").build();
    let files = image.layout();
    write_layout(tools, "rules-oci-layout", &files);
    let folder = tools.path("rules-oci-layout");
    let lines: String = files
        .iter()
        .map(|(name, _)| entry(&format!("./{name}"), "0755", text(&folder.join(name))))
        .collect();
    let loaded = ToolImage::uploaded(name, mtree("image.tar", &lines), Outcome::Runs);

    let blobs = &image.blobs;
    let (layer, config) = (sha(&blobs[0]).replace(':', "/"), sha(&blobs[1]).replace(':', "/"));
    let list = json!([{
        "Config": format!("blobs/{config}"),
        "RepoTags": ["app:latest"],
        "Layers": [format!("blobs/{layer}.tar.gz")],
    }]);
    write_layout(
        tools,
        "rules-oci-tarball",
        &[
            ("manifest.json".to_owned(), list.to_string().into_bytes()),
            (format!("blobs/{layer}.tar.gz"), blobs[0].clone()),
            (format!("blobs/{config}"), blobs[1].clone()),
        ],
    );
    let (from, to) = (tools.path("rules-oci-tarball"), tools.path("tarball.tar"));
    tools.tar(&["-C", text(&from), "-cf", text(&to), "manifest.json", "blobs"]);
    let tarball = ToolImage::uploaded(
        "rules-oci-tarball",
        tools.read("tarball.tar"),
        Outcome::Refused(NO_MANIFEST),
    );
    vec![loaded, tarball]
}

/// dockerTools writes archives in Docker's old form. `buildImage` makes its layer with GNU tar from
/// `.` and packs the archive with gzip (`pkgs/build-support/docker/default.nix`);
/// `streamLayeredImage` writes absolute names with Python's tarfile (`stream_layered_image.py`).
/// Neither has a manifest; Skopeo, which dockerTools uses for pushing, makes one.
pub(super) fn docker_tools(tools: &ToolBox) -> Vec<ToolImage> {
    let mut made = Vec::new();
    // `buildImage`: one layer of GNU tar.
    let word = "nix-build-image";
    let (context, layer) = (tools.context(word), tools.path("nix-layer.tar"));
    tools.tar(&[
        "-C",
        text(&context),
        "--hard-dereference",
        "--sort=name",
        "--mtime=@1",
        "--owner=0",
        "--group=0",
        "-cf",
        text(&layer),
        ".",
    ]);
    made.extend(docker_archive(tools, word, &[tools.read("nix-layer.tar")], "/stay", true));
    // `streamLayeredImage`: a layer for each path of the store and one for the rest.
    let word = "nix-layered";
    let path = "/nix/store/0c3gz4i2qv0yxh4v1sc7vj7c5n1qh1ph-app";
    let mut store = TarBytes::default();
    for folder in ["/nix", "/nix/store", path, &format!("{path}/bin")] {
        store.directory(folder, 0o755);
    }
    store.file(&format!("{path}/bin/stay"), 0o555, program());
    store.link(&format!("{path}/bin/alias"), SYMLINK, "stay");
    let mut rest = TarBytes::default();
    rest.directory("./", 0o755).file("./word", 0o444, word.as_bytes());
    rest.link("./bin", SYMLINK, &format!("{path}/bin"));
    let layers = [store.finish(RECORD), rest.finish(RECORD)];
    made.extend(docker_archive(tools, word, &layers, "/bin/alias", false));
    made
}

/// Returns an archive of dockerTools, which is refused, and what Skopeo makes of it.
fn docker_archive(
    tools: &ToolBox,
    word: &str,
    layers: &[Vec<u8>],
    entrypoint: &str,
    gzip: bool,
) -> [ToolImage; 2] {
    let packed: Vec<PackedLayer> = layers.iter().map(|l| PackedLayer::plain(l)).collect();
    let config = ImageParts::oci(packed, entrypoint).config.to_string();
    let config_name = format!("{}.json", &sha(config.as_bytes())[7..]);
    let mut tar = TarBytes::default();
    let names: Vec<String> = layers.iter().map(|l| format!("{}/layer.tar", &sha(l)[7..])).collect();
    for (name, layer) in names.iter().zip(layers) {
        tar.file(name, 0o644, layer);
    }
    tar.file(&config_name, 0o644, config.as_bytes());
    let list = json!([{ "Config": config_name, "RepoTags": ["app:x"], "Layers": names }]);
    tar.file("manifest.json", 0o644, list.to_string().as_bytes());
    let mut archive = tar.finish(RECORD);
    let file = format!("{word}.tar");
    std::fs::write(tools.path(&file), &archive).unwrap();
    let to = format!("{word}-oci.tar");
    tools.tool(
        "skopeo",
        &[
            "--tmpdir",
            text(&tools.path("")),
            "copy",
            &format!("docker-archive:{file}"),
            &format!("oci-archive:{to}"),
        ],
    );
    if gzip {
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(&archive).unwrap();
        archive = gz.finish().unwrap();
    }
    let digest = sha(word.as_bytes());
    let refused = Outcome::Refused(NO_MANIFEST);
    [
        ToolImage::new(&format!("{word}-docker"), &digest, Source::Archive(archive), refused),
        ToolImage::uploaded(word, tools.read(&to), Outcome::Runs),
    ]
}

/// The official `debian` images carry their config in the descriptor's `data`
/// (debuerreotype/docker-debian-artifacts, `oci/blobs/image-manifest.json`).
pub(super) fn debuerreotype() -> Vec<ToolImage> {
    use base64::Engine as _;
    let encode = |data: &[u8]| base64::engine::general_purpose::STANDARD.encode(data);
    let image = |name: &str, outcome, data: &dyn Fn(&[u8]) -> String| {
        let layer = program_layer("", name).finish(RECORD);
        let parts =
            ImageParts::oci(vec![PackedLayer::gzip(&format!("{OCI_LAYER}+gzip"), &layer)], "/stay");
        let image = parts.build_with(&parts.config.to_string(), |manifest, config| {
            manifest["config"]["data"] = json!(data(config));
        });
        assert_eq!(image.descriptor["mediaType"], OCI_MANIFEST);
        ToolImage::new(name, &image.digest(), Source::Archive(image.archive()), outcome)
    };
    vec![
        image("embedded-config", Outcome::Runs, &|config| encode(config)),
        image("embedded-lie", Outcome::Refused("data"), &|_| encode(b"{}")),
    ]
}
