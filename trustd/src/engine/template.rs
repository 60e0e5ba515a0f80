//! The one way in which containers are made, and what the engine must say of them afterwards.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use bollard::models::{
    ContainerCreateBody, ContainerInspectResponse, EndpointSettings, HealthConfig, HostConfig,
    HostConfigCgroupnsModeEnum, Mount, MountBindOptions, MountBindOptionsPropagationEnum,
    MountType, NetworkingConfig, PortBinding, RestartPolicy, RestartPolicyNameEnum,
};
use config::{Module, Network};
use sha2::{Digest as _, Sha256};

use super::EngineError;

/// A container of ours has this label; its value is the module's name. It is for people: nothing is
/// decided by it.
pub const LABEL: &str = "basalt.module";
const SECOND: i64 = 1_000_000_000;

/// What a container is made of.
#[derive(Debug, Clone)]
pub struct Plan {
    pub module: String,
    /// Of the container.
    pub name: String,
    /// Of the manifest.
    pub digest: String,
    pub settings: Module,
    /// Mounted read-only at /run/basalt.
    pub sockets: PathBuf,
    /// Source of each volume, by name.
    pub volumes: BTreeMap<String, PathBuf>,
}

/// The network of a module alone.
pub fn own_network(module: &str) -> String {
    format!("basalt-{module}")
}

/// The network of two modules that name each other.
pub fn link_network(one: &str, other: &str) -> String {
    let (a, b) = if one < other { (one, other) } else { (other, one) };
    format!("basalt-{a}.{b}")
}

impl Plan {
    /// The networks it is on; the first is its own.
    pub fn networks(&self) -> Vec<String> {
        match self.settings.network {
            Network::None => Vec::new(),
            Network::Bridge => {
                let links = self.settings.peers.iter().map(|peer| link_network(&self.module, peer));
                std::iter::once(own_network(&self.module)).chain(links).collect()
            }
        }
    }

    /// Source and target of everything that is mounted, and whether it can be written.
    fn mounts(&self) -> Result<Vec<(PathBuf, String, bool)>, EngineError> {
        let mut mounts = vec![(self.sockets.clone(), "/run/basalt".to_owned(), false)];
        for volume in &self.settings.volumes {
            let source = self.volumes.get(&volume.name).ok_or_else(|| EngineError::Other {
                what: "a volume's folder",
                expected: volume.name.clone(),
                found: "none".into(),
            })?;
            mounts.push((source.clone(), volume.path.clone(), true));
        }
        Ok(mounts)
    }

