//! Building the image from the npm package, with our own Dockerfile.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use anyhow::{Context, Error, Result, anyhow};
use bollard::body_full;
use bollard::models::{BuildInfo, BuildInfoAux, ImageInspect};
use bollard::query_parameters::{BuildImageOptions, BuildImageOptionsBuilder, BuilderVersion};
use futures_util::TryStreamExt as _;
use sha2::{Digest as _, Sha256};

use super::{GROW_BOOT_DISK, PAUSES, built, present};
use crate::docker::Engine;
use crate::failure::{Blame as _, Code};
use crate::host::{Host, tail};

const DOCKERFILE: &str = include_str!("npm.Dockerfile");

/// The label with the fingerprint of all that went into the build.
const FINGERPRINT_LABEL: &str = "openclaw-init.fingerprint";

/// How long a build may be silent: npm prints nothing while it unpacks, which takes minutes on a shared core.
const IDLE: Duration = Duration::from_secs(600);

/// How many of the last lines of a failed build are kept, and how many of their bytes are told.
const KEPT_LINES: usize = 20;
const TOLD_BYTES: usize = 1024;

/// The image built from `openclaw@version`, built only when the local tag has another fingerprint.
pub(super) async fn ensure(
    host: &Host,
    engine: &Engine,
    version: &str,
    registry: Option<&str>,
) -> Result<(String, ImageInspect)> {
    let recipe = Recipe { version, registry };
    let reference = built(version);
    let fingerprint = recipe.fingerprint();
    if let Some(inspect) = present(engine, &reference).await?
        && label(&inspect) == Some(&fingerprint)
    {
        return Ok((reference, inspect));
    }
    build(host, engine, &recipe).await.with_context(|| format!("building image {reference}"))?;
    let inspect = present(engine, &reference)
        .await?
        .filter(|inspect| label(inspect) == Some(&fingerprint))
        .ok_or_else(|| anyhow!("the engine does not have image {reference} after building it"))?;
    host.changed(format!("built {reference}"));
    Ok((reference, inspect))
}

fn label(inspect: &ImageInspect) -> Option<&String> {
    inspect.config.as_ref()?.labels.as_ref()?.get(FINGERPRINT_LABEL)
}

/// All that decides what the image becomes.
#[derive(Debug, Clone, Copy)]
struct Recipe<'a> {
    version: &'a str,
    registry: Option<&'a str>,
}

