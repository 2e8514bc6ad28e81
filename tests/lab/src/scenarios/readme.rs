//! The commands of the README and of `docs/ways-in.md`, run as a reader would: taken out of the pages themselves, typed
//! in their order.
//!
//! `gcloud`, `packer` and `cargo` are the lab's (see [`crate::workstation`]); a command for the VM runs in the machine.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};

use super::checks::is_ready;
use super::operations;
use super::rig::{CommandOutput, Rig};
use crate::cache::Cache;
use crate::cloud::content::Content;
use crate::cloud::{model_provider, serve_forge_here};
use crate::host;
use crate::watch::Watch;
use crate::workstation::{Browser, Session};

/// Every page whose commands are run here.
const PAGES: [&str; 2] = [include_str!("../../../../README.md"), include_str!("../../../../docs/ways-in.md")];

/// A block of commands, known by words that no other has. Each is run by a scenario: the compiler warns of one that
/// nobody names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Block {
    /// The script's commands.
    QuickStart,
    Open,
    Update,
    Delete,
    /// The lab itself.
    Lab,
    /// The program in a bucket, and an account that can read it.
    Upload,
    /// The three ways in by plain commands.
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
    const ALL: [Self; 14] = [
        Self::QuickStart,
        Self::Open,
        Self::Update,
        Self::Delete,
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
            Self::QuickStart => "openclaw-gcp create",
            Self::Open => "openclaw-gcp open",
            Self::Update => "openclaw-gcp update",
            Self::Delete => "openclaw-gcp delete",
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

    /// Its text in the pages.
    pub(super) fn text(self) -> Result<String> {
        let found = PAGES.into_iter().flat_map(blocks).find(|block| block.contains(self.mark()));
        found.with_context(|| format!("no page has commands with {:?}", self.mark()))
    }

    /// The lines of it that set variables: what a reader's shell still knows when the next block is typed.
    pub(super) fn variables(self) -> Result<String> {
        let text = self.text()?;
        let sets = |line: &&str| {
            let name = line.trim_start_matches("export ").split_once('=').map(|(name, _)| name);
            name.is_some_and(|name| name.chars().all(|c| c.is_ascii_uppercase()))
        };
        Ok(text.lines().filter(sets).collect::<Vec<_>>().join("\n"))
    }
}

/// Every fenced block, without its fences.
pub(super) fn blocks(text: &str) -> Vec<String> {
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
        let content = Content::prepare(&Cache::from_env()?)?;
        let machine = rig.machine()?;
        let session = Session::new(&host::workspace()?, &rig.lab_program(), machine.name(), &rig.binary())?;
        let ca = content.ca();
        session.publish(&release()?, |directory| serve_forge_here(ca, directory), &ca.pem_path())?;
        Ok(Self { session, watch: Arc::clone(rig.watch()) })
    }

    /// Types `text` into a shell, which ends with the first command that fails, and then the `answers`.
    fn types(&self, text: &str, answers: &str) -> Result<CommandOutput> {
        let mut shell = self.session.shell()?;
        let output = self.watch.output(shell.arg(format!("{{\n{text}\n}} << 'ANSWERS'\n{answers}\nANSWERS")))?;
        Ok(CommandOutput::of(&output))
    }

    /// Types the blocks one after the other; all must succeed.
    pub(super) fn succeeds(&self, blocks: &[Block]) -> Result<CommandOutput> {
        self.ends(0, Block::Lab, blocks, "")
    }

    /// Types the blocks into a shell that knows the variables of the block `known`; it must end with `code`.
    fn ends(&self, code: i32, known: Block, blocks: &[Block], answers: &str) -> Result<CommandOutput> {
        let texts = blocks.iter().map(|block| block.text()).collect::<Result<Vec<_>>>()?;
        let printed = self.types(&[vec![known.variables()?], texts].concat().join("\n"), answers)?;
        ensure!(printed.code == code, "{blocks:?} ended with {}:\n{}", printed.code, printed.text);
        Ok(printed)
    }

    /// Types a text that is on no page of these as a whole; it must succeed.
    pub(super) fn does(&self, text: &str) -> Result<CommandOutput> {
        let printed = self.types(text, "")?;
        ensure!(printed.code == 0, "it ended with {}: {text}\n{}", printed.code, printed.text);
        Ok(printed)
    }

    /// Types a `text` that restarts the VM, and waits for the new boot as the page on ways in says.
    pub(super) fn restarts(&self, text: &str) -> Result<()> {
        let reset = Block::Reset.text()?;
        let (old, _) = reset.split_once("gcloud compute instances reset").context("the block has no reset")?;
        self.does(&[old, text, &Block::Wait.text()?].join("\n"))?.has(&["ready"]).map(drop)
    }
}

