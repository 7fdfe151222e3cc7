//! The command line: what a user types, which module does it, and what the exit code means.

mod acl;
mod admin;
mod ca;
mod config_check;
mod doctor;
mod exec;
mod failure;
mod generate;
mod intention;
mod output;
mod service;
mod status;
mod target;

use std::{
    ffi::OsString,
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::{Args, CommandFactory, Parser, Subcommand};

pub use failure::{Failure, exit};

use crate::{config::Config, daemon};

const AFTER_HELP: &str = "\
Exit codes:
  0    done; `intention check`: allowed; `doctor`: nothing fails
  1    the request was refused or failed; `doctor`: something fails
  2    `intention check`: denied
  3    `status --check`: the daemon runs, and something is wrong
  64   the command line is wrong
  69   the daemon or the control plane cannot be reached
  77   permission denied
  78   the configuration is wrong
  125  `exec`: meshnode failed; 126: the command cannot be run; 127: no such command;
       otherwise `exec` ends as the command does

Configuration: /etc/meshnode/meshnode.toml, see `meshnode config check` and docs/operations.md.";

/// A transparent mTLS data plane for Linux hosts.
#[derive(Debug, Parser)]
#[command(name = "meshnode", version, after_help = AFTER_HELP, arg_required_else_help = true)]
#[command(subcommand_required = true, disable_help_subcommand = true)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Clone, Debug, Default, Args)]
pub struct Global {
    /// The configuration file [default: /etc/meshnode/meshnode.toml]
    #[arg(long, global = true, value_name = "FILE", env = "MESHNODE_CONFIG")]
    pub config: Option<PathBuf>,

    /// The daemon's admin socket [default: admin.sock in the configuration's run_dir]
    #[arg(long, global = true, value_name = "PATH")]
    pub admin_socket: Option<PathBuf>,

    /// The control plane's API: HOST:PORT, http://, https:// or unix:/// [default: as configured; the embedded
    /// server's unix socket where it is the control plane]
    #[arg(long, global = true, value_name = "ADDRESS", env = "CONSUL_HTTP_ADDR")]
    pub http_addr: Option<String>,

    /// The control plane's ACL token [default: as configured]
    #[arg(long, global = true, value_name = "TOKEN", env = "CONSUL_HTTP_TOKEN", hide_env_values = true)]
    pub token: Option<String>,

    /// The CA that signed the control plane's https certificate [default: as configured]
    #[arg(long, global = true, value_name = "FILE", env = "CONSUL_CACERT")]
    pub ca_file: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the daemon in the foreground
    Run,
    /// Show workloads, flows, certificates, and what is really attached
    Status(status::StatusArgs),
    /// Create, list, delete or check intentions: who may connect to whom
    #[command(subcommand)]
    Intention(intention::IntentionCommand),
    /// Show and rotate the certificate authority
    #[command(subcommand)]
    Ca(ca::CaCommand),
    /// Register or list services
    #[command(subcommand)]
    Service(service::ServiceCommand),
    /// Create, list or delete ACL tokens and policies: who may change what in the control plane
    #[command(subcommand)]
    Acl(acl::AclCommand),
    /// Run one command as a service
    Exec(exec::ExecArgs),
    /// Check kernel, cgroups, BPF, clock, control plane: what is missing, and the fix
    Doctor(doctor::DoctorArgs),
    /// Make the daemon read its configuration again; a bad one is refused as a whole
    Reload,
    /// End connections in clear from before the mesh knew of them; `status` lists them
    Cut(status::CutArgs),
    /// Make the daemon take no new flows, and end when the live ones have ended
    Drain,
    /// Remove what outlives the daemon in the kernel: nothing is captured, denied or protected any more
    Detach,
    /// Check a configuration file
    #[command(subcommand)]
    Config(config_check::ConfigCommand),
    /// Print a completion script
    Completions(generate::CompletionsArgs),
    /// Print the manual page, or write all pages to a directory
    Man(generate::ManArgs),
}

/// Runs what `args` (the program's name first) ask for. `run_daemon` is the daemon.
pub fn main<D>(args: impl IntoIterator<Item = OsString>, run_daemon: D) -> ExitCode
where
    D: FnOnce(Config, Option<PathBuf>) -> Result<(), Failure>,
{
    let cli = match Cli::try_parse_from(intention::consul_dashes(args)) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no errors; a closed pipe is not worth one.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { exit::USAGE } else { exit::OK });
        }
    };
    match dispatch(cli, run_daemon) {
        Ok(code) => ExitCode::from(code),
        Err(Failure::ClosedPipe) => ExitCode::from(exit::OK),
        Err(failure) => {
            // Nobody is left to tell, where standard error is closed.
            let _ = writeln!(io::stderr(), "meshnode: {failure}");
            ExitCode::from(failure.exit_code())
        }
    }
}

fn dispatch<D>(cli: Cli, run_daemon: D) -> Result<u8, Failure>
where
    D: FnOnce(Config, Option<PathBuf>) -> Result<(), Failure>,
{
    let Cli { global, command } = cli;
    match command {
        Command::Run => {
            let config = Config::load_with_files(global.config.as_deref())?;
            run_daemon(config, global.config).map(|()| exit::OK)
        }
        Command::Status(args) => block_on(status::run(&global, &args)),
        Command::Intention(command) => block_on(intention::run(&global, command)),
        Command::Ca(command) => block_on(ca::run(&global, command)),
        Command::Service(command) => block_on(service::run(&global, command)),
        Command::Acl(command) => block_on(acl::run(&global, command)),
        Command::Exec(args) => exec::run(&global, &args),
        Command::Doctor(args) => block_on(doctor::run(&global, &args)),
        Command::Reload => block_on(status::reload(&global)),
        Command::Cut(args) => block_on(status::cut(&global, &args)),
        Command::Drain => block_on(status::drain(&global)),
        Command::Detach => detach(&global),
        Command::Config(command) => config_check::run(&global, &command),
        Command::Completions(args) => generate::completions(&mut Cli::command(), &args),
        Command::Man(args) => generate::man(Cli::command(), &args),
    }
}

fn detach(global: &Global) -> Result<u8, Failure> {
    let config = Config::load(global.config.as_deref())?;
    let detached = daemon::detach(&config).map_err(|error| Failure::Refused(format!("{error:#}")))?;
    let pins = config.bpf_dir.display();
    output::print(&if detached {
        format!("removed {pins}: this host is no longer in the mesh\n")
    } else {
        format!("nothing is pinned in {pins}\n")
    })?;
    Ok(exit::OK)
}

fn block_on<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("invariant: a process may have an epoll instance").block_on(future)
}

#[cfg(test)]
mod tests;
