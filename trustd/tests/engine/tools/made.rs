//! Images of the tools that a package registry has.
//!
//! Docker, BuildKit, Buildah, Podman, Skopeo, umoci, crane and ORAS are packages of Debian.

use super::toolbox::{Outcome, Source, ToolBox, ToolImage, text};

/// Part of the answer to an archive in the form of `docker save` before version 25, which has no
/// manifest that could be approved.
const NO_MANIFEST: &str = "skopeo copy docker-archive:";
/// Part of the answer to Docker's media type for a layer with Zstandard.
const DOCKER_ZSTD: &str = "oci-mediatypes=true";
/// Levels of Zstandard from the lowest to the highest, of which BuildKit's encoder knows four.
const ZSTD_LEVELS: [u32; 6] = [1, 3, 7, 10, 19, 22];
/// Layers of the image with many: more than Docker's storage drivers allow.
const MANY_LAYERS: usize = 130;

/// Returns an image that a tool pushed to a repository of its own.
fn pushed(tools: &ToolBox, name: &str) -> ToolImage {
    let source = Source::Repository(name.to_owned());
    ToolImage::new(name, &tools.pushed_digest(name), source, Outcome::Runs)
}

/// BuildKit, as a part of the engine and driven by Buildx.
pub(super) fn buildkit(tools: &ToolBox) -> Vec<ToolImage> {
    let build = |name: &str, options: &[&str], output: &str| {
        let (context, file) = (tools.context(name), format!("{name}.tar"));
        let output = format!("{output},dest={file}");
        let mut args = vec!["build", "--output", &output];
        args.extend(options);
        args.push(text(&context));
        tools.buildx(&args);
        tools.path(&file)
    };
    let archive = |name: &str, options: &[&str], output: &str, outcome| {
        let file = build(name, options, output);
        ToolImage::uploaded(name, std::fs::read(file).unwrap(), outcome)
    };
    let plain = &["--provenance=false"];
    let mut made = vec![
        archive("buildkit-oci", plain, "type=oci", Outcome::Runs),
        archive("buildkit-attested", &["--provenance=mode=max"], "type=oci", Outcome::Runs),
        archive("buildkit-docker", plain, "type=docker", Outcome::Runs),
        archive("buildkit-estargz", plain, "type=oci,compression=estargz", Outcome::Runs),
        archive("buildkit-plain", plain, "type=oci,compression=uncompressed", Outcome::Runs),
        archive(
            "buildkit-docker-zstd",
            plain,
            "type=docker,oci-mediatypes=false,compression=zstd,force-compression=true",
            Outcome::Refused(DOCKER_ZSTD),
        ),
    ];
    made.extend(ZSTD_LEVELS.map(|level| {
        let (name, kind) = (format!("buildkit-zstd-{level}"), "type=oci,compression=zstd");
        let output = format!("{kind},compression-level={level},force-compression=true");
        let image = archive(&name, plain, &output, Outcome::Runs);
        assert!(contains(&tools.read(&format!("{name}.tar")), "layer.v1.tar+zstd"));
        image
    }));
    assert!(contains(&tools.read("buildkit-attested.tar"), "attestation-manifest"));
    let name = "buildkit-folder";
    let folder = build(name, plain, "type=oci,tar=false");
    made.push(ToolImage::uploaded(name, tools.tar_folder(text(&folder)), Outcome::Runs));
    let name = "buildkit-pushed";
    let output =
        format!("type=image,name={},push=true,registry.insecure=true", tools.reference(name));
    tools.buildx(&["build", "--output", &output, text(&tools.context(name))]);
    made.push(pushed(tools, name));
    made.push(many_layers(tools));
    made
}

/// Returns whether bytes contain a text.
fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