/// The address of the release, as the README's first block sets it.
fn release() -> Result<String> {
    let variables = Block::QuickStart.variables()?;
    let found = variables.lines().find_map(|line| line.strip_prefix("export RELEASE="));
    found.map(str::to_owned).context("the README does not set RELEASE")
}

/// From nothing to a gateway in a browser; then through an update, a failure, and a new VM with the old disk.
pub(super) fn script_from_top_to_bottom(rig: &Rig) -> Result<()> {
    let reader = Reader::of(rig)?;
    let script = |code, block, answers| reader.ends(code, Block::QuickStart, &[block], answers);
    let made = script(0, Block::QuickStart, "")?;
    made.has(&["+ gcloud compute instances create", "ready after", "Next: sh openclaw-gcp open"])?;
    is_ready(rig)?;
    let token = rig.shell(TOKEN)?;
    opens_the_control_ui(&reader, &token).context("opening the Control UI")?;
    approves_a_client(rig).context("approving a client")?;
    operations::looked_at_and_backed_up(&reader, rig).context("the page on operations")?;
    script(0, Block::QuickStart, "")?.has(&["The VM openclaw-gateway is there", "ready after"])?;

    script(0, Block::Update, "")?.has(&["ready after"])?;
    is_ready(rig).context("when the wait after a restart has ended")?;
    let version =
        "curl -s -H 'Metadata-Flavor: Google' 169.254.169.254/computeMetadata/v1/instance/attributes/openclaw-version";
    ensure!(rig.shell(version)? == "2026.9.6", "the version was not asked for");
    saw_the_old_result(&reader, rig, "stop")?;
    rig.attribute("openclaw-port=banana")?;
    let failed = script(1, Block::Update, "")?;
    failed.has(&["failed:config-invalid after", "banana", "Correct it with", "/docs/failures.md"])?;

    script(1, Block::Delete, "no")?.has(&["nothing was deleted"])?;
    script(1, Block::Delete, "y\nyes")?.has(&["+ gcloud compute instances delete", "nothing was deleted"])?;
    script(0, Block::QuickStart, "")?.has(&["is used with what it holds", "ready after"])?;
    is_ready(rig).context("with the old disk")?;
    ensure!(rig.shell(TOKEN)? == token, "it is another gateway");
    script(0, Block::Delete, "y\nopenclaw-gateway-data")?.has(&["+ gcloud compute disks delete"])?;
    script(0, Block::Delete, "").map(drop).context("deleting what is not there")
}

/// Written into the Control UI, by Chromium at the other end of the tunnel and connected by the link alone, and
/// answered by a model; then the VM is deleted, and another one with the same disk goes on with it, in another browser.
pub(super) fn conversation_outlives_its_vm(rig: &Rig) -> Result<()> {
    let (reader, browser) = (Reader::of(rig)?, Browser::prepare(&Cache::from_env()?)?);
    let create = || reader.ends(0, Block::QuickStart, &[Block::QuickStart], "");
    create()?;
    let token = rig.shell(TOKEN)?;
    choose_model(rig).context("choosing a model")?;
    let first = "the first VM heard this";
    chats(&reader, &browser, first, 1).context("a first message")?;

    let delete = [&Block::QuickStart.variables()?, "sh openclaw-gcp delete"].join("\n");
    let deleted = reader.types(&delete, "y")?;
    ensure!(deleted.code == 0, "delete ended with {}: {}", deleted.code, deleted.text);
    deleted.has(&["+ gcloud compute instances delete", "The data disk openclaw-gateway-data stays"])?;
    create()?.has(&["is used with what it holds", "ready after"])?;
    ensure!(rig.shell(TOKEN)? == token, "it is another gateway");
    let page = chats(&reader, &browser, "and this the second", 2).context("a message to the second VM")?;
    page.has(&[first, &model_provider::answer(1, first)]).context("the conversation before").map(drop)
}

/// What a person does in Model Setup.
fn choose_model(rig: &Rig) -> Result<()> {
    let settings = model_provider::settings(model_provider::KEY);
    for (path, value) in [
        ("models.providers", &settings["models"]["providers"]),
        ("agents.defaults.model", &settings["agents"]["defaults"]["model"]),
    ] {
        rig.shell(&format!("openclaw config set --strict-json {path} '{value}'"))?;
    }
    rig.boot(0).map(drop)
}

/// Writes `message`, the conversation's `count`th, with a browser that was never there; its answer must be shown.
fn chats(reader: &Reader, browser: &Browser, message: &str, count: usize) -> Result<CommandOutput> {
    let page = open(
        reader,
        &browser.chat(None, "", &[model_provider::MARK, message].concat(), &model_provider::answer(count, message)),
    )?;
    let picture = browser.keep_picture(&format!("openclaw-lab-control-ui-{count}.png"));
    ensure!(page.code == 0, "the page shows {}", page.text);
    println!("browser: the page after message {count} is in {}", picture?.display());
    ensure!(!page.text.contains("pairing required"), "the browser was not connected: {}", page.text);
    Ok(page)
}

