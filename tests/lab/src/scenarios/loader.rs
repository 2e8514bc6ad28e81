//! The loader, as the value of `startup-script`: it runs what is pinned, or the last good copy, or ends with a reason.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::checks::is_ready;
use super::rig::{CommandOutput, Rig};
use crate::cloud::metadata_server::ACCESS_TOKEN;
use crate::files::sha256;
use crate::host;

const RUN: &str = "google_metadata_script_runner startup 2>&1";
const WEB: &str = "http://198.18.0.4";
const BUCKET: &str = "gs://openclaw-lab-openclaw";
/// Executed in the place of the product, it tells from where.
const FAKE_PROGRAM: &str = "#!/bin/sh\necho fake program at $0\n";
/// An object's name may hold anything.
const ODD_NAME: &str = "builds/fake program+50%?&#";
const LAST_GOOD_COPY: [&str; 2] = ["running the copy that is installed", "result=ready"];

/// What the two attributes say, what the loader says then, and how many times it asked for the program.
struct Case {
    url: String,
    sha256: String,
    says: Vec<String>,
    requests: usize,
}

/// Every shell script of the checkout: the loader, the gate, and what tests run.
pub(super) fn shell_scripts_are_clean(rig: &Rig) -> Result<()> {
    let checkout = host::workspace()?;
    let mut scripts = vec![checkout.join(".ci/run"), checkout.join("openclaw-gcp")];
    for directory in ["cloud-init", "tests"] {
        find_scripts(&checkout.join(directory), &mut scripts)?;
    }
    for expected in ["cloud-init/startup-script.sh", "tests/lab/scripts/qemu/lab-markers.sh"] {
        ensure!(scripts.contains(&checkout.join(expected)), "{expected} is not among {scripts:?}");
    }
    let checked = rig.watch().output(Command::new("shellcheck").args(&scripts))?;
    ensure!(checked.status.success(), "shellcheck says:\n{}", CommandOutput::of(&checked).text);
    Ok(())
}

fn find_scripts(directory: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(directory).with_context(|| format!("listing {}", directory.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            find_scripts(&path, found)?;
        } else if path.extension().is_some_and(|extension| extension == "sh") {
            found.push(path);
        }
    }
    Ok(())
}

/// Nothing at the URL at first boot; then what is pinned; then every way in which it can be out of reach.
pub(super) fn script_with_every_turn_of_the_loader(rig: &Rig) -> Result<()> {
    nothing_there_at_first_boot(rig)?;
    another_architecture(rig)?;
    rig.attribute(&format!("openclaw-init-url={BUCKET}/openclaw-init"))?;
    rig.lab_ends(0, "reboot", &[])?;
    is_ready(rig).context("after the URL was corrected")?;
    ensure!(asked(rig)? == 3, "not one request for each run: {:?}", rig.requests()?);
    let journal = rig.shell("journalctl --no-pager; cat /proc/*/cmdline | tr '\\0' ' '")?;
    ensure!(!journal.contains(ACCESS_TOKEN), "the access token can be seen");

    let fake = rig.machine()?.files().join("fake-program");
    fs::write(&fake, FAKE_PROGRAM)?;
    let odd = rig.machine()?.files().join(ODD_NAME);
    fs::create_dir_all(odd.parent().context("the file has no directory")?)?;
    fs::copy(&fake, odd)?;
    let fake = sha256(&fake)?;
    for case in cases(&fake, &sha256(&rig.binary())?) {
        rig.attribute(&format!("openclaw-init-url={}", case.url))?;
        rig.attribute(&format!("openclaw-init-sha256={}", case.sha256))?;
        says(rig, &case).with_context(|| format!("with {} and {}", case.url, case.sha256))?;
    }
    only_root_holds_its_lock(rig, &fake)?;
    attributes_of_the_project_and_none(rig, &fake)?;
    without_curl_and_without_exec(rig)?;
    temporary_directory_without_exec(rig)
}

