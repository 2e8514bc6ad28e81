//! Builds on the engines that machines have, with BuildKit on the oldest and on a new one and without it, and in
//! little memory.

use anyhow::{Context, Result, ensure};

use super::checks::is_ready;
use super::rig::Rig;
use super::shield;
use crate::cloud::content::{ARTIFACT_REGISTRY_NAME, PRIVATE_REPOSITORY};

/// The image of the gateway, which is built here.
const IMAGE: &str = "$(docker image ls --quiet localhost/openclaw-init)";

/// Puts a newer engine in the place of the machine's own.
const NEW_ENGINE: &str = include_str!("../../scripts/engines/install-sid-engine.sh");

/// A proxy, in Perl, that knows no BuildKit sessions.
const NO_SESSIONS: &str = include_str!("../../scripts/engines/no-sessions.pl");

/// On a machine as small as people try: the whole of it has 2 GB of memory and 10 GB of disk.
pub(super) fn builds_on_old_and_new_engines(rig: &Rig) -> Result<()> {
    let source = ["--attr", "openclaw-image-source=npm", "--attr", "openclaw-docker=distro"];
    rig.up(&[&source[..], &["--memory", "2G", "--boot-disk", "10G"]].concat())?;
    is_ready(rig)?;
    built(rig, "20.10.", true)?;
    shield::on_this_engine(rig, "20.10.")?;

    rig.script(NEW_ENGINE, &[]).context("putting in a new engine")?;
    build_again(rig)?;
    built(rig, "28.", true)?;
    shield::on_this_engine(rig, "28.")?;

    // BuildKit asks its session who the VM is only for a registry that wants to know.
    rig.attribute(&format!("openclaw-registry-mirror={ARTIFACT_REGISTRY_NAME}/{PRIVATE_REPOSITORY}"))?;
    rig.lab_ends(0, "exec", &["--", "systemd-run", "--unit=no-sessions", "perl", "-e", NO_SESSIONS])?;
    rig.shell("sleep 1; docker version > /dev/null").context("reaching the engine through the proxy")?;
    build_again(rig)?;
    built(rig, "28.", false)
}

fn build_again(rig: &Rig) -> Result<()> {
    rig.shell("docker rm --force openclaw-gateway && docker image rm --force $(docker image ls --quiet)")?;
    rig.shell("docker builder prune --all --force")?;
    rig.boot(0)?.has(&["stage=image status=ok changes=1"]).map(|_| ())
}

fn built(rig: &Rig, engine: &str, buildkit: bool) -> Result<()> {
    let version = rig.shell("docker version --format '{{.Server.Version}}'")?;
    ensure!(version.starts_with(engine), "the engine is {version}");
    let history = rig.shell(&format!("docker history --no-trunc --format '{{{{.Comment}}}}' {IMAGE}"))?;
    ensure!(history.contains("buildkit") == buildkit, "built by {history:?} with Docker {version}");
    Ok(())
}

/// The digest that is pinned.
const DIGEST: &str = "grep '\"digest\"' /mnt/disks/openclaw-data/openclaw-init/record.json";

/// Debian 13's engine with the store of images that later ones have by default. A layer that is gone with the image's
/// name is fetched again, by the same digest; what it builds, the classic builder builds.
pub(super) fn containerds_image_store(rig: &Rig) -> Result<()> {
    rig.up(&["--os", "debian-13", "--attr", "openclaw-apply=boot"])?;
    let digest = rig.shell(DIGEST)?;
    rig.shell("echo '{\"features\": {\"containerd-snapshotter\": true}}' > /etc/docker/daemon.json")?;
    rig.shell("systemctl restart docker && docker info --format '{{.DriverStatus}}' | grep io.containerd")?;
    for broken in ["true", LOSE_A_LAYER] {
        rig.shell(broken)?;
        rig.boot(0)?.has(&["stage=image status=ok changes=1", "result=ready"])?;
        is_ready(rig)?;
        ensure!(rig.shell(DIGEST)? == digest, "the digest is another");
        rig.boot(0)?.has(&["changes=0"])?;
    }
    rig.attribute("openclaw-apt-packages=jq")?;
    rig.boot(0)?.has(&["using the classic builder", "result=ready"])?;
    built(rig, "26.1.", false)?;
    rig.shell("docker exec openclaw-gateway jq --version")?;
    rig.boot(0)?.has(&["changes=0"]).map(drop)
}

/// The largest file of the store, the image's names and the container.
const LOSE_A_LAYER: &str = "docker rm --force openclaw-gateway
    cd /var/lib/containerd/io.containerd.content.v1.content/blobs/sha256 && rm $(ls -S | head -n 1)
    ctr --namespace moby images rm $(ctr --namespace moby images ls --quiet)";

/// A machine that is too small either becomes ready or says so, and what to do.
pub(super) fn one_gigabyte_is_enough_or_named(rig: &Rig) -> Result<()> {
    let binary = rig.binary();
    let binary = binary.to_str().context("the binary's path is not text")?;
    let small = ["--binary", binary, "--memory", "1G", "--attr", "openclaw-image-source=npm"];
    let output = rig.lab("up", &small)?;
    if output.code == 0 {
        return is_ready(rig);
    }
    let attributes = rig.guest_attributes()?;
    ensure!(attributes["result"] == "failed:out-of-memory", "it ended as {attributes}:\n{}", output.text);
    output.has(&["memory", "set-machine-type", "e2-medium"]).map(|_| ())
}

/// Makes another version of the image below the official name.
const VERSION: &str = include_str!("../../scripts/engines/make-version.sh");

/// Current and previous stay; what is not ours stays, too.
pub(super) fn ten_updates_leave_two_images(rig: &Rig) -> Result<()> {
    rig.up(&["--boot-disk", "10G", "--attr", "openclaw-version=0.1.1"])?;
    for number in 1..=10 {
        let version = format!("0.2.{number}");
        rig.script(VERSION, &[&version])?;
        let update = ["--", "openclaw-init", "update", "--to", &version];
        rig.lab_ends(0, "exec", &update).with_context(|| format!("updating to {version}"))?;
    }
    let images = rig.shell("docker image ls --format '{{.Repository}}:{{.Tag}}' | sort | tr '\\n' ' '")?;
    ensure!(
        images == "base:1 ghcr.io/openclaw/openclaw:0.2.10 ghcr.io/openclaw/openclaw:0.2.9",
        "the images are {images}"
    );
    let used: u64 = rig.shell("du --summarize --block-size=1M /var/lib/docker | cut -f 1")?.parse()?;
    ensure!(used < 2000, "Docker has {used} MB");
    Ok(())
}
