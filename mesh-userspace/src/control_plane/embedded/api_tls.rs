//! TLS of the door for other hosts: the certificate that the configuration names, or one of an API CA that this
//! server makes, whose PEM the other hosts are given. Apart from the mesh's CA: who may call the API and who is in the
//! mesh are two questions.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls::ServerConfig;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use time::OffsetDateTime;

use super::files::{self, FileError};

/// Certificate of the API CA, for other hosts' `ca_file`.
pub const CA_FILE: &str = "api-ca.pem";
const CA_KEY_FILE: &str = "api-ca-key.pem";
const LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
const BACKDATE: Duration = Duration::from_secs(3600);

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ApiTlsError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{}: {reason}", path.display())]
    Read { path: PathBuf, reason: String },
    #[error("the certificate and the key that `expose` names are no pair that TLS can use: {0}")]
    Pair(rustls::Error),
    #[error(
        "the API's own certificate could not be made: {0}; to have a new one, remove {CA_FILE} and {CA_KEY_FILE}"
    )]
    Make(#[from] rcgen::Error),
}

/// Returns the configuration with the certificate and key of two files.
pub fn from_files(cert: &Path, key: &Path) -> Result<ServerConfig, ApiTlsError> {
    let unreadable = |path: &Path, reason: String| ApiTlsError::Read { path: path.to_owned(), reason };
    let chain = CertificateDer::pem_file_iter(cert)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| unreadable(cert, error.to_string()))?;
    let text =
        files::read_private(key)?.ok_or_else(|| unreadable(key, "there is no such file".to_owned()))?;
    let key =
        PrivateKeyDer::from_pem_slice(text.as_bytes()).map_err(|error| unreadable(key, error.to_string()))?;
    server_config(chain, key)
}

/// Returns the configuration with a certificate for `names` and `addresses` by the API CA, which is made when there is
/// none. The server's key is in memory only: each start makes another.
pub fn own(state_dir: &Path, names: &[&str], addresses: &[IpAddr]) -> Result<ServerConfig, ApiTlsError> {
    let (ca_pem, issuer) = authority(state_dir)?;
    let mut params = CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())?;
    params.subject_alt_names.extend(addresses.iter().map(|address| SanType::IpAddress(*address)));
    params.distinguished_name.push(DnType::CommonName, "meshnode API");
    (params.not_before, params.not_after) = validity();
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let cert = params.signed_by(&key, &issuer)?;
    let ca = CertificateDer::from_pem_slice(ca_pem.as_bytes())
        .map_err(|error| ApiTlsError::Read { path: state_dir.join(CA_FILE), reason: error.to_string() })?;
    let key = PrivateKeyDer::try_from(key.serialize_der())
        .map_err(|reason| ApiTlsError::Read { path: state_dir.to_owned(), reason: reason.to_owned() })?;
    server_config(vec![cert.der().clone(), ca], key)
}

fn authority(state_dir: &Path) -> Result<(String, Issuer<'static, KeyPair>), ApiTlsError> {
    let (ca_path, key_path) = (state_dir.join(CA_FILE), state_dir.join(CA_KEY_FILE));
    if let Some(key) = files::read_private(&key_path)? {
        let pem = std::fs::read_to_string(&ca_path)
            .map_err(|error| ApiTlsError::Read { path: ca_path.clone(), reason: error.to_string() })?;
        let issuer = Issuer::from_ca_cert_pem(&pem, KeyPair::from_pem(&key)?)?;
        return Ok((pem, issuer));
    }
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "meshnode API CA");
    (params.not_before, params.not_after) = validity();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let pem = params.self_signed(&key)?.pem();
    // The key last: it is what says that the pair is there.
    files::write_public(&ca_path, &pem)?;
    files::write_private(&key_path, &key.serialize_pem())?;
    Ok((pem, Issuer::new(params, key)))
}

fn validity() -> (OffsetDateTime, OffsetDateTime) {
    let now = OffsetDateTime::now_utc();
    (now - BACKDATE, now + LIFETIME)
}

fn server_config(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ServerConfig, ApiTlsError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(ApiTlsError::Pair)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(ApiTlsError::Pair)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}
