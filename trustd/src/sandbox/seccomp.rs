//! Lists of system calls as filters of the kernel.

use std::collections::BTreeMap;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch,
};

use super::SandboxError;

/// System calls that a process may use. Any other one ends it with SIGSYS.
#[derive(Default)]
pub(super) struct AllowList(BTreeMap<i64, Vec<SeccompRule>>);

impl AllowList {
    /// Allows system calls with any arguments.
    pub(super) fn allow(mut self, calls: &[i64]) -> Self {
        self.0.extend(calls.iter().map(|call| (*call, Vec::new())));
        self
    }

    /// Allows a system call if all conditions hold. Each further call with the same number adds an
    /// alternative.
    pub(super) fn allow_if(
        mut self,
        call: i64,
        conditions: &[Condition],
    ) -> Result<Self, BackendError> {
        let conditions: Vec<_> =
            conditions.iter().map(|condition| condition.compile()).collect::<Result<_, _>>()?;
        self.0.entry(call).or_default().push(SeccompRule::new(conditions)?);
        Ok(self)
    }

    /// Applies the list to this thread, the threads that it starts, and their programs.
    pub(super) fn apply(self) -> Result<(), SandboxError> {
        apply(self.0, SeccompAction::KillProcess, SeccompAction::Allow)
    }
}

/// Lets system calls fail with ENOSYS, as on a kernel that does not have them.
pub(super) fn hide(calls: &[i64]) -> Result<(), SandboxError> {
    let calls = calls.iter().map(|call| (*call, Vec::new())).collect();
    let error = SeccompAction::Errno(nix::errno::Errno::ENOSYS as u32);
    apply(calls, SeccompAction::Allow, error)
}

fn apply(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    on_match: SeccompAction,
) -> Result<(), SandboxError> {
    let architecture = TargetArch::try_from(std::env::consts::ARCH)?;
    let program: BpfProgram =
        SeccompFilter::new(rules, otherwise, on_match, architecture)?.try_into()?;
    Ok(seccompiler::apply_filter(&program)?)
}

/// Condition on an argument of a system call. Arguments are numbered from 0.
///
/// The kernel's functions use the lower 32 bits of the arguments that are compared here.
#[derive(Clone, Copy)]
pub(super) enum Condition {
    /// The argument has this value.
    Is(u8, u64),
    /// The argument is at most this value.
    AtMost(u8, u64),
    /// The argument has none of these bits.
    WithoutBits(u8, u64),
}

impl Condition {
    fn compile(self) -> Result<SeccompCondition, BackendError> {
        let (argument, operator, value) = match self {
            Self::Is(argument, value) => (argument, SeccompCmpOp::Eq, value),
            Self::AtMost(argument, value) => (argument, SeccompCmpOp::Le, value),
            Self::WithoutBits(argument, bits) => (argument, SeccompCmpOp::MaskedEq(bits), 0),
        };
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)
    }
}
