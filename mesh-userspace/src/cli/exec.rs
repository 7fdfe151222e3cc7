//! `meshnode exec`: one command under a service's identity. The daemon makes the cgroup; this process moves itself into it
//! and becomes the command, so that nothing of the command runs outside.

use std::{
    ffi::{CString, OsString},
    fs, io,
    os::unix::process::CommandExt,
    path::Path,
    process::Command,
};

use clap::Args;
use nix::unistd::{User, initgroups, setgid, setuid};

use super::{Failure, Global, block_on, exit, intention, target};
use crate::{
    admin::{ExecRequest, ExecTicket},
    identity::ServiceName,
};

#[derive(Debug, Args)]
#[command(
    after_help = "The exit code is the command's; 125 if meshnode failed, 126 if the command cannot be run, 127 if \
                        there is no such command."
)]
pub struct ExecArgs {
    /// The service that the command runs as
    #[arg(long, value_name = "NAME", value_parser = intention::service_name)]
    pub service: ServiceName,

    /// The user that the command runs as [default: yours; under sudo that is root]
    #[arg(long, value_name = "USER")]
    pub user: Option<String>,

    /// The command and its arguments, after `--`
    #[arg(last = true, required = true, value_name = "CMD")]
    pub command: Vec<OsString>,
}

/// Returns only if the command was not started.
pub fn run(global: &Global, args: &ExecArgs) -> Result<u8, Failure> {
    let failed = |message: String| Failure::Exec { code: exit::EXEC_FAILED, message };
    let user = args.user.as_deref().map(find_user).transpose().map_err(failed)?;
    let ticket = block_on(ask(global, args)).map_err(|failure| failed(failure.to_string()))?;
    enter(&ticket.cgroup_procs_path).map_err(failed)?;
    if let Some(user) = user {
        become_user(&user).map_err(failed)?;
    }
    let (program, rest) = args.command.split_first().expect("invariant: clap requires a command");
    let error = Command::new(program).args(rest).exec();
    let code = if error.kind() == io::ErrorKind::NotFound { exit::EXEC_NOT_FOUND } else { exit::EXEC_CANNOT };
    Err(Failure::Exec { code, message: format!("{}: {error}", program.to_string_lossy()) })
}

async fn ask(global: &Global, args: &ExecArgs) -> Result<ExecTicket, Failure> {
    let admin = target::admin(global)?;
    let request = ExecRequest { service: args.service.clone(), pid: std::process::id() };
    admin.exec(&request).await
}

/// Moves this process: 0 is the writer, in whatever pid namespace it is.
fn enter(procs: &Path) -> Result<(), String> {
    fs::write(procs, "0").map_err(|error| {
        let shown = procs.display();
        match error.kind() {
            io::ErrorKind::PermissionDenied => format!("{shown}: permission denied\nUse sudo."),
            io::ErrorKind::NotFound => {
                format!(
                    "{shown}: not there; the daemon sees another cgroup mount than this shell (a container?)"
                )
            }
            _ => format!("{shown}: {error}"),
        }
    })
}

fn find_user(name: &str) -> Result<User, String> {
    let found = User::from_name(name).map_err(|error| format!("--user {name}: {error}"))?;
    found.ok_or_else(|| format!("--user {name}: no such user"))
}

/// Groups first: without root they cannot be changed any more.
fn become_user(user: &User) -> Result<(), String> {
    let name = CString::new(user.name.as_str()).map_err(|error| error.to_string())?;
    initgroups(&name, user.gid)
        .and_then(|()| setgid(user.gid))
        .and_then(|()| setuid(user.uid))
        .map_err(|error| format!("cannot become {}: {error}\nUse sudo.", user.name))
}
