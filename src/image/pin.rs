//! The digest that a registry's image had when the gateway first ran from it: a tag can be moved, a digest cannot.
//!
//! While the image is on this machine nothing is pulled, whatever the tag names by now. A new boot disk with the
//! old state pulls by the recorded digest.

use anyhow::{Context as _, Result};
use bollard::models::ImageInspect;

use super::registries::Registries;
use super::{first_present, pull};
use crate::docker::Engine;
use crate::error::{Code, code_of};
use crate::host::Host;

/// The first of the references that is here, else as it was when `recorded` was written, else as it is now.
pub(super) async fn first_of(
    host: &Host,
    engine: &Engine,
    registries: Registries<'_>,
    references: &[String],
    recorded: Option<&str>,
) -> Result<(String, ImageInspect)> {
    if let Some(here) = first_present(engine, references).await? {
        return Ok(here);
    }
    let pinned = pinned(references, recorded);
    if pinned.is_empty() {
        return pull::first_of(host, engine, registries, references).await;
    }
    let by_digest: Vec<_> = pinned.iter().map(|(_, digest)| registries.mirrored(digest)).collect();
    let pulled = match first_present(engine, &by_digest).await? {
        Some(here) => Ok(here),
        None => pull::first_of(host, engine, registries, &by_digest).await,
    };
    match pulled {
        Ok((pulled, _)) => name(engine, registries, &pinned, pulled).await,
        Err(error) if code_of(&error) == Code::ImageNotFound => {
            host.warn(format!("no registry has {} any more: taking what the tag names now", by_digest.join(" or ")));
            pull::first_of(host, engine, registries, references).await
        }
        Err(error) => Err(error),
    }
}

/// Gives the image the reference that it is chosen by, and takes the mirror's name from it.
async fn name(
    engine: &Engine,
    registries: Registries<'_>,
    pinned: &[(String, String)],
    pulled: String,
) -> Result<(String, ImageInspect)> {
    let asked = pinned.iter().find(|(_, digest)| registries.mirrored(digest) == pulled);
    let (reference, digest) = asked.cloned().with_context(|| format!("{pulled} was not asked for"))?;
    let inspect = pull::tag(engine, &pulled, &reference).await?;
    if digest != pulled {
        pull::untag(engine, &pulled).await?;
    }
    Ok((reference, inspect))
}

/// Each reference with a tag, and the same image by the recorded digest; none if the record is about another image.
fn pinned(references: &[String], recorded: Option<&str>) -> Vec<(String, String)> {
    let Some((image, digest)) = recorded.and_then(|recorded| recorded.split_once('@')) else { return Vec::new() };
    if !digest.starts_with("sha256:") || !references.iter().any(|reference| reference == image) {
        return Vec::new();
    }
    let by_digest = |reference: &String| Some((reference.clone(), format!("{}@{digest}", repository(reference)?)));
    references.iter().filter_map(by_digest).collect()
}

/// `reference` with the digest under which its repository or the mirror has it; none for what was built or loaded
/// here.
pub(super) fn digest(registries: Registries<'_>, reference: &str, inspect: &ImageInspect) -> Option<String> {
    let mirrored = registries.mirrored(reference);
    let repositories = [repository(reference)?, repository(&mirrored)?];
    let mut digests = inspect.repo_digests.iter().flatten().filter_map(|digest| digest.split_once('@'));
    let digest = digests.find(|(name, _)| repositories.contains(name))?.1;
    Some(format!("{reference}@{digest}"))
}

/// The repository of a reference with a tag and without a digest.
fn repository(reference: &str) -> Option<&str> {
    let (repository, tag) = reference.rsplit_once(':')?;
    (!tag.contains('/') && !reference.contains('@')).then_some(repository)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::Client;

    #[test]
    fn a_digest_is_kept_for_the_image_that_it_is_of() -> Result<()> {
        let owned = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
        let official = owned(&["ghcr.io/a/b:1", "a/b:1"]);
        let sha = "sha256:00";
        let both = vec![
            ("ghcr.io/a/b:1".to_owned(), format!("ghcr.io/a/b@{sha}")),
            ("a/b:1".to_owned(), format!("a/b@{sha}")),
        ];
        let by_digest = owned(&["a/b@sha256:11"]);
        let cases = [
            (&official, Some("a/b:1@sha256:00"), both),
            (&official, Some("a/b:2@sha256:00"), Vec::new()),
            (&official, Some("a/b:1"), Vec::new()),
            (&official, Some("a/b:1@"), Vec::new()),
            (&official, None, Vec::new()),
            (&by_digest, Some("a/b@sha256:11"), Vec::new()),
        ];
        for (references, recorded, expected) in cases {
            assert_eq!(pinned(references, recorded), expected, "{references:?} {recorded:?}");
        }
        let inspect =
            ImageInspect { repo_digests: Some(owned(&["c/d@sha256:22", "a/b@sha256:00"])), ..Default::default() };
        let metadata = Client::new(None)?;
        let directly = Registries { mirror: None, metadata: &metadata };
        let cases = [
            ("a/b:1", Some("a/b:1@sha256:00")),
            ("r.io:5000/a/b:1", None),
            ("r.io:5000/a/b", None),
            ("a/b@sha256:00", None),
            ("localhost/openclaw-init:1-0", None),
        ];
        for (reference, expected) in cases {
            assert_eq!(digest(directly, reference, &inspect).as_deref(), expected, "{reference}");
        }
        let through = Registries { mirror: Some("m.pkg.dev/p"), ..directly };
        let reference = "ghcr.io/openclaw/openclaw:1";
        let digests = Some(owned(&["m.pkg.dev/p/openclaw/openclaw@sha256:33"]));
        let inspect = ImageInspect { repo_digests: digests, ..Default::default() };
        assert_eq!(digest(through, reference, &inspect), Some(format!("{reference}@sha256:33")));
        assert_eq!(digest(directly, reference, &inspect), None);
        Ok(())
    }
}
