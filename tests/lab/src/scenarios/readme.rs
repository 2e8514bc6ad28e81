//! Somebody who types the commands of the pages, in their order.
//!
//! `gcloud`, `packer` and `cargo` are the lab's (see [`crate::workstation`]); a command for the VM runs in the machine.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};

use super::checks::is_ready;
use super::operations;
use super::pages::Block;
use super::rig::{CommandOutput, Rig};
use crate::cache::Cache;
use crate::cloud::content::Content;
use crate::cloud::{model_provider, serve_forge_here};
use crate::host;
use crate::watch::Watch;
use crate::workstation::{Browser, Session};

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

    /// Types `text` into a shell that knows the quick start's variables, then the `answers`. It ends with the first
    /// command that fails.
    fn types(&self, text: &str, answers: &str) -> Result<CommandOutput> {
        let mut shell = self.session.shell()?;
        let text = [&*Block::QuickStart.variables()?, text].join("\n");
        let output = self.watch.output(shell.arg(format!("{{\n{text}\n}} << 'ANSWERS'\n{answers}\nANSWERS")))?;
        Ok(CommandOutput::of(&output))
    }

    /// Pastes each block twice, one after the other into one shell; all must succeed.
    pub(super) fn pastes(&self, blocks: &[Block]) -> Result<CommandOutput> {
        self.does(&twice(blocks)?)
    }

    /// Types a block, and the `answers` to what it asks; it must end with `code`.
    pub(super) fn ends(&self, code: i32, block: Block, answers: &str) -> Result<CommandOutput> {
        let printed = self.types(&block.text()?, answers)?;
        ensure!(printed.code == code, "{block:?} ended with {}:\n{}", printed.code, printed.text);
        Ok(printed)
    }

    /// Types a text that is on no page as a whole; it must succeed.
    pub(super) fn does(&self, text: &str) -> Result<CommandOutput> {
        let printed = self.types(text, "")?;
        ensure!(printed.code == 0, "it ended with {}: {text}\n{}", printed.code, printed.text);
        Ok(printed)
    }

    /// Types a `text` that restarts the VM, and waits for the new boot as the page with plain commands says.
    pub(super) fn restarts(&self, text: &str) -> Result<()> {
        let reset = Block::Reset.text()?;
        let (old, _) = reset.split_once("gcloud compute instances reset").context("the block has no reset")?;
        self.does(&[old, text, &Block::Wait.text()?].join("\n"))?.has(&["ready"]).map(drop)
    }
}

/// The text of the blocks, each pasted twice.
pub(super) fn twice(blocks: &[Block]) -> Result<String> {
    Ok(blocks.iter().map(|block| block.twice()).collect::<Result<Vec<_>>>()?.join("\n"))
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
    let made = reader.ends(0, Block::QuickStart, "")?;
    made.has(&["+ gcloud compute instances create", "ready after", "Next: sh openclaw-gcp open"])?;
    is_ready(rig)?;
    let token = rig.shell(TOKEN)?;
    for time in ["", "again"] {
        opens_the_control_ui(&reader, "", &token).context(time).context("opening the Control UI")?;
    }
    approves_a_client(&reader, rig).context("approving a client")?;
    operations::looked_at_and_backed_up(&reader, rig).context("the pages for later")?;
    reader.ends(0, Block::QuickStart, "")?.has(&["The VM openclaw-gateway is there", "ready after"])?;
    stopped_and_off(&reader, rig).context("a gateway that is stopped, a VM that is off")?;
    updates_and_fails(&reader, rig).context("an update")?;

    reader.ends(1, Block::Delete, "no")?.has(&["nothing was deleted"])?;
    let deleted = reader.ends(1, Block::Delete, "y\nyes")?;
    deleted.has(&["+ gcloud compute instances delete", "nothing was deleted"])?;
    without_an_address(&reader, rig, &token).context("a VM without an external address")?;
    reader.ends(0, Block::Delete, "y\nopenclaw-gateway-data")?.has(&["+ gcloud compute disks delete"])?;
    reader.ends(0, Block::Delete, "")?.has(&["There is no VM openclaw-gateway and no disk"])?;
    ["y\ny", ""].into_iter().try_for_each(|answers| reader.ends(0, Block::NoNat, answers).map(drop))
}

