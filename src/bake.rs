//! Baking: everything of a first boot that needs the internet, done once when an image is made.
//!
//! What the image was baked with becomes the default of the machines that are made from it, below the
//! operator's own attributes: the version for an empty state, which is then on the machine already, and
//! the settings that led to it. A baked version is a default, never the operator's choice: existing state
//! keeps its own.

use std::collections::BTreeMap;

use anyhow::{Context, Result, anyhow};
use clap::Args;
use serde::{Deserialize, Serialize};

use crate::bootstrap::only_run;
use crate::config::{Config, LATEST, MetadataAccess};
use crate::docker::RepositoryTrust;
use crate::failure::{Blame, Code};
use crate::host::{Access, Host};
use crate::metadata::Client;
use crate::record::Record;
use crate::stage::{Stage, within};
use crate::{docker, image, shield, swap, units};

/// The directory of what root decided for this machine, and the file in it that tells what was baked.
pub(crate) const DIRECTORY: &str = "/etc/openclaw-init";
pub(crate) const FILE: &str = "/etc/openclaw-init/baked.json";

const IMAGE: &str = "openclaw-image";
const SOURCE: &str = "openclaw-image-source";
const VERSION: &str = "openclaw-version";

/// What is baked; each option means what the instance attribute `openclaw-<option>` means.
#[derive(Debug, Clone, Default, Args)]
pub struct Options {
    /// Gateway version [default: the one this program was made for]
    #[arg(long)]
    version: Option<String>,
    /// The gateway's image, by tag or digest, instead of the official one
    #[arg(long, value_name = "REFERENCE", conflicts_with = "version")]
    image: Option<String>,
    /// Where the image comes from: release, npm, source
    #[arg(long, value_name = "SOURCE")]
    image_source: Option<String>,
    /// For source: the commit, with its pins
    #[arg(long, value_name = "COMMIT")]
    source_ref: Option<String>,
    /// For source: where the commit's tar.gz is
    #[arg(long, value_name = "URL")]
    source_url: Option<String>,
    /// Programs for /usr/local/bin of the image
    #[arg(long, value_name = "LIST")]
    binaries: Option<String>,
    /// Debian packages for the image
    #[arg(long, value_name = "LIST")]
    apt_packages: Option<String>,
    /// A mirror of Docker Hub, for closed networks
    #[arg(long, value_name = "REGISTRY/PATH")]
    registry_mirror: Option<String>,
    /// The npm registry, for closed networks
    #[arg(long, value_name = "URL")]
    npm_registry: Option<String>,
    /// Where Docker comes from: auto, docker-ce, distro
    #[arg(long, value_name = "SOURCE")]
    docker: Option<String>,
    /// A mirror of Docker's apt repositories
    #[arg(long, value_name = "URL")]
    docker_apt_url: Option<String>,
}

impl Options {
    /// As the attributes that they stand for.
    fn attributes(&self) -> BTreeMap<String, String> {
        let given = [
            (VERSION, &self.version),
            (IMAGE, &self.image),
            (SOURCE, &self.image_source),
            ("openclaw-source-ref", &self.source_ref),
            ("openclaw-source-url", &self.source_url),
            ("openclaw-binaries", &self.binaries),
            ("openclaw-apt-packages", &self.apt_packages),
            ("openclaw-registry-mirror", &self.registry_mirror),
            ("openclaw-npm-registry", &self.npm_registry),
            ("openclaw-docker", &self.docker),
            ("openclaw-docker-apt-url", &self.docker_apt_url),
        ];
        given.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value.clone()?))).collect()
    }

    fn config(&self) -> Result<Config> {
        let config = Config::from_attributes(&self.attributes()).map(|(config, _)| config);
        config.map_err(|error| anyhow!("{}", error.root_cause())).blame(
            Code::ConfigInvalid,
            "Correct the option of the same name: --version is what the attribute openclaw-version is.",
        )
    }
}

/// Makes everything be here that machines made from this boot disk need from the internet: Docker, the
/// gateway's image, this program and its units. Needs no metadata server but for an image at Google's. Safe to run again. Returns the last
/// words for the operator.
pub async fn run(host: &Host, metadata: &Client, options: &Options) -> Result<String> {
    let _only_run = only_run(host).await?;
    let config = options.config()?;
    let trust = RepositoryTrust::of(host).await?;
    let engine = within(Stage::Docker, docker::ensure(host, &config.docker, &trust)).await?;
    within(Stage::Swap, swap::ensure(host, config.swap)).await;
    within(Stage::Shield, shield::ensure(host, MetadataAccess::Block)).await?;
    let image = within(Stage::Image, image::ensure(host, &engine, metadata, &config.image, &Record::default())).await?;

    let mut attributes = options.attributes();
    attributes.remove(VERSION);
    let version = match (attributes.remove(IMAGE), config.image.version) {
        (None, Some(version)) if version != LATEST => version,
        (None, None) => config.image.default_version,
        _ => image.version,
    };
    let baked = Baked { version, image: config.image.reference, attributes };
    host.ensure_file(FILE, serde_json::to_vec_pretty(&baked)?, Access::root(0o644)).await?;
    units::install(host).await?;
    Ok(format!("baked OpenClaw {}; next, as the last command before the image: openclaw-init seal", baked.version))
}