/// An image of BuildKit with a layer for each of many instructions.
fn many_layers(tools: &ToolBox) -> ToolImage {
    let name = "buildkit-many-layers";
    let context = tools.context(name);
    let mut dockerfile = std::fs::read_to_string(context.join("Dockerfile")).unwrap();
    for n in 2..MANY_LAYERS {
        dockerfile += &format!("COPY word /layers/{n}\n");
    }
    std::fs::write(context.join("Dockerfile"), dockerfile).unwrap();
    let output = format!("type=oci,dest={name}.tar");
    tools.buildx(&["build", "--provenance=false", "--output", &output, text(&context)]);
    let archive = tools.read(&format!("{name}.tar"));
    let members = tar::Archive::new(&*archive).entries().unwrap().count();
    assert!(members > MANY_LAYERS, "{members} members are too few for {MANY_LAYERS} layers");
    ToolImage::uploaded(name, archive, Outcome::Runs)
}

/// The engine's own builder and `docker save`, with both kinds of storage.
pub(super) fn docker(tools: &ToolBox) -> Vec<ToolImage> {
    let save = |name: &str, graph: bool, classic: bool| {
        let (context, file) = (tools.context(name), tools.path(name));
        if classic {
            tools.docker(graph, &["build", "--tag", name, text(&context)]);
        } else {
            tools.buildx(&["build", "--load", "--tag", name, text(&context)]);
        }
        tools.docker(graph, &["save", "--output", text(&file), name]);
        ToolImage::uploaded(name, std::fs::read(file).unwrap(), Outcome::Runs)
    };
    vec![
        save("docker-classic", false, true),
        save("docker-buildkit", false, false),
        save("docker-graph", true, true),
    ]
}

/// Buildah, Podman and Skopeo, which share their library.
pub(super) fn containers(tools: &ToolBox) -> Vec<ToolImage> {
    let archive = |name: &str, outcome| {
        ToolImage::uploaded(name, tools.read(&format!("{name}.tar")), outcome)
    };
    let insecure = "--tls-verify=false";
    let mut made = Vec::new();

    let (name, word) = ("localhost/buildah", "buildah");
    let context = tools.context(word);
    let build = ["bud", "--isolation", "chroot", "--tag"];
    tools.tool("buildah", &[&build[..], &[name, text(&context)]].concat());
    tools.tool("buildah", &["push", name, "oci-archive:buildah.tar"]);
    made.push(archive(word, Outcome::Runs));
    tools.tool("buildah", &["push", name, "docker-archive:buildah-docker.tar"]);
    made.push(archive("buildah-docker", Outcome::Refused(NO_MANIFEST)));

    let (name, word) = ("localhost/buildah-format", "buildah-pushed");
    let context = tools.context(word);
    tools.tool("buildah", &[&build[..], &[name, "--format", "docker", text(&context)]].concat());
    let target = format!("docker://{}", tools.reference(word));
    tools.tool("buildah", &["push", insecure, name, &target]);
    made.push(pushed(tools, word));

    let (name, word) = ("localhost/podman", "podman");
    let context = tools.context(word);
    tools.tool("podman", &["build", "--isolation", "chroot", "--tag", name, text(&context)]);
    tools.tool("podman", &["save", "--format", "oci-archive", "--output", "podman.tar", name]);
    made.push(archive(word, Outcome::Runs));
    made.extend(podman_pushed(tools, name, insecure));
    made.extend(skopeo(tools));
    made
}

/// Podman's image, pushed in two forms. All have the same word.
fn podman_pushed(tools: &ToolBox, name: &str, insecure: &str) -> Vec<ToolImage> {
    ["zstd", "zstd:chunked"]
        .map(|compression| {
            let word = format!("podman-{}", compression.replace(':', "-"));
            let target = format!("docker://{}", tools.reference(&word));
            tools.tool(
                "podman",
                &["push", insecure, "--compression-format", compression, name, &target],
            );
            pushed(tools, &word).says("podman")
        })
        .into()
}

