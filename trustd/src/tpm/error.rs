//! Errors of the TPM.

use tss_esapi::Error;
use tss_esapi::constants::response_code::Tss2ResponseCode;

/// Error of an operation of the TPM.
#[derive(Debug, thiserror::Error)]
pub enum TpmError {
    /// The TPM, or the way to it, returned an error.
    #[error("the TPM operation {operation} failed")]
    Operation {
        /// TPM command, or a step before it, such as parsing a parameter.
        operation: &'static str,
        /// Cause.
        source: Error,
    },
    /// The TPM's response has not the form that the command asks for.
    #[error("invalid response of the TPM to {operation}: {problem}")]
    Response {
        /// TPM command.
        operation: &'static str,
        /// Description of the problem.
        problem: String,
    },
    /// The TPM is in dictionary attack lockout.
    #[error(
        "the TPM is locked out after too many wrong passwords (dictionary attack lockout); \
         the lockout ends by itself after the TPM's recovery time; trustd's objects in the TPM \
         have no password and do not add to it"
    )]
    Lockout,
    /// The queue of requests is full.
    #[error("the queue of the TPM is full; try again")]
    Busy,
    /// The thread that owns the TPM has ended.
    #[error("the thread that owns the TPM has ended")]
    Stopped,
    /// The kernel, which adds to the TPM's random numbers, returned none.
    #[error("the kernel's random number generator failed")]
    KernelRandom,
}

impl TpmError {
    /// Reports whether the TPM examined the parameters of a command whose name begins with
    /// `command` and rejected them (format-one codes: TPM 2.0 Library, Part 2, 6.6.2). Such an
    /// error does not depend on the state of the TPM.
    pub fn is_rejection_of(&self, command: &str) -> bool {
        let is_rejection = |source: &Error| {
            matches!(
                source,
                Error::WrapperError(_) | Error::Tss2Error(Tss2ResponseCode::FormatOne(_))
            )
        };
        matches!(
            self,
            Self::Operation { operation, source }
                if operation.starts_with(command) && is_rejection(source)
        )
    }
}

/// Adds the operation to an error of the software stack.
pub(super) fn failed(operation: &'static str) -> impl Fn(Error) -> TpmError {
    move |source| TpmError::Operation { operation, source }
}
