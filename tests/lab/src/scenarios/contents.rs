//! Additions to the gateway's image, and the image from source.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::checks::is_ready;
use super::rig::Rig;
use crate::cloud::images::GATEWAY_VERSION;
use crate::cloud::network;
use crate::files::sha256;
use crate::program::run;

/// A program of our own in the place of one that unlocks a keyring: it shows what it was given.
const SCRIPT: &str = "#!/bin/sh\necho \"notes in $GOG_HOME with $GOG_KEYRING_BACKEND\"\n";

const RUN: &str = "docker exec openclaw-gateway sh -c";
const IMAGE: &str = "docker inspect --format '{{.Config.Image}}' openclaw-gateway";
const SECRETS: &str = "sort /home/node/.openclaw/.env";

pub(super) fn binaries_and_packages_are_part_of_the_image(rig: &Rig) -> Result<()> {
    let own = sha256(&rig.binary())?;
    let first = json!([{ "name": "tool", "url": "http://198.18.0.4/openclaw-init", "sha256": own }]);
    let first = format!("openclaw-binaries={first}");
    rig.up(&["--attr", &first, "--attr", "openclaw-apt-packages=jq"])?;
    is_ready(rig)?;
    let image = rig.shell(IMAGE)?;
    ensure!(image.starts_with(&format!("localhost/openclaw-init:{GATEWAY_VERSION}-")), "the gateway runs {image}");
    first_list_is_in_the_container(rig)?;
    rig.boot(0)?.has(&["changes=0"])?;
    rig.shell(&format!("{RUN} 'mkdir -p $GOG_HOME && echo login > $GOG_HOME/token'"))?;
    let secrets = rig.shell(SECRETS)?;
    ensure!(secrets.contains("GOG_KEYRING_PASSWORD="), "the keyring has no password");

    reboot_without_internet(rig).context("a reboot without internet")?;
    first_list_is_in_the_container(rig)?;

    wrong_digest_names_both(rig, &own).context("a wrong digest")?;
    ensure!(rig.shell(IMAGE)? == image, "the gateway was replaced");

    second_list_replaces_the_first(rig).context("another list")?;
    ensure!(rig.shell(SECRETS)? == secrets, "the secrets changed");
    ensure!(rig.shell(&format!("{RUN} 'cat $GOG_HOME/token'"))? == "login", "a login is gone");

    rig.attribute("openclaw-binaries")?;
    rig.attribute("openclaw-apt-packages")?;
    rig.boot(0)?.has(&["result=ready"])?;
    let image = rig.shell(IMAGE)?;
    ensure!(image == format!("ghcr.io/openclaw/openclaw:{GATEWAY_VERSION}"), "without extras the gateway runs {image}");
    Ok(())
}

fn first_list_is_in_the_container(rig: &Rig) -> Result<()> {
    let printed = rig.shell(&format!("{RUN} 'id -un; command -v tool; tool --version; jq --version'"))?;
    let lines: Vec<_> = printed.lines().collect();
    let right = lines[..] == ["node", "/usr/local/bin/tool", lines[2], lines[3]]
        && lines[2].starts_with("openclaw-init ")
        && lines[3].starts_with("jq-");
    ensure!(right, "inside the container: {printed}");
    Ok(())
}

fn reboot_without_internet(rig: &Rig) -> Result<()> {
    let lab = rig.machine()?;
    network::cut_internet(&lab)?;
    for place in ["https://ghcr.io/", "http://198.18.0.4/openclaw-init"] {
        ensure!(rig.shell(&format!("curl -s -m 2 {place} || echo none"))? == "none", "{place} can be reached");
    }
    rig.lab_ends(0, "reboot", &[])?;
    is_ready(rig)?;
    network::mend_internet(&lab)
}

fn wrong_digest_names_both(rig: &Rig, right: &str) -> Result<()> {
    let wrong = "0".repeat(64);
    let list = json!([{ "name": "tool", "url": "http://198.18.0.4/openclaw-init", "sha256": wrong }]);
    rig.attribute(&format!("openclaw-binaries={list}"))?;
    rig.boot(32)?.has(&["failed:digest-mismatch", right, &wrong, "openclaw-binaries"])?;
    ensure!(rig.shell("curl -s http://127.0.0.1:18789/readyz")?.contains("\"ready\":true"), "the gateway is gone");
    Ok(())
}

/// The new one is in an archive, below a directory.
fn second_list_replaces_the_first(rig: &Rig) -> Result<()> {
    let (files, packed) = (rig.machine()?.files(), tempfile::tempdir().context("making a directory to pack")?);
    fs::create_dir(packed.path().join("bin"))?;
    fs::write(packed.path().join("bin/notes"), SCRIPT)?;
    let archive = files.join("notes.tar.gz");
    run(Command::new("tar").arg("-czf").arg(&archive).arg("-C").arg(packed.path()).arg("./bin"))?;
    let list = json!([{
        "name": "notes", "url": "https://github.com/notes.tar.gz", "sha256": sha256(&archive)?, "member": "bin/notes",
    }]);
    rig.attribute(&format!("openclaw-binaries={list}"))?;
    rig.boot(0)?.has(&["result=ready"])?;
    let printed = rig.shell(&format!("{RUN} 'notes; command -v tool || echo none; jq --version'"))?;
    ensure!(printed.starts_with("notes in /home/node/.openclaw/gogcli with file\nnone\njq-"), "inside: {printed}");
    rig.boot(0)?.has(&["changes=0"])?;
    let left = rig.shell("ls -d /var/lib/openclaw-init/build 2> /dev/null || echo none")?;
    ensure!(left == "none", "the build left {left}");
    Ok(())
}

