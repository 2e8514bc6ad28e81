//! What the boot disk was baked with: defaults below the operator's own attributes.

use std::collections::BTreeMap;

use anyhow::{Context, Result, anyhow};
use serde::{Deserialize, Serialize};

use super::keys::{IMAGE, IMAGE_SOURCE, IMAGE_VARIANT, MEMORY, TIMEZONE, TMP, VERSION};
use super::{Config, Limits};
use crate::error::{Classify as _, Code, RUN_AGAIN};
use crate::host::{Access, Host};
use crate::paths::BAKED;
use crate::reference::ImageReference;
use crate::text::{MIB, size};
use crate::version::GatewayVersion;

/// What the boot disk was baked with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Baked {
    /// The gateway version.
    pub version: GatewayVersion,
    /// The image, where it is not the official one of that version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageReference>,
    /// The other options.
    pub attributes: BTreeMap<String, String>,
}

impl Baked {
    /// Notes it on the boot disk.
    pub async fn write(&self, host: &Host) -> Result<()> {
        host.ensure_file(BAKED, serde_json::to_vec_pretty(self)?, Access::root(0o644)).await.map(drop)
    }

    /// The machine's configuration: the operator's attributes, and below them what was baked.
    fn configure(self, given: &BTreeMap<String, String>) -> Result<(Config, Vec<String>)> {
        let mut attributes = given.clone();
        let names_variant =
            given.get(VERSION).is_some_and(|version| GatewayVersion::from(version.trim()).variant().is_some());
        for (key, value) in self.attributes {
            // An explicit image is a choice of its own, beside which no other may stand; and so on.
            let others: &[&str] = match key.as_str() {
                IMAGE_SOURCE => &[IMAGE],
                IMAGE_VARIANT if names_variant => &[VERSION],
                IMAGE_VARIANT => &[IMAGE, IMAGE_SOURCE],
                _ => &[],
            };
            if !others.iter().any(|other| given.contains_key(*other)) {
                attributes.entry(key).or_insert(value);
            }
        }
        let (mut config, warnings) = Config::from_attributes(&attributes)?;
        config.image.default_version = match config.image.variant {
            Some(variant) => self.version.in_variant(variant),
            None => self.version,
        };
        config.image.default_reference = self.image.filter(|_| {
            ![IMAGE, IMAGE_SOURCE, IMAGE_VARIANT, VERSION].iter().any(|choice| given.contains_key(*choice))
        });
        Ok((config, warnings))
    }
}

/// The configuration of this machine, baked or not, with warnings; see [`Config::from_attributes`].
pub async fn read(host: &Host, given: &BTreeMap<String, String>) -> Result<(Config, Vec<String>)> {
    let (config, warnings) = configured(host, given).await?;
    if given.contains_key(TIMEZONE)
        && let Some(zone) = config.gateway.env.get("TZ")
    {
        check_timezone(host, zone)?;
    }
    Ok((config, warnings))
}

/// Refuses limits that a machine with so much memory in `total` cannot have.
pub fn check_limits(limits: Limits, total: u64) -> Result<()> {
    let complaint = if limits.memory.is_some_and(|memory| memory > total) {
        format!("{MEMORY} is more than the {} of memory that this VM has", size(total))
    } else {
        let most = limits.memory.unwrap_or(total) / 2;
        if limits.tmp.is_none_or(|tmp| tmp <= most) {
            return Ok(());
        }
        format!("{TMP} is more than half of the memory that it is taken from: at most {} M", most / MIB)
    };
    let remedy = format!("Correct the attribute, or give the VM more memory, then run `{RUN_AGAIN}`.");
    Err(anyhow!(complaint)).classify(Code::ConfigInvalid, remedy)
}

/// The gateway would take a zone that does not exist for UTC, without a word.
fn check_timezone(host: &Host, zone: &str) -> Result<()> {
    let zones = host.path("/usr/share/zoneinfo");
    if !zones.is_dir() || zones.join(zone).is_file() {
        return Ok(());
    }
    Err(anyhow!("{TIMEZONE}={zone}: there is no such time zone")).classify(
        Code::ConfigInvalid,
        format!("`timedatectl list-timezones` lists them. Correct the attribute, then run `{RUN_AGAIN}`."),
    )
}

