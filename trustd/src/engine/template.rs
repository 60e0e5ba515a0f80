//! The one template from which containers are created, and the verification of what the engine
//! created from it.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Debug;
use std::path::{Path, PathBuf};

use bollard::models::{
    ContainerCreateBody, ContainerInspectResponse, EndpointSettings, HealthConfig, HostConfig,
    HostConfigCgroupnsModeEnum, Mount, MountBindOptions, MountBindOptionsPropagationEnum,
    MountType, NetworkingConfig, PortBinding, RestartPolicy, RestartPolicyNameEnum,
};
use config::{Module, Network};

use super::config_digest::{ConfigDigest, config_digest, network_names};
use super::error::EngineError;

/// Label of a module's container; its value is the module's name. It informs people who inspect the
/// engine. trustd does not read it.
pub const MODULE_LABEL: &str = "basalt.module";
/// One second in the engine's unit of time; one processor in its unit of processor time.
const NANOS: i64 = 1_000_000_000;
const HEALTH_INTERVAL_NS: i64 = 10 * NANOS;
const HEALTH_TIMEOUT_NS: i64 = 10 * NANOS;
const HEALTH_RETRIES: i64 = 3;
/// Interval of the health check while the container starts.
const HEALTH_START_INTERVAL_NS: i64 = NANOS;

/// Everything that a container is created from.
#[derive(Debug, Clone)]
pub struct ContainerPlan {
    /// Name of the module.
    pub module: String,
    /// Name of the container.
    pub name: String,
    /// Digest of the manifest.
    pub digest: String,
    /// Settings of the module.
    pub settings: Module,
    /// Folder of the module's socket, mounted read-only at /run/basalt.
    pub socket_dir: PathBuf,
    /// Folder of each volume, by the volume's name.
    pub volume_dirs: BTreeMap<String, PathBuf>,
}

/// Returns the name of the network that only this module is attached to.
pub fn module_network(module: &str) -> String {
    format!("basalt-{module}")
}

/// Returns the name of the network that two peers share.
pub fn peer_network(one: &str, other: &str) -> String {
    let (a, b) = if one < other { (one, other) } else { (other, one) };
    format!("basalt-{a}.{b}")
}

struct BindMount {
    source: PathBuf,
    target: String,
    writable: bool,
}

impl BindMount {
    fn request(self) -> Mount {
        Mount {
            target: Some(self.target),
            source: Some(self.source.to_string_lossy().into_owned()),
            typ: Some(MountType::BIND),
            read_only: Some(!self.writable),
            bind_options: Some(MountBindOptions {
                propagation: Some(MountBindOptionsPropagationEnum::RPRIVATE),
                create_mountpoint: Some(false),
                ..MountBindOptions::default()
            }),
            ..Mount::default()
        }
    }

    fn describe(source: &str, target: &str, writable: bool) -> String {
        format!("{source} at {target}, {}", if writable { "writable" } else { "read-only" })
    }
}

