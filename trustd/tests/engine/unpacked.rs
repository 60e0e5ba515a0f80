//! The list of members that `lib/oci` reads, compared with what the real engine unpacks.

use std::collections::{BTreeMap, BTreeSet};

use bollard::Docker;
use bollard::models::ContainerCreateBody;
use bollard::query_parameters::{
    CreateContainerOptions, ImportImageOptions, RemoveContainerOptions,
};
use futures_util::StreamExt as _;
use serde_json::{Value, json};

use crate::images::sha;
use crate::node::{RealEngine, run};
use crate::tools::{
    Blobs, ImageParts, Kind, LayerFolder, Object, PackedLayer, Random, Tree, random_layer, stack,
};

/// Images of four layers that the engine unpacks.
const IMAGES: usize = 50;
const LAYERS: usize = 4;
/// Images that the engine loads from one archive.
const BATCH: usize = 10;
/// Least number of accepted layers whose headers were changed.
const MIN_CHANGED: usize = 60;
/// Paths that the engine adds to a container.
const ADDED: [&str; 5] = [".dockerenv", "dev", "etc", "proc", "sys"];

/// An accepted image, and what the engine should make of it.
struct Expected {
    blobs: Blobs,
    objects: Vec<Object>,
    tree: Tree,
}

#[test]
fn the_engine_unpacks_exactly_the_listed_members() {
    run(async {
        let mut random = Random(0x5eed);
        let (mut images, mut changed) = (Vec::new(), 0);
        while images.len() < IMAGES {
            let (image, changes) = accepted_image(&mut random);
            changed += changes;
            images.push(image);
        }
        assert!(changed >= MIN_CHANGED, "{changed} changed layers are too few");
        let dir = tempfile::Builder::new().prefix("unpacked").tempdir_in("/run").unwrap();
        let engine = RealEngine::start(dir.path(), "unpacked", false);
        engine.answers().await;
        let socket = engine.socket.to_string_lossy().into_owned();
        let docker = Docker::connect_with_unix(&socket, 60, bollard::API_DEFAULT_VERSION)
            .unwrap()
            .negotiate_version()
            .await
            .unwrap();
        for batch in images.chunks(BATCH) {
            load(&docker, batch).await;
            for image in batch {
                let found = exported(&docker, &image.blobs.digest()).await;
                compare(image, &found);
            }
        }
    });
}

/// Returns a random image that `lib/oci` accepts and the model can unpack, and the number of its
/// layers whose headers were changed.
fn accepted_image(random: &mut Random) -> (Expected, usize) {
    let (mut layers, mut folders, mut changes) = (Vec::new(), Vec::new(), 0);
    while layers.len() < LAYERS {
        let (layer, changed) = random_layer(random);
        let mut folder = LayerFolder::new(&folders);
        let mut unpacked = Ok(());
        let listed = oci::list_members(&*layer, &oci::Limits::default(), |member, content| {
            let mut bytes = Vec::new();
            content.read_to_end(&mut bytes)?;
            if unpacked.is_ok() {
                unpacked = folder.apply(member, sha(&bytes));
            }
            Ok(())
        });
        let unpacked = unpacked.and_then(|()| folder.finish());
        if listed.is_ok() && unpacked.is_ok() {
            layers.push(PackedLayer::plain(&layer));
            folders.push(folder);
            changes += usize::from(changed);
        }
    }
    let (objects, tree) = stack(folders);
    (Expected { blobs: ImageParts::oci(layers, "/a").build(), objects, tree }, changes)
}

