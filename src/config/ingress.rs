//! The proxy in front of the gateway: under which address browsers reach it, and who forwards them.

use std::net::IpAddr;

use super::attributes::Attributes;
use super::check::{self, Checked};
use super::keys;
use super::publish::OpenPath;
use super::settings::SettingsPatch;

/// Where a setting of ours may meet one of the operator's.
pub(super) const TRUSTED_PROXIES: [&str; 2] = ["gateway", "trustedProxies"];

/// Google's front ends, through which its load balancers and IAP come (cloud.google.com/load-balancing/docs).
const GOOGLE_FRONT_ENDS: [&str; 2] = ["35.191.0.0/16", "130.211.0.0/22"];

/// A proxy in front of the gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ingress {
    /// The attribute that says so.
    pub attribute: &'static str,
    /// Where browsers find the gateway: `https://NAME[:PORT]`.
    pub origin: String,
    /// The proxies' addresses as the gateway sees them, if the operator names them.
    pub proxies: Option<Vec<String>>,
}

impl Ingress {
    /// Who may forward clients to a gateway that is published at `bind` and sees this machine at `host`.
    pub(super) fn trusted(&self, bind: IpAddr, host: IpAddr) -> Vec<String> {
        let beyond = (!bind.is_loopback()).then_some(GOOGLE_FRONT_ENDS.map(str::to_owned));
        let derived = || [host.to_string()].into_iter().chain(beyond.into_iter().flatten()).collect();
        self.proxies.clone().unwrap_or_else(derived)
    }
}

/// `openclaw-domain`: a name at which this program serves the gateway itself, with HTTPS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Domain {
    /// In lower case.
    pub name: String,
    /// `openclaw-allow-from`: the networks and addresses whose connections are served.
    pub allow_from: Vec<String>,
    /// `openclaw-acme-directory`: the CA, unless it is Caddy's own choice.
    pub acme_directory: Option<String>,
    /// `openclaw-publish`: what is served to everybody. What lies below another path comes before it.
    pub open_paths: Vec<OpenPath>,
}

/// `openclaw-domain` with what belongs to it.
pub(super) fn domain(attributes: &mut Attributes<'_>, open_paths: Vec<OpenPath>) -> Option<Domain> {
    let name = attributes.get(keys::DOMAIN, check::domain);
    let allow_from = attributes.get(keys::ALLOW_FROM, check::networks);
    let acme_directory = attributes.get(keys::ACME_DIRECTORY, acme_directory);
    if !attributes.has(keys::DOMAIN) {
        for key in [keys::ALLOW_FROM, keys::ACME_DIRECTORY] {
            if attributes.has(key) {
                attributes.reject(key, format!("{key} is of use only beside openclaw-domain: set that, or remove it"));
            }
        }
        return None;
    }
    if !attributes.has(keys::ALLOW_FROM) {
        attributes.reject(
            keys::DOMAIN,
            "openclaw-domain needs openclaw-allow-from, the networks from which browsers may come, such as \
             203.0.113.0/24; the whole internet is 0.0.0.0/0,::/0",
        );
    }
    Some(Domain { name: name?, allow_from: allow_from?, acme_directory, open_paths })
}

/// What makes a second way to a gateway that is served at a name.
pub(super) fn check_domain(
    attributes: &mut Attributes<'_>,
    domain: &Domain,
    settings: &SettingsPatch,
    bind: IpAddr,
    port: u16,
) {
    if attributes.has(keys::PUBLIC_URL) {
        let complaint = "openclaw-domain and openclaw-public-url both say where the gateway is: remove one of them";
        attributes.reject(keys::PUBLIC_URL, complaint);
    }
    if !bind.is_loopback() {
        let complaint = format!("openclaw-bind={bind} would let everybody pass by openclaw-allow-from: remove it");
        attributes.reject(keys::BIND, complaint);
    }
    if settings.trusts_proxy() {
        let complaint = "gateway.auth.mode trusted-proxy needs a proxy that knows its users: openclaw-domain knows none, set \
                         openclaw-public-url to the address of one that does";
        attributes.reject(keys::CONFIG, complaint);
    }
    if [80, 443].contains(&port) {
        attributes.reject(keys::PORT, format!("openclaw-port={port} is the port of https://{}", domain.name));
    }
}

