//! A baked and sealed image: searched, booted without internet; and a machine that is left again.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::checks::{is_ready, units_are_valid};
use super::pages::Block;
use super::readme::Reader;
use super::rig::Rig;
use crate::host;
use crate::program::run;
use crate::workstation::packer;

/// What a builder must not leave in its image: a token in a gateway's state on its boot disk.
const TOKEN: &str = "5eed5eed0123456789abcdef0123456789abcdef0123456789abcdef5eed5eed";

/// An image as an operator names one.
const IMAGE: &str = "ghcr.io/openclaw/openclaw:2026.9.6";

/// Makes a builder a machine with a past.
const PAST: &str = include_str!("../../scripts/baked/give-past.sh");

/// What tells this machine from others, one a line: its id, Docker's, its host key.
const IDENTITY: &str =
    "cat /etc/machine-id; docker info --format '{{.ID}}'; cut -d ' ' -f 2 /etc/ssh/ssh_host_ed25519_key.pub";

/// Lists what must not be in an image.
const SEARCH: &str = include_str!("../../scripts/baked/search-image.sh");
/// Lists what `uninstall` left.
const LEFTOVERS: &str = include_str!("../../scripts/baked/show-leftovers.sh");

/// Bakes with a program whose default version is in no registry: the baked version must win.
pub(super) fn sealed_image_boots_without_internet(rig: &Rig) -> Result<()> {
    let builder = rig.beside("baked-builder")?;
    let newer = rig.newer_binary();
    let newer = newer.to_str().context("the binary's path is not text")?;
    builder.lab_ends(1, "up", &["--boot", "nothing", "--disk", "none", "--boot-disk", "8G", "--binary", newer])?;
    builder.fetch("/root/openclaw-init")?;
    builder.shell(&format!("/root/openclaw-init bake --image {IMAGE} 2>&1"))?;
    let baked = builder.shell("cat /etc/openclaw-init/baked.json")?;
    ensure!(baked.contains(IMAGE) && baked.contains("2026.9.6"), "it says {baked}");
    builder.shell("/root/openclaw-init bake --version 2026.9.6 2>&1 && rm /root/openclaw-init")?;
    builder.script(PAST, &[TOKEN])?;
    let identity = builder.shell(IDENTITY)?;
    ensure!(identity.lines().count() == 3, "the builder's identity is {identity}");
    refuses_to_seal(&builder, "/var/lib/openclaw-init/data/openclaw")?;
    builder.lab_ends(0, "exec", &["--", "openclaw-init", "seal", "--force"])?.has(&[
        "Docker's identity",
        "SSH host keys",
        "the gateway's state",
        "sealed",
    ])?;
    // Beside the labs' own directories, where there is room for disks.
    let labs = builder.machine()?.directory().parent().context("the lab has no parent directory")?.to_owned();
    let image = tempfile::Builder::new().prefix("image-").tempfile_in(labs).context("making a file for the image")?;
    let file = image.path().to_str().context("the image's path is not text")?;
    builder.lab_ends(0, "down", &["--keep-boot-disk", file])?;
    holds_nothing_of(image.path(), &identity).context("the sealed image")?;

    let up = rig.up(&["--boot", "baked", "--image", file])?;
    drop(image);
    up.has(&[
        "stage=docker status=ok changes=0",
        "stage=shield status=ok changes=0",
        "stage=image status=ok changes=0",
    ])?;
    is_ready(rig)?;
    let own = rig.shell(IDENTITY)?;
    ensure!(identity.lines().all(|line| !own.contains(line)), "{own} has something of the builder's {identity}");
    for place in ["https://ghcr.io/", "https://download.docker.com/", "http://198.18.0.4/"] {
        ensure!(rig.shell(&format!("curl -s -m 3 {place} || echo none"))? == "none", "{place} can be reached");
    }
    rig.boot(0)?.has(&["changes=0"])?;
    rig.lab_ends(0, "reboot", &[])?;
    is_ready(rig)?;
    rig.lab_ends(0, "reboot", &["--hard"])?;
    is_ready(rig)?;
    refuses_to_seal(rig, "container openclaw-gateway")?;
    leaves_only_data_and_docker(rig).context("uninstall")
}

