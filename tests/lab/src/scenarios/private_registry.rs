//! Networks without the public registries: a mirror at Artifact Registry, an image that was brought along, none.

use anyhow::{Context, Result, ensure};

use super::checks::is_ready;
use super::operations::on_the_vm;
use super::pages::Block;
use super::rig::Rig;
use crate::cloud::content::{self, ARTIFACT_REGISTRY_NAME, PRIVATE_REPOSITORY};
use crate::cloud::metadata_server::ACCESS_TOKEN;

const IMAGE: &str = "ghcr.io/openclaw/openclaw:2026.9.6";

/// Where the machine keeps a token, as a file or a process shows it.
const SEARCH: &str = include_str!("../../scripts/private-registry/search-token.sh");

/// The mirror wants a token of the VM's service account; without one the failure says what to grant.
pub(super) fn private_registry_with_the_vms_account(rig: &Rig) -> Result<()> {
    let mirror = format!("{ARTIFACT_REGISTRY_NAME}/{PRIVATE_REPOSITORY}");
    rig.up(&["--attr", &format!("openclaw-registry-mirror={mirror}")])?;
    is_ready(rig)?;
    let image = rig.shell("docker inspect --format '{{.Config.Image}}' openclaw-gateway")?;
    ensure!(image == IMAGE, "the gateway runs {image}");
    only_from_the_mirror(rig)?;
    let names = rig.shell("docker image ls --format '{{.Repository}}'")?;
    ensure!(!names.contains(ARTIFACT_REGISTRY_NAME), "the mirror's name stays: {names}");
    rig.boot(0)?.has(&["changes=0"])?;
    by_its_digest(rig)?;

    rig.shell(&format!(
        "openclaw-init bake --image-source npm --registry-mirror {mirror} 2>&1; rm -r /etc/openclaw-init/baked.json"
    ))?;
    only_from_the_mirror(rig)?;
    let kept = rig.script(SEARCH, &[ACCESS_TOKEN])?;
    ensure!(kept.is_empty(), "the token is kept: {kept}");

    rig.shell(&format!("docker rm --force openclaw-gateway && docker image rm {IMAGE}"))?;
    let fault = "path=/computeMetadata/v1/instance/service-accounts,status=404";
    rig.lab_ends(0, "metadata", &["fault", fault])?;
    rig.boot(20)?.has(&[&mirror, "roles/artifactregistry.reader", "set-service-account"])?;
    rig.lab_ends(0, "metadata", &["fault", "clear"])?;
    rig.boot(0)?;
    without_internet(rig).context("without internet")
}

/// What a new boot disk does: it asks the mirror for the image that the state was used with.
fn by_its_digest(rig: &Rig) -> Result<()> {
    let record = rig.shell("cat /mnt/disks/openclaw-data/openclaw-init/record.json")?;
    ensure!(record.contains(&format!("\"{IMAGE}@sha256:")), "no digest in {record}");
    rig.shell(&format!("docker rm --force openclaw-gateway && docker image rm {IMAGE}"))?;
    let by_tag = || -> Result<usize> {
        let requests = content::requests(&rig.machine()?.content())?;
        Ok(requests.iter().filter(|it| it.path.ends_with("/openclaw/openclaw/manifests/2026.9.6")).count())
    };
    let before = by_tag()?;
    rig.boot(0)?.has(&["stage=image status=ok changes=1"])?;
    ensure!(before > 0 && by_tag()? == before, "the image was not asked for by its digest");
    let names = rig.shell("docker image ls --format '{{.Repository}}:{{.Tag}}'")?;
    ensure!(names == IMAGE, "the images are {names}");
    is_ready(rig)
}

/// Neither a reboot needs a registry, nor a machine that an archive of the image was brought to.
fn without_internet(rig: &Rig) -> Result<()> {
    rig.shell("ip route add 169.254.169.254 via 10.128.0.1 dev eth0 && ip route delete default")?;
    for arguments in [&[][..], &["--hard"]] {
        rig.lab_ends(0, "reboot", arguments)?;
        is_ready(rig)?;
        let reached = rig.shell("curl --silent --max-time 3 https://ghcr.io/ || echo none")?;
        ensure!(reached == "none", "a registry can be reached");
    }
    let block = Block::Brought.twice()?;
    let (save, rest): (Vec<_>, Vec<_>) = block.lines().partition(|line| line.starts_with("docker save"));
    on_the_vm(rig, &["cd /root", &save.join("\n")].join("\n"))?;
    rig.shell(&format!("docker rm --force openclaw-gateway && docker image rm {IMAGE}"))?;
    rig.boot(21)?.has(&[&format!("{ARTIFACT_REGISTRY_NAME}/{PRIVATE_REPOSITORY}")])?;
    on_the_vm(rig, &["cd /root", &rest.join("\n")].join("\n")).map(drop)
}

fn only_from_the_mirror(rig: &Rig) -> Result<()> {
    let requests = content::requests(&rig.machine()?.content())?;
    let is_content = |path: &str| path.contains("/manifests/") || path.contains("/blobs/");
    let hosts: Vec<_> = requests.iter().filter(|it| is_content(&it.path)).map(|it| it.host.as_str()).collect();
    ensure!(!hosts.is_empty(), "nothing was pulled");
    ensure!(hosts.iter().all(|host| *host == ARTIFACT_REGISTRY_NAME), "images came from elsewhere: {hosts:?}");
    Ok(())
}
