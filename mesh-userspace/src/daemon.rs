//! TEMPORARY, replaced by the lead: the daemon is not in this branch.

use std::path::PathBuf;

use crate::config::Config;

/// Runs until SIGTERM.
pub fn run(_config: Config, _config_path: Option<PathBuf>) -> anyhow::Result<()> {
    anyhow::bail!("the daemon is not built into this branch")
}
