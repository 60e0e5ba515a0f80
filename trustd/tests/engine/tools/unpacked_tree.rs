//! Model of what the engine makes of layers: containerd's `archive.Apply` on the folder of each
//! layer (containerd 1.7.24, `archive/tar.go`, `diff/apply/apply_linux.go`), and overlayfs on top.
//!
//! The names, kinds, targets and owners come from `lib/oci`. The model says what the engine does
//! with them, or that it fails.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use oci::{Member, MemberKind};

/// Path below the root, without a slash at either end.
pub(crate) type Path = Vec<u8>;

/// A file, link, pipe or folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    Folder,
    /// A file with the digest of its content.
    File(String),
    Symlink(Vec<u8>),
    Fifo,
}

/// Object in a tree. Hard links share one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Object {
    pub(crate) kind: Kind,
    pub(crate) owner: (u32, u32),
}

/// Entry of a layer's folder.
#[derive(Debug, Clone)]
enum Entry {
    Object(usize),
    /// A name that hides that of lower layers.
    Whiteout,
}

/// Reason why the engine cannot unpack a layer.
#[derive(Debug)]
pub(crate) struct Unpackable(#[allow(dead_code)] pub(crate) &'static str);

/// Folder of one layer.
#[derive(Debug, Default, Clone)]
pub(crate) struct LayerFolder {
    objects: Vec<Object>,
    entries: BTreeMap<Path, Entry>,
    /// Folders that hide all names of lower layers.
    opaque: BTreeSet<Path>,
    /// Names of the members that are folders. The engine sets their times at the end.
    folders: Vec<Path>,
    /// Folders of the lower layers, lowest first.
    lower: Rc<Vec<LayerFolder>>,
}

/// Paths with the objects that they lead to. Paths of one object are hard links.
pub(crate) type Tree = BTreeMap<Path, usize>;

impl LayerFolder {
    /// Creates the folder of a layer. The lowest layer has no lower ones; there, whiteouts delete.
    pub(crate) fn new(lower: &[LayerFolder]) -> Self {
        Self { lower: Rc::new(lower.to_vec()), ..Self::default() }
    }

    fn is_lowest(&self) -> bool {
        self.lower.is_empty()
    }

    /// Returns the object at a path, whose last name is not resolved.
    fn object(&self, path: &[u8]) -> Option<&Object> {
        match self.entries.get(path)? {
            Entry::Object(n) => Some(&self.objects[*n]),
            Entry::Whiteout => None,
        }
    }

    fn is_folder(&self, path: &[u8]) -> bool {
        path.is_empty() || self.object(path).is_some_and(|object| object.kind == Kind::Folder)
    }

    /// Unpacks a member.
    pub(crate) fn apply(&mut self, member: &Member, content: String) -> Result<(), Unpackable> {
        if member.path.is_empty() || member.kind == MemberKind::GlobalRecords {
            return Ok(());
        }
        let (parent, base) = split(&member.path);
        let parent = self.resolve(parent)?;
        self.make_folders(&parent)?;
        let path = join(&parent, base);
        if let Some(hidden) = base.strip_prefix(b".wh.") {
            return self.whiteout(&parent, hidden);
        }
        if !(self.is_folder(&path) && member.kind == MemberKind::Folder) {
            self.remove(&path);
        }
        let owner = (member.uid, member.gid);
        let kind = match member.kind {
            MemberKind::HardLink => {
                let (target_parent, target) = split(&member.target);
                let target = join(&self.resolve(target_parent)?, target);
                let Some(Entry::Object(n)) = self.entries.get(&target) else {
                    return Err(Unpackable("hard link without a target"));
                };
                if self.objects[*n].kind == Kind::Folder {
                    return Err(Unpackable("hard link to a folder"));
                }
                let n = *n;
                self.objects[n].owner = owner;
                self.entries.insert(path, Entry::Object(n));
                return Ok(());
            }
            MemberKind::Folder => {
                self.folders.push(member.path.clone());
                Kind::Folder
            }
            MemberKind::SymbolicLink if member.target.is_empty() => {
                return Err(Unpackable("symbolic link without a target"));
            }
            MemberKind::SymbolicLink => Kind::Symlink(member.target.clone()),
            MemberKind::Fifo => Kind::Fifo,
            _ => Kind::File(content),
        };
        self.insert(path, Object { kind, owner });
        Ok(())
    }

    /// Sets the times of all folders, which must still be there.
    pub(crate) fn finish(&self) -> Result<(), Unpackable> {
        for folder in &self.folders {
            let path = self.resolve(folder)?;
            if !path.is_empty() && !matches!(self.entries.get(&path), Some(Entry::Object(_))) {
                return Err(Unpackable("folder that was replaced"));
            }
        }
        Ok(())
    }

    fn insert(&mut self, path: Path, object: Object) {
        self.objects.push(object);
        self.entries.insert(path, Entry::Object(self.objects.len() - 1));
    }

    fn whiteout(&mut self, parent: &Path, hidden: &[u8]) -> Result<(), Unpackable> {
        if hidden == b".wh..opq" {
            if self.is_lowest() {
                // All names of this folder were unpacked from this layer, except for parents that
                // are no members themselves. The generator makes no such folder opaque.
                return Err(Unpackable("opaque folder in the lowest layer"));
            }
            self.opaque.insert(parent.clone());
            return Ok(());
        }
        if [&b""[..], b".", b".."].contains(&hidden) {
            return Err(Unpackable("invalid whiteout"));
        }
        let path = join(parent, hidden);
        if self.is_lowest() {
            self.remove(&path);
            return Ok(());
        }
        if self.entries.contains_key(&path) {
            return Err(Unpackable("whiteout of a name of this layer"));
        }
        self.entries.insert(path, Entry::Whiteout);
        Ok(())
    }

    /// Removes a path and everything below it.
    fn remove(&mut self, path: &[u8]) {
        let below = join(path, b"");
        self.entries.retain(|p, _| p != path && !p.starts_with(&below));
        self.opaque.retain(|p| p != path && !p.starts_with(&below));
    }

    /// Creates the folders of a path that are missing. Their owners are those of the folders of
    /// lower layers (`mkparent`).
    fn make_folders(&mut self, path: &[u8]) -> Result<(), Unpackable> {
        if self.is_folder(path) {
            return Ok(());
        }
        if self.entries.contains_key(path) {
            return Err(Unpackable("parent is no folder"));
        }
        self.make_folders(split(path).0)?;
        let mut owner = (0, 0);
        for lower in self.lower.iter().rev() {
            let found = lower.resolve(path)?;
            if lower.is_folder(&found) {
                owner = lower.object(&found).map_or(owner, |object| object.owner);
                break;
            }
            if lower.entries.contains_key(&found) {
                break;
            }
        }
        self.insert(path.to_vec(), Object { kind: Kind::Folder, owner });
        Ok(())
    }

    /// Resolves the symbolic links of a path inside of this layer (continuity, `fs.RootPath`).
    fn resolve(&self, path: &[u8]) -> Result<Path, Unpackable> {
        let mut rest: Vec<Path> = path.split(|b| *b == b'/').rev().map(<[u8]>::to_vec).collect();
        let (mut found, mut links) = (Path::new(), 0);
        while let Some(part) = rest.pop() {
            match part.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    found.truncate(split(&found).0.len());
                    continue;
                }
                _ => {}
            }
            let next = join(&found, &part);
            if let Some(Kind::Symlink(target)) = self.object(&next).map(|object| &object.kind) {
                links += 1;
                if links > 100 {
                    return Err(Unpackable("too many symbolic links"));
                }
                if target.starts_with(b"/") {
                    found.clear();
                }
                rest.extend(target.split(|b| *b == b'/').rev().map(<[u8]>::to_vec));
                continue;
            }
            if !self.is_folder(&found) && self.entries.contains_key(&found) {
                return Err(Unpackable("path through a file"));
            }
            found = next;
        }
        Ok(found)
    }
}