/// The program as startup script, then the loader with a bucket, by plain commands: each on a new machine.
pub(super) fn plain_ways(rig: &Rig) -> Result<()> {
    let reader = Reader::of(rig)?;
    reader.succeeds(&[Block::Upload, Block::BinaryWay, Block::Wait])?.has(&["ready"])?;
    is_ready(rig)?;
    control_ui_is_at_the_other_end(&reader).context("the tunnel")?;
    rig.lab_ends(0, "down", &[])?;
    let known = |blocks| reader.ends(0, Block::Upload, blocks, "");
    known(&[Block::LoaderWay, Block::Wait])?.has(&["ready"])?;
    is_ready(rig)?;
    known(&[Block::Reset, Block::Wait])?.has(&["ready"])?;
    is_ready(rig).context("when the wait after a reset has ended")?;
    saw_the_old_result(&reader, rig, "reset")?;
    operations::another_machine_and_account(&reader, rig).context("the page on operations")
}

/// The wait was put to the test: right after the reset or stop it was shown the `ready` of the boot before.
fn saw_the_old_result(reader: &Reader, rig: &Rig, verb: &str) -> Result<()> {
    let calls = reader.session.calls()?;
    let (_, after) = calls.rsplit_once(&format!("\n{verb}\n")).with_context(|| format!("there was no {verb}"))?;
    let first = after.split("get-guest-attributes").nth(1).unwrap_or_default();
    let boot_id = rig.shell("cat /proc/sys/kernel/random/boot_id")?;
    ensure!(first.contains("result\tready") && !first.contains(&boot_id), "the first answer after the {verb}: {first}");
    Ok(())
}

/// The link has the gateway's token, the page at it is the Control UI, and the gateway's state is shown.
fn opens_the_control_ui(reader: &Reader, token: &str) -> Result<()> {
    let token = token.split_once('=').map(|(_, token)| token).context("the gateway has no token")?;
    let printed = open(reader, &["curl", "--silent", "--fail"].map(str::to_owned))?;
    printed.has(&["<html", &format!("http://localhost:18789/#token={token}"), "gateway: ready"]).map(drop)
}

/// Opens it with the README's command, and visits the link that it prints with the command `visitor`.
fn open(reader: &Reader, visitor: &[String]) -> Result<CommandOutput> {
    let command = [Block::QuickStart.variables()?, Block::Open.text()?].join("\n");
    in_a_network_of_its_own(reader, OPEN, &[&[command], visitor].concat())
}

fn control_ui_is_at_the_other_end(reader: &Reader) -> Result<()> {
    in_a_network_of_its_own(reader, VISIT, &[Block::Tunnel.text()?])?.has(&["<html"]).map(drop)
}

/// Runs a script with `arguments` where no other tunnel can have the port.
fn in_a_network_of_its_own(reader: &Reader, script: &str, arguments: &[String]) -> Result<CommandOutput> {
    let mut shell = reader.session.shell()?;
    shell.arg("exec unshare --net sh -c \"$0\" script \"$@\"").arg(script).args(arguments);
    Ok(CommandOutput::of(&reader.watch.output(&mut shell)?))
}

/// The line with the gateway's token.
const TOKEN: &str = "grep ^OPENCLAW_GATEWAY_TOKEN= /home/node/.openclaw/.env";
/// Opens the Control UI with the script, and visits the link that it prints.
const OPEN: &str = include_str!("../../scripts/readme/open-control-ui.sh");
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
    fn every_block_of_the_pages_is_known_and_short() {
        for block in PAGES.into_iter().flat_map(blocks) {
            let known: Vec<_> = Block::ALL.iter().filter(|known| block.contains(known.mark())).collect();
            assert_eq!(known.len(), 1, "{known:?} is this block:\n{block}");
            assert!(block.lines().count() <= 10, "more than ten lines:\n{block}");
        }
        for block in Block::ALL {
            assert!(block.text().is_ok(), "{block:?} is on no page");
        }
        let fences: usize = PAGES.map(|page| page.matches("```").count()).into_iter().sum();
        assert_eq!(fences, 2 * Block::ALL.len());
    }

    #[test]
    fn variables_are_what_a_later_block_needs() -> Result<()> {
        assert!(Block::QuickStart.variables()?.starts_with("export PROJECT="));
        assert_eq!(Block::Upload.variables()?.lines().count(), 3);
        assert!(release()?.starts_with("https://github.com/"));
        Ok(())
    }
}
