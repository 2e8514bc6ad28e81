//! The README's commands, run as a reader would: taken out of the README itself, typed in its order.
//!
//! `gcloud`, `packer` and `cargo` are the lab's (see [`crate::workstation`]); a command for the VM runs in the machine.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};

use super::checks::is_ready;
use super::rig::{Rig, Said};
use crate::cache::Cache;
use crate::cloud::content::Content;
use crate::host;
use crate::watch::Watch;
use crate::workstation::Session;

const README: &str = include_str!("../../../../README.md");

/// A block of commands, known by words that no other has. Each is run by a scenario: the compiler warns of one that
/// nobody names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Block {
    /// The lab itself.
    Lab,
    /// The program in a bucket, and an account that can read it.
    Upload,
    /// The three ways in.
    LoaderWay,
    CloudInitWay,
    BinaryWay,
    /// The loop that ends with a boot's result, and what goes before it at a reboot.
    Wait,
    Reset,
    /// The way to the Control UI.
    Tunnel,
    Approve,
    /// An image of one's own.
    ImageWay,
}

impl Block {
    #[cfg(test)]
    const ALL: [Self; 10] = [
        Self::Lab,
        Self::Upload,
        Self::LoaderWay,
        Self::Wait,
        Self::Reset,
        Self::Tunnel,
        Self::Approve,
        Self::CloudInitWay,
        Self::BinaryWay,
        Self::ImageWay,
    ];

    fn mark(self) -> &'static str {
        match self {
            Self::Lab => "cargo lab up",
            Self::Upload => "gcloud storage cp",
            Self::LoaderWay => "=startup-script=",
            Self::CloudInitWay => "=user-data=",
            Self::BinaryWay => "startup-script-url=",
            Self::Wait => "until result=",
            Self::Reset => "instances reset",
            Self::Tunnel => "gcloud compute ssh",
            Self::Approve => "devices approve",
            Self::ImageWay => "packer build",
        }
    }

    /// Its text in the README.
    fn text(self) -> Result<String> {
        let found = blocks(README).into_iter().find(|block| block.contains(self.mark()));
        found.with_context(|| format!("the README has no commands with {:?}", self.mark()))
    }
}

/// Every fenced block, without its fences.
fn blocks(text: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line.trim_start().starts_with("```") {
            let block: Vec<_> = lines.by_ref().take_while(|line| !line.trim_start().starts_with("```")).collect();
            blocks.push(block.join("\n"));
        }
    }
    blocks
}

/// Somebody with the README before them, and the rig's machine as their one VM.
#[derive(Debug)]
pub(super) struct Reader {
    session: Session,
    watch: Arc<Watch>,
}

impl Reader {
    pub(super) fn of(rig: &Rig) -> Result<Self> {
        // A user's directory is no checkout: from there the lab cannot build what its cache does not have.
        Content::prepare(&Cache::from_env()?)?;
        let machine = rig.machine()?;
        let session = Session::new(&host::workspace()?, &rig.lab_program(), machine.name(), &rig.binary())?;
        Ok(Self { session, watch: Arc::clone(rig.watch()) })
    }

    /// Types the blocks one after the other into one shell, which ends with the first command that fails.
    fn types(&self, blocks: &[Block]) -> Result<Said> {
        let text = blocks.iter().map(|block| block.text()).collect::<Result<Vec<_>>>()?.join("\n");
        let mut shell = self.session.shell()?;
        let output = self.watch.output(shell.arg(text))?;
        Ok(Said::of(&output))
    }

    /// The same; all must succeed.
    pub(super) fn succeeds(&self, blocks: &[Block]) -> Result<Said> {
        let said = self.types(blocks)?;
        ensure!(said.code == 0, "{blocks:?} ended with {}:\n{}", said.code, said.text);
        Ok(said)
    }

    /// The same; the last one must fail, and say why.
    fn fails(&self, blocks: &[Block], why: &str) -> Result<()> {
        let said = self.types(blocks)?;
        ensure!(said.code != 0, "{blocks:?} succeeded:\n{}", said.text);
        said.has(&[why]).map(|_| ())
    }
}