/// Skopeo converts images.
fn skopeo(tools: &ToolBox) -> Vec<ToolImage> {
    let tmpdir = text(&tools.path("")).to_owned();
    let copy = |args: &[&str]| {
        tools.tool("skopeo", &[&["--tmpdir", &tmpdir, "copy"][..], args].concat());
    };
    let convert = |name: &str, options: &[&str], from: &str| {
        let to = format!("oci-archive:{name}.tar");
        copy(&[options, &[from, &to]].concat());
        let archive = tools.read(&format!("{name}.tar"));
        ToolImage::uploaded(name, archive, Outcome::Runs).says("buildah")
    };
    let zstd = ["--dest-compress-format", "zstd", "--dest-compress-level", "20"];
    let chunked = ["--dest-compress-format", "zstd:chunked"];
    let made = vec![
        // As the answer to Docker's old form advises.
        convert("skopeo-converted", &[], "docker-archive:buildah-docker.tar"),
        convert("skopeo-zstd", &zstd, "oci-archive:buildah.tar"),
        convert("skopeo-chunked", &chunked, "oci-archive:buildah.tar"),
    ];
    let name = "skopeo-pushed";
    let target = format!("docker://{}", tools.reference(name));
    let options = ["--format", "v2s2", "--dest-tls-verify=false"];
    copy(&[&options[..], &["oci-archive:buildah.tar", &target]].concat());
    [made, vec![pushed(tools, name).says("buildah")]].concat()
}

/// umoci unpacks, repacks and inserts; its result is a folder.
pub(super) fn umoci(tools: &ToolBox) -> Vec<ToolImage> {
    let name = "umoci";
    let context = tools.context(name);
    let image = ["--image", "umoci-layout:latest"];
    let umoci = |words: &[&str]| {
        tools.tool("umoci", words);
    };
    umoci(&["init", "--layout", "umoci-layout"]);
    umoci(&[&["new"], &image[..]].concat());
    umoci(&[&["unpack"], &image[..], &["bundle"]].concat());
    for file in ["stay", "word"] {
        std::fs::copy(context.join(file), tools.path("bundle/rootfs").join(file)).unwrap();
    }
    umoci(&[&["repack"], &image[..], &["bundle"]].concat());
    umoci(&[&["insert"], &image[..], &[text(&context.join("data")), "/data"]].concat());
    // A whiteout.
    umoci(&[&["insert", "--whiteout"], &image[..], &["/data/empty"]].concat());
    let config = ["--config.entrypoint", "/stay", "--config.user", "65532:65532"];
    umoci(&[&["config"], &image[..], &config[..]].concat());
    vec![ToolImage::uploaded(name, tools.tar_folder("umoci-layout"), Outcome::Runs)]
}

/// crane appends a layer of GNU tar in the registry.
pub(super) fn crane(tools: &ToolBox) -> Vec<ToolImage> {
    let mut made = Vec::new();
    for (name, options) in [("crane-oci", &["--oci-empty-base"][..]), ("crane-docker", &[])] {
        let context = tools.context(name);
        tools.tar(&["-C", text(&context), "-cf", text(&tools.path("crane-layer.tar")), "."]);
        let target = tools.reference(name);
        let layer = tools.path("crane-layer.tar");
        let append = ["append", "--new_layer", text(&layer), "--new_tag", &target];
        tools.crane(&[&append[..], options].concat());
        tools.crane(&[
            "mutate",
            "--entrypoint",
            "/stay",
            "--set-platform",
            "linux/amd64",
            &target,
            "--tag",
            &target,
        ]);
        made.push(pushed(tools, name));
        tools.crane(&["pull", "--format", "oci", &target, &format!("{name}-layout")]);
        let folder = tools.tar_folder(&format!("{name}-layout"));
        let folder = ToolImage::uploaded(name, folder, Outcome::Runs);
        made.push(folder.named(&format!("{name}-folder")));
        let file = tools.path(&format!("{name}.tar"));
        tools.crane(&["pull", "--format", "tarball", &target, text(&file)]);
        made.push(ToolImage::uploaded(
            &format!("{name}-tarball"),
            std::fs::read(file).unwrap(),
            Outcome::Refused(NO_MANIFEST),
        ));
    }
    made
}

