//! The same main job with other systems, image sources and sizes.

use anyhow::{Context, Result, ensure};

use super::binary::resolves_names_by_itself;
use super::budget::idle_run_costs_next_to_nothing;
use super::checks::{is_ready, units_are_valid};
use super::rig::Rig;
use super::{identity, secrets};
use crate::cache::Cache;
use crate::cloud::images::GATEWAY_VERSION;
use crate::cloud::real_clients;

pub(super) fn debian_13(rig: &Rig) -> Result<()> {
    rig.up(&["--os", "debian-13", "--attr", "openclaw-version=latest"])?;
    is_ready(rig)?;
    let image = rig.shell("docker inspect --format '{{.Config.Image}}' openclaw-gateway; docker image ls --quiet")?;
    ensure!(image.starts_with(&format!("ghcr.io/openclaw/openclaw:{GATEWAY_VERSION}\n")), "it runs {image}");
    ensure!(image.lines().count() == 2, "the images are {image}");
    units_are_valid(rig)?;
    rig.boot(0)?.has(&["changes=0"])?;
    resolves_names_by_itself(rig)?;
    idle_run_costs_next_to_nothing(rig).context("a run without anything to do")?;
    let identity = identity::give(rig).context("a weaker account for containers")?;
    rig.lab_ends(0, "reboot", &["--hard"])?;
    is_ready(rig)?;
    identity.outlives_and_goes(rig).context("a weaker account for containers")?;
    secrets::of_secret_manager(rig).context("secrets from Secret Manager")
}

/// What is built on the machine fits a small one; what does not is said before anything is downloaded.
pub(super) fn npm_in_two_gigabytes_of_memory_and_a_small_boot_disk(rig: &Rig) -> Result<()> {
    rig.up(&["--memory", "2G", "--boot-disk", "10G", "--attr", "openclaw-image-source=npm"])?;
    is_ready(rig)?;
    let image = rig.shell("docker inspect --format '{{.Config.Image}}' openclaw-gateway")?;
    ensure!(!image.contains("ghcr.io"), "the gateway runs {image}");
    is_small(rig)?;
    rig.boot(0)?.has(&["changes=0"])?;
    rig.attribute("openclaw-image-source=source")?;
    rig.attribute(&format!("openclaw-source-ref={}", "0a".repeat(20)))?;
    rig.boot(0)?.has(&["warning:", "needs 6.0 GiB of memory", "release", "npm", "e2-standard-2"])?;
    ensure!(rig.shell("curl -s http://127.0.0.1:18789/readyz")?.contains("\"ready\":true"), "the gateway is gone");
    Ok(())
}

/// The machine has 2 GB of memory and 10 GB of boot disk, as the smallest VM that is recommended.
pub(super) fn is_small(rig: &Rig) -> Result<()> {
    let memory: u64 = rig.shell("awk '/MemTotal/ {print $2}' /proc/meminfo")?.parse()?;
    ensure!(memory <= 2 * 1024 * 1024, "the machine sees {memory} kB of memory");
    let disk: u64 = rig.shell("df --output=size -BG / | tail -1 | tr -dc 0-9")?.parse()?;
    ensure!(disk <= 10, "the boot disk has {disk} GB");
    Ok(())
}

pub(super) fn real_clients_accept_the_metadata_server(_: &Rig) -> Result<()> {
    let passed = real_clients::check(&Cache::from_env()?)?;
    ensure!(!passed.is_empty(), "no client was asked");
    Ok(())
}
