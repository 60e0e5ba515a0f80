//! Search for processes in control groups that belong to no service.

use std::io;
use std::path::Path;

/// Control group of a container's processes, below the root of the hierarchy. The container's ID
/// follows.
const CONTAINERS: &str = "node/modules/";

/// Returns the ID of the container that a control group belongs to, if it is directly that of a
/// container.
pub(super) fn container_of(group: &str) -> Option<&str> {
    group.strip_prefix(CONTAINERS)
}

/// Returns the control group of a container.
pub(super) fn group_of(container: &str) -> String {
    format!("{CONTAINERS}{container}")
}

/// Reports whether there are processes in a group below `root`, or below that group. A group that
/// does not exist has none.
pub(super) fn is_populated(root: &Path, group: &str) -> bool {
    // Linux: Documentation/admin-guide/cgroup-v2.rst, "cgroup.events".
    std::fs::read_to_string(root.join(group).join("cgroup.events"))
        .is_ok_and(|events| events.lines().any(|line| line == "populated 1"))
}

/// Returns the control groups below `root` that have processes and are not in `services`, as paths
/// relative to `root`.
pub(super) fn find_foreign(root: &Path, services: &[String]) -> io::Result<Vec<String>> {
    let mut foreign = Vec::new();
    let mut pending = vec![String::new()];
    while let Some(group) = pending.pop() {
        let dir = root.join(&group);
        let entries = match std::fs::read_dir(&dir) {
            // The group was removed meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            other => other?,
        };
        for entry in entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())) {
            let name = entry.file_name().to_string_lossy().into_owned();
            pending.push(if group.is_empty() { name } else { format!("{group}/{name}") });
        }
        // The root group has the kernel's own threads.
        let known = group.is_empty() || services.contains(&group);
        let has_processes = || {
            std::fs::read_to_string(dir.join("cgroup.procs"))
                .is_ok_and(|text| !text.trim().is_empty())
        };
        if !known && has_processes() {
            foreign.push(group);
        }
    }
    Ok(foreign)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_has_processes_while_its_group_is_populated() {
        let dir = tempfile::tempdir().unwrap();
        let group = group_of("aaa");
        assert_eq!(container_of(&group), Some("aaa"));
        assert!(!is_populated(dir.path(), &group), "there is no such group");
        std::fs::create_dir_all(dir.path().join(&group)).unwrap();
        let events = dir.path().join(&group).join("cgroup.events");
        std::fs::write(&events, "populated 1\nfrozen 1\n").unwrap();
        assert!(is_populated(dir.path(), &group));
        std::fs::write(&events, "populated 0\nfrozen 0\n").unwrap();
        assert!(!is_populated(dir.path(), &group));
    }

    #[test]
    fn processes_outside_of_services_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let group = |path: &str, procs: &str| {
            std::fs::create_dir_all(dir.path().join(path)).unwrap();
            std::fs::write(dir.path().join(path).join("cgroup.procs"), procs).unwrap();
        };
        group("", "");
        group("trustd", "10\n");
        group("node", "");
        group("node/dockerd", "11\n");
        group("node/modules/aaa", "12\n");
        group("node/modules/bbb", "13\n");
        group("node/modules/aaa/inner", "14\n");
        group("default/ctr", "15\n");
        group("node/empty", "");
        let services = ["trustd".to_owned(), "node/dockerd".to_owned()];
        let mut found = find_foreign(dir.path(), &services).unwrap();
        found.sort();
        assert_eq!(
            found,
            ["default/ctr", "node/modules/aaa", "node/modules/aaa/inner", "node/modules/bbb"]
        );
    }
}
