//! Another container in the place of the gateway's: proven before the running one is stopped, undone when it fails.
//!
//! The new one is made under a name of its own. When the running one has stopped, both are renamed; that one is kept
//! until the gateway is ready. Never do two of them run at once.

use anyhow::{Context as _, Error, Result};
use bollard::query_parameters::{CreateContainerOptionsBuilder, RenameContainerOptionsBuilder};

use super::spec::{STOP_SECONDS, Spec};
use super::start::explain_creation;
use super::{Action, Gateway, NAME, Observed, Secrets, inspect, observe, remove_if_exists, stop_container};
use crate::docker::Engine;
use crate::error::{Code, code_of};
use crate::image::Image;
use crate::report::Ready;

/// A new container until the one before it is stopped.
pub(super) const NEXT: &str = "openclaw-gateway-next";

/// The one before it until the new one is ready.
pub(super) const FORMER: &str = "openclaw-gateway-former";

/// One that somebody has installed something in, stopped.
pub(super) const KEPT: &str = "openclaw-gateway-kept";

/// Where gateways leave files in a container that lets them: caches, logs, locks and the engine's mount points.
const MADE_BY_ITSELF: [&str; 6] =
    ["/tmp", "/run", "/home/node/.npm", "/home/node/.cache", "/home/node/.openclaw", "/home/node/.config/openclaw"];

/// How many paths the warning names.
const NAMED_PATHS: usize = 5;

impl Gateway<'_> {
    /// What can be known while the gateway runs: the new container can be made, and published.
    pub(super) async fn prove(&self, action: Action, observed: Option<&Observed>, spec: &Spec) -> Result<()> {
        self.wait_for_address().await?;
        if observed.is_some_and(|observed| observed.is_alive() && observed.port != Some(self.config.port)) {
            self.require_port().await?;
        }
        if matches!(action, Action::Create | Action::Replace) {
            let options = CreateContainerOptionsBuilder::default().name(NEXT).build();
            let created = self.engine.client.create_container(Some(options), spec.body.clone()).await;
            let created = created.map_err(explain_creation)?;
            created.warnings.iter().for_each(|warning| tracing::debug!("creating container {NAME}: {warning}"));
            self.host.changed(format!("created container {NAME}"));
        }
        Ok(())
    }

    /// Gives the new container its name, if there is one, and starts the gateway. No container runs.
    pub(super) async fn apply(&self, action: Action) -> Result<()> {
        let Self { host, engine, .. } = *self;
        if action == Action::Replace && observe(engine, FORMER).await?.is_none() {
            rename(engine, NAME, FORMER).await?;
            host.changed(format!("took container {NAME} out of use"));
        } else if action == Action::Replace {
            // The former one was ready once, this one never.
            remove_if_exists(engine, NAME).await?;
        }
        if matches!(action, Action::Create | Action::Replace) {
            rename(engine, NEXT, NAME).await?;
        }
        let started = self.start().await;
        if started.is_err() && action == Action::Create {
            // It never ran: nothing is lost, and the next run begins clean.
            drop(remove_if_exists(engine, NAME).await);
        }
        started
    }

    /// Waits until the gateway is ready; then the former container goes. It comes back when the new one does not become
    /// ready, unless the gateway refused the state that both have.
    pub async fn wait_settled(&self, image: &Image, secrets: &Secrets) -> Result<Ready> {
        let ready = self.wait_ready(image, secrets).await;
        let refused = ready.as_ref().is_err_and(|error| code_of(error) == Code::GatewayRefused);
        match ready {
            Ok(ready) => self.retire_former().await.map(|()| ready),
            Err(error) if !refused && observe(self.engine, FORMER).await?.is_some() => {
                Err(self.bring_back(error).await)
            }
            Err(error) => Err(error),
        }
    }

    /// Removes the former container. One with a writable root may hold what somebody installed in it by hand: the first
    /// such one is only renamed.
    async fn retire_former(&self) -> Result<()> {
        let Self { host, engine, .. } = *self;
        let Some(former) = inspect(engine, FORMER).await? else { return Ok(()) };
        let is_read_only = former.host_config.and_then(|config| config.readonly_rootfs).unwrap_or(false);
        if !is_read_only && inspect(engine, KEPT).await?.is_none() {
            let changes = engine.client.container_changes(FORMER).await.context("asking what was changed in it")?;
            let paths: Vec<String> = changes.unwrap_or_default().into_iter().map(|change| change.path).collect();
            let found = left_by_hand(&paths);
            if !found.is_empty() {
                rename(engine, FORMER, KEPT).await?;
                host.warn(format!(
                    "the former container had files of its own ({}), which the new one lacks: it is kept, stopped, as \
                     {KEPT}. Copy what you need with `sudo docker cp`, then `sudo docker rm {KEPT}`",
                    found.iter().take(NAMED_PATHS).copied().collect::<Vec<_>>().join(", ")
                ));
                return Ok(());
            }
        }
        remove_if_exists(engine, FORMER).await.map(drop)
    }

    /// Undoes what a failed change of the container did, and starts the former one if need be. The error says so.
    pub(super) async fn bring_back(&self, error: Error) -> Error {
        let Self { host, engine, .. } = *self;
        let back = async {
            remove_if_exists(engine, NEXT).await?;
            if observe(engine, FORMER).await?.is_some() {
                stop_container(engine, STOP_SECONDS).await?;
                remove_if_exists(engine, NAME).await?;
                rename(engine, FORMER, NAME).await?;
            }
            match observe(engine, NAME).await? {
                Some(former) if former.is_alive() => Ok(()),
                _ => self.start().await,
            }
        };
        host.progress("going back to the former container");
        match back.await {
            Ok(()) => error.context("the former container runs, since the new one failed"),
            Err(also) => error.context(format!("the former container does not start either ({also:#})")),
        }
    }

    /// After a cut between two names: what never ran goes, and the former container is the gateway's again.
    /// Returns what is known of that one.
    pub(super) async fn recover_names(&self) -> Result<Option<Observed>> {
        remove_if_exists(self.engine, NEXT).await?;
        if let Some(current) = observe(self.engine, NAME).await? {
            return Ok(Some(current));
        }
        let former = observe(self.engine, FORMER).await?;
        if former.is_some() {
            rename(self.engine, FORMER, NAME).await?;
        }
        Ok(former)
    }
}

