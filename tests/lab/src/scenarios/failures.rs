//! Every failure ends with its code, a sentence and nothing damaged; every fault that heals ends ready.

use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::checks::is_ready;
use super::rig::{CommandOutput, Rig};
use crate::files::sha256;

/// `lab up` ended as a failure with `code`, and its report says the sentence with all `parts`.
fn up_fails(rig: &Rig, code: &str, parts: &[&str], arguments: &[&str]) -> Result<CommandOutput> {
    let printed = rig.up_ends(1, arguments)?;
    printed.has(&[&format!("failed:{code}")])?.has(parts)?;
    Ok(printed)
}

/// One machine takes one wrong turn after the other. None leaves a trace: at the end it becomes ready.
pub(super) fn every_wrong_turn_then_ready(rig: &Rig) -> Result<()> {
    up_fails(rig, "config-invalid", &["openclaw-port", "banana"], &["--attr", "openclaw-port=banana"])?;
    let attributes = rig.guest_attributes()?;
    ensure!(attributes["result"] == "failed:config-invalid", "the guest attributes say {attributes}");
    full_and_read_only_places(rig)?;

    // What is set, the exit code, what the sentence names, what is taken back.
    let turns: &[(&str, i32, &[&str])] = &[
        ("openclaw-data-disk=elsewhere", 12, &["elsewhere", "attach-disk"]),
        ("openclaw-version=2026.1.999", 20, &["2026.1.999", "openclaw-version", "openclaw-image-source=npm"]),
        ("openclaw-image=openclaw/openclaw:0.0.78", 28, &["78", "Missing config"]),
    ];
    rig.attribute("openclaw-port")?;
    odd_sources(rig)?;
    for (attribute, code, parts) in turns {
        rig.attribute(attribute)?;
        rig.boot(*code)?.has(parts).with_context(|| format!("with {attribute}"))?;
        ensure!(rig.status()?["version"].is_null(), "with {attribute} a version is reported");
        rig.attribute(attribute.split('=').next().unwrap_or_default())?;
    }

    rig.lab_ends(0, "exec", &["--", "systemd-run", "--unit=squatter", "perl", "-e", SQUATTER])?;
    rig.shell("sleep 1 && systemctl is-active squatter")?;
    rig.boot(27)?.has(&["18789"])?;
    rig.shell("systemctl stop squatter")?;
    port_of_nobody(rig)?;

    // The runs before have used up this minute's guest-attribute writes: version and detail would stay as they are.
    rig.shell("sleep 61")?;
    rig.boot(0)?;
    is_ready(rig)?;
    broken_settings(rig)?;
    former_container_comes_back(rig)?;
    odd_engines(rig)?;
    masked_unit(rig)?;
    remedy_is_never_refused(rig)
}

/// Where neither a launcher nor a run can begin, the guest attributes say why all the same.
fn full_and_read_only_places(rig: &Rig) -> Result<()> {
    // Without the boot's own result and unit it is as at the first boot.
    const UNIT: &str = "/etc/systemd/system/openclaw-init.service";
    rig.shell(&format!(
        "cp /usr/local/bin/openclaw-init /root/launcher; mv {UNIT} /root/unit; systemctl daemon-reload"
    ))?;
    let forget = "rm -f /run/openclaw-init/status.json";
    let turns = [("size=64k", 24, "no-space"), ("ro", 15, "disk-readonly")];
    for (options, code, name) in turns {
        rig.shell(&format!("{forget}; mount -t tmpfs -o {options} tmpfs /usr/local/bin"))?;
        let printed = rig.lab_ends(code, "exec", &["--", "/root/launcher"]).with_context(|| options.to_owned())?;
        printed.has(&["/usr/local/bin/openclaw-init", "sudo openclaw-init boot"])?;
        rig.shell("umount /usr/local/bin")?;
        let result = rig.guest_attributes()?["result"].clone();
        ensure!(result == format!("failed:{name}"), "with {options} the result is {result}");
    }
    rig.shell(&format!("{forget}; mv /root/unit {UNIT} && systemctl daemon-reload"))?;
    // A run that cannot begin in its unit says why, too.
    rig.shell("mount -t tmpfs -o nr_inodes=1 tmpfs /run/openclaw-init; systemctl start openclaw-init || true")?;
    rig.shell("systemctl stop openclaw-init; umount /run/openclaw-init")?;
    let attributes = rig.guest_attributes()?;
    ensure!(attributes["result"] == "failed:no-space", "with a full /run the guest attributes say {attributes}");
    Ok(())
}