async fn configured(host: &Host, given: &BTreeMap<String, String>) -> Result<(Config, Vec<String>)> {
    let Some(bytes) = host.read(BAKED).await? else { return Config::from_attributes(given) };
    let baked: Baked = serde_json::from_slice(&bytes).with_context(|| format!("reading {BAKED}")).classify(
        Code::ConfigInvalid,
        format!("Bake the image again, or remove {BAKED} to go without its defaults."),
    )?;
    baked.configure(given)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{DEFAULT_VERSION, ImageSource};
    use crate::error::{code_of, one_line};

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_limit_that_the_machine_cannot_have_is_named() {
        let limits = |memory: Option<u64>, tmp: Option<u64>| Limits { memory, tmp, pids: None };
        for (limits, words) in [
            (limits(None, None), None),
            (limits(Some(4 << 30), Some(2 << 30)), None),
            (limits(None, Some(2 << 30)), None),
            (limits(Some((4 << 30) + 1), None), Some("openclaw-memory is more than the 4.0 GiB")),
            (limits(Some(2 << 30), Some(1025 << 20)), Some("at most 1024 M")),
            (limits(None, Some(3 << 30)), Some("at most 2048 M")),
        ] {
            let found = check_limits(limits, 4 << 30).map_err(|error| (code_of(&error), one_line(&error))).err();
            assert_eq!(found.is_some(), words.is_some(), "{limits:?}: {found:?}");
            let (Some((code, sentence)), Some(words)) = (found, words) else { continue };
            assert!(code == Code::ConfigInvalid && sentence.contains(words), "{sentence}");
        }
    }

    #[tokio::test]
    async fn a_time_zone_that_does_not_exist_is_named() -> Result<()> {
        let root = tempfile::tempdir()?;
        let host = Host::new(root.path());
        let given = |zone: &str| map(&[("openclaw-timezone", zone)]);
        assert!(read(&host, &given("Europe/Madird")).await.is_ok(), "nothing is known of time zones");
        std::fs::create_dir_all(host.path("/usr/share/zoneinfo/Europe"))?;
        std::fs::write(host.path("/usr/share/zoneinfo/Europe/Madrid"), "TZif")?;
        assert!(read(&host, &given("Europe/Madrid")).await.is_ok());
        for wrong in ["Europe/Madird", "Europe"] {
            let Err(error) = read(&host, &given(wrong)).await else { panic!("{wrong} was accepted") };
            assert_eq!(crate::error::code_of(&error), Code::ConfigInvalid, "{error:#}");
        }
        Ok(())
    }

    #[test]
    fn what_was_baked_counts_where_the_operator_chose_nothing() -> Result<()> {
        use ImageSource::{Npm, Release};
        let baked = Baked {
            version: "2026.9.4".into(),
            image: None,
            attributes: map(&[
                ("openclaw-image-source", "npm"),
                ("openclaw-npm-registry", "http://10.0.0.2"),
                ("openclaw-apt-packages", "jq"),
            ]),
        };
        let registry = Some("http://10.0.0.2");
        let cases: [(&[(&str, &str)], _, _, _); 5] = [
            (&[], None, Npm, registry),
            (&[("openclaw-version", "2026.9.6")], Some("2026.9.6"), Npm, registry),
            (&[("openclaw-image-source", "release")], None, Release, registry),
            (&[("openclaw-npm-registry", "http://10.0.0.3")], None, Npm, Some("http://10.0.0.3")),
            (&[("openclaw-image", "x/y:1")], None, Release, registry),
        ];
        for (given, version, source, registry) in cases {
            let (config, warnings) = baked.clone().configure(&map(given))?;
            let image = &config.image;
            let chosen = image.version.as_ref().map(ToString::to_string);
            assert_eq!((chosen.as_deref(), &image.source), (version, &source), "{given:?}");
            assert_eq!(image.npm_registry.as_deref(), registry, "{given:?}");
            assert_eq!(image.default_version.as_str(), "2026.9.4", "{given:?}");
            assert_eq!(image.extras.packages, ["jq"], "{given:?}");
            assert_eq!(warnings, Vec::<String>::new(), "{given:?}");
        }
        Ok(())
    }

    #[test]
    fn a_baked_image_counts_until_the_operator_chooses_one_in_any_way() -> Result<()> {
        let image = Some("registry.example/claw:9".parse::<ImageReference>()?);
        let baked = Baked { version: "9".into(), image: image.clone(), attributes: BTreeMap::new() };
        let cases: [(&[(&str, &str)], _); 5] = [
            (&[], image.clone()),
            (&[(VERSION, "2026.9.6")], None),
            (&[(IMAGE_SOURCE, "npm")], None),
            (&[(IMAGE, "x/y:1")], None),
            (&[("openclaw-port", "80")], image),
        ];
        let text = serde_json::to_string(&baked)?;
        for (given, default) in cases {
            let baked: Baked = serde_json::from_str(&text)?;
            let (config, _) = baked.configure(&map(given))?;
            assert_eq!(config.image.default_reference, default, "{given:?}");
        }
        Ok(())
    }

    #[tokio::test]
    async fn a_machine_that_was_not_baked_has_the_programs_own_default() -> Result<()> {
        let root = tempfile::tempdir()?;
        let host = Host::new(root.path());
        let (config, _) = read(&host, &BTreeMap::new()).await?;
        assert_eq!(config.image.default_version.as_str(), DEFAULT_VERSION);
        std::fs::create_dir_all(host.path(crate::paths::ETC_DIR))?;
        std::fs::write(host.path(BAKED), "{")?;
        let error = read(&host, &BTreeMap::new()).await.err();
        assert_eq!(error.as_ref().map(crate::error::code_of), Some(Code::ConfigInvalid));
        Ok(())
    }
}