/// Stacks the folders of layers, lowest first, as overlayfs does.
pub(crate) fn stack(layers: Vec<LayerFolder>) -> (Vec<Object>, Tree) {
    let (mut objects, mut tree) = (Vec::<Object>::new(), Tree::new());
    for layer in layers {
        let first = objects.len();
        objects.extend(layer.objects);
        for folder in &layer.opaque {
            let below = join(folder, b"");
            tree.retain(|path, _| !path.starts_with(&below));
        }
        for (path, entry) in layer.entries {
            let upper = match entry {
                Entry::Whiteout => None,
                Entry::Object(n) => Some(first + n),
            };
            let lower = tree.get(&path).copied();
            let is_folder = |n: Option<usize>| n.is_some_and(|n| objects[n].kind == Kind::Folder);
            if !(is_folder(upper) && is_folder(lower)) {
                let below = join(&path, b"");
                tree.retain(|p, _| *p != path && !p.starts_with(&below));
            }
            if let Some(n) = upper {
                tree.insert(path, n);
            }
        }
    }
    (objects, tree)
}

/// Splits a path into that of its folder and its last name.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

/// Joins a folder and a name.
fn join(folder: &[u8], name: &[u8]) -> Path {
    if folder.is_empty() { name.to_vec() } else { [folder, b"/", name].concat() }
}
