//! The image from the npm package, with our own Dockerfile.

use std::path::Path;

use anyhow::Result;

use super::context;
use super::recipe::Recipe;
use crate::error::RUN_AGAIN;
use crate::version::GatewayVersion;

const DOCKERFILE: &str = include_str!("npm.Dockerfile");

const BASES: &[(&str, &str)] = &[("NODE_IMAGE", "node:24-bookworm-slim")];

pub(super) fn recipe(version: &GatewayVersion, registry: Option<&str>) -> Recipe {
    let mut args = vec![("OPENCLAW_VERSION", version.to_string())];
    args.extend(registry.map(|registry| ("NPM_REGISTRY", registry.to_owned())));
    let parts = [DOCKERFILE, version.as_str(), registry.unwrap_or_default()];
    let remedy = format!(
        "Check that containers can reach the package registries, then run `{RUN_AGAIN}`; or unset openclaw-image-source \
         to use the prebuilt image."
    );
    Recipe { bases: BASES, ..Recipe::new(version, args, &parts, remedy) }
}

/// Packs the build context below `directory`.
pub(super) async fn pack(directory: &Path) -> Result<()> {
    context::pack(directory, DOCKERFILE.to_owned(), Vec::new()).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_registry_is_part_of_the_recipe() {
        let of = |version: &str, registry| recipe(&version.into(), registry).fingerprint;
        assert_eq!(of("1", None), of("1", None));
        assert_ne!(of("1", None), of("2", None));
        assert_ne!(of("1", None), of("1", Some("https://npm.example")));
    }
}
