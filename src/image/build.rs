//! Building an image with the engine, from any recipe.

use std::collections::{HashMap, VecDeque};
use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Error, Result, anyhow};
use bollard::auth::DockerCredentials;
use bollard::body_try_stream;
use bollard::models::{BuildInfo, BuildInfoAux, ImageInspect};
use bollard::query_parameters::{BuildImageOptions, BuildImageOptionsBuilder, BuilderVersion};
use futures_util::TryStreamExt as _;
use futures_util::stream::try_unfold;

use super::context::{BuildDir, next_chunk};
use super::recipe::Recipe;
use super::{GROW_BOOT_DISK, Images, RETRY_BACKOFF, VERSION_LABEL};
use crate::docker::Engine;
use crate::error::{Classify as _, Code};
use crate::memory;
use crate::reference::ImageReference;
use crate::text::tail;
use crate::version::GatewayVersion;

/// The label with the fingerprint of all that went into the build.
pub(super) const FINGERPRINT_LABEL: &str = "openclaw-init.fingerprint";

/// How long a build may be silent: npm prints nothing while it unpacks, which takes minutes on a shared core.
const IDLE_TIMEOUT: Duration = Duration::from_secs(600);

/// How many of a failed build's last lines are kept, and how many of their bytes are reported.
const LINES_LIMIT: usize = 20;
const REPORTED_BYTES: usize = 512;

/// How many characters of a step are displayed: its number and what it begins with.
const STEP_CHARS: usize = 100;

