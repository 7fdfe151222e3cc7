//! `meshnode exec`: one command under a service's identity. The daemon makes the cgroup; what becomes the command moves
//! itself into it first, so that nothing of the command runs outside.
//!
//! In place, this process becomes the command. Attended, it stays beside it, to say what people want to know.

mod attended;
mod refusals;
mod temporary;

use std::{
    ffi::OsString,
    fs::{File, OpenOptions},
    io::{self, IsTerminal, Write},
    os::unix::process::CommandExt,
    path::Path,
    process::Command,
    time::Duration,
};

use clap::Args;
use nix::unistd::{Gid, Uid, User, getgrouplist, setgid, setgroups, setuid};

use super::{Failure, Global, admin::Admin, block_on, exit, intention, target};
use crate::{
    admin::{ExecRequest, ExecTicket},
    config::parse_duration,
    identity::ServiceName,
};

#[derive(Debug, Args)]
#[command(
    after_help = "The exit code is the command's; 125 if meshnode failed, 126 if the command cannot be run, 127 if \
                        there is no such command.\n\nOn a host that runs no daemon, for one command:\n  \
                        sudo meshnode exec --temporary --http-addr https://HOST:8501 --ca-file CA --token TOKEN \\\n    \
                        --service web -- psql -h db.mesh"
)]
pub struct ExecArgs {
    /// The service that the command runs as
    #[arg(long, value_name = "NAME", value_parser = intention::service_name)]
    pub service: ServiceName,

    /// The user that the command runs as [default: yours; under sudo that is root]
    #[arg(long, value_name = "USER")]
    pub user: Option<String>,

    /// Run a daemon for this one command, which governs nothing else on the host and is gone afterwards
    #[arg(long)]
    pub temporary: bool,

    /// How long to wait for the control plane and for a certificate
    #[arg(long, value_name = "DURATION", default_value = "15s", value_parser = parse_duration)]
    pub wait: Duration,

    /// Say who the command is, and what the mesh refused it, also where standard error is no terminal
    #[arg(long, conflicts_with = "quiet")]
    pub explain: bool,

    /// Say nothing but errors
    #[arg(long)]
    pub quiet: bool,

    /// The command and its arguments, after `--`
    #[arg(last = true, required = true, value_name = "CMD")]
    pub command: Vec<OsString>,
}

impl ExecArgs {
    fn tells(&self) -> bool {
        !self.quiet && (self.explain || self.temporary || io::stderr().is_terminal())
    }
}

/// In place, returns only if the command was not started.
pub fn run(global: &Global, args: &ExecArgs) -> Result<u8, Failure> {
    let user = args.user.as_deref().map(Account::find).transpose().map_err(failed)?;
    if args.temporary || args.tells() {
        return attended::run(global, args, user);
    }
    let admin = target::admin(global).map_err(|failure| failed(failure.to_string()))?;
    let ticket = block_on(ask(&admin, args))?;
    let mut command = command(args, &ticket, user)?;
    Err(not_started(args, &command.exec()))
}

fn failed(message: impl Into<String>) -> Failure {
    Failure::Exec { code: exit::EXEC_FAILED, message: message.into() }
}

async fn ask(admin: &Admin, args: &ExecArgs) -> Result<ExecTicket, Failure> {
    let request = ExecRequest { service: args.service.clone(), pid: std::process::id() };
    admin.exec(&request).await.map_err(|failure| match failure {
        Failure::NoDaemon { .. } => failed(format!(
            "{failure}\nOr, for this command alone: --temporary, with --http-addr, --ca-file and --token of the control plane."
        )),
        other => failed(other.to_string()),
    })
}

/// Returns the command; what starts it is in the cgroup, and is the user, before it becomes the program.
fn command(args: &ExecArgs, ticket: &ExecTicket, user: Option<Account>) -> Result<Command, Failure> {
    let mut procs = open(&ticket.cgroup_procs_path).map_err(failed)?;
    let (program, rest) = args.command.split_first().expect("invariant: clap requires a command");
    let mut command = Command::new(program);
    command.args(rest);
    let enter = move || {
        // 0 is the writer, in whatever pid namespace it is.
        procs.write_all(b"0")?;
        user.as_ref().map_or(Ok(()), Account::enter)
    };
    // SAFETY: the closure writes to a file that is open and makes system calls; it allocates nothing and takes no lock.
    unsafe { command.pre_exec(enter) };
    Ok(command)
}

fn not_started(args: &ExecArgs, error: &io::Error) -> Failure {
    let code = if error.kind() == io::ErrorKind::NotFound { exit::EXEC_NOT_FOUND } else { exit::EXEC_CANNOT };
    let hint = if error.kind() == io::ErrorKind::PermissionDenied && !nix::unistd::geteuid().is_root() {
        "\nUse sudo."
    } else {
        ""
    };
    Failure::Exec { code, message: format!("{}: {error}{hint}", args.command[0].to_string_lossy()) }
}

fn open(procs: &Path) -> Result<File, String> {
    OpenOptions::new().write(true).open(procs).map_err(|error| {
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

/// Who the command runs as.
struct Account {
    user: Uid,
    group: Gid,
    groups: Vec<Gid>,
}

impl Account {
    fn find(name: &str) -> Result<Self, String> {
        let failed = |error: &dyn std::fmt::Display| format!("--user {name}: {error}");
        let user = User::from_name(name).map_err(|e| failed(&e))?.ok_or_else(|| failed(&"no such user"))?;
        let c_name = std::ffi::CString::new(name).map_err(|e| failed(&e))?;
        let groups = getgrouplist(&c_name, user.gid).map_err(|e| failed(&e))?;
        Ok(Self { user: user.uid, group: user.gid, groups })
    }

    /// Groups first: without root they cannot be changed any more.
    fn enter(&self) -> io::Result<()> {
        setgroups(&self.groups)?;
        setgid(self.group)?;
        Ok(setuid(self.user)?)
    }
}
