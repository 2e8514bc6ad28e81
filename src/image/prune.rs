//! Old images: what this program brought to the machine and no gateway needs any more.

use std::collections::BTreeSet;
use std::path::Path;
use std::slice;

use anyhow::{Context, Result};
use bollard::errors::Error as DockerError;
use bollard::models::ImageSummary;
use bollard::query_parameters::{ListImagesOptions, PruneBuildOptionsBuilder, RemoveImageOptions};

use super::build::FINGERPRINT_LABEL;
use super::recipe::BUILT;
use super::{OFFICIAL, find};
use crate::docker::Engine;
use crate::host::Host;
use crate::reference::ImageReference;
use crate::state::room;

/// How much of the builder's cache may stay beside the layers that it shares with images. Engines before 28 know no
/// limit and keep those layers only.
const BUILD_CACHE_BYTES: i64 = 1_000_000_000;

/// Whether the boot disk is so full that all goes that may.
pub async fn is_wanted(host: &Host) -> bool {
    room::is_below(host, Path::new("/"), room::LOW_PERCENT).await.unwrap_or(false)
}

/// Removes every image of ours but those behind the references of `keep`, and bounds the build cache.
///
/// Ours has the gateway's official name or the name of what is built here, or lost that name to a later build. An
/// image that a container uses stays. One that has another name as well only loses ours. An error is a warning.
pub async fn prune(host: &Host, engine: &Engine, keep: &[&ImageReference]) {
    if let Err(error) = try_prune(host, engine, keep).await {
        host.warn(format!("old images may take up the boot disk: {error:#}"));
    }
}

/// Images of ours other than the one in use: how many, and the room that they take, what they share counted for each.
pub async fn unused(engine: &Engine, in_use: &str) -> Result<(usize, u64)> {
    let in_use = BTreeSet::from([in_use.to_owned()]);
    let images = engine.client.list_images(None::<ListImagesOptions>).await.context("listing images")?;
    let unused = images.iter().filter(|image| !superfluous(slice::from_ref(image), &in_use).is_empty());
    let sizes: Vec<u64> = unused.map(|image| image.size.try_into().unwrap_or_default()).collect();
    Ok((sizes.len(), sizes.iter().sum()))
}

async fn try_prune(host: &Host, engine: &Engine, keep: &[&ImageReference]) -> Result<()> {
    let mut ids = BTreeSet::new();
    for reference in keep {
        ids.extend(find(engine, reference).await?.and_then(|inspect| inspect.id));
    }
    let images = engine.client.list_images(None::<ListImagesOptions>).await.context("listing images")?;
    for name in superfluous(&images, &ids) {
        match engine.client.remove_image(&name, None::<RemoveImageOptions>, None).await {
            Ok(_) => host.changed(format!("removed image {name}")),
            // Of one that is in use; and of one that went with another.
            Err(DockerError::DockerResponseServerError { status_code: 404 | 409, message }) => {
                tracing::debug!("image {name} stays: {message}");
            }
            Err(error) => return Err(error).with_context(|| format!("removing image {name}")),
        }
    }
    let kept = if is_wanted(host).await { 0 } else { BUILD_CACHE_BYTES };
    let cache = PruneBuildOptionsBuilder::default().max_used_space(kept).build();
    let pruned = engine.client.prune_build(Some(cache)).await.context("pruning the build cache")?;
    tracing::debug!("pruned {} bytes of build cache", pruned.space_reclaimed.unwrap_or_default());
    Ok(())
}

/// The names of ours (ids, where there is none) that images outside `keep` have.
fn superfluous(images: &[ImageSummary], keep: &BTreeSet<String>) -> Vec<String> {
    let mut names = Vec::new();
    for image in images.iter().filter(|image| !keep.contains(&image.id)) {
        let real =
            |list: &[String]| list.iter().filter(|name| !name.starts_with("<none>")).cloned().collect::<Vec<_>>();
        let (tags, digests) = (real(&image.repo_tags), real(&image.repo_digests));
        if !tags.is_empty() {
            names.extend(tags.into_iter().filter(|tag| is_ours(tag)));
        } else if !digests.is_empty() {
            names.extend(digests.into_iter().filter(|digest| is_ours(digest)));
        } else if image.labels.contains_key(FINGERPRINT_LABEL) {
            names.push(image.id.clone());
        }
    }
    names
}

fn is_ours(name: &str) -> bool {
    let mut repositories = OFFICIAL.iter().chain([&BUILT]);
    name.parse().is_ok_and(|name: ImageReference| repositories.any(|ours| name.repository() == *ours))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn image(id: &str, tags: &[&str], digests: &[&str], labelled: bool) -> ImageSummary {
        let owned = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        let labels = labelled.then(|| (FINGERPRINT_LABEL.to_owned(), "f".to_owned()));
        ImageSummary {
            id: id.to_owned(),
            repo_tags: owned(tags),
            repo_digests: owned(digests),
            labels: labels.into_iter().collect::<HashMap<_, _>>(),
            ..Default::default()
        }
    }

    #[test]
    fn only_what_is_ours_and_not_kept_goes() {
        let none = "<none>:<none>";
        let [official, first, hub] =
            [("ghcr.io/openclaw/openclaw", "3"), ("openclaw/openclaw", "1"), ("openclaw/openclaw", "9")]
                .map(|(repository, digit)| format!("{repository}@sha256:{}", digit.repeat(64)));
        #[rustfmt::skip]
        let images = [
            image("current", &["ghcr.io/openclaw/openclaw:3"], &[&official], false),
            image("previous", &["localhost/openclaw-init:2"], &[], true),
            image("old", &["openclaw/openclaw:1", "localhost/openclaw-init:1"], &[&first], true),
            image("shared", &["openclaw/openclaw:0", "mine:0"], &[], false),
            image("by-digest", &[], &[&hub], false),
            image("rebuilt", &[none], &["<none>@<none>"], true),
            image("foreign", &["node:24", "registry.example/openclaw/openclaw:1", "openclaw/openclaw-x:1"], &[], false),
            image("dangling", &[none], &["<none>@<none>"], false),
        ];
        let keep = ["current", "previous"].map(str::to_owned).into();
        let names = superfluous(&images, &keep);
        let expected = ["openclaw/openclaw:1", "localhost/openclaw-init:1", "openclaw/openclaw:0", &hub, "rebuilt"];
        assert_eq!(names, expected);
    }
}