/// Base images by the build argument that names each.
type Bases = [(&'static str, ImageReference)];

/// The image of the recipe if it was built before.
pub(super) async fn find(engine: &Engine, recipe: &Recipe) -> Result<Option<ImageInspect>> {
    let inspect = super::find(engine, &recipe.reference()).await?;
    Ok(inspect.filter(|inspect| label(inspect) == Some(&recipe.fingerprint)))
}

impl Images<'_> {
    /// Builds the image of the recipe, which has the gateway's `version` in it, from the context that `pack` makes in
    /// the directory it is given. The image has its name only when the build has succeeded.
    pub(super) async fn build(
        self,
        recipe: &Recipe,
        version: &GatewayVersion,
        pack: impl AsyncFnOnce(&Path) -> Result<()>,
    ) -> Result<ImageInspect> {
        let reference = recipe.reference();
        let directory = BuildDir::new(self.host).await?;
        let outcome = match pack(directory.path()).await {
            Ok(()) => self.run_build(recipe, version, &directory).await,
            Err(error) if is_full(&error) => Err(error).classify(Code::NoSpace, GROW_BOOT_DISK),
            Err(error) => Err(error),
        };
        directory.remove().await?;
        outcome.with_context(|| format!("building image {reference}"))?;
        let inspect = find(self.engine, recipe).await?;
        let inspect = inspect.ok_or_else(|| anyhow!("the engine does not have image {reference} after building it"))?;
        self.host.changed(format!("built {reference}"));
        Ok(inspect)
    }

    /// Builds, three times if the network fails, and with the classic builder where `BuildKit`'s session
    /// does not come about (engines are about to drop the endpoint it uses).
    async fn run_build(self, recipe: &Recipe, version: &GatewayVersion, directory: &BuildDir) -> Result<()> {
        let bases = self.bases(recipe)?;
        let mut builder = if self.engine.buildkit { Builder::BuildKit } else { Builder::Classic };
        let mut backoffs = RETRY_BACKOFF.iter().skip(1);
        loop {
            let kills = memory::kills(self.host).await;
            let credentials = self.registries.build_credentials(bases.iter().map(|(_, base)| base)).await?;
            let options = options(recipe, &bases, self.host.proxy(), version, builder)?;
            let Err(error) = self.attempt(options, credentials, directory).await else { return Ok(()) };
            let text = format!("{error:#}");
            tracing::debug!("{text}");
            let failure = BuildFailure::of(&text, memory::kills(self.host).await > kills);
            if failure == BuildFailure::Session && builder == Builder::BuildKit {
                tracing::info!("this engine's BuildKit does not take our session, using the classic builder: {text}");
                builder = Builder::Classic;
            } else if let (BuildFailure::Transient, Some(backoff)) = (failure, backoffs.next()) {
                tokio::time::sleep(*backoff).await;
            } else {
                let (code, remedy) = failure.diagnose(recipe);
                return Err(error).classify(code, remedy);
            }
        }
    }

    /// The recipe's base images, where they are to be fetched.
    fn bases(self, recipe: &Recipe) -> Result<Vec<(&'static str, ImageReference)>> {
        let bases = recipe.bases.iter().map(|(name, base)| Ok((*name, self.registries.source_of(&base.parse()?))));
        bases.collect()
    }

    async fn attempt(
        self,
        options: BuildImageOptions,
        credentials: HashMap<String, DockerCredentials>,
        directory: &BuildDir,
    ) -> Result<()> {
        let context = body_try_stream(try_unfold(directory.open().await?, next_chunk));
        let mut stream = self.engine.client.build_image(options, Some(credentials), Some(context));
        let mut output = BuildOutput::default();
        self.host.progress("starting the build");
        loop {
            let next = tokio::time::timeout(IDLE_TIMEOUT, stream.try_next())
                .await
                .map_err(|_| anyhow!("the build output nothing for {} s", IDLE_TIMEOUT.as_secs()))
                .and_then(|next| Ok(next?));
            match next {
                Ok(Some(info)) => {
                    if let Some(line) = output.note(&info) {
                        self.host.progress(line);
                    }
                }
                Ok(None) => return Ok(()),
                Err(error) => return Err(output.explain(&error)),
            }
        }
    }
}

fn is_full(error: &Error) -> bool {
    let full = |error: &std::io::Error| error.kind() == ErrorKind::StorageFull;
    error.chain().filter_map(|cause| cause.downcast_ref()).any(full)
}

fn label(inspect: &ImageInspect) -> Option<&String> {
    inspect.config.as_ref()?.labels.as_ref()?.get(FINGERPRINT_LABEL)
}

fn options(
    recipe: &Recipe,
    bases: &Bases,
    proxy: &[(String, String)],
    version: &GatewayVersion,
    builder: Builder,
) -> Result<BuildImageOptions> {
    let bases: Vec<_> = bases.iter().map(|(name, base)| (*name, base.to_string())).collect();
    let args = recipe.args.iter().chain(&bases).map(|(name, value)| (*name, value.as_str()));
    // Predefined: neither in the image nor in the key of the build cache.
    let proxy = proxy.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let args: HashMap<_, _> = args.chain(proxy).collect();
    let labels = [(FINGERPRINT_LABEL, recipe.fingerprint.as_str()), (VERSION_LABEL, version.as_str())];
    let options = BuildImageOptionsBuilder::default()
        .dockerfile("Dockerfile")
        .t(&recipe.reference().to_string())
        .rm(true)
        .forcerm(true)
        .buildargs(&args)
        .labels(&HashMap::from(labels));
    Ok(match builder {
        Builder::Classic => options.version(BuilderVersion::BuilderV1).build(),
        Builder::BuildKit => {
            let session = getrandom::u64().context("choosing a session id")?;
            options.version(BuilderVersion::BuilderBuildKit).session(&format!("{session:016x}")).build()
        }
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Builder {
    BuildKit,
    Classic,
}

/// The last lines of a build's output.
#[derive(Debug, Default)]
struct BuildOutput {
    lines: VecDeque<String>,
}

impl BuildOutput {
    /// Takes in one message of either builder; the last line in it, if any.
    fn note(&mut self, info: &BuildInfo) -> Option<String> {
        let mut text = info.stream.clone().unwrap_or_default();
        if let Some(BuildInfoAux::BuildKit(status)) = &info.aux {
            for step in &status.vertexes {
                if step.started.is_some() && step.completed.is_none() {
                    text.extend(step.name.chars().take(STEP_CHARS));
                    text.push('\n');
                }
                text.push_str(&brief(&step.error));
                text.push('\n');
            }
            for log in &status.logs {
                text.push_str(&String::from_utf8_lossy(&log.msg));
            }
        }
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
            self.lines.push_back(line.to_owned());
            if self.lines.len() > LINES_LIMIT {
                self.lines.pop_front();
            }
        }
        if text.trim().is_empty() { None } else { self.lines.back().cloned() }
    }

    /// The error with the end of the output, where the reason is.
    fn explain(self, error: &Error) -> Error {
        let lines = Vec::from(self.lines).join(" | ");
        let error = anyhow!(brief(&format!("{error:#}")));
        if lines.is_empty() { error } else { error.context(format!("[…] {}", tail(&lines, REPORTED_BYTES))) }
    }
}

/// `BuildKit`'s message about a failed step, without the step's whole text.
fn brief(error: &str) -> String {
    match (error.find("process \""), error.rfind("\" did not complete")) {
        (Some(start), Some(end)) if start < end => format!("{}a step{}", &error[..start], &error[end + 1..]),
        _ => error.to_owned(),
    }
}

/// What a failed build means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BuildFailure {
    Session,
    OutOfMemory,
    NoSpace,
    NoSuchVersion,
    NoSuchPackage,
    Transient,
    Other,
}

impl BuildFailure {
    /// By the words of the builder, of npm and of apt. `starved`: the kernel has killed a process for lack of
    /// memory meanwhile, which explains what they cannot.
    fn of(error: &str, starved: bool) -> Self {
        const WORDS: &[(BuildFailure, &[&str])] = &[
            (
                BuildFailure::Session,
                // The last is the name under which BuildKit keeps what was sent: with containerd's image store some
                // engines look for it in the DNS (moby issue 47717, Docker 26.1.5).
                &["no active session", "no active sessions", "buildkit session", "/session", "/grpc", "build-context-"],
            ),
            (BuildFailure::NoSpace, &["no space left on device", "enospc"]),
            (BuildFailure::OutOfMemory, &["exit code: 137", "non-zero code: 137", "out of memory", "killed"]),
            (BuildFailure::NoSuchVersion, &["npm error code etarget", "no matching version found for openclaw@"]),
            (
                BuildFailure::Transient,
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
            // After the network: without apt's lists no package is found.
            (
                BuildFailure::NoSuchPackage,
                &["unable to locate package", "no installation candidate", "' was not found"],
            ),
        ];
        let error = error.to_ascii_lowercase();
        let found = WORDS.iter().find(|(_, words)| words.iter().any(|word| error.contains(word)));
        match found.map_or(Self::Other, |(failure, _)| *failure) {
            Self::Transient | Self::Other if starved => Self::OutOfMemory,
            failure => failure,
        }
    }

    fn diagnose(self, recipe: &Recipe) -> (Code, String) {
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
            Self::NoSuchPackage => (
                Code::ConfigInvalid,
                "Debian has no such package: correct the attribute openclaw-apt-packages.".to_owned(),
            ),
            Self::Session | Self::Transient | Self::Other => (Code::ImageBuildFailed, recipe.remedy.clone()),
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
            ("failed to solve: no active sessions", BuildFailure::Session),
            ("dial tcp: lookup build-context-slhm5 on 169.254.169.254:53: no such host", BuildFailure::Session),
            ("process \"/bin/sh -c npm install\" did not complete successfully: exit code: 137", BuildFailure::OutOfMemory),
            ("The command '/bin/sh -c npm install' returned a non-zero code: 137", BuildFailure::OutOfMemory),
            ("npm error code ENOSPC", BuildFailure::NoSpace),
            ("npm error code ETARGET | npm error notarget No matching version found for openclaw@1", BuildFailure::NoSuchVersion),
            ("E: Unable to locate package jqq", BuildFailure::NoSuchPackage),
            ("W: Failed to fetch http://…/InRelease | E: Unable to locate package jq", BuildFailure::Transient),
            ("E: Version '1' for 'jq' was not found", BuildFailure::NoSuchPackage),
            ("npm error code EAI_AGAIN", BuildFailure::Transient),
            ("failed to do request: Head \"https://…\": dial tcp: i/o timeout", BuildFailure::Transient),
            ("failed to solve: dockerfile parse error", BuildFailure::Other),
        ];
        for (error, failure) in cases {
            assert_eq!(BuildFailure::of(error, false), failure, "{error}");
        }
        assert_eq!(BuildFailure::of("rpc error: unexpected EOF", true), BuildFailure::OutOfMemory);
        assert_eq!(BuildFailure::of("npm error code ENOSPC", true), BuildFailure::NoSpace);
    }

    #[test]
    fn a_failed_step_is_reported_without_its_text() {
        let error =
            "failed to solve: process \"/bin/sh -c echo \\\"a\\\" && b\" did not complete successfully: exit code: 137";
        assert_eq!(brief(error), "failed to solve: a step did not complete successfully: exit code: 137");
        assert_eq!(brief("failed to solve: x"), "failed to solve: x");
    }

    #[test]
    fn the_end_of_the_output_is_kept() {
        let message = |text: &str| BuildInfo { stream: Some(text.to_owned()), ..Default::default() };
        let mut output = BuildOutput::default();
        assert_eq!(output.note(&message("\n")), None);
        assert_eq!(output.note(&message("Step 1/9\n ---> Running\n")).as_deref(), Some("---> Running"));
        for line in 0..50 {
            output.note(&message(&format!("line {line}\n")));
        }
        assert_eq!(output.lines.len(), LINES_LIMIT);
        let error = format!("{:#}", output.explain(&anyhow!("exit code: 1")));
        assert!(error.ends_with("line 48 | line 49: exit code: 1"), "{error}");
    }
}
