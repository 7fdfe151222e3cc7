//! Certificates as an attacker would make, steal or misuse them, and the tools to present them.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use time::OffsetDateTime;

use crate::{
    config::STATE_DIR,
    host::{Host, LIMIT},
    meshnode::Meshnode,
    process::{Output, run},
};

/// When a certificate is valid, relative to now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Validity {
    Now,
    Expired,
    NotYet,
    /// Since yesterday, for so many seconds more.
    For(u32),
}

/// A certificate chain with its key, in PEM.
#[derive(Clone, Debug)]
pub struct Identity {
    pub cert: String,
    pub key: String,
}

/// A certificate authority.
pub struct Authority {
    pub cert: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// One that nobody trusts.
    pub fn rogue() -> Self {
        let key = KeyPair::generate().expect("a key can be made");
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "rogue CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let cert = params.self_signed(&key).expect("a certificate can be made").pem();
        Self { cert, issuer: Issuer::new(params, key) }
    }

    /// Returns the certificate and the key of a root that Consul takes as the mesh's next: it names the trust domain.
    pub fn next_root(trust_domain: &str) -> Identity {
        let key = KeyPair::generate().expect("a key can be made");
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "the next root");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let uri = format!("spiffe://{trust_domain}");
        params.subject_alt_names = vec![SanType::URI(uri.try_into().expect("an ASCII URI"))];
        let cert = params.self_signed(&key).expect("a certificate can be made");
        Identity { cert: cert.pem(), key: key.serialize_pem() }
    }

    /// The mesh's own, with its key stolen from the disk of the host that serves it.
    ///
    /// # Panics
    /// When there is no key file in its state directory.
    #[track_caller]
    pub fn stolen(server: &Meshnode) -> Self {
        let roots = server.get("/v1/connect/ca/roots");
        let cert = roots["Roots"][0]["RootCert"].as_str().expect("a root").to_owned();
        let state_dir = server.host.space().path(STATE_DIR);
        let key = find_key(&state_dir, &cert).unwrap_or_else(|| panic!("no key in {}", state_dir.display()));
        let issuer = Issuer::from_ca_cert_pem(&cert, key).expect("the root's certificate and key");
        Self { cert, issuer }
    }

    /// Issues a certificate for `uri`.
    pub fn issue(&self, uri: &str, validity: Validity) -> Identity {
        let key = KeyPair::generate().expect("a key can be made");
        let cert = params(uri, validity).signed_by(&key, &self.issuer).expect("a certificate can be made");
        Identity { cert: cert.pem(), key: key.serialize_pem() }
    }

    /// Issues a certificate for a host called `name`.
    pub fn issue_named(&self, name: &str, validity: Validity) -> Identity {
        let key = KeyPair::generate().expect("a key can be made");
        let mut params = params("spiffe://none/unused", validity);
        params.subject_alt_names = vec![SanType::DnsName(name.try_into().expect("an ASCII name"))];
        let cert = params.signed_by(&key, &self.issuer).expect("a certificate can be made");
        Identity { cert: cert.pem(), key: key.serialize_pem() }
    }

    /// Issues a certificate for a server at `ip`, which its clients may use as well.
    pub fn issue_at(&self, ip: IpAddr) -> Identity {
        let key = KeyPair::generate().expect("a key can be made");
        let mut params = params("spiffe://none/unused", Validity::Now);
        params.subject_alt_names = vec![SanType::IpAddress(ip)];
        let cert = params.signed_by(&key, &self.issuer).expect("a certificate can be made");
        Identity { cert: cert.pem(), key: key.serialize_pem() }
    }
}

/// Returns a certificate for `uri` that its own key signed.
pub fn self_signed(uri: &str) -> Identity {
    let key = KeyPair::generate().expect("a key can be made");
    let cert = params(uri, Validity::Now).self_signed(&key).expect("a certificate can be made");
    Identity { cert: cert.pem(), key: key.serialize_pem() }
}

