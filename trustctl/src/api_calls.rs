//! The calls of the owner's API: each path with its method, request and answer, as
//! `trustd/openapi.json` describes them.

use std::path::Path;

use anyhow::Result;
use api::owner::{
    AcceptedPolicies, AcceptedRequest, ActivatedCredential, AppliedSpec, AuditLog, BundleUpdate,
    Credential, Endorsement, Escrow, LedgerReset, LedgerUpdate, ModuleLog, Modules, NodeStatus,
    Policies, PolicyRequirement, RestoredRootKey, RootKey, SignedSpec, StoredImage,
};
use api::{Evidence, QuoteRequest};

use crate::client::Client;

/// Body of a POST request that needs none.
#[derive(serde::Serialize)]
struct Empty {}

/// Every call returns a [`crate::client::Refusal`] if the node answers with an error status, a
/// [`crate::client::InvalidAnswer`] if the answer has another form, and other errors if the node
/// cannot be reached.
impl Client {
    /// Returns the state of the node and of its ledger.
    ///
    /// # Errors
    /// Returns the errors of every call.
    pub fn status(&self) -> Result<NodeStatus> {
        self.get("/v1/status")
    }

    /// Returns the node's identity, which specs name: SHA-256 of its certificate, hex. Over TLS it
    /// is that of the certificate that the node proved to have and that `known_nodes` pins; on the
    /// node's own socket the node tells it.
    ///
    /// # Errors
    /// Returns the errors of every call.
    pub fn identity(&self) -> Result<String> {
        // An earlier request of this client has shown it.
        if let Some(certificate) = self.node_certificate() {
            return Ok(certificate);
        }
        let reported = match self.status()? {
            NodeStatus::Locked(status) => status.certificate,
            NodeStatus::Unlocked(status) => status.certificate,
        };
        Ok(self.node_certificate().unwrap_or(reported))
    }

    /// Returns the modules.
    ///
    /// # Errors
    /// Returns the errors of every call.
    pub fn modules(&self) -> Result<Modules> {
        self.get("/v1/modules")
    }

    /// Sends a signed spec for a module.
    ///
    /// # Errors
    /// Returns the errors of every call.
    pub fn apply_spec(&self, module: &str, spec: &SignedSpec) -> Result<AppliedSpec> {
        self.put(&format!("/v1/modules/{module}"), spec)
    }

    /// Returns the last lines that a running module wrote.
    ///
    /// # Errors
    /// Returns the errors of every call.
    pub fn module_log(&self, module: &str, lines: u32) -> Result<ModuleLog> {
        self.get(&format!("/v1/modules/{module}/log?lines={lines}"))
    }

    /// Uploads an image: an OCI layout as one tar.
    ///
    /// # Errors
    /// Returns the errors of every call, and an error if the file cannot be read.
    pub fn upload_image(&self, archive: &Path) -> Result<StoredImage> {
        self.upload("/v1/images", archive)
    }

    /// Returns the events of modules since the boot.
    ///
    /// # Errors
    /// Returns the errors of every call.
    pub fn audit_log(&self) -> Result<AuditLog> {
        self.get("/v1/audit")
    }

    /// Requests a quote for a nonce.
    ///
    /// # Errors
    /// Returns the errors of every call.
    pub fn quote(&self, nonce: &[u8]) -> Result<Evidence> {
        self.post("/v1/quote", &QuoteRequest { nonce: measure::hex(nonce) })
    }

    /// Returns the endorsement key of the node's TPM.
    ///
    /// # Errors
    /// Returns the errors of every call.
    pub fn endorsement(&self) -> Result<Endorsement> {
        self.get("/v1/endorsement")
    }

    /// Has the TPM activate a credential.
    ///
    /// # Errors
    /// Returns the errors of every call.
    pub fn activate_credential(&self, credential: &Credential) -> Result<ActivatedCredential> {
        self.post("/v1/activate-credential", credential)
    }

    /// Returns the log of approvals.
    ///
    /// # Errors
    /// Returns the errors of every call.
    pub fn ledger_log(&self) -> Result<String> {
        self.text("/v1/ledger")
    }

    /// Sends a log that continues the node's.
    ///
    /// # Errors
    /// Returns the errors of every call.
    pub fn push_log(&self, log: String) -> Result<LedgerUpdate> {
        self.put_text("/v1/ledger", log)
    }

    /// Has the node forget its high-water mark of the log.
    ///
    /// # Errors
    /// Returns the errors of every call.
    pub fn reset_ledger(&self) -> Result<LedgerReset> {
        self.post("/v1/ledger/reset", &Empty {})
    }

    /// Sends a bundle of the chain.
    ///
    /// # Errors
    /// Returns the errors of every call, and an error if the file cannot be read.
    pub fn push_bundle(&self, bundle: &Path) -> Result<BundleUpdate> {
        self.upload("/v1/ledger/bundle", bundle)
    }

    /// Returns which policy unseals the root key in this boot.
    ///
    /// # Errors
    /// Returns the errors of every call.
    pub fn required_policy(&self) -> Result<PolicyRequirement> {
        self.get("/v1/policies")
    }

    /// Sends policies.
    ///
    /// # Errors
    /// Returns the errors of every call.
    pub fn send_policies(&self, policies: &Policies) -> Result<AcceptedPolicies> {
        self.put("/v1/policies", policies)
    }

    /// Returns the root key in escrow.
    ///
    /// # Errors
    /// Returns the errors of every call.
    pub fn escrow(&self) -> Result<Escrow> {
        self.get("/v1/recovery")
    }

    /// Restores the root key.
    ///
    /// # Errors
    /// Returns the errors of every call.
    pub fn restore_root_key(&self, root: &[u8]) -> Result<RestoredRootKey> {
        self.put("/v1/recovery", &RootKey { root: measure::hex(root) })
    }

    /// Ends a service (`restart` or `kill`); init starts it again.
    ///
    /// # Errors
    /// Returns the errors of every call.
    pub fn control_service(&self, name: &str, verb: &str) -> Result<AcceptedRequest> {
        self.post(&format!("/v1/services/{name}/{verb}"), &Empty {})
    }

    /// Ends the node (`reboot` or `poweroff`).
    ///
    /// # Errors
    /// Returns the errors of every call.
    pub fn control_node(&self, verb: &str) -> Result<AcceptedRequest> {
        self.post(&format!("/v1/node/{verb}"), &Empty {})
    }
}
