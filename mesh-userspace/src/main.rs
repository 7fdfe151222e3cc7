//! The `meshnode` binary: the command line with the daemon behind `run`.

use std::process::ExitCode;

use mesh_userspace::{cli, daemon};

fn main() -> ExitCode {
    cli::main(std::env::args_os(), |config, config_path| {
        daemon::run(config, config_path).map_err(|error| cli::Failure::Refused(format!("{error:#}")))
    })
}
