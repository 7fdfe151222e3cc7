//! Completion scripts and manual pages, made from the command line's own definition.

use std::{fs, path::PathBuf};

use clap::{Args, Command};
use clap_complete::Shell;

use super::{Failure, exit, output::print};

#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

#[derive(Debug, Args)]
pub struct ManArgs {
    /// Write meshnode.1 and a page for each command there; without it, meshnode(1) goes to standard output
    #[arg(value_name = "DIR")]
    directory: Option<PathBuf>,
}

pub fn completions(command: &mut Command, args: &CompletionsArgs) -> Result<u8, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, command, "meshnode", &mut script);
    print(&String::from_utf8_lossy(&script))?;
    Ok(exit::OK)
}

pub fn man(command: Command, args: &ManArgs) -> Result<u8, Failure> {
    let Some(directory) = &args.directory else {
        let mut page = Vec::new();
        clap_mangen::Man::new(command).render(&mut page).map_err(Failure::Output)?;
        print(&String::from_utf8_lossy(&page))?;
        return Ok(exit::OK);
    };
    let failed = |error| Failure::Refused(format!("{}: {error}", directory.display()));
    fs::create_dir_all(directory).map_err(failed)?;
    clap_mangen::generate_to(command, directory).map_err(failed)?;
    Ok(exit::OK)
}