/// What the boot disk was baked with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Baked {
    /// The gateway version.
    version: String,
    /// The image, where it is not the official one of that version.
    #[serde(skip_serializing_if = "Option::is_none")]
    image: Option<String>,
    /// The other options.
    attributes: BTreeMap<String, String>,
}

impl Baked {
    /// The machine's configuration: the operator's attributes, and below them what was baked.
    fn configure(self, given: &BTreeMap<String, String>) -> Result<(Config, Vec<String>)> {
        let mut attributes = given.clone();
        for (key, value) in self.attributes {
            // An explicit image is a choice of its own, beside which no other source may stand.
            if key != SOURCE || !given.contains_key(IMAGE) {
                attributes.entry(key).or_insert(value);
            }
        }
        let (mut config, warnings) = Config::from_attributes(&attributes)?;
        config.image.default_version = self.version;
        config.image.default_reference =
            self.image.filter(|_| ![IMAGE, SOURCE, VERSION].iter().any(|choice| given.contains_key(*choice)));
        Ok((config, warnings))
    }
}

/// The configuration of this machine, baked or not, with warnings; see [`Config::from_attributes`].
pub async fn configure(host: &Host, given: &BTreeMap<String, String>) -> Result<(Config, Vec<String>)> {
    let Some(bytes) = host.read(FILE).await? else { return Config::from_attributes(given) };
    let baked: Baked = serde_json::from_slice(&bytes)
        .with_context(|| format!("reading {FILE}"))
        .blame(Code::ConfigInvalid, format!("Bake the image again, or remove {FILE} to go without its defaults."))?;
    baked.configure(given)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{DEFAULT_VERSION, ImageSource};

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn what_was_baked_counts_where_the_operator_chose_nothing() -> Result<()> {
        use ImageSource::{Npm, Release};
        let baked = Baked {
            version: "2026.9.4".to_owned(),
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
            assert_eq!((image.version.as_deref(), &image.source), (version, &source), "{given:?}");
            assert_eq!(image.npm_registry.as_deref(), registry, "{given:?}");
            assert_eq!(image.default_version, "2026.9.4", "{given:?}");
            assert_eq!(image.extras.packages, ["jq"], "{given:?}");
            assert_eq!(warnings, Vec::<String>::new(), "{given:?}");
        }
        Ok(())
    }

    #[test]
    fn a_baked_image_counts_until_the_operator_chooses_one_in_any_way() -> Result<()> {
        let image = Some("registry.example/claw:9".to_owned());
        let baked = Baked { version: "9".to_owned(), image: image.clone(), attributes: BTreeMap::new() };
        let cases: [(&[(&str, &str)], _); 5] = [
            (&[], image),
            (&[(VERSION, "2026.9.6")], None),
            (&[(SOURCE, "npm")], None),
            (&[(IMAGE, "x/y:1")], None),
            (&[("openclaw-port", "80")], Some("registry.example/claw:9".to_owned())),
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
        let (config, _) = configure(&host, &BTreeMap::new()).await?;
        assert_eq!(config.image.default_version, DEFAULT_VERSION);
        std::fs::create_dir_all(host.path(DIRECTORY))?;
        std::fs::write(host.path(FILE), "{")?;
        let error = configure(&host, &BTreeMap::new()).await.err();
        assert_eq!(error.as_ref().map(crate::failure::code_of), Some(Code::ConfigInvalid));
        Ok(())
    }

    #[test]
    fn a_wrong_option_is_named() {
        let options = Options { version: Some("newest".to_owned()), ..Options::default() };
        let error = options.config().map_err(|error| crate::failure::one_line(&error)).err().unwrap_or_default();
        assert!(error.contains("openclaw-version=\"newest\"") && !error.contains("gcloud"), "{error}");
        let options =
            Options { image: Some("x/y:1".to_owned()), image_source: Some("npm".to_owned()), ..Options::default() };
        let error = options.config().map_err(|error| crate::failure::one_line(&error)).err().unwrap_or_default();
        assert!(error.contains("contradict"), "{error}");
    }
}