/// What is wrong with apt's sources is named with its file, and what others wrote is kept.
fn odd_sources(rig: &Rig) -> Result<()> {
    let sources = "/etc/apt/sources.list.d";
    let uri = "https://download.docker.com/linux/debian";
    let user = format!("deb [signed-by=/etc/apt/keyrings/gone.gpg] {uri} bookworm stable");
    let turns: [(&str, String, i32, &[&str]); 3] = [
        ("third.list", "deb nonsense".to_owned(), 17, &["third.list", "Correct or remove that entry"]),
        ("docker.list", user.clone(), 19, &["docker.list", "/etc/apt/keyrings/gone.gpg", "does not exist"]),
        ("docker.sources", "# mine".to_owned(), 19, &["docker.sources", "not of this program"]),
    ];
    rig.attribute("openclaw-docker=docker-ce")?;
    for (file, text, code, parts) in turns {
        rig.shell(&format!("echo '{text}' > {sources}/{file}"))?;
        rig.boot(code)?.has(parts).with_context(|| format!("with {file}"))?;
        ensure!(rig.shell(&format!("cat {sources}/{file}"))? == text, "{file} was changed");
        rig.shell(&format!("rm {sources}/{file}"))?;
    }
    rig.attribute("openclaw-docker=distro")?;
    rig.shell("cp /etc/resolv.conf /root/resolv.conf && echo nameserver 127.0.0.9 > /etc/resolv.conf")?;
    rig.boot(17)?.has(&["resolving"]).context("without name resolution")?;
    rig.shell("cat /root/resolv.conf > /etc/resolv.conf")?;
    rig.attribute("openclaw-docker")?;
    distribution_in_place_of_a_source_without_key(rig, &user)
}

/// `auto` goes on with the distribution's engine. The missing disk ends the run only after that.
fn distribution_in_place_of_a_source_without_key(rig: &Rig, source: &str) -> Result<()> {
    const FILE: &str = "/etc/apt/sources.list.d/docker.list";
    rig.shell(&format!("echo '{source}' > {FILE}"))?;
    rig.attribute("openclaw-data-disk=elsewhere")?;
    rig.boot(12)?.has(&[FILE, "/etc/apt/keyrings/gone.gpg", "does not exist"])?;
    ensure!(rig.shell("dpkg-query -W -f '${Status}' docker.io")?.contains("ok installed"), "docker.io is missing");
    ensure!(rig.shell(&format!("cat {FILE}"))? == source, "{FILE} was changed");
    rig.shell(&format!("rm {FILE}"))?;
    rig.attribute("openclaw-data-disk")
}

