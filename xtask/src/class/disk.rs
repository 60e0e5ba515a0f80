use crate::{plan::{Plan,Step},store::Inputs}; use anyhow::Result; use std::path::Path;
pub fn needs(_: &str) -> Result<Vec<Step>> { Ok(vec![]) }
pub fn names() -> Result<Vec<String>> { Ok(vec![]) }
pub fn inputs(_: &Plan, _: &mut Inputs) -> Result<()> { Ok(()) }
pub fn build(_: &Plan, _: &Path) -> Result<()> { Ok(()) }