/// From nothing to a gateway in a browser, then through a reboot and a failure, each of which an old result could hide.
pub(super) fn loader_way_from_top_to_bottom(rig: &Rig) -> Result<()> {
    let reader = Reader::of(rig)?;
    reader.succeeds(&[Block::Upload, Block::LoaderWay, Block::Wait])?.has(&["ready"])?;
    is_ready(rig)?;
    control_ui_is_at_the_other_end(&reader).context("the tunnel")?;
    approves_a_client(rig).context("approving a client")?;

    reader.succeeds(&[Block::Reset, Block::Wait])?.has(&["ready"])?;
    is_ready(rig).context("when the wait after a reset has ended")?;
    saw_the_old_result(&reader, rig)?;
    rig.attribute("openclaw-port=banana")?;
    reader.fails(&[Block::Reset, Block::Wait], "failed:config-invalid")
}

pub(super) fn binary_way(rig: &Rig) -> Result<()> {
    Reader::of(rig)?.succeeds(&[Block::Upload, Block::BinaryWay, Block::Wait])?.has(&["ready"])?;
    is_ready(rig)
}

/// The wait was put to the test: right after the reset it was shown the `ready` of the boot before.
fn saw_the_old_result(reader: &Reader, rig: &Rig) -> Result<()> {
    let calls = reader.session.calls()?;
    let (_, after) = calls.split_once("\nreset\n").context("there was no reset")?;
    let first = after.split("get-guest-attributes").nth(1).unwrap_or_default();
    let boot_id = rig.shell("cat /proc/sys/kernel/random/boot_id")?;
    ensure!(first.contains("result\tready") && !first.contains(&boot_id), "the first answer after the reset: {first}");
    Ok(())
}

/// In a separate network, where no other tunnel can have the port.
fn control_ui_is_at_the_other_end(reader: &Reader) -> Result<()> {
    let mut shell = reader.session.shell()?;
    shell.arg("exec unshare --net sh -c \"$0\" visit \"$1\"").arg(VISIT).arg(Block::Tunnel.text()?);
    let output = reader.watch.output(&mut shell)?;
    Said::of(&output).has(&["<html"]).map(|_| ())
}

/// Starts a client of the gateway that nobody has approved.
const CLIENT: &str = include_str!("../../scripts/readme/start-client.sh");
/// Waits until it was refused.
const REFUSED: &str = include_str!("../../scripts/readme/wait-until-refused.sh");
/// Opens a tunnel and visits what is at its end.
const VISIT: &str = include_str!("../../scripts/readme/visit-tunnel.sh");

/// A new client is refused until its request, which `list` shows, is approved.
fn approves_a_client(rig: &Rig) -> Result<()> {
    rig.script(CLIENT, &[])?;
    rig.script(REFUSED, &[]).context("a new client is not refused")?;
    let listed = vm(rig, "devices list", "")?;
    let id = uuid(&listed).with_context(|| format!("no request is listed: {listed}"))?;
    vm(rig, "devices approve", &id)?;
    let listed = vm(rig, "devices list", "")?;
    rig.shell("docker rm --force client")?;
    ensure!(listed.contains("Paired (1)") && !listed.contains("Pending"), "after the approval: {listed}");
    Ok(())
}

/// Runs the line of [`Block::Approve`] with `part` inside the machine, with `id` for its ID. Who is root in the lab has
/// no sudo.
fn vm(rig: &Rig, part: &str, id: &str) -> Result<String> {
    let block = Block::Approve.text()?;
    let line = block.lines().find(|line| line.contains(part)).with_context(|| format!("no line has {part}"))?;
    rig.shell(&format!("sudo() {{ \"$@\"; }}; {}", line.replace(" ID", &format!(" {id}"))))
}

/// The first word that looks like a UUID.
fn uuid(text: &str) -> Option<String> {
    let words = text.split(|c: char| !c.is_ascii_hexdigit() && c != '-');
    let is_uuid = |word: &&str| word.len() == 36 && word.matches('-').count() == 4;
    words.into_iter().find(is_uuid).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_block_of_the_readme_is_known_and_short() {
        for block in blocks(README) {
            let known: Vec<_> = Block::ALL.iter().filter(|known| block.contains(known.mark())).collect();
            assert_eq!(known.len(), 1, "{known:?} is this block:\n{block}");
            assert!(block.lines().count() <= 10, "more than ten lines:\n{block}");
        }
        for block in Block::ALL {
            assert!(block.text().is_ok(), "{block:?} is not in the README");
        }
        assert_eq!(README.matches("```").count(), 2 * Block::ALL.len());
    }
}