/// A new container that cannot be published, or does not become ready, costs nobody the one that runs.
fn former_container_comes_back(rig: &Rig) -> Result<()> {
    const ID: &str = "docker inspect --format '{{.Id}} {{.State.Status}} {{.State.StartedAt}}' openclaw-gateway; \
                      docker ps -a --quiet | wc -l";
    let before = rig.shell(ID)?;
    ensure!(before.contains("running"), "the gateway does not run: {before}");
    // One at another port, one at the gateway's port of another address.
    let elsewhere = SQUATTER.replace("127.0.0.1", &rig.shell("hostname -I | cut -d ' ' -f 1")?);
    for (unit, program) in [("squatter", SQUATTER.replace("18789", "18999")), ("elsewhere", elsewhere)] {
        let unit = format!("--unit={unit}");
        rig.lab_ends(0, "exec", &["--", "systemd-run", &unit, "perl", "-e", &program])?;
    }
    let turns: &[(&str, i32, &[&str])] = &[
        ("openclaw-port=18999", 27, &["18999", "ss -ltnp"]),
        ("openclaw-bind=0.0.0.0", 27, &["18789", "ss -ltnp"]),
        ("openclaw-bind=198.51.100.7", 29, &["198.51.100.7 is no address of this VM"]),
        ("openclaw-bind=224.0.0.1", 10, &["openclaw-bind", "multicast"]),
    ];
    for (attribute, code, parts) in turns {
        rig.attribute(attribute)?;
        rig.boot(*code)?.has(parts).with_context(|| format!("with {attribute}"))?;
        let after = rig.shell(ID)?;
        ensure!(after == before, "with {attribute} there is {after} instead of {before}");
        rig.attribute(attribute.split('=').next().unwrap_or_default())?;
    }
    rig.shell("systemctl stop squatter elsewhere")?;
    refused_once(rig, &rig.shell("docker inspect --format '{{.Id}}' openclaw-gateway")?)?;
    rig.boot(0)?.has(&["changes=0"]).map(drop)
}

/// What the gateway did not come up with is not tried again, and costs no second outage, not at a reboot either.
fn refused_once(rig: &Rig, container: &str) -> Result<()> {
    const SEEN: &str = "docker inspect --format '{{.Id}} {{.State.StartedAt}}' openclaw-gateway";
    rig.attribute("openclaw-env-NODE_OPTIONS=--no-such-option")?;
    rig.boot(38)?.has(&["failed:config-refused", "with openclaw-env-NODE_OPTIONS", "--no-such-option"])?;
    let before = rig.shell(SEEN)?;
    ensure!(before.starts_with(container), "another container runs: {before}");
    rig.boot(38)?.has(&["failed:config-refused", "not tried again", "changes=0"])?;
    ensure!(rig.shell(SEEN)? == before, "the gateway was started again");
    rig.lab("reboot", &[])?.has(&["failed:config-refused", "not tried again"])?;
    ensure!(rig.shell(SEEN)?.starts_with(container), "another container runs after a reboot");
    rig.shell("curl --fail --silent --max-time 10 http://127.0.0.1:18789/readyz")?;
    rig.attribute("openclaw-env-NODE_OPTIONS")
}

/// The same settings as flags: in a drop-in of the unit, and in a file that a flag names.
fn odd_flags(rig: &Rig, restart: &str) -> Result<()> {
    const DIRECTORY: &str = "/etc/systemd/system/docker.service.d";
    let turns: &[(&str, &[&str])] = &[
        (
            "/usr/sbin/dockerd -H fd:// --iptables=false --userland-proxy=false",
            &["userland-proxy", "systemctl cat docker"],
        ),
        ("/usr/sbin/dockerd -H fd:// --bridge none", &["bridge: none", "systemctl cat docker"]),
        ("/usr/sbin/dockerd -H fd:// --config-file /etc/other.json", &["userland-proxy: false", "/etc/other.json"]),
        ("/usr/sbin/dockerd -H fd:// --no-such-flag", &["unknown flag: --no-such-flag"]),
        ("/opt/gone", &["/opt/gone"]),
    ];
    let settings = r#"{"iptables": false, "userland-proxy": false}"#;
    rig.shell(&format!("mkdir -p {DIRECTORY} && echo '{settings}' > /etc/other.json"))?;
    for (command, parts) in turns {
        let drop_in = format!("printf '[Service]\\nExecStart=\\nExecStart={command}\\n' > {DIRECTORY}/odd.conf");
        rig.shell(&format!("{drop_in}; systemctl daemon-reload; {restart}"))?;
        rig.boot(19)?.has(parts).with_context(|| format!("with {command}"))?;
    }
    rig.shell(&format!("rm -r {DIRECTORY} /etc/other.json; systemctl daemon-reload")).map(drop)
}

