//! Another container in the place of the gateway's: proven before the running one is stopped, undone when it fails.
//!
//! The new one is made under a name of its own. When the running one has stopped, both are renamed; that one is kept
//! until the gateway is ready. Never do two of them run at once.

use std::fmt;

use anyhow::{Context as _, Error, Result};
use bollard::models::{ContainerInspectResponse, HostConfig};
use bollard::query_parameters::{CreateContainerOptionsBuilder, RenameContainerOptionsBuilder};

use super::spec::{STOP_SECONDS, Spec, TMP};
use super::start::explain_creation;
use super::{Action, Gateway, NAME, Observed, SPEC_LABEL, Secrets, inspect, observe, remove_if_exists, stop_container};
use crate::config::{Limits, keys};
use crate::docker::Engine;
use crate::error::{Code, code_of};
use crate::host::blocking;
use crate::image::Image;
use crate::report::Ready;

/// A new container until the one before it is stopped; and until the next run what there would be, were `openclaw.json`
/// in order.
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

/// The container that gave way to the former one, carried by the error that says why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Undone {
    /// Its fingerprint.
    pub(super) fingerprint: String,
    /// The attributes for what the former one has otherwise: environment variables and limits.
    pub(super) attributes: Vec<String>,
}

impl fmt::Display for Undone {
    /// Nothing: the sentence is the error's own.
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ok(())
    }
}