/// What the script says of them, and how they are ready again.
fn stopped_and_off(reader: &Reader, rig: &Rig) -> Result<()> {
    let says = |code: i32, command: &str, words: &[&str]| {
        let printed = reader.types(&format!("sh openclaw-gcp {command}"), "")?;
        ensure!(printed.code == code, "{command} ended with {}:\n{}", printed.code, printed.text);
        printed.has(words).map(drop)
    };
    says(0, "status", &["vm       RUNNING", "state    ready"])?;
    rig.shell("openclaw-init stop")?;
    says(1, "status", &["state    stopped", "openclaw-init boot"])?;
    rig.boot(0)?;
    says(0, "status", &["state    ready"])?;
    reader.does("gcloud compute instances stop \"$VM\" --project=\"$PROJECT\" --zone=\"$ZONE\"")?;
    says(1, "status", &["TERMINATED", "is off: sh openclaw-gcp create starts it"])?;
    says(1, "wait", &["is off (TERMINATED)"])?;
    says(0, "create", &["+ gcloud compute instances start"])?;
    says(0, "wait", &["ready after"])?;
    is_ready(rig).context("when the wait after a start has ended")
}

fn updates_and_fails(reader: &Reader, rig: &Rig) -> Result<()> {
    reader.pastes(&[Block::Update])?.has(&["ready after"])?;
    is_ready(rig).context("when the wait after a restart has ended")?;
    let version =
        "curl -s -H 'Metadata-Flavor: Google' 169.254.169.254/computeMetadata/v1/instance/attributes/openclaw-version";
    ensure!(rig.shell(version)? == "2026.9.6", "the version was not asked for");
    saw_the_old_result(reader, rig, "stop")?;
    rig.attribute("openclaw-port=banana")?;
    let failed = reader.ends(1, Block::Update, "")?;
    failed.has(&["failed:config-invalid after", "banana", "Correct it with", "/docs/failures.md"])?;
    let status = reader.types("unset RELEASE\nsh openclaw-gcp status", "")?;
    ensure!(status.code == 1, "status ended with {}:\n{}", status.code, status.text);
    status
        .has(&["code     config-invalid", "banana", "/blob/main/docs/failures.md", "get-serial-port-output"])
        .map(drop)
}

/// Another VM with the old disk, reached through IAP alone.
fn without_an_address(reader: &Reader, rig: &Rig, token: &str) -> Result<()> {
    let made = reader.pastes(&[Block::Nat, Block::NoAddress])?;
    made.has(&["--no-address", "is used with what it holds", "The VM openclaw-gateway is there", "ready after"])?;
    is_ready(rig).context("with the old disk")?;
    ensure!(rig.shell(TOKEN)? == token, "it is another gateway");
    let text = Block::NoAddress.text()?;
    let flags = text.lines().next().context("the block has no line")?;
    opens_the_control_ui(reader, flags, token)
}

/// Written into the Control UI, by Chromium at the other end of the tunnel and connected by the link alone, and
/// answered by a model; then the VM is deleted, and another one with the same disk goes on with it, in another browser.
pub(super) fn conversation_outlives_its_vm(rig: &Rig) -> Result<()> {
    let (reader, browser) = (Reader::of(rig)?, Browser::prepare(&Cache::from_env()?)?);
    let create = || reader.ends(0, Block::QuickStart, "");
    create()?;
    let token = rig.shell(TOKEN)?;
    choose_model(rig).context("choosing a model")?;
    let first = "the first VM heard this";
    chats(&reader, &browser, first, 1).context("a first message")?;

    let deleted = reader.types("sh openclaw-gcp delete", "y")?;
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
        &Block::Open.text()?,
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
    reader.pastes(&[Block::Upload, Block::BinaryWay, Block::Wait])?.has(&["ready"])?;
    is_ready(rig)?;
    operations::format_taken_back(rig).context("taking a format back")?;
    rig.lab_ends(0, "down", &[])?;
    let known = Block::Upload.variables()?;
    reader.does(&[known, twice(&[Block::LoaderWay, Block::Wait])?].join("\n"))?.has(&["ready"])?;
    is_ready(rig)?;
    reader.pastes(&[Block::Reset, Block::Wait])?.has(&["ready"])?;
    is_ready(rig).context("when the wait after a reset has ended")?;
    saw_the_old_result(&reader, rig, "reset")?;
    operations::another_machine_and_account(&reader, rig).context("the pages for later")
}