fn nothing_there_at_first_boot(rig: &Rig) -> Result<()> {
    let missing = format!("openclaw-init-url={BUCKET}/missing");
    let printed = rig.up_ends(1, &["--boot", "script", "--attr", &missing])?;
    printed.has(&["loader: FAILED: cannot fetch gs://openclaw-lab-openclaw/missing", "404", "failed:loader-failed"])?;
    let attributes = rig.guest_attributes()?;
    ensure!(attributes["state"] == "failed", "the state is not failed");
    let detail: Value = serde_json::from_str(attributes["detail"].as_str().unwrap_or_default())?;
    let message = detail["message"].as_str().unwrap_or_default();
    ensure!(message.starts_with("cannot fetch gs://openclaw-lab-openclaw/missing"), "the detail is {detail}");
    // Without it a result could not be told from that of the boot before.
    let updated = detail["updated"].as_str().unwrap_or_default();
    ensure!(updated.parse::<jiff::Timestamp>().is_ok(), "the detail is {detail}");
    rig.shell("journalctl -u google-startup-scripts | grep 'exit status 31'").map(|_| ())
}

/// A program that this machine cannot run is named with the machine's architecture, and the result is there.
fn another_architecture(rig: &Rig) -> Result<()> {
    let arm = rig.machine()?.files().join("arm");
    // ELF of 64 bits for machine 183, aarch64.
    fs::write(&arm, b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\xb7\0 and no more")?;
    rig.attribute(&format!("openclaw-init-url={WEB}/arm"))?;
    rig.attribute(&format!("openclaw-init-sha256={}", sha256(&arm)?))?;
    let begun = Instant::now();
    rig.lab("exec", &["--", "sh", "-c", RUN])?.has(&["cannot run here", "x86_64", "xec format error"])?;
    ensure!(begun.elapsed() < Duration::from_secs(60), "it took {} s", begun.elapsed().as_secs());
    ensure!(rig.guest_attributes()?["result"] == "failed:loader-failed", "the result is another one");
    rig.attribute(&format!("openclaw-init-sha256={}", sha256(&rig.binary())?))
}

fn cases(fake: &str, installed: &str) -> Vec<Case> {
    let case = |url: &str, sha256: &str, says: &[&str], requests| Case {
        url: url.to_owned(),
        sha256: sha256.to_owned(),
        says: says.iter().map(|part| (*part).to_owned()).collect(),
        requests,
    };
    let runs = ["fake program at /usr/local/lib/openclaw-init/openclaw-init"];
    let last = |why: &'static str| [&[why][..], &LAST_GOOD_COPY].concat();
    vec![
        case(&format!("{BUCKET}/openclaw-init"), installed, &["result=ready"], 0),
        case(&format!("{WEB}/fake-program"), fake, &runs, 1),
        case(&format!("{BUCKET}/fake-program"), fake, &runs, 1),
        case(&format!("{BUCKET}/{ODD_NAME}"), fake, &runs, 1),
        case(&format!("{WEB}/fake-program"), &"0".repeat(64), &last("is not the file with the SHA-256 0000"), 1),
        case(&format!("{WEB}/fake-program"), "banana", &last("is not the file with the SHA-256 banana"), 1),
        case(&format!("{WEB}/missing"), fake, &last("cannot fetch http://198.18.0.4/missing"), 1),
        case("gs://elsewhere/fake-program", fake, &last("cannot fetch gs://elsewhere/fake-program"), 1),
        case(&format!("{WEB}:81/fake-program"), fake, &last("cannot fetch http://198.18.0.4:81/fake-program"), 0),
        case("file:///bin/true", fake, &last("neither gs://BUCKET/OBJECT"), 0),
    ]
}

fn says(rig: &Rig, case: &Case) -> Result<()> {
    let before = asked(rig)?;
    let printed = rig.shell(RUN)?;
    for part in &case.says {
        ensure!(printed.contains(part), "{part:?} is missing in:\n{printed}");
    }
    let requests = asked(rig)? - before;
    ensure!(requests == case.requests, "{requests} requests instead of {}:\n{printed}", case.requests);
    Ok(())
}

/// Requests for the program, wherever it is.
fn asked(rig: &Rig) -> Result<usize> {
    let program = |host: &Value| host == "files" || host == "storage";
    Ok(rig.requests()?.iter().filter(|request| program(&request["host"])).count())
}

/// Also that of an earlier loader, which anybody could open.
fn only_root_holds_its_lock(rig: &Rig, sha256: &str) -> Result<()> {
    rig.attribute(&format!("openclaw-init-url={WEB}/fake-program"))?;
    rig.attribute(&format!("openclaw-init-sha256={sha256}"))?;
    let (lock, old) = ("/run/openclaw-init/private/loader.lock", "/run/openclaw-init-loader.lock");
    for prepare in [format!("rm -f {old}"), format!(": > {old} && chmod 0666 {old}")] {
        let printed = rig.shell(&format!("{prepare} && {RUN}"))?;
        ensure!(printed.contains("fake program at"), "it says {printed}");
        for lock in [lock, old] {
            let hold =
                format!("setpriv --reuid 65534 --clear-groups flock --nonblock {lock} true 2>&1 || echo refused");
            let outcome = rig.shell(&format!("[ ! -e {lock} ] && echo refused || {hold}"))?;
            ensure!(outcome.ends_with("refused"), "nobody holds {lock}: {outcome}");
        }
        rig.shell(&format!("flock --nonblock {lock} true && [ \"$(stat -c %a /run/openclaw-init)\" = 755 ]"))?;
    }
    rig.shell(&format!("rm {old}")).map(drop)
}

fn attributes_of_the_project_and_none(rig: &Rig, sha256: &str) -> Result<()> {
    let has = |parts: &[&str]| {
        let printed = rig.shell(RUN)?;
        let missing = parts.iter().find(|part| !printed.contains(**part));
        missing.map_or(Ok(()), |part| Err(anyhow::anyhow!("{part:?} is missing in:\n{printed}")))
    };
    rig.attribute(&format!("openclaw-init-url={WEB}/fake-program"))?;
    rig.attribute("openclaw-init-sha256")?;
    has(&["openclaw-init-sha256 is not set", "result=ready"])?;
    rig.lab_ends(0, "metadata", &["set", "--project", &format!("openclaw-init-sha256={sha256}")])?;
    has(&["fake program at"])
}

fn without_curl_and_without_exec(rig: &Rig) -> Result<()> {
    rig.shell("dpkg --remove --force-depends curl")?;
    let printed = rig.shell(RUN)?;
    ensure!(printed.contains("fake program at"), "without curl it says {printed}");
    rig.shell("mount -t tmpfs -o noexec tmpfs /usr/local/lib")?;
    let printed = rig.shell(RUN)?;
    ensure!(printed.contains("noexec") && printed.contains("result=ready"), "without exec it says {printed}");
    rig.shell("umount /usr/local/lib").map(|_| ())
}

/// Google's runner puts scripts into the temporary directory. It then cannot start the loader, which nobody can
/// help from inside; the unit does not need it.
fn temporary_directory_without_exec(rig: &Rig) -> Result<()> {
    let unit = "/etc/systemd/system/google-startup-scripts.service.d";
    let remount = "[Service]\\nExecStartPre=mount -o remount,noexec /tmp\\n";
    rig.shell(&format!("mkdir {unit} && printf '{remount}' > {unit}/noexec.conf"))?;
    rig.lab_ends(0, "reboot", &["--hard"])?;
    is_ready(rig).context("with a temporary directory without exec")?;
    rig.shell("journalctl -b -u google-startup-scripts | grep 'exit status 126'")?;
    rig.shell("sed -i 's|^run_dir =.*|run_dir = /var/lib|' /etc/default/instance_configs.cfg")?;
    let printed = rig.shell(RUN)?;
    ensure!(printed.contains("fake program at"), "with another directory for scripts it says {printed}");
    Ok(())
}