/// Property of a container, its planned value, and the value that the engine reports.
type Check = (&'static str, String, String);

fn list(values: Option<&Vec<String>>) -> String {
    format!("{:?}", values.map(Vec::as_slice).unwrap_or_default())
}

fn text(value: Option<&String>) -> String {
    value.cloned().unwrap_or_default()
}

fn count<T>(values: Option<&Vec<T>>) -> String {
    values.map_or(0, Vec::len).to_string()
}

fn debug(value: &impl Debug) -> String {
    format!("{value:?}")
}

impl ContainerPlan {
    /// Returns the names of the container's networks. The first is the module's own.
    pub fn networks(&self) -> Vec<String> {
        match self.settings.network {
            Network::None => Vec::new(),
            Network::Bridge => {
                let peers = self.settings.peers.iter();
                let shared = peers.map(|peer| peer_network(&self.module, peer));
                std::iter::once(module_network(&self.module)).chain(shared).collect()
            }
        }
    }

    fn bind_mounts(&self) -> Result<Vec<BindMount>, EngineError> {
        let mut mounts = vec![BindMount {
            source: self.socket_dir.clone(),
            target: "/run/basalt".to_owned(),
            writable: false,
        }];
        for volume in &self.settings.volumes {
            let source =
                self.volume_dirs.get(&volume.name).ok_or_else(|| EngineError::Mismatch {
                    what: "folder of a volume",
                    expected: volume.name.clone(),
                    found: "none".into(),
                })?;
            mounts.push(BindMount {
                source: source.clone(),
                target: volume.path.clone(),
                writable: true,
            });
        }
        Ok(mounts)
    }

    fn memory_bytes(&self) -> i64 {
        i64::try_from(self.settings.memory_mib << 20).unwrap_or(i64::MAX)
    }

    fn nano_cpus(&self) -> i64 {
        i64::from(self.settings.cpu_percent) * NANOS / 100
    }

    /// Returns the request that creates the container. The template fixes everything that a module
    /// file cannot set.
    ///
    /// # Errors
    ///
    /// Returns [`EngineError::Mismatch`] if the plan has no folder for a volume.
    pub fn create_request(&self) -> Result<ContainerCreateBody, EngineError> {
        let m = &self.settings;
        let networks = self.networks();
        let endpoints =
            networks.iter().map(|name| (name.clone(), EndpointSettings::default())).collect();
        let ports = self.port_bindings();
        Ok(ContainerCreateBody {
            image: Some(self.digest.clone()),
            hostname: Some(self.module.clone()),
            // An entrypoint in the request also makes the engine ignore the image's command.
            entrypoint: (!m.command.is_empty()).then(|| m.command.clone()),
            env: (!m.environment.is_empty()).then(|| m.environment.clone()),
            labels: Some(HashMap::from([(MODULE_LABEL.to_owned(), self.module.clone())])),
            exposed_ports: (!ports.is_empty()).then(|| ports.keys().cloned().collect()),
            healthcheck: Some(self.health_check()),
            stop_timeout: Some(m.stop_within_s.into()),
            networking_config: (!networks.is_empty())
                .then_some(NetworkingConfig { endpoints_config: Some(endpoints) }),
            host_config: Some(self.host_config(networks.first(), ports)?),
            ..ContainerCreateBody::default()
        })
    }

    fn port_bindings(&self) -> HashMap<String, Option<Vec<PortBinding>>> {
        let ports = self.settings.ports.iter().map(|port| {
            let binding = PortBinding {
                host_ip: Some("0.0.0.0".into()),
                host_port: Some(port.node.to_string()),
            };
            (format!("{}/{}", port.module, port.protocol), Some(vec![binding]))
        });
        ports.collect()
    }

    fn health_check(&self) -> HealthConfig {
        let health = &self.settings.health;
        // Without a command of the module, "NONE" disables the image's own health check.
        let test = if health.command.is_empty() {
            vec!["NONE".to_owned()]
        } else {
            std::iter::once("CMD".to_owned()).chain(health.command.iter().cloned()).collect()
        };
        HealthConfig {
            test: Some(test),
            interval: Some(HEALTH_INTERVAL_NS),
            timeout: Some(HEALTH_TIMEOUT_NS),
            retries: Some(HEALTH_RETRIES),
            start_period: Some(i64::from(health.within_s) * NANOS),
            start_interval: Some(HEALTH_START_INTERVAL_NS),
        }
    }

    fn host_config(
        &self,
        network: Option<&String>,
        ports: HashMap<String, Option<Vec<PortBinding>>>,
    ) -> Result<HostConfig, EngineError> {
        let memory = self.memory_bytes();
        let mounts = self.bind_mounts()?.into_iter().map(BindMount::request).collect();
        let tmp = ("/tmp".into(), "rw,noexec,nosuid,nodev,size=16m".into());
        Ok(HostConfig {
            readonly_rootfs: Some(true),
            privileged: Some(false),
            cap_drop: Some(vec!["ALL".into()]),
            security_opt: Some(vec!["no-new-privileges".into()]),
            cgroupns_mode: Some(HostConfigCgroupnsModeEnum::PRIVATE),
            ipc_mode: Some("private".into()),
            network_mode: Some(network.cloned().unwrap_or_else(|| "none".into())),
            port_bindings: (!ports.is_empty()).then_some(ports),
            restart_policy: Some(RestartPolicy {
                name: Some(RestartPolicyNameEnum::NO),
                maximum_retry_count: None,
            }),
            memory: Some(memory),
            memory_swap: Some(memory),
            nano_cpus: Some(self.nano_cpus()),
            pids_limit: Some(self.settings.pids.into()),
            mounts: Some(mounts),
            tmpfs: Some(HashMap::from([tmp])),
            ..HostConfig::default()
        })
    }

    /// Verifies that the engine created what was planned. Returns the digest of the configuration,
    /// by which later changes are detected.
    ///
    /// # Errors
    ///
    /// Returns [`EngineError::Mismatch`] for the first property that differs.
    pub fn verify(&self, found: &ContainerInspectResponse) -> Result<ConfigDigest, EngineError> {
        let host = found.host_config.clone().unwrap_or_default();
        let image = ("image", self.digest.clone(), text(found.image.as_ref()));
        let checks = std::iter::once(image)
            .chain(privilege_checks(&host))
            .chain(namespace_checks(&host))
            .chain(self.mount_checks(found, &host)?)
            .chain(self.network_checks(found, &host))
            .chain(self.limit_checks(&host));
        match checks.into_iter().find(|(_, expected, found)| expected != found) {
            Some((what, expected, found)) => Err(EngineError::Mismatch { what, expected, found }),
            None => Ok(config_digest(found)),
        }
    }

    fn mount_checks(
        &self,
        found: &ContainerInspectResponse,
        host: &HostConfig,
    ) -> Result<[Check; 3], EngineError> {
        let mounts = found.mounts.iter().flatten();
        let mut mounted: Vec<String> = mounts
            .filter(|mount| mount.destination.as_deref() != Some("/tmp"))
            .map(|mount| {
                BindMount::describe(
                    mount.source.as_deref().unwrap_or_default(),
                    mount.destination.as_deref().unwrap_or_default(),
                    mount.rw.unwrap_or(true),
                )
            })
            .collect();
        mounted.sort();
        let mut planned: Vec<String> = self
            .bind_mounts()?
            .iter()
            .map(|m| BindMount::describe(&m.source.to_string_lossy(), &m.target, m.writable))
            .collect();
        planned.sort();
        Ok([
            ("mounts", debug(&planned), debug(&mounted)),
            ("binds", "[]".into(), list(host.binds.as_ref())),
            ("volumes of other containers", "[]".into(), list(host.volumes_from.as_ref())),
        ])
    }

    fn network_checks(&self, found: &ContainerInspectResponse, host: &HostConfig) -> [Check; 2] {
        let mut planned = self.networks();
        if planned.is_empty() {
            planned.push("none".into());
        }
        let mode = planned[0].clone();
        planned.sort();
        [
            ("network mode", mode, text(host.network_mode.as_ref())),
            ("networks", debug(&planned), debug(&network_names(found))),
        ]
    }

    fn limit_checks(&self, host: &HostConfig) -> [Check; 4] {
        let number = |n: Option<i64>| n.unwrap_or_default().to_string();
        let memory = self.memory_bytes().to_string();
        [
            ("memory limit", memory.clone(), number(host.memory)),
            ("limit of memory and swap", memory, number(host.memory_swap)),
            ("processor limit", self.nano_cpus().to_string(), number(host.nano_cpus)),
            ("process limit", self.settings.pids.to_string(), number(host.pids_limit)),
        ]
    }
}

fn privilege_checks(host: &HostConfig) -> [Check; 10] {
    let flag = |flag: Option<bool>| flag.unwrap_or_default().to_string();
    let restart = host.restart_policy.clone().and_then(|policy| policy.name);
    let sysctls = host.sysctls.as_ref().map_or(0, HashMap::len).to_string();
    [
        ("privileged", "false".into(), flag(host.privileged)),
        ("added capabilities", "[]".into(), list(host.cap_add.as_ref())),
        ("dropped capabilities", "[\"ALL\"]".into(), list(host.cap_drop.as_ref())),
        ("security options", "[\"no-new-privileges\"]".into(), list(host.security_opt.as_ref())),
        ("number of devices", "0".into(), count(host.devices.as_ref())),
        ("device rules", "[]".into(), list(host.device_cgroup_rules.as_ref())),
        ("number of device requests", "0".into(), count(host.device_requests.as_ref())),
        ("read-only root", "true".into(), flag(host.readonly_rootfs)),
        ("number of sysctls", "0".into(), sysctls),
        ("restart policy", "no".into(), restart.map(|name| name.to_string()).unwrap_or_default()),
    ]
}

fn namespace_checks(host: &HostConfig) -> [Check; 5] {
    [
        ("PID namespace", String::new(), text(host.pid_mode.as_ref())),
        ("UTS namespace", String::new(), text(host.uts_mode.as_ref())),
        ("user namespace", String::new(), text(host.userns_mode.as_ref())),
        ("IPC namespace", "private".into(), text(host.ipc_mode.as_ref())),
        ("additional groups", "[]".into(), list(host.group_add.as_ref())),
    ]
}

/// Creates the folder of a volume unless it exists, and returns its path. It never follows a
/// symbolic link.
///
/// # Errors
///
/// Returns an error if the folder cannot be created, or if a file or a link is in its place.
pub fn ensure_volume_dir(dir: &Path, module: &str, name: &str) -> std::io::Result<PathBuf> {
    use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
    let mut path = dir.to_owned();
    for (part, mode) in [(module, 0o700), (name, 0o777)] {
        path.push(part);
        match std::fs::DirBuilder::new().mode(mode).create(&path) {
            // The mode of the module's folder keeps other users out. The container sees only the
            // volume's folder, and its user may have any ID.
            Ok(()) => std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))?,
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
        if !path.symlink_metadata()?.is_dir() {
            return Err(std::io::Error::new(
                std::io::ErrorKind::NotADirectory,
                format!("expected a folder at {}, found a file or a link", path.display()),
            ));
        }
    }
    Ok(path)
}
