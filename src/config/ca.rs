//! `openclaw-ca-certificates`: the CAs of a company.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use super::check::Checked;

/// Beyond this it is a whole store, and a slip.
pub const MOST_CERTIFICATES: usize = 100;

/// As openssl writes them (RFC 7468).
const LINE_CHARS: usize = 64;

/// The extension `basicConstraints` with `cA`, as DER writes it (RFC 5280 4.2.1.9): its name, perhaps `critical`, then
/// a sequence that begins with the flag.
const BASIC_CONSTRAINTS: [u8; 5] = [6, 3, 0x55, 0x1d, 0x13];
const TRUE: [u8; 3] = [1, 1, 0xff];

/// Certificates of CAs, each as PEM of its own.
pub(super) fn certificates(value: &str) -> Checked<Vec<String>> {
    if value.contains("PRIVATE KEY") {
        return Err("has a private key in it, which everyone who may read this VM's metadata knows by now: name \
                    certificates only, and make another key"
            .to_owned());
    }
    let mut found = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(value.as_bytes()) {
        let complaint = |what: &str| format!("its certificate {} {what}", found.len() + 1);
        let certificate = certificate.map_err(|_| complaint("is damaged: its PEM does not end, or is no base64"))?;
        let is_known = RootCertStore::empty().add(CertificateDer::from(certificate.as_ref())).is_ok();
        if !is_known {
            return Err(complaint("is damaged: it is no X.509 certificate"));
        }
        if !is_ca(&certificate) {
            return Err(complaint(
                "is not a CA's (no basicConstraints with CA:TRUE): name the one that signs the others",
            ));
        }
        found.push(pem(&certificate));
    }
    if (1..=MOST_CERTIFICATES).contains(&found.len()) && value.matches("-----BEGIN ").count() == found.len() {
        Ok(found)
    } else {
        Err(format!(
            "must be 1 to {MOST_CERTIFICATES} CA certificates in PEM (-----BEGIN CERTIFICATE-----) and nothing else"
        ))
    }
}

fn is_ca(certificate: &[u8]) -> bool {
    let mut places = certificate.windows(BASIC_CONSTRAINTS.len());
    let rest =
        places.position(|place| place == BASIC_CONSTRAINTS).map(|at| &certificate[at + BASIC_CONSTRAINTS.len()..]);
    let value = rest.map(|rest| rest.strip_prefix(&TRUE).unwrap_or(rest));
    matches!(value, Some([4, _, 0x30, _, 1, 1, 0xff, ..]))
}

fn pem(certificate: &[u8]) -> String {
    let text = BASE64_STANDARD.encode(certificate);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(LINE_CHARS.min(rest.len()));
        pem.extend([line, "\n"]);
        rest = after;
    }
    pem + "-----END CERTIFICATE-----\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made with `openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -days 36500`; the second with
    /// `-addext basicConstraints=critical,CA:FALSE`.
    const CA: &str = include_str!("ca/ca.pem");
    const SERVER: &str = include_str!("ca/server.pem");

    #[test]
    fn certificates_of_cas_are_taken_one_by_one() {
        assert_eq!(certificates(CA), Ok(vec![CA.to_owned()]));
        let windows = CA.replace('\n', "\r\n");
        let both = format!("# The company's\n{CA}\n\nsubject=CN = older\n{windows}");
        assert_eq!(certificates(&both), Ok(vec![CA.to_owned(), CA.to_owned()]));
        let second = |other: &str| format!("{CA}{other}");
        for (value, words) in [
            ("company", "1 to 100 CA certificates in PEM"),
            (&second(SERVER), "certificate 2 is not a CA's"),
            (&CA[..CA.len() - 30], "certificate 1 is damaged"),
            (
                &second("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
                "certificate 2 is damaged: it is no",
            ),
            (&second("-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n"), "certificate 2 is damaged"),
            (&second("-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\n"), "private key"),
            (&second("-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n"), "and nothing else"),
            (&CA.repeat(101), "1 to 100"),
        ] {
            let complaint = certificates(value).err().unwrap_or_default();
            assert!(complaint.contains(words), "{complaint}");
        }
    }
}
