//! The embedded control plane: a server of Consul's HTTP API over a SQLite file, with its own CA.
//!
//! Data flow: `listen` (three doors) → `auth` → `api` (handlers) → reads from `tables` in memory, writes through
//! `store` (one writer: `txn` → `persist` → publish → wake-ups by `topics`). `checks` watches over health, `issuer`
//! over leafs. What the API supports, and who may do what, is in docs/api.md.

mod acl;
mod api;
mod api_tls;
mod auth;
mod bootstrap;
mod ca;
mod checks;
mod duration;
mod files;
mod issuer;
mod listen;
mod model;
mod ordered;
mod persist;
mod registration;
mod retirement;
mod rotation;
mod schedule;
mod store;
mod tables;
#[cfg(test)]
mod tests;
mod topics;
mod txn;

use std::{
    fs::File,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    api::{App, Shared},
    auth::{Door, Token},
    ca::CaError,
    checks::Checks,
    issuer::{LEAF_TTLS, LeafIssuer},
    listen::Doorkeeper,
    rotation::{Next, RotateError},
    store::{Store, StoreError},
};
pub use self::{api_tls::ApiTlsError, files::FileError, listen::ListenError};
use crate::{
    identity::{NameError, TrustDomain},
    intention::Action,
};

const STORE_FILE: &str = "embedded.db";
const LOCK_FILE: &str = "embedded.lock";
/// The token that writing through the loopback port needs.
pub const TOKEN_FILE: &str = "api-token";
/// Shorter tokens can be guessed.
const MIN_TOKEN: usize = 16;

#[derive(Clone, Debug)]
pub struct Settings {
    /// This host's name in the catalog.
    pub node: String,
    pub node_address: IpAddr,
    pub datacenter: String,
    /// Where the store and the keys are; made with mode 0700.
    pub state_dir: PathBuf,
    /// What counts where no intention matches.
    pub default_policy: Action,
    /// 1 minute to 72 hours.
    pub leaf_ttl: Duration,
    /// Consul's ACLs: default deny, and tokens instead of the doors' own.
    pub acl: bool,
    /// `None`: made once, and kept.
    pub trust_domain: Option<TrustDomain>,
    /// A loopback address; port 0 takes any free one.
    pub listen_tcp: Option<SocketAddr>,
    /// Made with mode 0600.
    pub unix_socket: Option<PathBuf>,
    pub expose: Option<Expose>,
    /// `None`: a CA of its own.
    pub ca: Option<CaFiles>,
}

/// A CA that the operator gives; PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaFiles {
    /// The certificate that signs; others of the chain may follow.
    pub cert_file: PathBuf,
    /// The rest of the chain, the root last.
    pub chain_file: Option<PathBuf>,
    pub key_file: PathBuf,
    /// Rotate to it also where the CA before cannot cross-sign it.
    pub force: bool,
}

/// The door for other hosts: TLS and a token.
#[derive(Clone)]
pub struct Expose {
    pub listen: SocketAddr,
    /// With `key_file`; `None`: a certificate of this server's own API CA, `api-ca.pem` in the state directory.
    pub cert_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
    /// 16 characters or more; without a use where ACLs are on.
    pub token: String,
}

impl std::fmt::Debug for Expose {
    /// Shows no token.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Expose")
            .field("listen", &self.listen)
            .field("cert_file", &self.cert_file)
            .finish_non_exhaustive()
    }
}

