//! The services of the node, read from /etc/basalt/services.

use std::collections::BTreeMap;

use config::Service;

use crate::error::InitError;

/// User and group ID of trustd.
pub(crate) const TRUSTD: u32 = 901;

const DIR: &str = "/etc/basalt/services";

/// Reads all services and sorts them so that each comes after those that it needs.
pub(crate) fn load() -> Result<Vec<(String, Service)>, InitError> {
    let list = || InitError::io(format!("list {DIR}"));
    let mut services = BTreeMap::new();
    for entry in std::fs::read_dir(DIR).map_err(list())? {
        let path = entry.map_err(list())?.path();
        let text = std::fs::read_to_string(&path)
            .map_err(InitError::io(format!("read {}", path.display())))?;
        let service: Service = config::parse(&path.to_string_lossy(), &text)?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        services.insert(name, service);
    }
    sort_by_needs(services).map_err(InitError::State)
}

fn sort_by_needs(
    mut services: BTreeMap<String, Service>,
) -> Result<Vec<(String, Service)>, String> {
    let mut sorted: Vec<(String, Service)> = Vec::new();
    while !services.is_empty() {
        let next = services
            .iter()
            .find(|(_, s)| s.needs.iter().all(|need| sorted.iter().any(|(name, _)| name == need)))
            .map(|(name, _)| name.clone());
        let Some(name) = next else {
            let left: Vec<_> = services.keys().cloned().collect();
            return Err(format!(
                "{DIR}: these services need each other, or a service that does not exist: {}",
                left.join(", ")
            ));
        };
        if let Some(service) = services.remove(&name) {
            sorted.push((name, service));
        }
    }
    Ok(sorted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(needs: &[&str]) -> Service {
        let needs: Vec<String> = needs.iter().map(|n| format!("\"{n}\"")).collect();
        let text = format!(
            "exec = [\"/x\"]\nneeds = [{}]\nready = {{ file = \"/y\" }}\nready-within-s = 1\n",
            needs.join(",")
        );
        config::parse("s", &text).unwrap()
    }

    #[test]
    fn services_come_after_those_that_they_need() {
        let sorted = sort_by_needs(
            [
                ("a".into(), service(&["c"])),
                ("b".into(), service(&[])),
                ("c".into(), service(&["b"])),
            ]
            .into(),
        )
        .unwrap();
        let names: Vec<_> = sorted.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["b", "c", "a"]);
        let cycle = [("a".into(), service(&["b"])), ("b".into(), service(&["a"]))];
        assert!(sort_by_needs(cycle.into()).is_err());
        let missing = [("a".into(), service(&["gone"]))];
        assert!(sort_by_needs(missing.into()).unwrap_err().contains('a'));
    }
}