/// Returns a certificate for `service` that the control plane itself issued, as it does for anybody who holds the token.
#[track_caller]
pub fn signed_by_control_plane(server: &Meshnode, service: &str) -> Identity {
    let key = KeyPair::generate().expect("a key can be made");
    let csr = CertificateParams::default().serialize_request(&key).and_then(|csr| csr.pem());
    let csr = csr.expect("a request can be made");
    let (code, body) = server.api("PUT", &format!("/v1/connect/ca/sign/{service}"), Some(&csr));
    assert_eq!(code, 200, "{body}");
    let answer: serde_json::Value = serde_json::from_str(&body).expect("JSON");
    Identity { cert: answer["CertPEM"].as_str().expect("a certificate").to_owned(), key: key.serialize_pem() }
}

/// Returns the trust domain of the mesh that `server` serves.
#[track_caller]
pub fn trust_domain(server: &Meshnode) -> String {
    server.get("/v1/connect/ca/roots")["TrustDomain"].as_str().expect("a trust domain").to_owned()
}

/// Returns the SPIFFE ID that Consul gives `service`.
pub fn spiffe_id(trust_domain: &str, service: &str) -> String {
    format!("spiffe://{trust_domain}/ns/default/dc/dc1/svc/{service}")
}

fn params(uri: &str, validity: Validity) -> CertificateParams {
    const DAY: Duration = Duration::from_secs(24 * 3600);
    let now = OffsetDateTime::now_utc();
    let mut params = CertificateParams::default();
    (params.not_before, params.not_after) = match validity {
        Validity::Now => (now - DAY, now + DAY),
        Validity::Expired => (now - 2 * DAY, now - DAY),
        Validity::NotYet => (now + DAY, now + 2 * DAY),
        Validity::For(seconds) => (now - DAY, now + Duration::from_secs(seconds.into())),
    };
    params.subject_alt_names = vec![SanType::URI(uri.try_into().expect("an ASCII URI"))];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    params
}

/// Looks through `dir` for the private key of `cert`.
fn find_key(dir: &Path, cert: &str) -> Option<KeyPair> {
    for entry in std::fs::read_dir(dir).ok()?.flatten() {
        let path = entry.path();
        if path.is_dir() {
            if let Some(key) = find_key(&path, cert) {
                return Some(key);
            }
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let Ok(key) = KeyPair::from_pem(&text) else { continue };
        let der = pem_body(cert)?;
        let public = rcgen::PublicKeyData::der_bytes(&key);
        if der.windows(public.len()).any(|window| window == public) {
            return Some(key);
        }
    }
    None
}

fn pem_body(pem: &str) -> Option<Vec<u8>> {
    let mut command = Command::new("openssl");
    command.args(["x509", "-outform", "DER"]);
    use std::{io::Write as _, process::Stdio};
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().ok()?;
    child.stdin.take()?.write_all(pem.as_bytes()).ok()?;
    Some(child.wait_with_output().ok()?.stdout)
}

/// Dials `to` with `openssl s_client` from `cgroup`, sends nothing, and returns when the server has closed. `identity`
/// is what it presents; `more` are further options, as in `-tls1_1`.
#[track_caller]
pub fn dial(host: &Host, cgroup: &str, to: &str, identity: Option<&Identity>, more: &[&str]) -> Output {
    let mut words: Vec<String> =
        ["openssl", "s_client", "-connect", to, "-quiet", "-ign_eof"].map(str::to_owned).into();
    if let Some(identity) = identity {
        let (cert, key) = files(host, identity);
        words.extend(["-cert".to_owned(), text(&cert), "-key".to_owned(), text(&key)]);
    }
    words.extend(more.iter().map(|word| (*word).to_owned()));
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    run(host.command(cgroup, &words), None, LIMIT)
}

/// Writes the identity where programs of the host can read it.
#[track_caller]
pub fn files(host: &Host, identity: &Identity) -> (PathBuf, PathBuf) {
    let (cert, key) =
        (host.log_file("cert").with_extension("pem"), host.log_file("key").with_extension("pem"));
    std::fs::write(&cert, &identity.cert).expect("an own directory");
    std::fs::write(&key, &identity.key).expect("an own directory");
    (cert, key)
}

fn text(path: &Path) -> String {
    path.display().to_string()
}