/// Engines that cannot run a gateway are named before anything is started, in their own words where they have any.
fn odd_engines(rig: &Rig) -> Result<()> {
    let restart = "systemctl reset-failed docker docker.socket; systemctl restart docker || true";
    let turns: &[(&str, &str)] = &[
        (r#"{"bridge": "none"}"#, "bridge: none"),
        (r#"{"iptables": false, "userland-proxy": false}"#, "userland-proxy: false"),
        (r#"{"default-runtime": "gone", "runtimes": {"gone": {"path": "/opt/gone"}}}"#, "/opt/gone"),
        (r#"{"debug": truth}"#, "invalid character"),
    ];
    for (settings, part) in turns {
        rig.shell(&format!("mkdir -p /etc/docker && echo '{settings}' > /etc/docker/daemon.json; {restart}"))?;
        rig.boot(19)?.has(&[part]).with_context(|| format!("with {settings}"))?;
    }
    rig.shell("rm /etc/docker/daemon.json")?;
    odd_flags(rig, restart)?;
    rig.shell("systemctl stop docker.socket docker; systemctl mask docker")?;
    rig.boot(19)?.has(&["systemctl unmask docker.service"])?;
    // The engine started the container under some of these settings, and nothing reaches it: it is made anew.
    rig.shell(&format!("systemctl unmask docker; {restart}"))?;
    rig.boot(0).map(drop)
}

/// Who masks the unit wants no gateway, and the launcher says so.
fn masked_unit(rig: &Rig) -> Result<()> {
    let unit = "/etc/systemd/system/openclaw-init.service";
    rig.shell(&format!("mv {unit} /root/unit && systemctl mask openclaw-init"))?;
    let masked = rig.lab_ends(36, "exec", &["--", "openclaw-init"])?;
    masked.has(&["openclaw-init.service is masked", "systemctl unmask"])?;
    ensure!(rig.shell(&format!("readlink {unit}"))? == "/dev/null", "the mask is gone");
    rig.shell(&format!("systemctl unmask openclaw-init && mv /root/unit {unit} && systemctl daemon-reload")).map(drop)
}

/// Makes what a power cut while the container starts leaves.
const LEFT_BY_A_CUT: &str = include_str!("../../scripts/failures/leave-port-to-nobody.sh");
/// Occupies the gateway's port; in Perl.
const SQUATTER: &str = include_str!("../../scripts/failures/occupy-port.pl");

/// A port that the engine holds for no container is freed by a restart of the engine. A container's port is left to it.
fn port_of_nobody(rig: &Rig) -> Result<()> {
    rig.boot(0)?;
    rig.script(LEFT_BY_A_CUT, &[]).context("leaving the port to nobody")?;
    rig.boot(0)?.has(&["stage=gateway status=ok changes=2", "result=ready"])?;
    let image = rig.shell("docker inspect --format '{{.Config.Image}}' openclaw-gateway")?;
    rig.shell(&format!(
        "docker stop openclaw-gateway && \
         docker run --detach --rm --name other --publish 127.0.0.1:18789:1 --entrypoint sleep {image} 600"
    ))?;
    rig.boot(27)?.has(&["docker stop other", "openclaw-port"])?;
    rig.shell("docker rm --force other").map(drop)
}

/// With an `openclaw.json` that cannot be read, a running gateway is left alone. One that must start fails.
fn broken_settings(rig: &Rig) -> Result<()> {
    let file = "/home/node/.openclaw/openclaw.json";
    rig.shell(&format!("cp -a {file} /root/kept && echo '{{ gateway: ' > {file}"))?;
    rig.boot(0)?.has(&["could not start again", "openclaw.json", "changes=0", "result=ready"])?;
    ensure!(rig.status()?["detail"]["warnings"].to_string().contains("openclaw.json"), "the report does not warn");
    rig.shell("docker stop openclaw-gateway")?;
    rig.boot(28)?.has(&["parsing", "openclaw.json", "left as it is"])?;
    rig.shell(&format!("cp -a /root/kept {file}"))?;
    rig.boot(0).map(|_| ())
}

/// The command of every remedy hands the work to the unit, follows it and ends with its result, however often. So does
/// what older remedies named.
fn remedy_is_never_refused(rig: &Rig) -> Result<()> {
    rig.attribute("openclaw-data-disk=elsewhere")?;
    rig.lab_ends(12, "exec", &["--", "openclaw-init", "boot"])?.has(&["elsewhere", "sudo openclaw-init boot"])?;
    rig.attribute("openclaw-data-disk")?;
    for time in 1..=10 {
        let printed = rig.lab_ends(0, "exec", &["--", "openclaw-init", "boot"]);
        printed.and_then(|printed| printed.has(&["result=ready"]).map(drop)).with_context(|| format!("time {time}"))?;
    }
    for _ in 0..6 {
        rig.shell("systemctl restart openclaw-init")?;
    }
    let unit = rig.shell("systemctl show --property=Result,ActiveState --value openclaw-init | paste -sd ' '")?;
    ensure!(unit == "success inactive", "the unit is {unit}");
    rig.boot(0)?.has(&["changes=0"]).map(drop)
}

pub(super) fn metadata_server_silent_for_ever(rig: &Rig) -> Result<()> {
    let printed = up_fails(
        rig,
        "metadata-unreachable",
        &["169.254.169.254"],
        &["--boot", "unit", "--fault", "blackhole", "--timeout", "20m"],
    )?;
    ensure!(rig.status()?["result"] == "failed:metadata-unreachable", "the status file differs from {}", printed.text);
    let probe = rig.shell("blkid -p /dev/disk/by-id/google-openclaw-data; echo $?")?;
    ensure!(probe == "2", "something was written to the data disk: {probe}");
    Ok(())
}

/// The metadata server is busy for half a minute, refuses guest attributes, and Docker's repository is out of reach.
pub(super) fn every_door_but_one_is_closed(rig: &Rig) -> Result<()> {
    let faults = ["--fault", "status=503,for=30s", "--docker-repository", "unreachable"];
    rig.up(&[&["--boot", "unit", "--attr", "enable-guest-attributes=FALSE"], &faults[..]].concat())?;
    let requests = rig.requests()?;
    ensure!(requests.iter().any(|request| request["status"] == 503), "the server was never busy");
    let status = rig.status()?;
    ensure!(status["result"] == "ready", "the status file says {status}");
    let warnings = status["detail"]["warnings"].to_string();
    ensure!(warnings.matches("guest attributes").count() == 1, "the warnings are {warnings}");
    ensure!(rig.shell("dpkg-query -W -f '${Status}' docker.io")?.contains("installed"), "docker.io is not installed");
    ensure!(rig.shell("ls /etc/apt/sources.list.d /etc/apt/keyrings | grep docker || true")?.is_empty(), "remains");
    Ok(())
}

pub(super) fn docker_repository_with_the_wrong_key(rig: &Rig) -> Result<()> {
    refuses_repository(rig, "wrong-key", "fingerprint")
}

pub(super) fn docker_repository_with_two_keys(rig: &Rig) -> Result<()> {
    refuses_repository(rig, "two-keys", "key")
}

fn refuses_repository(rig: &Rig, repository: &str, part: &str) -> Result<()> {
    up_fails(rig, "docker-unusable", &[part], &["--docker-repository", repository])?;
    ensure!(rig.shell("command -v dockerd || true")?.is_empty(), "an engine was installed all the same");
    Ok(())
}

pub(super) fn foreign_disk_is_left_untouched(rig: &Rig) -> Result<()> {
    let disk = tempfile::Builder::new().suffix(".img").tempfile().context("making a disk")?;
    disk.as_file().set_len(1 << 30)?;
    let made = Command::new("/usr/sbin/mkswap").arg(disk.path()).output().context("running mkswap")?;
    ensure!(made.status.success(), "mkswap: {}", String::from_utf8_lossy(&made.stderr));
    let before = sha256(disk.path())?;
    let path = disk.path().to_string_lossy().into_owned();
    up_fails(rig, "disk-foreign", &["swap"], &["--disk", &path, "--attr", "openclaw-docker=distro"])?;
    rig.lab_ends(0, "down", &[])?;
    ensure!(sha256(disk.path())? == before, "the disk was changed");
    Ok(())
}
