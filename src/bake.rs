//! Baking: everything of a first boot that needs the internet, done once when an image is made.
//!
//! What the image was baked with is the default of the machines that are made from it: the version for an empty state,
//! whose image is on the machine already, and the settings that led to it. The operator's own attributes win over it,
//! and existing state keeps its own version.

pub mod seal;

use std::collections::BTreeMap;

use anyhow::{Result, anyhow};
use clap::Args;

use crate::config::baked::Baked;
use crate::config::{Config, MetadataAccess, keys};
use crate::error::{Classify as _, Code};
use crate::host::Host;
use crate::lock::RunLock;
use crate::memory::swap;
use crate::metadata::Client;
use crate::paths::LOCK;
use crate::stage::{Stage, within};
use crate::state::Record;
use crate::{docker, identity, image, install, shield};

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
    /// Which of upstream's images of the version: browser, slim
    #[arg(long, value_name = "VARIANT", conflicts_with_all = ["image", "image_source"])]
    image_variant: Option<String>,
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
    /// The attributes that they stand for.
    fn attributes(&self) -> BTreeMap<String, String> {
        let given = [
            (keys::VERSION, &self.version),
            (keys::IMAGE, &self.image),
            (keys::IMAGE_SOURCE, &self.image_source),
            (keys::IMAGE_VARIANT, &self.image_variant),
            (keys::SOURCE_REF, &self.source_ref),
            (keys::SOURCE_URL, &self.source_url),
            (keys::BINARIES, &self.binaries),
            (keys::APT_PACKAGES, &self.apt_packages),
            (keys::REGISTRY_MIRROR, &self.registry_mirror),
            (keys::NPM_REGISTRY, &self.npm_registry),
            (keys::DOCKER, &self.docker),
            (keys::DOCKER_APT_URL, &self.docker_apt_url),
        ];
        given.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value.clone()?))).collect()
    }

    fn config(&self) -> Result<Config> {
        let config = Config::from_attributes(&self.attributes()).map(|(config, _)| config);
        config.map_err(|error| anyhow!("{}", error.root_cause())).classify(
            Code::ConfigInvalid,
            "Correct the option of the same name: --version is what the attribute openclaw-version is.",
        )
    }
}

/// Brings everything onto this boot disk that machines made from it need from the internet: Docker, the gateway's
/// image, this program and its units. Needs the metadata server only for an image at Google's. Safe to run again.
/// Returns the last words for the operator.
pub async fn run(host: &Host, metadata: &Client, options: &Options) -> Result<String> {
    let _lock = RunLock::acquire(&host.path(LOCK)).await?;
    let config = options.config()?;
    // The shield's unit runs the installed program.
    install::install(host).await?;
    let engine = within(Stage::Docker, docker::ensure(host, &config.docker)).await?;
    within(Stage::Swap, swap::ensure(host, config.swap)).await?;
    within(Stage::Shield, identity::remove(host)).await?;
    within(Stage::Shield, shield::ensure(host, &MetadataAccess::Block, None)).await?;
    let image = within(Stage::Image, image::ensure(host, &engine, metadata, &config.image, &Record::default())).await?;

    let mut attributes = options.attributes();
    attributes.retain(|key, _| ![keys::VERSION, keys::IMAGE].contains(&key.as_str()));
    let version = config.image.known_version().cloned().unwrap_or(image.version);
    let baked = Baked { version, image: config.image.reference, attributes };
    baked.write(host).await?;
    Ok(format!("baked OpenClaw {}; next, as the last command before the image: openclaw-init seal", baked.version))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_option_is_named() {
        let options = Options { version: Some("newest".to_owned()), ..Options::default() };
        let error = options.config().map_err(|error| crate::error::one_line(&error)).err().unwrap_or_default();
        assert!(error.contains("openclaw-version=\"newest\"") && !error.contains("gcloud"), "{error}");
        let options =
            Options { image: Some("x/y:1".to_owned()), image_source: Some("npm".to_owned()), ..Options::default() };
        let error = options.config().map_err(|error| crate::error::one_line(&error)).err().unwrap_or_default();
        assert!(error.contains("contradict"), "{error}");
    }
}