/// Why the server did not start. Each text names the cause and the next step.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EmbeddedError {
    #[error(
        "the embedded control plane does not listen on {0} without TLS and a token: use a loopback address for `address`, and [control_plane.embedded.expose] for other hosts"
    )]
    NotLoopback(SocketAddr),
    #[error(
        "expose: the token has {0} characters; use {MIN_TOKEN} or more, for example of `openssl rand -hex 32`"
    )]
    WeakToken(usize),
    #[error(
        "expose: cert_file and key_file belong together: name both, or none for a certificate of the server's own"
    )]
    HalfPair,
    #[error("leaf_ttl is {}; 1m to 72h are accepted", duration::text(*.0))]
    LeafTtl(Duration),
    #[error("{field}: {source}")]
    Name { field: &'static str, source: NameError },
    #[error("node: `{0}`: letters, digits, `-`, `_` and `.` are accepted, 1 to 128 of them")]
    Node(String),
    #[error("{0}")]
    File(#[from] FileError),
    #[error("the store {} cannot be used: {reason}; restore it from a backup, or move it away to begin with an empty one (which makes a new trust domain)", path.display())]
    Store { path: PathBuf, reason: String },
    #[error("the trust domain of the store in {} is {stored}, the configuration names {configured}: remove trust_domain from it, or move the state directory away to begin anew", state_dir.display())]
    TrustDomain { stored: TrustDomain, configured: TrustDomain, state_dir: PathBuf },
    #[error("the root's key {} is missing: restore it, or move the state directory away to begin with a new CA", .0.display())]
    NoKey(PathBuf),
    #[error("CA: {0}")]
    Ca(String),
    #[error("CA: {}: {source}", path.display())]
    CaFile { path: PathBuf, source: std::io::Error },
    #[error("{0}")]
    Tls(#[from] ApiTlsError),
    #[error("{0}")]
    Listen(#[from] ListenError),
    #[error(transparent)]
    Write(#[from] StoreError),
}

impl From<CaError> for EmbeddedError {
    fn from(error: CaError) -> Self {
        Self::Ca(error.to_string())
    }
}

impl From<RotateError> for EmbeddedError {
    fn from(error: RotateError) -> Self {
        match error {
            RotateError::Ca(error) => error.into(),
            RotateError::File(error) => error.into(),
            RotateError::Store(error) => error.into(),
        }
    }
}

/// A CA that was read from files and checked.
pub struct CheckedCa {
    next: Next,
    force: bool,
}

/// The running server.
pub struct Embedded {
    store: Arc<Store>,
    issuer: Arc<LeafIssuer>,
    local_addr: Option<SocketAddr>,
    expose_addr: Option<SocketAddr>,
    unix_socket: Option<PathBuf>,
    tracker: TaskTracker,
    closing: CancellationToken,
    /// Held as long as the store is in use.
    lock: Mutex<Option<File>>,
}

impl Embedded {
    /// Opens the store, makes what is missing (trust domain, root, tokens), and listens.
    pub async fn start(settings: Settings) -> Result<Self, EmbeddedError> {
        Self::start_with(settings, checks::MIN_REAP).await
    }

    /// `min_reap`: see [`Checks::new`].
    async fn start_with(settings: Settings, min_reap: Duration) -> Result<Self, EmbeddedError> {
        validate(&settings)?;
        let state_dir = settings.state_dir.clone();
        files::private_dir(&state_dir)?;
        let lock = files::lock(&state_dir.join(LOCK_FILE))?;
        let (store, written) = open_store(&state_dir.join(STORE_FILE), settings.default_policy).await?;
        let store = Arc::new(store);
        let (trust_domain, authority) = bootstrap::bootstrap(&store, &settings).await?;
        let (tracker, closing) = (TaskTracker::new(), CancellationToken::new());
        let checks = Checks::new(store.clone(), min_reap);
        let (dc, dir) = (settings.datacenter.clone(), settings.state_dir.clone());
        let issuer = Arc::new(LeafIssuer::new(store.clone(), authority, trust_domain, dc, dir));
        let app = App::new(Shared {
            store: store.clone(),
            checks: checks.clone(),
            issuer: issuer.clone(),
            node: settings.node.clone(),
            node_address: settings.node_address.to_string(),
            datacenter: settings.datacenter.clone(),
            acl: settings.acl,
            closing: closing.clone(),
        });
        let doorkeeper = Doorkeeper { tracker: tracker.clone(), closing: closing.clone() };
        let doors = Doors::open(&settings, &app, &doorkeeper).await?;
        tracker.spawn(checks.run(written, tracker.clone(), closing.clone()));
        tracker.spawn(retirement::run(issuer.clone(), closing.clone()));
        let Doors { local_addr, expose_addr, unix_socket, serving } = doors;
        serving.into_iter().for_each(|door| drop(tracker.spawn(door)));
        Ok(Self {
            store,
            issuer,
            local_addr,
            expose_addr,
            unix_socket,
            tracker,
            closing,
            lock: Mutex::new(Some(lock)),
        })
    }

    /// Reads and checks a CA; it signs once it is given to [`use_ca`](Self::use_ca).
    pub fn check_ca(&self, files: &CaFiles) -> Result<CheckedCa, EmbeddedError> {
        let next = bootstrap::read(self.issuer.trust_domain(), files)?;
        if !files.force {
            self.issuer.can_rotate(&next)?;
        }
        Ok(CheckedCa { next, force: files.force })
    }

    /// Lets a CA sign from now on: a rotation, unless it has the same root as the present one.
    pub async fn use_ca(&self, ca: CheckedCa) -> Result<(), EmbeddedError> {
        self.issuer.rotate(ca.next, None, ca.force).await?;
        Ok(())
    }

    /// Returns what the operator should know of the CA, if there is something.
    pub fn ca_warning(&self) -> Option<String> {
        self.issuer.warning(time::OffsetDateTime::now_utc())
    }

    #[cfg(test)]
    fn issuer_for_test(&self) -> Arc<LeafIssuer> {
        self.issuer.clone()
    }

    /// Returns the loopback port's address.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.local_addr
    }

    /// Returns the address of the door for other hosts.
    pub fn expose_addr(&self) -> Option<SocketAddr> {
        self.expose_addr
    }

    /// Answers those who wait, ends all connections, and closes the store.
    pub async fn shutdown(&self) {
        self.closing.cancel();
        self.tracker.close();
        self.tracker.wait().await;
        let store = self.store.clone();
        if tokio::task::spawn_blocking(move || store.close()).await.is_err() {
            tracing::error!("the store was not closed in order");
        }
        if let Some(path) = &self.unix_socket {
            // Left behind it would do no harm: the next start replaces it.
            let _ = std::fs::remove_file(path);
        }
        drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

impl Drop for Embedded {
    /// Whoever drops it without [`shutdown`](Self::shutdown) still ends its tasks.
    fn drop(&mut self) {
        self.closing.cancel();
    }
}

fn validate(settings: &Settings) -> Result<(), EmbeddedError> {
    if let Some(address) = settings.listen_tcp.filter(|address| !address.ip().is_loopback()) {
        return Err(EmbeddedError::NotLoopback(address));
    }
    if let Some(expose) = &settings.expose {
        if !settings.acl && expose.token.len() < MIN_TOKEN {
            return Err(EmbeddedError::WeakToken(expose.token.len()));
        }
        if expose.cert_file.is_some() != expose.key_file.is_some() {
            return Err(EmbeddedError::HalfPair);
        }
    }
    if !LEAF_TTLS.contains(&settings.leaf_ttl) {
        return Err(EmbeddedError::LeafTtl(settings.leaf_ttl));
    }
    // It becomes a part of each SPIFFE ID.
    let datacenter: Result<crate::identity::ServiceName, _> = settings.datacenter.parse();
    datacenter.map_err(|source| EmbeddedError::Name { field: "datacenter", source })?;
    if api::node_name(&settings.node).is_err() {
        return Err(EmbeddedError::Node(settings.node.clone()));
    }
    Ok(())
}

type Written = tokio::sync::mpsc::UnboundedReceiver<Vec<model::Key>>;

async fn open_store(path: &Path, default_policy: Action) -> Result<(Store, Written), EmbeddedError> {
    files::private_file(path)?;
    let failed = |reason: String| EmbeddedError::Store { path: path.to_owned(), reason };
    let file = path.to_owned();
    tokio::task::spawn_blocking(move || Store::open(&file, default_policy))
        .await
        .map_err(|error| failed(error.to_string()))?
        .map_err(|error| failed(error.to_string()))
}

/// The bound listeners, ready to be served.
struct Doors {
    local_addr: Option<SocketAddr>,
    expose_addr: Option<SocketAddr>,
    unix_socket: Option<PathBuf>,
    serving: Vec<std::pin::Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl Doors {
    async fn open(settings: &Settings, app: &App, keeper: &Doorkeeper) -> Result<Self, EmbeddedError> {
        let mut doors = Self { local_addr: None, expose_addr: None, unix_socket: None, serving: Vec::new() };
        if let Some(path) = &settings.unix_socket {
            let listener = listen::bind_unix(path).await?;
            doors.unix_socket = Some(path.clone());
            let router = api::router(app.clone(), Door::Unix);
            doors.serving.push(Box::pin(keeper.clone().serve_unix(listener, router)));
        }
        if let Some(address) = settings.listen_tcp {
            let token_path = settings.state_dir.join(TOKEN_FILE);
            let token = Token::new(&own_token(&token_path)?);
            let listener = listen::bind_tcp(address).await?;
            doors.local_addr = listener.local_addr().ok();
            let door = Door::Loopback { token, token_file: token_path.display().to_string() };
            let router = api::router(app.clone(), door);
            doors.serving.push(Box::pin(keeper.clone().serve_tcp(listener, router)));
        }
        if let Some(expose) = &settings.expose {
            let tls = Arc::new(expose_tls(settings, expose)?);
            let listener = listen::bind_tcp(expose.listen).await?;
            doors.expose_addr = listener.local_addr().ok();
            let token = (!settings.acl).then(|| Token::new(&expose.token));
            let router = api::router(app.clone(), Door::Exposed { token });
            doors.serving.push(Box::pin(keeper.clone().serve_tls(listener, tls, router)));
        }
        Ok(doors)
    }
}

fn expose_tls(settings: &Settings, expose: &Expose) -> Result<rustls::ServerConfig, ApiTlsError> {
    if let (Some(cert), Some(key)) = (&expose.cert_file, &expose.key_file) {
        return api_tls::from_files(cert, key);
    }
    let mut addresses = vec![settings.node_address];
    if !expose.listen.ip().is_unspecified() && expose.listen.ip() != settings.node_address {
        addresses.push(expose.listen.ip());
    }
    api_tls::own(&settings.state_dir, &[&settings.node], &addresses)
}

/// Returns the loopback port's token, made at the first start.
fn own_token(path: &Path) -> Result<String, FileError> {
    if let Some(token) = files::read_private(path)?.map(|text| text.trim().to_owned())
        && token.len() >= MIN_TOKEN
    {
        return Ok(token);
    }
    let token = uuid::Uuid::new_v4().simple().to_string() + &uuid::Uuid::new_v4().simple().to_string();
    files::write_private(path, &format!("{token}\n"))?;
    Ok(token)
}