impl Recipe<'_> {
    fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        for part in [DOCKERFILE, self.version, self.registry.unwrap_or_default()] {
            hash.update(part.len().to_le_bytes());
            hash.update(part);
        }
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn options(&self, builder: Builder) -> Result<BuildImageOptions> {
        let mut args = HashMap::from([("OPENCLAW_VERSION", self.version)]);
        args.extend(self.registry.map(|registry| ("NPM_REGISTRY", registry)));
        let fingerprint = self.fingerprint();
        let options = BuildImageOptionsBuilder::default()
            .dockerfile("Dockerfile")
            .t(&built(self.version))
            .rm(true)
            .forcerm(true)
            .buildargs(&args)
            .labels(&HashMap::from([(FINGERPRINT_LABEL, fingerprint.as_str())]));
        Ok(match builder {
            Builder::Classic => options.version(BuilderVersion::BuilderV1).build(),
            Builder::BuildKit => {
                let session = getrandom::u64().context("choosing a session id")?;
                options.version(BuilderVersion::BuilderBuildKit).session(&format!("{session:016x}")).build()
            }
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Builder {
    BuildKit,
    Classic,
}

/// Builds, three times if the network fails, and with the classic builder where `BuildKit`'s session
/// does not come about (engines are about to drop the endpoint it uses).
async fn build(host: &Host, engine: &Engine, recipe: &Recipe<'_>) -> Result<()> {
    let mut builder = if engine.buildkit { Builder::BuildKit } else { Builder::Classic };
    let mut pauses = PAUSES.iter().skip(1);
    loop {
        let Err(error) = attempt(host, engine, recipe, builder).await else { return Ok(()) };
        let text = format!("{error:#}");
        tracing::debug!("{text}");
        let trouble = Trouble::of(&text);
        if trouble == Trouble::Session && builder == Builder::BuildKit {
            tracing::info!("this engine's BuildKit does not take our session, using the classic builder: {text}");
            builder = Builder::Classic;
        } else if let (Trouble::Transient, Some(pause)) = (trouble, pauses.next()) {
            tokio::time::sleep(*pause).await;
        } else {
            let (code, remedy) = trouble.verdict(recipe);
            return Err(error).blame(code, remedy);
        }
    }
}

async fn attempt(host: &Host, engine: &Engine, recipe: &Recipe<'_>, builder: Builder) -> Result<()> {
    let options = recipe.options(builder)?;
    let context = body_full(context()?.into());
    let mut stream = engine.client.build_image(options, None, Some(context));
    let mut output = Output::default();
    host.progress("starting the build");
    loop {
        let next = tokio::time::timeout(IDLE, stream.try_next())
            .await
            .map_err(|_| anyhow!("the build said nothing for {} s", IDLE.as_secs()))
            .and_then(|next| Ok(next?));
        match next {
            Ok(Some(info)) => {
                if let Some(line) = output.note(&info) {
                    host.progress(line);
                }
            }
            Ok(None) => return Ok(()),
            Err(error) => return Err(output.explain(error)),
        }
    }
}

/// The build context: a tar archive with nothing but the Dockerfile.
fn context() -> Result<Vec<u8>> {
    let mut header = tar::Header::new_gnu();
    header.set_size(DOCKERFILE.len() as u64);
    header.set_mode(0o644);
    let mut archive = tar::Builder::new(Vec::new());
    archive.append_data(&mut header, "Dockerfile", DOCKERFILE.as_bytes()).context("packing the Dockerfile")?;
    archive.into_inner().context("packing the Dockerfile")
}

/// The last lines that the build said.
#[derive(Debug, Default)]
struct Output {
    lines: VecDeque<String>,
}

impl Output {
    /// Takes in one message of either builder; the last line in it, if any.
    fn note(&mut self, info: &BuildInfo) -> Option<String> {
        let mut said = info.stream.clone().unwrap_or_default();
        if let Some(BuildInfoAux::BuildKit(status)) = &info.aux {
            for step in &status.vertexes {
                if step.started.is_some() && step.completed.is_none() {
                    said.push_str(&step.name);
                    said.push('\n');
                }
                said.push_str(&step.error);
                said.push('\n');
            }
            for log in &status.logs {
                said.push_str(&String::from_utf8_lossy(&log.msg));
            }
        }
        for line in said.lines().map(str::trim).filter(|line| !line.is_empty()) {
            self.lines.push_back(line.to_owned());
            if self.lines.len() > KEPT_LINES {
                self.lines.pop_front();
            }
        }
        if said.trim().is_empty() { None } else { self.lines.back().cloned() }
    }

    /// The error with the end of the output, where the reason is.
    fn explain(self, error: Error) -> Error {
        let lines = Vec::from(self.lines).join(" | ");
        if lines.is_empty() { error } else { error.context(format!("[…] {}", tail(&lines, TOLD_BYTES))) }
    }
}

/// What a failed build means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    Session,
    OutOfMemory,
    NoSpace,
    NoSuchVersion,
    Transient,
    Other,
}

impl Trouble {
    /// By the words of the builder, of npm and of apt.
    fn of(error: &str) -> Self {
        const WORDS: &[(Trouble, &[&str])] = &[
            (Trouble::Session, &["no active session", "no active sessions", "buildkit session", "/session", "/grpc"]),
            (Trouble::NoSpace, &["no space left on device", "enospc"]),
            (Trouble::OutOfMemory, &["exit code: 137", "non-zero code: 137", "out of memory", "killed"]),
            (Trouble::NoSuchVersion, &["npm error code etarget", "no matching version found for openclaw@"]),
            (
                Trouble::Transient,
                &[
                    "etimedout",
                    "econnreset",
                    "econnrefused",
                    "eai_again",
                    "enotfound",
                    "network",
                    "i/o timeout",
                    "tls handshake timeout",
                    "no such host",
                    "temporary failure resolving",
                    "failed to fetch",
                    "connection reset",
                    "unexpected eof",
                ],
            ),
        ];
        let error = error.to_ascii_lowercase();
        WORDS
            .iter()
            .find(|(_, words)| words.iter().any(|word| error.contains(word)))
            .map_or(Self::Other, |(trouble, _)| *trouble)
    }

    fn verdict(self, recipe: &Recipe<'_>) -> (Code, String) {
        match self {
            Self::NoSpace => (Code::NoSpace, GROW_BOOT_DISK.to_owned()),
            Self::OutOfMemory => (
                Code::OutOfMemory,
                "The build needs more memory: stop the VM, `gcloud compute instances set-machine-type VM --zone=ZONE \
                 --machine-type=e2-medium`, start it; or unset openclaw-image-source to use the prebuilt image."
                    .to_owned(),
            ),
            Self::NoSuchVersion => (
                Code::ImageNotFound,
                format!("npm has no openclaw@{}: check the attribute openclaw-version.", recipe.version),
            ),
            Self::Session | Self::Transient | Self::Other => (
                Code::ImageBuildFailed,
                "Check that containers can reach the package registries, then run \
                 `sudo systemctl restart openclaw-init`; or unset openclaw-image-source to use the prebuilt image."
                    .to_owned(),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_the_build_decide_what_follows() {
        #[rustfmt::skip]
        let cases = [
            ("failed to solve: no active sessions", Trouble::Session),
            ("process \"/bin/sh -c npm install\" did not complete successfully: exit code: 137", Trouble::OutOfMemory),
            ("The command '/bin/sh -c npm install' returned a non-zero code: 137", Trouble::OutOfMemory),
            ("npm error code ENOSPC", Trouble::NoSpace),
            ("npm error code ETARGET | npm error notarget No matching version found for openclaw@1", Trouble::NoSuchVersion),
            ("npm error code EAI_AGAIN", Trouble::Transient),
            ("failed to do request: Head \"https://…\": dial tcp: i/o timeout", Trouble::Transient),
            ("failed to solve: dockerfile parse error", Trouble::Other),
        ];
        for (error, trouble) in cases {
            assert_eq!(Trouble::of(error), trouble, "{error}");
        }
    }

    #[test]
    fn the_fingerprint_tells_recipes_apart() {
        let of = |version, registry| Recipe { version, registry }.fingerprint();
        assert_eq!(of("1", None), of("1", None));
        assert_ne!(of("1", None), of("2", None));
        assert_ne!(of("1", None), of("1", Some("https://npm.example")));
        assert_eq!(of("1", None).len(), 64);
    }

    #[test]
    fn the_end_of_the_output_is_kept() {
        let say = |text: &str| BuildInfo { stream: Some(text.to_owned()), ..Default::default() };
        let mut output = Output::default();
        assert_eq!(output.note(&say("\n")), None);
        assert_eq!(output.note(&say("Step 1/9\n ---> Running\n")).as_deref(), Some("---> Running"));
        for line in 0..50 {
            output.note(&say(&format!("line {line}\n")));
        }
        assert_eq!(output.lines.len(), KEPT_LINES);
        let error = format!("{:#}", output.explain(anyhow!("exit code: 1")));
        assert!(error.ends_with("line 48 | line 49: exit code: 1"), "{error}");
    }

    #[test]
    fn the_context_is_an_archive_of_the_dockerfile() -> Result<()> {
        let bytes = context()?;
        let mut archive = tar::Archive::new(bytes.as_slice());
        let paths = archive.entries()?.map(|entry| Ok(entry?.path()?.into_owned())).collect::<Result<Vec<_>>>()?;
        assert_eq!(paths, [std::path::PathBuf::from("Dockerfile")]);
        Ok(())
    }
}
