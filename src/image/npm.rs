//! The image from the npm package, with our own Dockerfile.

use std::path::Path;

use anyhow::Result;

use super::context;
use super::recipe::Recipe;

const DOCKERFILE: &str = include_str!("npm.Dockerfile");

const BASES: &[(&str, &str)] = &[("NODE_IMAGE", "node:24-bookworm-slim")];

const REMEDY: &str = "Check that containers can reach the package registries, then run `sudo systemctl restart \
    openclaw-init`; or unset openclaw-image-source to use the prebuilt image.";

pub(super) fn recipe(version: &str, registry: Option<&str>) -> Recipe {
    let mut args = vec![("OPENCLAW_VERSION", version.to_owned())];
    args.extend(registry.map(|registry| ("NPM_REGISTRY", registry.to_owned())));
    let parts = [DOCKERFILE, version, registry.unwrap_or_default()];
    Recipe { bases: BASES, ..Recipe::new(version, args, &parts, REMEDY) }
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
        let of = |version, registry| recipe(version, registry).fingerprint;
        assert_eq!(of("1", None), of("1", None));
        assert_ne!(of("1", None), of("2", None));
        assert_ne!(of("1", None), of("1", Some("https://npm.example")));
    }
}
