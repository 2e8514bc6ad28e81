//! `openclaw-gcp` with a gcloud that only answers: what needs no VM.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

const GCLOUD: &str = include_str!("../../scripts/workstation/gcloud.sh");
const CURL: &str = include_str!("../../scripts/workstation/curl.sh");

const STARTED: &str = "2026-09-01T10:00:00Z";

/// What Compute Engine has, by the names of the files of [`GCLOUD`].
type World<'a> = &'a [(&'a str, &'a str)];

/// Variables beside those that every call has, arguments, what is typed; the exit code, and what is said or called.
struct Case<'a> {
    world: World<'a>,
    variables: &'a [(&'a str, &'a str)],
    arguments: &'a str,
    types: &'a str,
    code: i32,
    says: &'a [&'a str],
}

/// Runs the script in a directory with the world, and returns its exit code with all that was said and called.
fn run(case: &Case<'_>) -> Result<(i32, String)> {
    let directory = TempDir::new()?;
    let script = crate::host::workspace()?.join("openclaw-gcp");
    for (name, text) in [("gcloud", GCLOUD), ("curl", CURL)] {
        let file = directory.path().join(name);
        fs::write(&file, text)?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755))?;
    }
    for (name, text) in case.world {
        fs::write(directory.path().join(name), text)?;
    }
    fs::write(directory.path().join("answers"), format!("{}\n", case.types))?;
    let path = [directory.path(), Path::new("/usr/bin"), Path::new("/bin")];
    let mut shell = Command::new("sh");
    shell.arg(script).args(case.arguments.split_whitespace()).env_clear();
    shell
        .env("PATH", std::env::join_paths(path)?)
        .stdin(Stdio::from(fs::File::open(directory.path().join("answers"))?));
    shell.envs([("PROJECT", "p"), ("VM", "gateway"), ("ZONE", "z-1")]).envs(case.variables.iter().copied());
    let output = shell.output().context("running the script")?;
    let calls = fs::read_to_string(directory.path().join("calls")).unwrap_or_default();
    let said = [output.stdout, output.stderr].concat();
    Ok((output.status.code().context("it was killed")?, format!("{}\n{calls}", String::from_utf8_lossy(&said))))
}

fn ends(cases: &[Case<'_>]) -> Result<()> {
    for case in cases {
        let (code, text) = run(case)?;
        let missing: Vec<_> = case.says.iter().filter(|part| !text.contains(**part)).collect();
        let what = format!("{:?} {} ended with {code}:\n{text}", case.variables, case.arguments);
        ensure!(code == case.code && missing.is_empty(), "{missing:?} is missing: {what}");
        let deletes = ["instances delete", "disks delete"].iter().any(|it| text.contains(it)) && case.types.is_empty();
        ensure!(!deletes, "it deleted unasked: {what}");
    }
    Ok(())
}

const NOTHING: Case<'_> = Case { world: &[], variables: &[], arguments: "", types: "", code: 0, says: &[] };
const RELEASE: (&str, &str) = ("RELEASE", "https://example.com/releases/download/v1");

fn refused<'a>(variables: &'a [(&'a str, &'a str)], arguments: &'a str, says: &'a [&'a str]) -> Case<'a> {
    Case { variables, arguments, code: 1, says, ..NOTHING }
}

#[test]
fn what_it_does_not_know_is_refused_before_anything_is_done() -> Result<()> {
    ends(&[
        Case { arguments: "help", says: &["Usage:"], ..NOTHING },
        Case { arguments: "update --help", says: &["Usage:"], ..NOTHING },
        Case { arguments: "", code: 2, says: &["Usage:"], ..NOTHING },
        Case { arguments: "destroy", code: 2, says: &["Usage:"], ..NOTHING },
        refused(&[RELEASE], "update --force", &["'--force' is no version"]),
        refused(&[RELEASE], "update 2026.9.6 now", &["so many words"]),
        refused(&[RELEASE], "create now", &["so many words"]),
        refused(&[], "delete disk", &["does not know 'disk'"]),
        refused(&[("PROJECT", "")], "status", &["PROJECT is not set"]),
        refused(&[("VM", "A")], "status", &["VM is 'A'"]),
        refused(&[("MACHINE", "--x")], "create", &["MACHINE is '--x'"]),
        refused(&[("DISK_GB", "20GB")], "create", &["DISK_GB and PORT are numbers"]),
        refused(&[("PORT", "x")], "open", &["DISK_GB and PORT are numbers"]),
        refused(&[], "create", &["RELEASE is not set"]),
        refused(&[("RELEASE", "http://example.com")], "create", &["RELEASE is not an https:// address"]),
        refused(&[], "wait", &["there is no VM gateway in z-1 of p"]),
    ])
}

#[test]
fn variables_are_those_of_the_vm_that_it_makes() -> Result<()> {
    let variables = [
        RELEASE,
        ("MACHINE", "e2-medium"),
        ("DISK_GB", "50"),
        ("METADATA", "openclaw-port=18790,openclaw-swap=off"),
        ("CREATE_FLAGS", "--no-address --tags=a"),
    ];
    let made =
        ["--machine-type=e2-medium", "--size=50GB", "=0000", "07,openclaw-port=18790,openclaw-swap=off --no-address"];
    ends(&[
        Case { variables: &variables, arguments: "create", says: &made, ..NOTHING },
        Case { variables: &[("PORT", "18790")], arguments: "open", says: &["-L 18790:127.0.0.1:18790"], ..NOTHING },
    ])
}

fn status(power: &str) -> String {
    format!("{power}\t{STARTED}\n")
}

fn attributes(state: &str, result: &str, updated: &str, detail: &str) -> String {
    format!("boot-id\tb\ndetail\t{{\"updated\":\"{updated}\"{detail}}}\nresult\t{result}\nstate\t{state}\nversion\t1\n")
}

fn with<'a>(status: &'a str, attributes: &'a str) -> [(&'a str, &'a str); 3] {
    [("vm", "gateway\n"), ("status", status), ("attributes", attributes)]
}

fn case<'a>(world: World<'a>, code: i32, says: &'a [&'a str]) -> Case<'a> {
    Case { world, arguments: "status", code, says, ..NOTHING }
}

