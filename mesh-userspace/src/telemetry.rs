//! Logs: to stderr, as text or JSON, filtered by the configuration; the audit log is a target of its own.

use std::io::{self, IsTerminal};

use tracing_subscriber::{EnvFilter, Registry, fmt, layer::SubscriberExt, reload, util::SubscriberInitExt};

use crate::config::LogFormat;

/// The target of audit records: one for each decision on a flow, and for what was asked by the admin socket.
pub const AUDIT: &str = "audit";

/// Why logs are not as asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TelemetryError {
    #[error("`{filter}` is no log filter: {why}")]
    Filter { filter: String, why: String },
    #[error("logs are set up already")]
    Twice,
    #[error("the log filter cannot be changed any more")]
    Gone,
}

/// The running log; through it a reload changes the filter.
#[derive(Clone, Debug)]
pub struct Telemetry {
    filter: reload::Handle<EnvFilter, Registry>,
}

/// Sends the process's logs to stderr. Once in a process.
pub fn init(filter: &str, format: LogFormat) -> Result<Telemetry, TelemetryError> {
    let (filter, handle) = reload::Layer::new(parse(filter)?);
    let registry = tracing_subscriber::registry().with(filter);
    let result = match format {
        LogFormat::Json => {
            registry.with(fmt::layer().json().flatten_event(true).with_writer(io::stderr)).try_init()
        }
        LogFormat::Text => {
            let colours =
                io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
            registry.with(fmt::layer().with_ansi(colours).with_writer(io::stderr)).try_init()
        }
    };
    result.map_err(|_| TelemetryError::Twice)?;
    Ok(Telemetry { filter: handle })
}

impl Telemetry {
    /// Replaces the filter; on an error the old one stays.
    pub fn set_filter(&self, filter: &str) -> Result<(), TelemetryError> {
        self.filter.reload(parse(filter)?).map_err(|_| TelemetryError::Gone)
    }
}

/// The filter with the audit log on, unless it speaks of the audit log itself.
fn parse(filter: &str) -> Result<EnvFilter, TelemetryError> {
    let parsed = EnvFilter::builder()
        .parse(filter)
        .map_err(|error| TelemetryError::Filter { filter: filter.to_owned(), why: error.to_string() })?;
    let names_audit = filter.split(',').any(|directive| directive.trim().split('=').next() == Some(AUDIT));
    if names_audit {
        return Ok(parsed);
    }
    let audit = "audit=info".parse().expect("invariant: a directive in the crate's own syntax");
    Ok(parsed.add_directive(audit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_audit_log_is_on_unless_named() {
        assert!(parse("error").unwrap().to_string().contains("audit=info"));
        let off = parse("info,audit=off").unwrap().to_string();
        assert!(off.contains("audit=off") && !off.contains("audit=info"), "{off}");
        assert!(matches!(parse("=x="), Err(TelemetryError::Filter { .. })));
    }
}
