//! `meshnode config check`: the configuration, without a daemon.

use std::path::PathBuf;

use clap::Subcommand;

use super::{Failure, Global, exit, output::print, target};
use crate::config::Config;

#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Check a file; exit code 78 and every mistake with line and column if it is wrong
    Check {
        /// [default: --config, or /etc/meshnode/meshnode.toml]
        #[arg(value_name = "FILE")]
        file: Option<PathBuf>,
    },
}

pub fn run(global: &Global, command: &ConfigCommand) -> Result<u8, Failure> {
    let ConfigCommand::Check { file } = command;
    let path = file.clone().unwrap_or_else(|| target::config_path(global));
    let config = Config::load_with_files(Some(&path))?;
    let services = config.services.len();
    print(&format!(
        "{}: valid, {services} service{}\n",
        path.display(),
        if services == 1 { "" } else { "s" }
    ))?;
    Ok(exit::OK)
}
