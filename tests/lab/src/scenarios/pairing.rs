//! Who may come in: exactly who was named, by hand, by attribute, by a channel's name for them.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::rig::Rig;

/// A real node with a state of its own, in a container beside the gateway's.
const NODE: &str = include_str!("../../scripts/pairing/node.sh");

/// On a terminal, with an answer once it was asked for: what was typed before is none.
const WAIT: &str = include_str!("../../scripts/pairing/wait.sh");

/// Nobody has named it: it asks again, and is sent away.
const STRANGER: &str = "at=$(date +%s); docker restart --time 1 stranger; for i in $(seq 60); do \
    docker logs --since $at stranger 2>&1 | grep -q 'pairing required' && exit 0; sleep 1; done; exit 1";

const OWNERS: &str = "openclaw config get commands.ownerAllowFrom --json </dev/null";
const TALKS: &str = "openclaw config get channels.telegram.allowFrom --json </dev/null";

/// How long a client's request may take until it is told, or a changed attribute until it is applied.
const TOLD: Duration = Duration::from_secs(90);

/// With a real gateway that is `ready`, and is again as it was at the end.
pub(super) fn lets_in_who_is_named(rig: &Rig) -> Result<()> {
    rig.lab_ends(0, "exec", &["--", "openclaw-init", "pair"])?.has(&["nobody asks to be paired"])?;
    by_hand(rig).context("by hand")?;
    by_attribute(rig).context("by attribute")?;
    owner_of_a_channel(rig).context("an owner")?;
    rig.shell("docker rm --force kitchen garden stranger; openclaw devices clear --yes --pending </dev/null")?;
    rig.boot(0)?.has(&["changes=0", "result=ready"]).map(drop)
}

fn by_hand(rig: &Rig) -> Result<()> {
    rig.script(NODE, &["kitchen"])?;
    let begun = Instant::now();
    let said = rig.script(WAIT, &[])?;
    for words in ["asks as  node", "name     kitchen", "Approve it? [y/N]", "approved "] {
        ensure!(said.contains(words), "{words:?} is missing in {said}");
    }
    println!("pairing: a node was waited for, shown and approved in {:.1} s", begun.elapsed().as_secs_f32());
    rig.script(NODE, &["stranger"])?;
    rig.script(NODE, &["garden"])?;
    // It connects, and asks for its commands.
    rig.shell("docker restart --time 1 kitchen")?;
    let request = until("kitchen's commands", || {
        let asking: Value = serde_json::from_str(&rig.shell("openclaw-init pair --json")?)?;
        let mut asking = asking.as_array().into_iter().flatten();
        Ok(asking.find(|request| request["kind"] == "commands").map(|request| request["id"].clone()))
    })?;
    let id = request.as_str().context("it has an id")?;
    rig.lab_ends(0, "exec", &["--", "openclaw-init", "pair", id])?.has(&[&format!("approved {id}: kitchen (node")])?;
    for wrong in [id, "00000000-0000-0000-0000-000000000000"] {
        rig.lab_ends(10, "exec", &["--", "openclaw-init", "pair", wrong])?.has(&["nothing was approved", wrong])?;
    }
    let nodes = rig.shell("openclaw nodes status --json </dev/null")?;
    ensure!(nodes.contains("kitchen") && nodes.contains("system.run"), "the nodes are {nodes}");
    Ok(())
}

/// All that is needed for it is outside of the machine.
fn by_attribute(rig: &Rig) -> Result<()> {
    let address = rig.shell("docker inspect -f '{{.NetworkSettings.IPAddress}}' garden")?;
    let id = until("the watcher tells of garden", || {
        let detail: Value = serde_json::from_str(rig.guest_attributes()?["detail"].as_str().unwrap_or_default())?;
        let mut asking = detail["pairing"].as_array().into_iter().flatten().filter_map(Value::as_str);
        Ok(asking.find_map(|it| Some(it.strip_suffix(&format!(" from {address}"))?.to_owned())))
    })?;
    let status = rig.lab_ends(0, "exec", &["--", "openclaw-init", "status"])?;
    status.has(&[&format!("asking: {id} from {address}"), "next: sudo openclaw-init pair"])?;
    rig.attribute(&format!("openclaw-approve={id},never-asked"))?;
    let status = until("a run approves garden", || {
        let status = rig.status()?;
        let is_approved =
            status["changes"]["list"].to_string().contains(&format!("pairing: approved {id}: garden (node)"));
        Ok(Some(status).filter(|status| is_approved && status["result"] == "ready"))
    })?;
    let warnings = status["detail"]["warnings"].to_string();
    ensure!(warnings.contains("never-asked, which nobody asks for now"), "the status is {status}");
    rig.attribute(&format!("openclaw-approve={id}"))?;
    let again = rig.boot(0)?;
    again.has(&["changes=0", "result=ready"])?;
    ensure!(!again.text.contains("openclaw-approve"), "it warns of what was approved: {}", again.text);

    let list: Value = serde_json::from_str(&rig.shell("openclaw devices list --json </dev/null")?)?;
    let names = |key: &str| -> Vec<String> {
        let devices = list[key].as_array().into_iter().flatten();
        let mut names: Vec<_> = devices.filter_map(|it| it["displayName"].as_str()).map(str::to_owned).collect();
        names.sort();
        names
    };
    ensure!(names("paired") == ["garden", "kitchen"], "these are in: {list}");
    rig.shell(STRANGER).context("the stranger is let in, or has not asked again")?;
    rig.attribute("openclaw-approve=every one")?;
    rig.boot(10)?.has(&["failed:config-invalid", "openclaw-approve"])?;
    rig.attribute("openclaw-approve")
}

fn owner_of_a_channel(rig: &Rig) -> Result<()> {
    rig.attribute("openclaw-owner-telegram=123456789,987654321")?;
    rig.boot(0)?.has(&["result=ready"])?;
    let (owners, talks) = (rig.shell(OWNERS)?, rig.shell(TALKS)?);
    ensure!(owners.contains("\"telegram:123456789\"") && owners.contains("\"telegram:987654321\""), "{owners}");
    ensure!(talks.contains("\"123456789\""), "these may talk: {talks}");
    rig.boot(0)?.has(&["changes=0", "result=ready"])?;
    rig.attribute("openclaw-owner-nosuch=1")?;
    rig.boot(38)?.has(&["failed:config-refused", "openclaw-owner-CHANNEL", "unknown channel id: nosuch"])?;
    for attribute in ["openclaw-owner-nosuch", "openclaw-owner-telegram"] {
        rig.attribute(attribute)?;
    }
    rig.boot(0)?.has(&["result=ready"])?;
    rig.shell(&format!("! {OWNERS} && ! {TALKS}")).map(drop)
}

/// What is there in time.
fn until<T>(what: &str, look: impl Fn() -> Result<Option<T>>) -> Result<T> {
    let begun = Instant::now();
    loop {
        if let Some(found) = look()? {
            println!("pairing: {what} after {} s", begun.elapsed().as_secs());
            return Ok(found);
        }
        ensure!(begun.elapsed() < TOLD, "not within {} s: {what}", TOLD.as_secs());
        std::thread::sleep(Duration::from_secs(2));
    }
}
