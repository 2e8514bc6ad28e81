//! The lab's certificate authority: what lets the lab answer for public host names over TLS.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};

use crate::cache::Cache;
use crate::files::write;

/// Part of the cache key: to be raised when the authority's certificate is to look different.
const RECIPE: &str = "1";
const CERTIFICATE: &str = "ca.pem";
const KEY: &str = "ca.key";

/// A certificate authority that is made once per cache and trusted by lab machines only.
#[derive(Debug)]
pub struct Ca {
    directory: PathBuf,
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate for a server with its private key, both PEM.
#[derive(Clone)]
pub struct ServerCertificate {
    /// The server's certificate, then the authority's.
    pub chain_pem: String,
    /// The private key, PKCS #8.
    pub key_pem: String,
}

impl std::fmt::Debug for ServerCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerCertificate").finish_non_exhaustive()
    }
}

impl Ca {
    /// The authority of this cache, made when there is none yet. Its key is readable by its owner only.
    pub fn load(cache: &Cache) -> Result<Self> {
        let directory = cache.entry("ca", &[RECIPE], create)?;
        let read = |name| {
            let path = directory.join(name);
            fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
        };
        let key = KeyPair::from_pem(&read(KEY)?).context("reading the lab authority's key")?;
        let pem = read(CERTIFICATE)?;
        Ok(Self { directory, pem, issuer: Issuer::new(authority(), key) })
    }

    /// The authority's certificate, PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// The file that holds [`Ca::pem`].
    pub fn pem_path(&self) -> PathBuf {
        self.directory.join(CERTIFICATE)
    }

    /// A fresh certificate for a server that is reached under `names`, each a host name or an IP address.
    pub fn server_certificate(&self, names: &[&str]) -> Result<ServerCertificate> {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let key = KeyPair::generate().context("making a server's key")?;
        let mut params = CertificateParams::new(names.clone()).context("naming a server's certificate")?;
        params.distinguished_name = named(names.first().map_or("openclaw-lab", String::as_str));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        valid_for_long(&mut params);
        let certificate = params
            .signed_by(&key, &self.issuer)
            .with_context(|| format!("signing a certificate for {}", names.join(", ")))?;
        Ok(ServerCertificate { chain_pem: format!("{}{}", certificate.pem(), self.pem), key_pem: key.serialize_pem() })
    }
}

/// The authority's own certificate; the same on every call, so that a stored key finds its issuer again.
fn authority() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = named("openclaw-lab CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    valid_for_long(&mut params);
    params
}

fn named(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}

fn valid_for_long(params: &mut CertificateParams) {
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2099, 12, 31);
}

fn create(directory: &Path) -> Result<()> {
    let key = KeyPair::generate().context("making the lab authority's key")?;
    let certificate = authority().self_signed(&key).context("signing the lab authority's certificate")?;
    write(&directory.join(CERTIFICATE), certificate.pem().as_bytes(), 0o644)?;
    write(&directory.join(KEY), key.serialize_pem().as_bytes(), 0o600)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    use super::*;
    use crate::program::run;

    #[test]
    fn the_authority_survives_and_openssl_accepts_what_it_signs() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::open(directory.path()).unwrap();
        let first = Ca::load(&cache).unwrap();
        let again = Ca::load(&cache).unwrap();
        assert_eq!(first.pem(), again.pem());
        let mode = again.directory.join(KEY).metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);

        let server = again.server_certificate(&["ghcr.io", "198.18.0.2"]).unwrap();
        let file = directory.path().join("server.pem");
        fs::write(&file, &server.chain_pem).unwrap();
        for name in [["-verify_hostname", "ghcr.io"], ["-verify_ip", "198.18.0.2"]] {
            let mut verify = Command::new("openssl");
            verify.args(["verify", "-x509_strict", "-purpose", "sslserver", "-CAfile"]).arg(again.pem_path());
            run(verify.args(name).arg(&file)).unwrap();
        }
    }

    #[test]
    fn the_key_is_never_printed() {
        let directory = tempfile::tempdir().unwrap();
        let ca = Ca::load(&Cache::open(directory.path()).unwrap()).unwrap();
        let printed = format!("{:?}", ca.server_certificate(&["a.test"]).unwrap());
        assert!(!printed.contains("PRIVATE"), "{printed}");
    }
}
