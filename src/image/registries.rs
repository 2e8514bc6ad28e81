//! Where images come from when not from their own registry, and who this VM is there.

use std::collections::HashMap;

use anyhow::{Context, Result};
use bollard::auth::DockerCredentials;

use super::OFFICIAL;
use crate::metadata::Client;
use crate::reference::ImageReference;

/// The user name that Google's registries expect beside an access token
/// (docs.cloud.google.com/artifact-registry/docs/docker/authentication).
const TOKEN_USER: &str = "oauth2accesstoken";

/// What to do when a registry of Google's refuses or does not find.
pub(super) const GRANT: &str = "Check the reference (gcloud artifacts docker images list). The VM's service account needs \
     the role Artifact Registry Reader (gcloud artifacts repositories add-iam-policy-binding REPOSITORY \
     --location=LOCATION --member=serviceAccount:ACCOUNT --role=roles/artifactregistry.reader), and the stopped VM that \
     account with a scope that allows it (gcloud compute instances set-service-account VM --zone=ZONE \
     --service-account=ACCOUNT --scopes=cloud-platform).";

/// The mirror, if there is one, and the VM's account.
#[derive(Debug, Clone, Copy)]
pub(super) struct Registries<'a> {
    /// `openclaw-registry-mirror`: registry and path below which Docker Hub's paths are found.
    pub(super) mirror: Option<&'a str>,
    /// Who gives access tokens.
    pub(super) metadata: &'a Client,
}

impl Registries<'_> {
    /// Where `reference` is to be fetched: through the mirror when that can have it.
    ///
    /// A digest is fetched from where it says: what comes from elsewhere could not be given its name.
    pub(super) fn source_of(self, reference: &ImageReference) -> ImageReference {
        if reference.digest().is_some() { reference.clone() } else { self.mirrored(reference) }
    }

    /// The name that `reference` has at the mirror. That can have what is on Docker Hub, which is where the
    /// gateway's own image is, too.
    pub(super) fn mirrored(self, reference: &ImageReference) -> ImageReference {
        match (self.mirror, hub_path(reference)) {
            (Some(mirror), Some(path)) => reference.in_repository(format!("{mirror}/{path}")),
            _ => reference.clone(),
        }
    }

    /// The credentials for the registry of `reference`: a token of the VM's account, good for less than an hour,
    /// where Google keeps images; none elsewhere.
    pub(super) async fn credentials(self, reference: &ImageReference) -> Result<Option<DockerCredentials>> {
        let Some(registry) = reference.registry().filter(|_| is_at_google(reference)) else { return Ok(None) };
        let token = self.metadata.access_token().await;
        let Some(token) = token.with_context(|| format!("asking for an access token for {registry}"))? else {
            tracing::debug!("this VM has no service account: asking {registry} without one");
            return Ok(None);
        };
        Ok(Some(DockerCredentials {
            username: Some(TOKEN_USER.to_owned()),
            password: Some(token.expose().to_owned()),
            serveraddress: Some(registry.to_owned()),
            ..Default::default()
        }))
    }

    /// The credentials that a build `FROM` these references needs, by registry.
    pub(super) async fn build_credentials(
        self,
        references: impl Iterator<Item = &ImageReference>,
    ) -> Result<HashMap<String, DockerCredentials>> {
        let mut all = HashMap::new();
        for reference in references {
            if let Some(credentials) = self.credentials(reference).await?
                && let Some(registry) = reference.registry()
            {
                all.insert(registry.to_owned(), credentials);
            }
        }
        Ok(all)
    }
}

/// Whether `reference` lies where Google keeps images (Artifact Registry, and what is left of its predecessor).
pub(super) fn is_at_google(reference: &ImageReference) -> bool {
    let is_google = |name: &str| name.ends_with(".pkg.dev") || name == "gcr.io" || name.ends_with(".gcr.io");
    reference.registry().is_some_and(is_google)
}

/// The path that Docker Hub has the repository of `reference` under.
fn hub_path(reference: &ImageReference) -> Option<String> {
    let ([primary, hub], repository) = (OFFICIAL, reference.repository());
    match reference.registry() {
        Some(_) if repository == primary => Some(hub.to_owned()),
        Some("docker.io") => repository.strip_prefix("docker.io/").map(str::to_owned),
        Some(_) => None,
        None if repository.contains('/') => Some(repository.to_owned()),
        None => Some(format!("library/{repository}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mirror_has_what_docker_hub_has() -> Result<()> {
        let metadata = Client::new(None)?;
        let through = Registries { mirror: Some("europe-docker.pkg.dev/p/hub"), metadata: &metadata };
        let digest = format!("openclaw/openclaw@sha256:{}", "0".repeat(64));
        #[rustfmt::skip]
        let cases = [
            ("ghcr.io/openclaw/openclaw:2026.9.6", "europe-docker.pkg.dev/p/hub/openclaw/openclaw:2026.9.6"),
            ("openclaw/openclaw:2026.9.6", "europe-docker.pkg.dev/p/hub/openclaw/openclaw:2026.9.6"),
            ("docker.io/openclaw/openclaw:1", "europe-docker.pkg.dev/p/hub/openclaw/openclaw:1"),
            ("node:24-bookworm-slim", "europe-docker.pkg.dev/p/hub/library/node:24-bookworm-slim"),
            ("ghcr.io/openclaw/openclaw-other:1", "ghcr.io/openclaw/openclaw-other:1"),
            ("ghcr.io/someone/openclaw:1", "ghcr.io/someone/openclaw:1"),
            ("localhost:5000/openclaw:1", "localhost:5000/openclaw:1"),
            (&digest, &digest),
        ];
        for (reference, source) in cases {
            let parsed: ImageReference = reference.parse()?;
            assert_eq!(through.source_of(&parsed).to_string(), source);
            assert_eq!(Registries { mirror: None, ..through }.source_of(&parsed).to_string(), reference);
        }
        let mirrored = through.mirrored(&digest.parse()?).to_string();
        assert_eq!(mirrored, format!("europe-docker.pkg.dev/p/hub/{digest}"));
        Ok(())
    }

    #[test]
    fn googles_registries_are_known_by_their_names() -> Result<()> {
        for google in ["europe-docker.pkg.dev/p/r/i:1", "gcr.io/p/i:1", "eu.gcr.io/p/i:1", "docker.pkg.dev/p/i:1"] {
            assert!(is_at_google(&google.parse()?), "{google}");
        }
        for other in
            ["ghcr.io/gcr.io/i:1", "openclaw/openclaw:1", "pkg.dev.example/p/i:1", "notgcr.io/p/i:1", "node:24"]
        {
            assert!(!is_at_google(&other.parse()?), "{other}");
        }
        Ok(())
    }
}