    /// What a module cannot say is fixed here.
    pub fn body(&self) -> Result<ContainerCreateBody, EngineError> {
        let m = &self.settings;
        let memory = i64::try_from(m.memory_mib << 20).unwrap_or(i64::MAX);
        let ports: HashMap<String, Option<Vec<PortBinding>>> = m
            .ports
            .iter()
            .map(|p| {
                let binding = PortBinding {
                    host_ip: Some("0.0.0.0".into()),
                    host_port: Some(p.node.to_string()),
                };
                (format!("{}/{}", p.module, p.protocol), Some(vec![binding]))
            })
            .collect();
        let networks = self.networks();
        let endpoints =
            networks.iter().map(|name| (name.clone(), EndpointSettings::default())).collect();
        // The image's own check, where it has one, was not asked for.
        let test = if m.health.command.is_empty() {
            vec!["NONE".to_owned()]
        } else {
            std::iter::once("CMD".to_owned()).chain(m.health.command.iter().cloned()).collect()
        };
        let mounts = self
            .mounts()?
            .into_iter()
            .map(|(source, target, writable)| Mount {
                target: Some(target),
                source: Some(source.to_string_lossy().into_owned()),
                typ: Some(MountType::BIND),
                read_only: Some(!writable),
                bind_options: Some(MountBindOptions {
                    propagation: Some(MountBindOptionsPropagationEnum::RPRIVATE),
                    create_mountpoint: Some(false),
                    ..MountBindOptions::default()
                }),
                ..Mount::default()
            })
            .collect();
        Ok(ContainerCreateBody {
            image: Some(self.digest.clone()),
            hostname: Some(self.module.clone()),
            // As a whole: with an entrypoint of ours the engine leaves the image's command out too.
            entrypoint: (!m.command.is_empty()).then(|| m.command.clone()),
            env: (!m.environment.is_empty()).then(|| m.environment.clone()),
            labels: Some(HashMap::from([(LABEL.to_owned(), self.module.clone())])),
            exposed_ports: (!ports.is_empty()).then(|| ports.keys().cloned().collect()),
            healthcheck: Some(HealthConfig {
                test: Some(test),
                interval: Some(10 * SECOND),
                timeout: Some(10 * SECOND),
                retries: Some(3),
                start_period: Some(i64::from(m.health.within_s) * SECOND),
                start_interval: Some(SECOND),
            }),
            stop_timeout: Some(m.stop_within_s.into()),
            networking_config: (!networks.is_empty())
                .then_some(NetworkingConfig { endpoints_config: Some(endpoints) }),
            host_config: Some(HostConfig {
                readonly_rootfs: Some(true),
                privileged: Some(false),
                cap_drop: Some(vec!["ALL".into()]),
                security_opt: Some(vec!["no-new-privileges".into()]),
                cgroupns_mode: Some(HostConfigCgroupnsModeEnum::PRIVATE),
                ipc_mode: Some("private".into()),
                network_mode: Some(networks.first().cloned().unwrap_or_else(|| "none".into())),
                port_bindings: (!ports.is_empty()).then_some(ports),
                restart_policy: Some(RestartPolicy {
                    name: Some(RestartPolicyNameEnum::NO),
                    maximum_retry_count: None,
                }),
                memory: Some(memory),
                memory_swap: Some(memory),
                nano_cpus: Some(i64::from(m.cpu_percent) * SECOND / 100),
                pids_limit: Some(m.pids.into()),
                mounts: Some(mounts),
                tmpfs: Some(HashMap::from([(
                    "/tmp".into(),
                    "rw,noexec,nosuid,nodev,size=16m".into(),
                )])),
                ..HostConfig::default()
            }),
            ..ContainerCreateBody::default()
        })
    }