/// The wait was put to the test: right after the reset or stop it was shown the `ready` of the boot before.
pub(super) fn saw_the_old_result(reader: &Reader, rig: &Rig, verb: &str) -> Result<()> {
    let calls = reader.session.calls()?;
    let (_, after) = calls.rsplit_once(&format!("\n{verb}\n")).with_context(|| format!("there was no {verb}"))?;
    let first = after.split("get-guest-attributes").nth(1).unwrap_or_default();
    let boot_id = rig.shell("cat /proc/sys/kernel/random/boot_id")?;
    ensure!(first.contains("result\tready") && !first.contains(&boot_id), "the first answer after the {verb}: {first}");
    Ok(())
}

/// The link has the gateway's token, the page at it is the Control UI, and the gateway's state is shown. The shell has
/// read the line `before`, too.
fn opens_the_control_ui(reader: &Reader, before: &str, token: &str) -> Result<()> {
    let token = token.split_once('=').map(|(_, token)| token).context("the gateway has no token")?;
    let visitor = ["curl", "--silent", "--fail"].map(str::to_owned);
    let printed = open(reader, &[before, &Block::Open.text()?].join("\n"), &visitor)?;
    printed.has(&["<html", &format!("http://localhost:18789/#token={token}"), "gateway: ready"]).map(drop)
}

/// Opens it with the `command` of a page, and visits the link that it prints with the command `visitor`.
pub(super) fn open(reader: &Reader, command: &str, visitor: &[String]) -> Result<CommandOutput> {
    let command = [&*Block::QuickStart.variables()?, command].join("\n");
    in_a_network_of_its_own(reader, OPEN, &[&[command], visitor].concat())
}

/// Where a proxy serves the gateway the script's command ends, with the proxy's link.
pub(super) fn opens_without_a_tunnel(reader: &Reader) -> Result<CommandOutput> {
    let known = Block::QuickStart.variables()?;
    reader.does(&[&*known, "curl -fsSLO \"$RELEASE/openclaw-gcp\""].join("\n"))?;
    let script = ["ip link set lo up", &known, &Block::Open.text()?].join("\n");
    in_a_network_of_its_own(reader, &script, &[])
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
/// Waits until it is let in.
const APPROVED: &str =
    "timeout 90 sh -c 'until openclaw devices list </dev/null | grep -F \"Paired (1)\"; do sleep 2; done'";
/// Waits until it was refused.
const REFUSED: &str = include_str!("../../scripts/readme/wait-until-refused.sh");

/// A new client is refused until its request, which is shown on the VM, is approved from outside.
fn approves_a_client(reader: &Reader, rig: &Rig) -> Result<()> {
    rig.script(CLIENT, &[])?;
    rig.script(REFUSED, &[]).context("a new client is not refused")?;
    let [list, approve] = [Block::Ask, Block::Approve].map(|block| block.text().map(|it| it.replace("sudo ", "")));
    // Without a terminal nobody is asked, and it ends as if somebody had said no.
    let listed = rig.lab("exec", &["--", "sh", "-c", &list?])?.text;
    let id = uuid(&listed).with_context(|| format!("no request is listed: {listed}"))?;
    reader.does(&Block::ApproveFromOutside.twice()?.replace("=ID", &format!("={id}")))?;
    rig.shell(APPROVED)?;
    rig.shell("docker rm --force client")?;
    let again = rig.lab("exec", &["--", "sh", "-c", &approve?.replace("ID", &id)])?;
    ensure!(again.code != 0, "it was approved twice: {}", again.text);
    again.has(&["nothing was approved"]).map(drop)
}

/// The first word that looks like a UUID.
fn uuid(text: &str) -> Option<String> {
    let words = text.split(|c: char| !c.is_ascii_hexdigit() && c != '-');
    let is_uuid = |word: &&str| word.len() == 36 && word.matches('-').count() == 4;
    words.into_iter().find(is_uuid).map(str::to_owned)
}
