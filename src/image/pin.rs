//! The digest that a registry's image had when the gateway first ran from it: a tag can be moved, a digest cannot.
//!
//! While the image is on this machine nothing is pulled, even if the tag has moved. A new boot disk with the old
//! state pulls by the recorded digest.

use anyhow::{Context as _, Result};
use bollard::models::ImageInspect;

use super::pull::{self, join};
use super::registries::Registries;
use super::{Images, find_first};
use crate::error::{Code, code_of};
use crate::reference::{ImageReference, PinnedImage};

/// A reference by its tag, and the same image by its recorded digest.
type ByDigest = (ImageReference, ImageReference);

impl Images<'_> {
    /// The first of the references that is on this machine, else as it was when `recorded` was written, else as it is
    /// now.
    pub(super) async fn find_or_pull(
        self,
        references: &[ImageReference],
        recorded: Option<&PinnedImage>,
    ) -> Result<(ImageReference, ImageInspect)> {
        if let Some(found) = find_first(self.engine, references).await? {
            return Ok(found);
        }
        let pinned = by_digest(references, recorded);
        if pinned.is_empty() {
            return self.pull_first(references).await;
        }
        let digests: Vec<_> = pinned.iter().map(|(_, digest)| self.registries.mirrored(digest)).collect();
        let pulled = match find_first(self.engine, &digests).await? {
            Some(found) => Ok(found),
            None => self.pull_first(&digests).await,
        };
        match pulled {
            Ok((pulled, _)) => self.give_name(&pinned, &pulled).await,
            Err(error) if code_of(&error) == Code::ImageNotFound => {
                let lost = join(&digests);
                self.host.warn(format!("no registry has {lost} any more: taking what the tag names now"));
                self.pull_first(references).await
            }
            Err(error) => Err(error),
        }
    }

    /// Gives the image the reference that it is chosen by, and takes the mirror's name from it.
    async fn give_name(self, pinned: &[ByDigest], pulled: &ImageReference) -> Result<(ImageReference, ImageInspect)> {
        let named = pinned.iter().find(|(_, digest)| self.registries.mirrored(digest) == *pulled);
        let (reference, digest) = named.with_context(|| format!("{pulled} was not asked for"))?;
        let inspect = pull::tag(self.engine, pulled, reference).await?;
        if digest != pulled {
            pull::untag(self.engine, pulled).await?;
        }
        Ok((reference.clone(), inspect))
    }
}

/// Each reference by the recorded digest; none if the record is about another image.
fn by_digest(references: &[ImageReference], recorded: Option<&PinnedImage>) -> Vec<ByDigest> {
    let recorded = recorded.filter(|recorded| references.contains(&recorded.reference));
    let Some(digest) = recorded.and_then(|recorded| recorded.digest.as_ref()) else { return Vec::new() };
    references.iter().filter(|reference| is_by_tag(reference)).map(|it| (it.clone(), it.at(digest))).collect()
}

/// The reference with the digest under which its repository or the mirror has it.
pub(super) fn pin(registries: Registries<'_>, reference: ImageReference, inspect: &ImageInspect) -> PinnedImage {
    let mirrored = registries.mirrored(&reference);
    let repositories = [reference.repository(), mirrored.repository()];
    let digests = inspect.repo_digests.iter().flatten().filter_map(|digest| digest.parse::<ImageReference>().ok());
    let digest = digests
        .filter(|_| is_by_tag(&reference))
        .find(|found| repositories.contains(&found.repository()))
        .and_then(|found| found.digest().cloned());
    PinnedImage { reference, digest }
}

fn is_by_tag(reference: &ImageReference) -> bool {
    reference.tag().is_some() && reference.digest().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::Client;
    use crate::reference::Digest;

    fn sha(digit: &str) -> String {
        format!("sha256:{}", digit.repeat(64))
    }

    fn references(texts: &[&str]) -> Result<Vec<ImageReference>> {
        texts.iter().map(|text| text.parse()).collect()
    }

    #[test]
    fn a_digest_counts_for_the_image_that_it_is_of() -> Result<()> {
        let official = references(&["ghcr.io/a/b:1", "a/b:1"])?;
        let digest: Digest = sha("0").parse()?;
        let both = official.iter().map(|reference| (reference.clone(), reference.at(&digest))).collect();
        let by_its_digest = references(&[&format!("a/b@{}", sha("1"))])?;
        let recorded = |reference: &ImageReference, digest: Option<&Digest>| {
            Some(PinnedImage { reference: reference.clone(), digest: digest.cloned() })
        };
        let cases = [
            (&official, recorded(&official[1], Some(&digest)), both),
            (&official, recorded(&"a/b:2".parse()?, Some(&digest)), Vec::new()),
            (&official, recorded(&official[1], None), Vec::new()),
            (&official, None, Vec::new()),
            (&by_its_digest, recorded(&by_its_digest[0], None), Vec::new()),
            (&by_its_digest, recorded(&by_its_digest[0], Some(&digest)), Vec::new()),
        ];
        for (references, recorded, expected) in cases {
            assert_eq!(by_digest(references, recorded.as_ref()), expected, "{references:?} {recorded:?}");
        }
        Ok(())
    }

    #[test]
    fn an_image_is_pinned_by_what_its_repository_or_the_mirror_has() -> Result<()> {
        let having = |digests: &[(&str, &str)]| {
            let digests = digests.iter().map(|(repository, digit)| format!("{repository}@{}", sha(digit))).collect();
            ImageInspect { repo_digests: Some(digests), ..Default::default() }
        };
        let inspect = having(&[("c/d", "2"), ("a/b", "0")]);
        let metadata = Client::new(None)?;
        let directly = Registries { mirror: None, metadata: &metadata };
        let (by_digest, digest) = (format!("a/b@{}", sha("0")), Some(sha("0")));
        let cases = [
            ("a/b:1", digest),
            ("r.io:5000/a/b:1", None),
            ("r.io:5000/a/b", None),
            (&by_digest, None),
            ("localhost/openclaw-init:1-0", None),
        ];
        for (reference, expected) in cases {
            let pinned = pin(directly, reference.parse()?, &inspect);
            assert_eq!(pinned.digest.map(|digest| digest.to_string()), expected, "{reference}");
        }
        let through = Registries { mirror: Some("m.pkg.dev/p"), ..directly };
        let reference: ImageReference = "ghcr.io/openclaw/openclaw:1".parse()?;
        let inspect = having(&[("m.pkg.dev/p/openclaw/openclaw", "3")]);
        let expected = format!("{reference}@{}", sha("3"));
        assert_eq!(pin(through, reference.clone(), &inspect).to_string(), expected);
        assert_eq!(pin(directly, reference, &inspect).digest, None);
        Ok(())
    }
}