/// A CA's address for ACME. Nothing in it means something to Caddy.
fn acme_directory(value: &str) -> Checked<String> {
    let url = check::download_url(value).ok().filter(|url| url.scheme() == "https" && url.query().is_none());
    url.map(Into::into).ok_or_else(|| "must be an https:// URL without user, password, query and fragment".to_owned())
}

/// `openclaw-public-url` and `openclaw-trusted-proxies`, or what `domain` asks for.
pub(super) fn read(
    attributes: &mut Attributes<'_>,
    settings: &SettingsPatch,
    domain: Option<&Domain>,
) -> Option<Ingress> {
    let domain = domain.map(|domain| format!("https://{}", domain.name));
    let attribute = if domain.is_some() { keys::DOMAIN } else { keys::PUBLIC_URL };
    let origin = domain.or_else(|| attributes.get(keys::PUBLIC_URL, public_url));
    let proxies = attributes.get(keys::TRUSTED_PROXIES, check::networks);
    if proxies.is_some() && !attributes.has(keys::PUBLIC_URL) {
        attributes.reject(
            keys::TRUSTED_PROXIES,
            "openclaw-trusted-proxies is of use only beside openclaw-public-url: set that, or remove it",
        );
    }
    let ingress = Ingress { attribute, origin: origin?, proxies };
    if settings.sets(&TRUSTED_PROXIES) {
        attributes.reject(
            keys::CONFIG,
            format!(
                "openclaw-config sets gateway.trustedProxies, which {} sets, too: remove it, and name proxies that are \
                 not on this VM in openclaw-trusted-proxies",
                ingress.attribute
            ),
        );
    }
    Some(ingress)
}

/// The origin of an address that a browser can be sent to.
fn public_url(value: &str) -> Checked<String> {
    let url = check::download_url(value).ok().filter(|url| {
        let is_bare = url.path() == "/" && url.query().is_none();
        url.scheme() == "https" && is_bare && !value.contains('*')
    });
    let url = url.ok_or_else(|| {
        "must be the https:// address of the gateway without a path, such as https://claw.example.com".to_owned()
    })?;
    Ok(url.origin().ascii_serialization())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_becomes_an_origin() {
        for (value, origin) in [
            ("https://claw.example.com", Some("https://claw.example.com")),
            ("https://Claw.Example.com/", Some("https://claw.example.com")),
            ("https://claw.example.com:443", Some("https://claw.example.com")),
            ("https://vm.tail1234.ts.net:8443", Some("https://vm.tail1234.ts.net:8443")),
            ("http://claw.example.com", None),
            ("https://claw.example.com/claw", None),
            ("https://claw.example.com/?a", None),
            ("https://me@claw.example.com", None),
            ("claw.example.com", None),
            ("https://*", None),
        ] {
            assert_eq!(public_url(value).ok().as_deref(), origin, "{value}");
        }
    }

    #[test]
    fn those_who_forward_are_on_this_machine_unless_it_is_published_beyond() {
        let ingress = |proxies: Option<&str>| Ingress {
            attribute: keys::PUBLIC_URL,
            origin: "https://claw.example.com".to_owned(),
            proxies: proxies.map(|it| vec![it.to_owned()]),
        };
        for (bind, named, expected) in [
            ("127.0.0.1", None, "172.17.0.1"),
            ("::1", None, "172.17.0.1"),
            ("0.0.0.0", None, "172.17.0.1 35.191.0.0/16 130.211.0.0/22"),
            ("10.128.0.2", Some("10.1.0.0/16"), "10.1.0.0/16"),
        ] {
            let parsed = (bind.parse().ok(), "172.17.0.1".parse().ok());
            let (Some(bind), Some(host)) = parsed else { panic!("{bind} is an address") };
            assert_eq!(ingress(named).trusted(bind, host).join(" "), expected);
        }
    }
}