/// Loads images from one archive.
async fn load(docker: &Docker, images: &[Expected]) {
    let entries: Vec<Value> = images
        .iter()
        .map(|image| {
            let mut entry = image.blobs.descriptor.clone();
            let name = format!("docker.io/library/{}:latest", &image.blobs.digest()[7..39]);
            entry["annotations"] = json!({ "io.containerd.image.name": name });
            entry
        })
        .collect();
    let archive = crate::tools::layout_archive(images.iter().map(|i| &i.blobs), &entries);
    let body = bollard::body_full(archive.into());
    let mut answers = docker.import_image(ImportImageOptions::default(), body, None);
    while let Some(answer) = answers.next().await {
        let answer = answer.unwrap_or_else(|error| panic!("the engine cannot load: {error}"));
        assert!(answer.error_detail.is_none(), "{answer:?}");
    }
}

/// Paths of an exported container: kinds and owners, and the paths that are one file.
type Exported = BTreeMap<Vec<u8>, (Object, Vec<u8>)>;

/// Creates a container and returns its file system.
async fn exported(docker: &Docker, digest: &str) -> Exported {
    let body = ContainerCreateBody {
        image: Some(digest.to_owned()),
        network_disabled: Some(true),
        ..Default::default()
    };
    let id = docker.create_container(None::<CreateContainerOptions>, body).await.unwrap().id;
    let mut archive = Vec::new();
    let mut stream = docker.export_container(&id);
    while let Some(part) = stream.next().await {
        archive.extend(part.unwrap());
    }
    docker.remove_container(&id, None::<RemoveContainerOptions>).await.unwrap();
    let mut found = Exported::new();
    for entry in tar::Archive::new(&*archive).entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = clean(&entry.path_bytes());
        let first = path.split(|b| *b == b'/').next().unwrap_or_default();
        if path.is_empty() || ADDED.iter().any(|name| name.as_bytes() == first) {
            continue;
        }
        let kind = entry.header().entry_type();
        let target = entry.link_name_bytes().map(|target| target.into_owned());
        if kind.is_hard_link() {
            let target = clean(&target.unwrap());
            let linked = found[&target].clone();
            found.insert(path, linked);
            continue;
        }
        let owner = |id: u64| u32::try_from(id).unwrap();
        let owner = (owner(entry.header().uid().unwrap()), owner(entry.header().gid().unwrap()));
        let kind = if kind.is_dir() {
            Kind::Folder
        } else if kind.is_symlink() {
            Kind::Symlink(target.unwrap())
        } else if kind.is_fifo() {
            Kind::Fifo
        } else {
            assert!(kind.is_file(), "{kind:?}");
            let mut content = Vec::new();
            std::io::Read::read_to_end(&mut entry, &mut content).unwrap();
            Kind::File(sha(&content))
        };
        found.insert(path.clone(), (Object { kind, owner }, path));
    }
    found
}

/// Returns a path without slashes at its ends.
fn clean(path: &[u8]) -> Vec<u8> {
    let text = path.strip_prefix(b"./").unwrap_or(path);
    text.strip_suffix(b"/").unwrap_or(text).to_vec()
}

/// Compares paths, kinds, targets, contents, owners and hard links.
fn compare(expected: &Expected, found: &Exported) {
    let show = |path: &[u8]| String::from_utf8_lossy(path).into_owned();
    let wanted: BTreeMap<String, &Object> =
        expected.tree.iter().map(|(path, n)| (show(path), &expected.objects[*n])).collect();
    let got: BTreeMap<String, &Object> =
        found.iter().map(|(path, (object, _))| (show(path), object)).collect();
    assert_eq!(wanted, got, "{}", expected.blobs.digest());
    let groups = |members: Vec<(String, String)>| -> BTreeSet<BTreeSet<String>> {
        let mut groups = BTreeMap::<String, BTreeSet<String>>::new();
        for (group, path) in members {
            groups.entry(group).or_default().insert(path);
        }
        groups.into_values().collect()
    };
    let wanted = expected.tree.iter().map(|(path, n)| (n.to_string(), show(path))).collect();
    let got = found.iter().map(|(path, (_, first))| (show(first), show(path))).collect();
    assert_eq!(groups(wanted), groups(got), "{}", expected.blobs.digest());
}
