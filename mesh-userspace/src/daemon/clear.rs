//! Connections in clear, wherever workloads are: in the host's network namespace, and in those that are served.

use std::io;

use super::{namespaces::Served, visitor::Visitor};
use crate::datapath::uncaptured::{Connection, Uncaptured, established};

/// Lists the connections of programs. It takes time, and blocks.
///
/// # Errors
/// The kernel's.
pub fn connections(visitor: Option<&Visitor>, namespaces: &Served) -> io::Result<Vec<Connection>> {
    let mut all = established()?;
    let Some(visitor) = visitor else { return Ok(all) };
    for namespace in namespaces.each() {
        match visitor.inside_now(namespace.inode, established) {
            Ok(there) => {
                all.extend(there.into_iter().map(|c| Connection { namespace: Some(namespace), ..c }))
            }
            // Its last workload has ended meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(all)
}

/// Destroys one, where it is.
///
/// # Errors
/// The kernel's; that it ended by itself meanwhile is none.
pub async fn cut(visitor: Option<&Visitor>, one: &Uncaptured) -> io::Result<()> {
    match (one.namespace(), visitor) {
        (Some(namespace), Some(visitor)) => {
            let one = one.clone();
            match visitor.inside(namespace.inode, move || one.cut()).await {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                other => other,
            }
        }
        _ => one.cut(),
    }
}