#[test]
fn status_ends_well_only_if_the_gateway_is_ready_now() -> Result<()> {
    let (on, off) = (status("RUNNING"), status("TERMINATED"));
    let after = "2026-09-01T10:01:00Z";
    let ready = attributes("ready", "ready", after, "");
    let broken = ",\"code\":\"config-invalid\",\"message\":\"Correct \\\"it\\\".\"";
    let failed = attributes("failed", "failed:config-invalid", after, broken);
    let stopped = attributes("stopped", "ready", after, ",\"message\":\"stopped by hand\"");
    let old = attributes("ready", "ready", "2026-09-01T09:59:59Z", "");
    let page = "https://example.com/blob/main/docs/failures.md";
    let (good, bad, still) = (with(&on, &ready), with(&on, &failed), with(&on, &stopped));
    let (before, away) = (with(&on, &old), with(&off, &ready));
    ends(&[
        case(&good, 0, &["state    ready", "vm       RUNNING"]),
        case(&with(&on, &attributes("degraded", "ready", after, "")), 0, &["degraded"]),
        case(&bad, 1, &["code     config-invalid", "message  Correct \"it\".", page, "get-serial-port-output"]),
        case(&still, 1, &["state    stopped", "stopped by hand", "sudo openclaw-init boot starts it"]),
        case(&before, 1, &["nothing since it was switched on"]),
        case(&away, 1, &["TERMINATED", "is off: sh openclaw-gcp create starts it"]),
        case(&good[..1], 1, &["it cannot be read how gateway is: ERROR: there is no"]),
        case(&good[..2], 1, &["ERROR: there is no attributes", "has reported nothing yet"]),
        Case { arguments: "wait", ..case(&away, 1, &["gateway is off (TERMINATED)"]) },
        Case { arguments: "wait", ..case(&good, 0, &["ready after"]) },
        Case { arguments: "wait", ..case(&bad, 1, &["failed:config-invalid after", "Correct \"it\".", page]) },
        Case { variables: &[RELEASE], arguments: "create", ..case(&away, 0, &["compute instances start gateway"]) },
        Case { variables: &[RELEASE], arguments: "create", ..case(&good, 0, &["stays as it is"]) },
    ])
}

fn delete<'a>(world: World<'a>, arguments: &'a str, types: &'a str, says: &'a [&'a str]) -> Case<'a> {
    Case { world, arguments, types, says, ..NOTHING }
}

#[test]
fn the_disk_that_the_vm_has_is_the_one_that_is_deleted() -> Result<()> {
    let disks = [("vm", "gateway"), ("disks", "boot\tgateway\nopenclaw-data\tsnapshot-1"), ("disk", "snapshot-1")];
    ends(&[
        delete(&[], "delete --with-data", "", &["There is no VM gateway and no disk gateway-data in z-1 of p"]),
        delete(
            &disks,
            "delete",
            "y",
            &["The data disk snapshot-1 stays", "--keep-disks=data", "export DISK=snapshot-1"],
        ),
        delete(&disks, "delete --with-data", "y\nsnapshot-1", &["disks delete snapshot-1"]),
        delete(&[("disk", "gateway-data")], "delete", "", &["The data disk gateway-data stays"]),
        Case { code: 1, ..delete(&disks, "delete", "no", &["nothing was deleted by this"]) },
        Case { code: 1, ..delete(&disks, "delete --with-data", "y\ngateway-data", &["nothing was deleted by this"]) },
    ])
}