/// From an image with cloud-init. What cloud-init had set up on the builder must be gone, or it would not notice that
/// this machine is a new one.
pub(super) fn baked_on_debian_13(rig: &Rig) -> Result<()> {
    Reader::of(rig)?.pastes(&[Block::ImageWay, Block::Wait])?;
    is_ready(rig)?;
    units_are_valid(rig)?;
    rig.shell("cloud-init status --wait")?;
    let id = "curl -s -H 'Metadata-Flavor: Google' http://169.254.169.254/computeMetadata/v1/instance/id";
    let (instances, own) = (rig.shell("ls /var/lib/cloud/instances")?, rig.shell(id)?);
    ensure!(instances == own, "cloud-init knows the instances {instances}, this one is {own}");
    Ok(())
}

fn refuses_to_seal(rig: &Rig, part: &str) -> Result<()> {
    let id = rig.shell("cat /etc/machine-id")?;
    rig.lab_ends(1, "exec", &["--", "openclaw-init", "seal"])?.has(&["has a gateway", part, "--force"])?;
    ensure!(!id.is_empty() && rig.shell("cat /etc/machine-id")? == id, "it was sealed all the same");
    Ok(())
}

/// Searches the image as its files show it, and for the secret as its raw bytes show it.
fn holds_nothing_of(image: &Path, identity: &str) -> Result<()> {
    let directory = tempfile::tempdir().context("making a directory to mount on")?;
    let (root, patterns) = (directory.path().join("root"), directory.path().join("patterns"));
    std::fs::create_dir(&root)?;
    std::fs::write(&patterns, format!("{identity}\n{TOKEN}\n"))?;
    let mut search = Command::new("unshare");
    search.args(["--mount", "sh", "-c", SEARCH, "search"]).args([image, &root, &patterns]);
    let found = run(&mut search)?;
    ensure!(found.is_empty(), "found in it:\n{found}");
    // Without the option --text it passes over the holes.
    let raw = Command::new("grep").args(["--quiet", "--fixed-strings", TOKEN]).arg(image).status();
    ensure!(raw.context("searching the image")?.code() == Some(1), "its free space holds the token");
    Ok(())
}

fn leaves_only_data_and_docker(rig: &Rig) -> Result<()> {
    let token = rig.shell("grep ^OPENCLAW_GATEWAY_TOKEN= /home/node/.openclaw/.env")?;
    ensure!(rig.shell("readlink /mnt")? == "srv/mnt", "/mnt is no link: what follows shows less");
    rig.lab_ends(0, "exec", &["--", "openclaw-init", "backup"])?;
    rig.lab_ends(0, "exec", &["--", "openclaw-init", "uninstall"])?.has(&["stopped container", "the data", "stay"])?;
    let left = rig.script(LEFTOVERS, &[])?;
    ensure!(left.is_empty(), "it left behind:\n{left}");
    ensure!(rig.shell("docker images --quiet")?.lines().count() == 1, "the image is gone");
    let kept = rig.shell("mount -o ro /dev/disk/by-id/google-openclaw-data /mnt && cat /mnt/openclaw/.env")?;
    ensure!(kept.contains(&token), "the data is not what it was");
    Ok(())
}

/// Debian's Packer, older than the plugins, checks all but the file that names them.
pub(super) fn packer_template_is_valid(rig: &Rig) -> Result<()> {
    let (path, checkout) = (std::env::var_os("PATH").unwrap_or_default(), host::workspace()?);
    let binary = format!("binary={}", rig.binary().display());
    let validate = |variable: &str| {
        let options = ["-var", "project_id=my-project", "-var", &binary, "-var", variable].map(Into::into);
        let output = packer::validate(&path, &checkout, Path::new("packer"), &options)?;
        let printed = [output.stdout, output.stderr].concat();
        anyhow::Ok((output.status.success(), String::from_utf8_lossy(&printed).into_owned()))
    };
    let cases = [
        ("openclaw_version=2026.9.6", None),
        ("image_source=npm", None),
        ("openclaw_version=latest", Some("exact version")),
        ("openclaw_image=registry.example/openclaw@sha256:0123", None),
        ("openclaw_image=x/y:1; reboot", Some("image reference")),
        ("image_source=source", Some("release or npm")),
        ("project_id=My Project", Some("project id")),
        ("zone=us-central1", Some("us-central1-a")),
        ("disk_size=2", Some("at least 10")),
    ];
    for (variable, complaint) in cases {
        let (valid, printed) = validate(variable)?;
        ensure!(valid == complaint.is_none(), "{variable}: {printed}");
        ensure!(printed.contains(complaint.unwrap_or_default()), "{variable}: {printed}");
    }
    Ok(())
}