    /// Compares what the engine made with what was asked for. Returns its shape, by which later
    /// changes show.
    pub fn judge(&self, found: &ContainerInspectResponse) -> Result<Shape, EngineError> {
        let host = found.host_config.clone().unwrap_or_default();
        let m = &self.settings;
        let list = |list: Option<Vec<String>>| format!("{:?}", list.unwrap_or_default());
        let mut mounted: Vec<String> = found
            .mounts
            .iter()
            .flatten()
            .filter(|m| m.destination.as_deref() != Some("/tmp"))
            .map(|m| {
                mount(
                    m.source.as_deref().unwrap_or_default(),
                    m.destination.as_deref().unwrap_or_default(),
                    m.rw.unwrap_or(true),
                )
            })
            .collect();
        mounted.sort();
        let mut wanted: Vec<String> =
            self.mounts()?.iter().map(|(s, t, w)| mount(&s.to_string_lossy(), t, *w)).collect();
        wanted.sort();
        let mut networks: Vec<String> = found
            .network_settings
            .iter()
            .flat_map(|n| n.networks.iter().flatten())
            .map(|(n, _)| n.clone())
            .collect();
        networks.sort();
        let mut wished = self.networks();
        if wished.is_empty() {
            wished.push("none".into());
        }
        let first = wished[0].clone();
        wished.sort();
        let memory = i64::try_from(m.memory_mib << 20).unwrap_or(i64::MAX).to_string();
        let number = |n: Option<i64>| n.unwrap_or_default().to_string();
        let checks = [
            ("its image", self.digest.clone(), found.image.clone().unwrap_or_default()),
            ("privileged", "false".into(), host.privileged.unwrap_or_default().to_string()),
            ("added capabilities", "[]".into(), list(host.cap_add.clone())),
            ("dropped capabilities", "[\"ALL\"]".into(), list(host.cap_drop.clone())),
            ("security options", "[\"no-new-privileges\"]".into(), list(host.security_opt.clone())),
            ("devices", "0".into(), host.devices.as_ref().map_or(0, Vec::len).to_string()),
            ("device rules", "[]".into(), list(host.device_cgroup_rules.clone())),
            (
                "device requests",
                "0".into(),
                host.device_requests.as_ref().map_or(0, Vec::len).to_string(),
            ),
            ("read-only root", "true".into(), host.readonly_rootfs.unwrap_or_default().to_string()),
            ("what is mounted", format!("{wanted:?}"), format!("{mounted:?}")),
            ("binds", "[]".into(), list(host.binds.clone())),
            ("volumes of others", "[]".into(), list(host.volumes_from.clone())),
            ("process ids", String::new(), host.pid_mode.clone().unwrap_or_default()),
            ("host name's namespace", String::new(), host.uts_mode.clone().unwrap_or_default()),
            ("users' namespace", String::new(), host.userns_mode.clone().unwrap_or_default()),
            ("shared memory", "private".into(), host.ipc_mode.clone().unwrap_or_default()),
            ("network mode", first, host.network_mode.clone().unwrap_or_default()),
            ("networks", format!("{wished:?}"), format!("{networks:?}")),
            (
                "kernel settings",
                "0".into(),
                host.sysctls.as_ref().map_or(0, HashMap::len).to_string(),
            ),
            ("memory", memory.clone(), number(host.memory)),
            ("memory and swap", memory, number(host.memory_swap)),
            (
                "processors",
                (i64::from(m.cpu_percent) * SECOND / 100).to_string(),
                number(host.nano_cpus),
            ),
            ("processes", m.pids.to_string(), number(host.pids_limit)),
            ("groups", "[]".into(), list(host.group_add.clone())),
            (
                "restart policy",
                "no".into(),
                host.restart_policy
                    .clone()
                    .and_then(|p| p.name)
                    .map(|n| n.to_string())
                    .unwrap_or_default(),
            ),
        ];
        match checks.into_iter().find(|(_, expected, found)| expected != found) {
            Some((what, expected, found)) => Err(EngineError::Other { what, expected, found }),
            None => Ok(shape(found)),
        }
    }
}

fn mount(source: &str, target: &str, writable: bool) -> String {
    format!("{source} at {target}, {}", if writable { "writable" } else { "read-only" })
}

/// Everything that makes a container what it is and does not change while nobody changes it: a hash
/// of each part.
pub type Shape = BTreeMap<String, String>;

pub(super) fn shape(found: &ContainerInspectResponse) -> Shape {
    let mut host = found.host_config.clone().unwrap_or_default();
    // On control groups v2 the engine says nothing of it before the start, and "no" after it.
    host.oom_kill_disable.get_or_insert(false);
    let mut networks: Vec<&String> = found
        .network_settings
        .iter()
        .flat_map(|n| n.networks.iter().flatten())
        .map(|(name, _)| name)
        .collect();
    networks.sort();
    let parts = serde_json::json!({
        "image": found.image, "name": found.name, "program": [&found.path], "arguments": found.args,
        "engine settings": host, "container settings": found.config, "networks": networks,
    });
    // Through a value, so that the order of keys is always the same.
    let hash = |value: &serde_json::Value| measure::hex(&Sha256::digest(value.to_string()));
    parts
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, value)| (name.clone(), hash(value)))
        .collect()
}

/// The folder of a volume: made if it is not there, and certainly no link to another place.
///
/// # Errors
/// What the file system says; a link or a file in its place.
pub fn volume(dir: &Path, module: &str, name: &str) -> std::io::Result<PathBuf> {
    use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
    let mut path = dir.to_owned();
    for (part, mode) in [(module, 0o700), (name, 0o777)] {
        path.push(part);
        match std::fs::DirBuilder::new().mode(mode).create(&path) {
            // The folders above are closed to everybody else; a container sees the last one only,
            // as whatever user it is.
            Ok(()) => std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))?,
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
        if !path.symlink_metadata()?.is_dir() {
            return Err(std::io::Error::new(
                std::io::ErrorKind::NotADirectory,
                format!("{} is no folder", path.display()),
            ));
        }
    }
    Ok(path)
}