/// Of upstream's shape: arguments before the first stage, several stages, cache mounts; the gateway itself comes
/// from npm, since its source is not here.
const DOCKERFILE: &str = include_str!("../../scripts/source/Dockerfile");

/// Notes the largest heap of the build.
const BUILD: &str = include_str!("../../scripts/source/build.mjs");

pub(super) fn source_of_a_commit_is_built(rig: &Rig) -> Result<()> {
    let repository = tempfile::tempdir().context("making a directory for a repository")?;
    let (commit, tree) = commit(repository.path())?;
    let reference = format!("openclaw-source-ref={commit},tree={tree}");
    let attributes = ["--attr", "openclaw-image-source=source", "--attr", &reference];
    rig.up_ends(1, &[&["--boot", "nothing", "--memory", "7G"], &attributes[..]].concat())?;
    let archives = rig.machine()?.files().join("openclaw/openclaw/archive");
    fs::create_dir_all(&archives)?;
    let archive = publish(repository.path(), &archives, &commit)?;

    rig.fetch("/root/openclaw-init")?;
    rig.lab_ends(0, "exec", &["--", "/root/openclaw-init"])?.has(&["ready"])?;
    is_ready(rig)?;
    let revision = "{{index .Config.Labels \"org.opencontainers.image.revision\"}}";
    let show_revision = format!("docker inspect --format '{revision}' openclaw-gateway");
    let found = rig.shell(&show_revision)?;
    ensure!(found == commit, "the gateway's revision is {found}, not {commit}");
    let built = rig.shell(&format!("{RUN} 'cat built.json'"))?;
    let built: Value = serde_json::from_str(&built).with_context(|| format!("reading {built}"))?;
    // 75 % of 7 GiB, and what V8 adds for its young generation.
    ensure!(built["heap"].as_u64().is_some_and(|heap| (5376..5700).contains(&heap)), "the build's heap: {built}");
    rig.boot(0)?.has(&["changes=0"])?;

    // The archive of one commit is refused as another one. The gateway goes on as it is, also after a reboot.
    let other = "0a".repeat(20);
    fs::copy(&archive, archives.join(format!("{other}.tar.gz")))?;
    rig.attribute(&format!("openclaw-source-ref={other}"))?;
    rig.boot(0)?.has(&["warning:", &commit, &other])?;
    rig.lab_ends(0, "reboot", &["--hard"])?;
    is_ready(rig)?;
    ensure!(rig.shell(&show_revision)? == commit, "the gateway is another one");
    rig.boot(0)?.has(&["is not followed", "changes=0"])?;

    // Another commit is an update, of the same version if it says so.
    fs::write(repository.path().join("news"), "new\n")?;
    git(repository.path(), &["add", "."])?;
    git(repository.path(), &["commit", "--quiet", "--message=News"])?;
    let next = git(repository.path(), &["rev-parse", "HEAD"])?;
    publish(repository.path(), &archives, &next)?;
    rig.attribute(&format!("openclaw-source-ref={next}"))?;
    rig.boot(0)?.has(&["stage=update status=ok", "updated OpenClaw"])?;
    rig.lab_ends(0, "reboot", &[])?;
    is_ready(rig)?;
    ensure!(rig.shell(&show_revision)? == next, "the gateway is another one");
    rig.boot(0)?.has(&["changes=0"])?;
    Ok(())
}

/// Puts the repository's last commit where GitHub has its archive; the archive's path.
fn publish(repository: &Path, archives: &Path, commit: &str) -> Result<PathBuf> {
    let archive = archives.join(format!("{commit}.tar.gz"));
    let prefix = format!("--prefix=openclaw-{commit}/");
    let output = format!("--output={}", archive.display());
    git(repository, &["archive", &prefix, &output, "HEAD"])?;
    Ok(archive)
}

/// Makes a repository of one commit; the commit's id and its tree's.
fn commit(repository: &Path) -> Result<(String, String)> {
    fs::create_dir(repository.join("scripts"))?;
    let package = format!(r#"{{"name":"openclaw","version":"{GATEWAY_VERSION}","type":"module"}}"#);
    let attributes = "*.bat text eol=crlf\n*.cmd text eol=crlf\n";
    let files = [
        ("Dockerfile", DOCKERFILE),
        ("package.json", &package),
        (".gitattributes", attributes),
        ("scripts/build.mjs", BUILD),
        ("scripts/run.cmd", "@echo off\n"),
    ];
    for (name, content) in files {
        fs::write(repository.join(name), content).with_context(|| format!("writing {name}"))?;
    }
    git(repository, &["init", "--quiet"])?;
    git(repository, &["add", "."])?;
    git(repository, &["commit", "--quiet", "--message=Gateway"])?;
    Ok((git(repository, &["rev-parse", "HEAD"])?, git(repository, &["rev-parse", "HEAD^{tree}"])?))
}

fn git(repository: &Path, arguments: &[&str]) -> Result<String> {
    let mut git = Command::new("git");
    git.arg("-C").arg(repository).args(["-c", "user.name=lab", "-c", "user.email=lab@localhost"]).args(arguments);
    Ok(run(&mut git)?.trim().to_owned())
}
