//! Kinds of the events that trustd extends into PCR 15.
//!
//! The table in docs/measurements.md lists every kind with its data. A test compares the two, so a
//! new kind needs a line here and a row there.

use std::fmt;

macro_rules! event_kinds {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// Kind of an event in PCR 15.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum EventKind {
            $($(#[$doc])* $variant,)*
        }

        impl EventKind {
            /// All kinds, in the order of the table in docs/measurements.md.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Returns the type that the event has in the log and in its digest.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }
        }
    };
}

event_kinds! {
    /// First start of trustd after a boot, with the TPM's reset counts.
    TpmClock = "tpm-clock",
    /// The ledger allows an image that a module needs.
    ModuleApproved = "module-approved",
    /// The ledger denies an image, or the image does not verify.
    ModuleDenied = "module-denied",
    /// A module's container is about to start.
    ModuleStarted = "module-started",
    /// trustd is about to stop a module's container.
    ModuleStopped = "module-stopped",
    /// A module's container ended by itself.
    ModuleExited = "module-exited",
    /// A new version became healthy and replaces the old one.
    ModuleUpgraded = "module-upgraded",
    /// A container did not become healthy.
    ModuleFailed = "module-failed",
    /// trustd returns to the last healthy version.
    ModuleRolledBack = "module-rolled-back",
    /// A container was changed, or a command was executed in it.
    ModuleTampered = "module-tampered",
    /// trustd removes a container that it did not start.
    UnknownContainerRemoved = "unknown-container-removed",
    /// trustd removes an image that it did not load.
    UnknownImageRemoved = "unknown-image-removed",
    /// trustd removes tags that it did not set.
    UnknownTagRemoved = "unknown-tag-removed",
    /// An uploaded archive is not a valid image.
    ImageRejected = "image-rejected",
    /// Processes belong to no service and no known container.
    UnknownCgroupKilled = "unknown-cgroup-killed",
    /// A process outside of the module's container connected to the module's socket.
    ModuleSocketDenied = "module-socket-denied",
    /// A module made a call that its file does not list.
    ModuleCallDenied = "module-call-denied",
    /// The engine's event stream left out events that the engine reports.
    EngineEventsMissed = "engine-events-missed",
    /// The owner had the node forget its high-water mark of the log.
    LedgerReset = "ledger-reset",
    /// The owner restored a root key from its escrow.
    RootKeyRestored = "root-key-restored",
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADING: &str = "\n## After the handover: PCR 15\n";

    /// Returns the first column of the table of trustd's events in docs/measurements.md.
    fn documented_kinds() -> Vec<String> {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/measurements.md");
        let text = std::fs::read_to_string(path).unwrap();
        let (_, section) = text.split_once(HEADING).unwrap();
        let section = section.split("\n## ").next().unwrap();
        let first_cell = |row: &str| Some(row.strip_prefix("| `")?.split_once('`')?.0.to_owned());
        section.lines().filter_map(first_cell).collect()
    }

    #[test]
    fn every_kind_is_documented_and_every_documented_kind_exists() {
        let mut documented = documented_kinds();
        let mut kinds: Vec<String> = EventKind::ALL.iter().map(ToString::to_string).collect();
        documented.sort();
        kinds.sort();
        assert_eq!(kinds, documented, "EventKind and the table in docs/measurements.md differ");
    }
}
