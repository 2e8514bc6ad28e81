//! `openclaw …` at the VM: the gateway's own commands, whether it runs or not.

use anyhow::{Context, Result, ensure};

use super::rig::Rig;

const CONFIG: &str = "/home/node/.openclaw/openclaw.json";

/// Each line, its exit code, and what it prints on both streams.
const ANYWHERE: [(&str, i32, &str); 5] = [
    ("openclaw --version 2>/dev/null", 0, "OpenClaw 0.1."),
    ("openclaw health --verbose --json </dev/null >/dev/null; openclaw no-such-command", 1, "unknown command"),
    // A script ends it, a key does on a terminal, and so does a reader that has enough.
    (include_str!("../../scripts/gateway-cli/interrupt.sh"), 130, "a line of the log"),
    (include_str!("../../scripts/gateway-cli/press-key.sh"), 130, "a line of the log"),
    ("openclaw logs --follow 2>/dev/null | head -n 2", 0, "a line of the log\na line of the log"),
];

/// With a fake gateway that is `ready`, and is again at the end.
pub(super) fn runs_whatever_the_gateway_does(rig: &Rig) -> Result<()> {
    every_way(rig).context("beside a gateway that runs")?;
    rig.lab_ends(0, "exec", &["--", "openclaw-init", "stop"])?;
    every_way(rig).context("without a gateway")?;
    ends(rig, "openclaw-init pair --wait 1s", 29, "the gateway does not run")?;

    rig.shell(&format!("mv {CONFIG} /root/good && echo '{{' > {CONFIG}"))?;
    rig.boot(28)?;
    ends(rig, "openclaw config validate", 1, "")?;
    // As on a new VM with an old data disk.
    rig.shell("docker rm openclaw-gateway")?;
    rig.boot(28)?;
    ends(rig, "openclaw config validate", 1, "")?;
    rig.shell(&format!("mv /root/good {CONFIG}"))?;
    ends(rig, "openclaw config validate", 0, "")?;
    rig.boot(0)?.has(&["result=ready"]).map(drop)
}

fn every_way(rig: &Rig) -> Result<()> {
    for (line, code, printed) in ANYWHERE {
        ends(rig, line, code, printed)?;
    }
    let left = "docker ps --all --quiet --filter name=openclaw-one-off; pgrep --full 'logs --follo[w]' || true";
    let left = rig.shell(left)?;
    ensure!(left.is_empty(), "left behind: {left}");
    Ok(())
}

fn ends(rig: &Rig, line: &str, code: i32, printed: &str) -> Result<()> {
    let output = rig.lab("exec", &["--", "sh", "-c", line])?;
    let text = output.text.replace('\r', "");
    ensure!(output.code == code && text.contains(printed), "`{line}` ended with {}: {text}", output.code);
    Ok(())
}