/// ORAS pushes a layer and a config as files, and copies them to a layout with a folder of its own.
pub(super) fn oras(tools: &ToolBox) -> Vec<ToolImage> {
    use crate::tools::image_parts::{ImageParts, OCI_CONFIG, OCI_LAYER, PackedLayer};
    let name = "oras";
    let context = tools.context(name);
    tools.tar(&["-C", text(&context), "-cf", text(&tools.path("oras-layer.tar")), "."]);
    let layer = PackedLayer::gzip(&format!("{OCI_LAYER}+gzip"), &tools.read("oras-layer.tar"));
    std::fs::write(tools.path("oras-layer.tar.gz"), &layer.packed).unwrap();
    let config = ImageParts::oci(vec![layer], "/stay").config;
    std::fs::write(tools.path("oras-config.json"), config.to_string()).unwrap();
    let reference = format!("{}:latest", tools.reference(name));
    let config = format!("oras-config.json:{OCI_CONFIG}");
    let file = format!("oras-layer.tar.gz:{OCI_LAYER}+gzip");
    tools.tool("oras", &["push", "--plain-http", "--config", &config, &reference, &file]);
    let image = pushed(tools, name);
    tools.tool(
        "oras",
        &["copy", "--from-plain-http", "--to-oci-layout", &reference, "oras-layout:latest"],
    );
    let folder = ToolImage::uploaded(name, tools.tar_folder("oras-layout"), Outcome::Runs);
    // Without a config it is an artifact and no image.
    let name = "oras-artifact";
    let reference = format!("{}:latest", tools.reference(name));
    tools.tool("oras", &["push", "--plain-http", &reference, "oras-layer.tar.gz"]);
    let mut artifact = pushed(tools, name);
    artifact.outcome = Outcome::Refused("application/vnd.oci.empty.v1+json");
    vec![image, folder.named("oras-folder"), artifact]
}

/// Python's tarfile writes layer and archive. With the format pax, it adds a header with a time to
/// each file.
const TARFILE: &str = r#"
import gzip, hashlib, io, json, os, sys, tarfile
context, target, form = sys.argv[1:]
form = getattr(tarfile, form + "_FORMAT")
layer = io.BytesIO()
with tarfile.open(fileobj=layer, mode="w", format=form) as tar:
    tar.add(context, arcname="." if form == tarfile.GNU_FORMAT else "")
layer = layer.getvalue()
os.makedirs(target + "/blobs/sha256")
def blob(kind, data):
    name = hashlib.sha256(data).hexdigest()
    with open(target + "/blobs/sha256/" + name, "wb") as file:
        file.write(data)
    return {"mediaType": "application/vnd.oci.image." + kind, "digest": "sha256:" + name,
            "size": len(data)}
config = {"architecture": "amd64", "os": "linux", "config": {"Entrypoint": ["/stay"]},
          "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(layer).hexdigest()]}}
manifest = {"schemaVersion": 2, "layers": [blob("layer.v1.tar+gzip", gzip.compress(layer))],
            "config": blob("config.v1+json", json.dumps(config).encode())}
index = {"schemaVersion": 2, "manifests": [blob("manifest.v1+json", json.dumps(manifest).encode())]}
with open(target + "/index.json", "w") as file:
    json.dump(index, file)
with open(target + "/oci-layout", "w") as file:
    json.dump({"imageLayoutVersion": "1.0.0"}, file)
with tarfile.open(target + ".tar", "w", format=form) as tar:
    tar.add(target, arcname="." if form == tarfile.GNU_FORMAT else "")
"#;

/// Images of Python's tarfile in its three formats.
pub(super) fn tarfile(tools: &ToolBox) -> Vec<ToolImage> {
    ["GNU", "PAX", "USTAR"]
        .map(|format| {
            let name = format!("tarfile-{}", format.to_lowercase());
            let context = tools.context(&name);
            if format == "USTAR" {
                // The format has no room for a name of this length.
                std::fs::remove_dir_all(context.join("data").join("d".repeat(90))).unwrap();
            }
            tools.python(TARFILE, &[text(&context), text(&tools.path(&name)), format]);
            ToolImage::uploaded(&name, tools.read(&format!("{name}.tar")), Outcome::Runs)
        })
        .into()
}