impl Gateway<'_> {
    /// What can be known while the gateway runs: the new container can be made, and published.
    pub(super) async fn prove(&self, action: Action, observed: Option<&Observed>, spec: &Spec) -> Result<()> {
        self.wait_for_address().await?;
        if let Some(observed) = observed.filter(|observed| observed.is_alive()) {
            self.require_ports(&observed.published).await?;
        }
        if matches!(action, Action::Create | Action::Replace) {
            self.create_next(spec).await?;
            self.host.changed(format!("created container {NAME}"));
        }
        Ok(())
    }

    /// Makes the new container under a name of its own, not started.
    pub(super) async fn create_next(&self, spec: &Spec) -> Result<()> {
        let options = CreateContainerOptionsBuilder::default().name(NEXT).build();
        let created = self.engine.client.create_container(Some(options), spec.body.clone()).await;
        let created = created.map_err(explain_creation)?;
        created.warnings.iter().for_each(|warning| tracing::debug!("creating container {NAME}: {warning}"));
        Ok(())
    }

    /// Leaves the container that cannot be started yet where there is no other: the gateway's own commands, which may
    /// mend what is wrong, need one to be like.
    pub(super) async fn leave_next(&self, action: Action, spec: &Spec) {
        if action == Action::Create
            && let Err(error) = self.create_next(spec).await
        {
            tracing::debug!("{error:#}");
        }
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
    /// ready, unless the gateway refused the state that both have; then the error carries what was [`Undone`].
    pub async fn wait_settled(&self, image: &Image, secrets: &Secrets) -> Result<Ready> {
        let error = match self.wait_ready(image, secrets).await {
            Ok(ready) => return self.retire_former().await.map(|()| ready),
            Err(error) => error,
        };
        if observe(self.engine, FORMER).await?.is_none() {
            return Err(error);
        }
        let undone = self.difference().await;
        if code_of(&error) == Code::GatewayRefused && undone.attributes.is_empty() {
            return Err(error);
        }
        Err(self.bring_back(error).await.context(undone))
    }

    /// What the gateway's container has that the former one had not. To bring that one back matters more: what cannot
    /// be asked differs in nothing.
    async fn difference(&self) -> Undone {
        let inspect = async |name| inspect(self.engine, name).await.ok().flatten().unwrap_or_default();
        let (former, new) = (inspect(FORMER).await, inspect(NAME).await);
        let limits = |found: &ContainerInspectResponse| found.host_config.clone().unwrap_or_default();
        let limits = differing_limits(&limits(&former), &limits(&new), self.config.limits);
        let (former, new) = (former.config.unwrap_or_default(), new.config.unwrap_or_default());
        let fingerprint = new.labels.and_then(|mut labels| labels.remove(SPEC_LABEL)).unwrap_or_default();
        let (former, new) = (former.env.unwrap_or_default(), new.env.unwrap_or_default());
        let mut attributes = differing(&former, &new, |name| self.config.env.contains_key(name));
        attributes.extend(limits);
        Undone { fingerprint, attributes }
    }

    /// Removes the former container. One with a writable root may hold what somebody installed in it by hand: the first
    /// such one is only renamed.
    async fn retire_former(&self) -> Result<()> {
        let Self { host, engine, .. } = *self;
        let Some(former) = inspect(engine, FORMER).await? else { return Ok(()) };
        let is_read_only = former.host_config.and_then(|config| config.readonly_rootfs).unwrap_or(false);
        if !is_read_only && inspect(engine, KEPT).await?.is_none() {
            let files = match engine.changed_paths(FORMER).await? {
                Some(paths) => blocking(move || Ok(left_by_hand(paths))).await?.into_iter().take(NAMED_PATHS).collect(),
                None => vec!["more than can be listed".to_owned()],
            };
            if !files.is_empty() {
                rename(engine, FORMER, KEPT).await?;
                host.warn(format!(
                    "the former container had files of its own ({}), which the new one lacks: it is kept, stopped, as \
                     {KEPT}. Copy what you need with `sudo docker cp`, then `sudo docker rm {KEPT}`",
                    files.join(", ")
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
                stop_container(engine, NAME, STOP_SECONDS).await?;
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

/// The attributes of those variables (`NAME=VALUE`) that only `new` has, or with another value.
fn differing(former: &[String], new: &[String], is_operators: impl Fn(&str) -> bool) -> Vec<String> {
    let changed = new.iter().filter(|line| !former.contains(line)).filter_map(|line| Some(line.split_once('=')?.0));
    changed.filter(|name| is_operators(name)).map(|name| format!("openclaw-env-{name}")).collect()
}

/// The attributes of those limits that were set, and that `former` has otherwise.
fn differing_limits(former: &HostConfig, new: &HostConfig, limits: Limits) -> Vec<String> {
    let tmp = |host: &HostConfig| host.tmpfs.as_ref().and_then(|tmpfs| tmpfs.get(TMP).cloned());
    let differing = [
        (keys::MEMORY, limits.memory.is_some() && former.memory != new.memory),
        (keys::PIDS, limits.pids.is_some() && former.pids_limit != new.pids_limit),
        (keys::TMP, limits.tmp.is_some() && tmp(former) != tmp(new)),
    ];
    differing.into_iter().filter(|(_, differs)| *differs).map(|(key, _)| key.to_owned()).collect()
}

/// Of the paths that differ from the image, those that no gateway makes by itself.
fn left_by_hand(mut changed: Vec<String>) -> Vec<String> {
    let is_below =
        |path: &str, top: &str| path.strip_prefix(top).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    let is_made_by_itself = |path: &str| MADE_BY_ITSELF.iter().any(|top| is_below(path, top));
    // What a directory holds comes right behind it.
    changed.sort_by(|one, other| one.split('/').cmp(other.split('/')));
    changed.dedup_by(|next, path| {
        is_below(next, path) && {
            std::mem::swap(next, path);
            true
        }
    });
    changed.retain(|path| !is_made_by_itself(path));
    changed
}

async fn rename(engine: &Engine, from: &str, to: &str) -> Result<()> {
    let options = RenameContainerOptionsBuilder::default().name(to).build();
    engine.client.rename_container(from, options).await.with_context(|| format!("renaming container {from} to {to}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_attributes_behind_another_environment_are_named_without_values() {
        let lines = |lines: &[&str]| lines.iter().map(|&line| line.to_owned()).collect::<Vec<_>>();
        let cases: [(&[&str], &[&str], &[&str]); 5] = [
            (&[], &[], &[]),
            (&["A=1", "B=2"], &["B=2", "A=1"], &[]),
            (&["A=1", "B=2"], &["A=secret", "C=3"], &["openclaw-env-A", "openclaw-env-C"]),
            (&["A=x=1"], &["A=x=2"], &["openclaw-env-A"]),
            (&["OURS=1"], &["OURS=2"], &[]),
        ];
        for (former, new, expected) in cases {
            let found = differing(&lines(former), &lines(new), |name| name != "OURS");
            assert_eq!(found, expected, "{former:?} {new:?}");
        }
    }

    #[test]
    fn the_attributes_behind_other_limits_are_named() {
        let host = |memory, pids, size: &str| HostConfig {
            memory: Some(memory),
            pids_limit: Some(pids),
            tmpfs: Some([(TMP.to_owned(), size.to_owned())].into()),
            ..HostConfig::default()
        };
        let all = Limits { memory: Some(1), pids: Some(1), tmp: Some(1) };
        for (new, limits, expected) in [
            (host(3, 512, "a"), all, &[][..]),
            (host(2, 64, "b"), all, &[keys::MEMORY, keys::PIDS, keys::TMP]),
            (host(2, 64, "b"), Limits { memory: None, tmp: None, ..all }, &[keys::PIDS]),
            (host(2, 64, "b"), Limits::default(), &[]),
        ] {
            assert_eq!(differing_limits(&host(3, 512, "a"), &new, limits), expected, "{limits:?}");
        }
    }

    #[test]
    fn what_somebody_installed_is_told_from_what_a_gateway_leaves() {
        let cases: [(&[&str], &[&str]); 5] = [
            (&[], &[]),
            (&["/a/b/c", "/a", "/a-b", "/a/b", "/a/d", "/a-b/c"], &["/a/b/c", "/a/d", "/a-b/c"]),
            (&["/home", "/home/node", "/home/node/.npm", "/home/node/.npm/_logs/x", "/tmp", "/tmp/openclaw"], &[]),
            (&["/usr", "/usr/local/bin", "/usr/local/bin/jq", "/tmp/x"], &["/usr/local/bin/jq"]),
            (&["/app", "/app/openclaw.mjs", "/home/node/.npmrc"], &["/app/openclaw.mjs", "/home/node/.npmrc"]),
        ];
        for (changed, expected) in cases {
            let changed: Vec<String> = changed.iter().map(|&path| path.to_owned()).collect();
            assert_eq!(left_by_hand(changed.clone()), expected, "{changed:?}");
        }
    }
}
