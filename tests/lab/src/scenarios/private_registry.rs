//! Networks without the public registries: a mirror at Artifact Registry, an image that was brought along, none.

use anyhow::{Context, Result, ensure};

use super::checks::is_ready;
use super::operations::on_the_vm;
use super::pages::Block;
use super::rig::Rig;
use crate::cache::Cache;
use crate::cloud::ca::Ca;
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
    without_internet(rig).context("without internet")?;
    browser_without_the_ca(rig).context("without the CA, and with a browser")
}

/// What a new boot disk does: it asks the mirror for the image that the state was used with.
fn by_its_digest(rig: &Rig) -> Result<()> {
    let record = rig.shell("cat /mnt/disks/openclaw-data/openclaw-init/record.json")?;
    ensure!(record.contains(&format!("\"{IMAGE}@sha256:")), "no digest in {record}");
    rig.shell(&format!("docker rm --force openclaw-gateway && docker image rm {IMAGE}"))?;
    trust_by_attribute(rig).context("a CA that only the attribute names")?;
    let by_tag = || -> Result<usize> {
        let requests = content::requests(&rig.machine()?.content())?;
        Ok(requests.iter().filter(|it| it.path.ends_with("/openclaw/openclaw/manifests/2026.9.6")).count())
    };
    let before = by_tag()?;
    rig.boot(0)?.has(&["stage=image status=ok changes=1"])?;
    ensure!(before > 0 && by_tag()? == before, "the image was not asked for by its digest");
    let names = rig.shell("docker image ls --format '{{.Repository}}:{{.Tag}}'")?;
    ensure!(names == IMAGE, "the images are {names}");
    is_ready(rig)?;
    let fetch = format!("fetch('https://{ARTIFACT_REGISTRY_NAME}/v2/').then((answer) => console.log(answer.status))");
    let answer = rig.shell(&format!("docker exec openclaw-gateway node -e \"{fetch}\""))?;
    ensure!(answer == "401", "the gateway gets {answer}");
    Ok(())
}

/// Neither engine nor host trusts the registry any more. No gateway runs.
fn trust_by_attribute(rig: &Rig) -> Result<()> {
    rig.shell(
        "systemctl stop openclaw-watch
        rm /usr/local/share/ca-certificates/openclaw-lab.crt
        update-ca-certificates --fresh
        systemctl restart docker",
    )?;
    let image = format!("{ARTIFACT_REGISTRY_NAME}/{PRIVATE_REPOSITORY}/openclaw/openclaw:2026.9.6");
    let refused = rig.shell(&format!("docker pull {image} 2>&1 || true"))?;
    ensure!(refused.contains("signed by unknown authority"), "the engine says {refused}");
    let ca = Ca::load(&Cache::from_env()?)?;
    rig.attribute(&format!("openclaw-ca-certificates={}", ca.pem()))
}

/// What was trusted by the attribute is trusted no more, and the image of another variant comes as an update.
fn browser_without_the_ca(rig: &Rig) -> Result<()> {
    rig.shell(&format!(
        "docker create --name browser {IMAGE} && docker commit browser {IMAGE}-browser && docker rm browser"
    ))?;
    rig.attribute("openclaw-ca-certificates")?;
    rig.attribute("openclaw-image-variant=browser")?;
    rig.boot(0)?.has(&["result=ready"])?;
    let image = rig.shell("docker inspect --format '{{.Config.Image}}' openclaw-gateway")?;
    ensure!(image == format!("{IMAGE}-browser"), "the gateway runs {image}");
    let settings = rig.shell("grep -A2 '\"browser\": {' /home/node/.openclaw/openclaw.json")?;
    ensure!(settings.contains("\"noSandbox\": true"), "the settings are {settings}");
    // As a first list that was cut before anything else was written down.
    rig.shell("cp $(ls /etc/ssl/certs/*.pem | head -n 1) /usr/local/share/ca-certificates/openclaw-init-1.crt")?;
    rig.boot(0)?.has(&["result=ready"])?;
    let left = rig.shell(
        "ls /usr/local/share/ca-certificates /etc/ssl/certs | grep -e openclaw-init-
        find /etc/openclaw-init -name ca-certificates.pem -size +0
        docker inspect openclaw-gateway | grep NODE_EXTRA_CA_CERTS=/etc/openclaw; true",
    )?;
    ensure!(left.is_empty(), "this is left of the CA: {left}");
    rig.boot(0)?.has(&["changes=0", "result=ready"])?;
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
