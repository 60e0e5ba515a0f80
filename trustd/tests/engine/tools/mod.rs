//! Images as other tools make them: run where a package registry has the tool, written from its
//! sources where none has it.

mod image_parts;
mod made;
mod played;
mod random_layers;
mod situations;
mod tar_bytes;
mod toolbox;
mod unpacked_tree;

pub(crate) use image_parts::{Blobs, ImageParts, PackedLayer, layout_archive};
pub(crate) use random_layers::{Random, random_layer};
pub(crate) use toolbox::{Outcome, Source, ToolBox, ToolImage};
pub(crate) use unpacked_tree::{Kind, LayerFolder, Object, Tree, stack};

/// Makes the images of all tools.
pub(crate) fn images(tools: &ToolBox) -> Vec<ToolImage> {
    let made: [fn(&ToolBox) -> Vec<ToolImage>; 13] = [
        made::buildkit,
        made::docker,
        made::containers,
        made::umoci,
        made::crane,
        made::oras,
        made::tarfile,
        played::kaniko,
        played::jib,
        played::ko,
        played::rules_oci,
        played::docker_tools,
        |_| played::debuerreotype(),
    ];
    made.iter().flat_map(|make| make(tools)).collect()
}

/// Returns the images of reported situations.
pub(crate) fn situations() -> Vec<ToolImage> {
    let single = vec![situations::hidden_members(), situations::docker_zstd()];
    [
        situations::names(),
        situations::zstd_windows(),
        situations::keys(),
        situations::indexes(),
        situations::layouts(),
        single,
    ]
    .concat()
}