/// Of the paths that differ from the image, those that no gateway makes by itself.
fn left_by_hand(changed: &[String]) -> Vec<&str> {
    let is_below =
        |path: &str, top: &str| path.strip_prefix(top).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    let is_parent = |path: &str| changed.iter().any(|other| other != path && is_below(other, path));
    let is_made_by_itself = |path: &str| MADE_BY_ITSELF.iter().any(|top| is_below(path, top));
    changed.iter().map(String::as_str).filter(|path| !is_made_by_itself(path) && !is_parent(path)).collect()
}

async fn rename(engine: &Engine, from: &str, to: &str) -> Result<()> {
    let options = RenameContainerOptionsBuilder::default().name(to).build();
    engine.client.rename_container(from, options).await.with_context(|| format!("renaming container {from} to {to}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_somebody_installed_is_told_from_what_a_gateway_leaves() {
        let cases: [(&[&str], &[&str]); 4] = [
            (&[], &[]),
            (&["/home", "/home/node", "/home/node/.npm", "/home/node/.npm/_logs/x", "/tmp", "/tmp/openclaw"], &[]),
            (&["/usr", "/usr/local/bin", "/usr/local/bin/jq", "/tmp/x"], &["/usr/local/bin/jq"]),
            (&["/app", "/app/openclaw.mjs", "/home/node/.npmrc"], &["/app/openclaw.mjs", "/home/node/.npmrc"]),
        ];
        for (changed, expected) in cases {
            let changed: Vec<String> = changed.iter().map(|&path| path.to_owned()).collect();
            assert_eq!(left_by_hand(&changed), expected, "{changed:?}");
        }
    }
}
