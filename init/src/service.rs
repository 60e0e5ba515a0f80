//! The services of this node, read from /etc/basalt/services.

use std::collections::BTreeMap;

use config::Service;

use crate::Fatal;

/// The user and group that trustd runs as.
pub(crate) const TRUSTD: u32 = 901;

const DIR: &str = "/etc/basalt/services";

/// All services, each after those that it needs.
pub(crate) fn load() -> Result<Vec<(String, Service)>, Fatal> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(DIR).map_err(Fatal::io(format!("list {DIR}")))? {
        let path = entry.map_err(Fatal::io(format!("list {DIR}")))?.path();
        let text = std::fs::read_to_string(&path)
            .map_err(Fatal::io(format!("read {}", path.display())))?;
        let service: Service = config::parse(&path.to_string_lossy(), &text)?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        found.insert(name, service);
    }
    order(found).map_err(Fatal::State)
}

fn order(mut services: BTreeMap<String, Service>) -> Result<Vec<(String, Service)>, String> {
    let mut ordered: Vec<(String, Service)> = Vec::new();
    while !services.is_empty() {
        let next = services
            .iter()
            .find(|(_, s)| s.needs.iter().all(|need| ordered.iter().any(|(name, _)| name == need)))
            .map(|(name, _)| name.clone());
        let Some(name) = next else {
            let left: Vec<_> = services.keys().cloned().collect();
            return Err(format!(
                "{DIR}: these services need each other or one that is not there: {}",
                left.join(", ")
            ));
        };
        if let Some(service) = services.remove(&name) {
            ordered.push((name, service));
        }
    }
    Ok(ordered)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(needs: &[&str]) -> Service {
        let needs: Vec<String> = needs.iter().map(|n| format!("\"{n}\"")).collect();
        config::parse(
            "s",
            &format!(
                "exec = [\"/x\"]\nneeds = [{}]\nready = {{ file = \"/y\" }}\nready-within-s = 1\n",
                needs.join(",")
            ),
        )
        .unwrap()
    }

    #[test]
    fn services_start_after_what_they_need() {
        let ordered = order(
            [
                ("a".into(), service(&["c"])),
                ("b".into(), service(&[])),
                ("c".into(), service(&["b"])),
            ]
            .into(),
        )
        .unwrap();
        let names: Vec<_> = ordered.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["b", "c", "a"]);
        assert!(
            order([("a".into(), service(&["b"])), ("b".into(), service(&["a"]))].into()).is_err()
        );
        assert!(order([("a".into(), service(&["gone"]))].into()).unwrap_err().contains('a'));
    }
}
