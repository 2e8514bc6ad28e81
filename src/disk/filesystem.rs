//! What a disk needs before it can be mounted; making and checking its ext4 file system.

use std::ffi::OsStr;
use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

use super::find::{self, Device};
use super::format_intent::{self, Intent};
use super::marker::MARKER;
use super::probe::{self, Content, Superblock};
use super::proof::{self, Finding, Reading, Written};
use super::undo;
use crate::config::ProofChoice;
use crate::error::{Classify as _, Code, Diagnosis, RUN_AGAIN, io_kind};
use crate::host::{Access, Host, blocking, remove_if_exists};
use crate::paths::{BOOT_DISK_DIR, E2FSCK_UNDO, MKFS_LAYOUT, VOLUME_DIRS};
use crate::text::{self, tail};

/// The label of the file systems that this program makes.
pub(super) const LABEL: &str = "openclaw-data";

/// Where the kernel cannot do it later, mkfs writes the whole inode table.
const MKFS_TIMEOUT: Duration = Duration::from_secs(600);
/// A check after an accident reads all metadata. Less than the deadline of the run.
const FSCK_TIMEOUT: Duration = Duration::from_secs(2400);

/// How much of e2fsck's output goes into a message: its end, where the reason is.
const OUTPUT_BYTES: usize = 400;

/// What a disk needs before it can be mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Preparation {
    /// Blank at both ends: prove that all of it is, then make the file system.
    Format,
    /// A format of ours was cut: prove that nothing else is on the disk, then make it again.
    FormatAgain,
    /// Ours: let e2fsck make it safe.
    Check,
    /// Somebody else's, whole and clean: add our directories, change nothing else.
    Adopt,
}

/// What a node holds that can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Usable {
    /// A file system, or room for one.
    Here(Preparation),
    /// A table with one partition, which decides.
    InPartition,
}

/// Decides from what was found. `is_marked`: our marker file is on that ext4 file system. The error says what is there.
fn decide(content: &Content, is_marked: bool, partitions: usize, intent: Intent) -> Result<Usable> {
    use Preparation::{Adopt, Check, Format, FormatAgain};
    if intent == Intent::Ours && partitions == 0 && may_be_cut_format(content) {
        return Ok(Usable::Here(FormatAgain));
    }
    let found = match content {
        Content::Blank if partitions == 0 => return Ok(Usable::Here(Format)),
        Content::Table(_) if partitions == 1 => return Ok(Usable::InPartition),
        Content::Ext4(superblock) if superblock.truncated => {
            return Err(anyhow!("its ext4 file system is larger than the disk")).classify(
                Code::DiskDamaged,
                "The disk was cut short: attach the whole one, or restore it from a snapshot.",
            );
        }
        Content::Ext4(superblock) if intent == Intent::Foreign && !superblock.used => FOREIGN_FORMAT.to_owned(),
        Content::Ext4(superblock) if superblock.label == LABEL || is_marked => return Ok(Usable::Here(Check)),
        Content::Ext4(superblock) if superblock.clean => return Ok(Usable::Here(Adopt)),
        Content::Ext4(_) => "an ext4 file system of somebody else that was not unmounted cleanly".to_owned(),
        Content::Blank => format!("zeros, but {partitions} partitions in the kernel's table"),
        Content::Table(table) => format!("a partition table ({table}) with {partitions} partitions"),
        Content::Unknown(_) if intent == Intent::Foreign => FOREIGN_FORMAT.to_owned(),
        Content::Unknown(at) => unknown(*at),
        Content::Other(found) if ["ext2", "ext3"].contains(&found.as_str()) => {
            format!("an {found} file system: only ext4 is used, and nothing is converted")
        }
        Content::Other(found) => found.clone(),
    };
    bail!("{found}")
}

fn unknown(at: u64) -> String {
    format!("no known signature, but a non-zero byte at offset {at}")
}

/// A cut format that this boot disk knows nothing of.
const FOREIGN_FORMAT: &str = "the remains of a format that another machine began, or this one with another boot disk";

/// Whether our own mkfs can have left this when it was cut: no signature, or the file system, never mounted.
fn may_be_cut_format(content: &Content) -> bool {
    match content {
        Content::Blank | Content::Unknown(_) => true,
        Content::Ext4(superblock) => superblock.label == LABEL && !superblock.used,
        Content::Table(_) | Content::Other(_) => false,
    }
}

/// Looks at an unmounted disk: the node to mount, of the disk or of its only partition, and what it needs before.
/// Nothing is written.
pub(super) async fn inspect(host: &Host, device: &Device) -> Result<(PathBuf, Preparation)> {
    if let Usable::Here(preparation) = inspect_node(host, &device.node, device.partitions()).await? {
        return Ok((device.node.clone(), preparation));
    }
    let node = device.only_partition(host)?;
    match inspect_node(host, &node, 0).await? {
        Usable::Here(preparation @ (Preparation::Check | Preparation::Adopt)) => Ok((node, preparation)),
        Usable::Here(Preparation::Format | Preparation::FormatAgain) | Usable::InPartition => {
            refuse(anyhow!("an empty partition"), &node)
        }
    }
}

async fn inspect_node(host: &Host, node: &Path, partitions: usize) -> Result<Usable> {
    let content = probe::content(host, node).await?;
    let is_marked = matches!(&content, Content::Ext4(found) if found.label != LABEL) && is_marked(host, node).await?;
    let intent = match content {
        Content::Unknown(_) | Content::Ext4(_) => format_intent::read(host, node).await?,
        _ => Intent::None,
    };
    decide(&content, is_marked, partitions, intent)
        .or_else(|error| if error.is::<Diagnosis>() { Err(error) } else { refuse(error, node) })
}

fn refuse<T>(found: anyhow::Error, node: &Path) -> Result<T> {
    let node = node.display();
    Err(found.context(format!("{node} is neither blank nor ours, and was not touched; found"))).classify(
        Code::DiskForeign,
        format!(
            "Look at it with `blkid -p {node}` and `wipefs --no-act {node}`. An ext4 file system that is to be used: run \
             `e2fsck -f {node}`, then `{RUN_AGAIN}`. Something that nobody needs: attach a new, blank disk in its place. \
             Otherwise name another disk in openclaw-data-disk."
        ),
    )
}

/// Whether our marker file is on an unmounted ext4 file system, read without replaying its journal.
async fn is_marked(host: &Host, node: &Path) -> Result<bool> {
    // Not its content, of which there may be any amount; an unreadable marker is still a marker.
    let mut is_regular = false;
    debugfs(host, node, &format!("stat /{MARKER}"), |line| is_regular |= line.contains("Type: regular")).await?;
    Ok(is_regular)
}

/// What debugfs says of its errors; `on_line` gets what it finds, of which there may be any amount.
async fn debugfs(host: &Host, node: &Path, request: &str, on_line: impl FnMut(&str)) -> Result<String> {
    let debugfs = host.command("debugfs").args(["-R", request]).arg(node).answers(&[1]);
    match debugfs.run_lines(on_line).await {
        Ok(output) => Ok(output.stderr),
        Err(error) => refuse(error.context("an ext4 file system at which debugfs cannot look"), node),
    }
}

/// Refuses a file system of somebody else in which names of ours are taken: what is there is not ours to use.
async fn check_names(host: &Host, node: &Path) -> Result<()> {
    let mut taken = Vec::new();
    for name in VOLUME_DIRS {
        // Each by itself: there is no limit to the length of a directory.
        let mut is_found = false;
        let on_line = |line: &str| is_found |= line.contains("is part of block group");
        let errors = debugfs(host, node, &format!("imap /{name}"), on_line).await?;
        if is_found {
            taken.push(name);
        } else if !errors.contains("File not found") {
            return refuse(anyhow!("an ext4 file system whose top directory cannot be read"), node);
        }
    }
    if taken.is_empty() { Ok(()) } else { refuse_names(node, &taken.join(", ")) }
}

/// `place`: the node, or where it is mounted.
pub(super) fn refuse_names<T>(place: &Path, taken: &str) -> Result<T> {
    let place = place.display();
    Err(anyhow!("the ext4 file system of somebody else on {place} has these names already: {taken}")).classify(
        Code::DiskForeign,
        format!(
            "Mount it elsewhere and rename them, or attach another disk; then run `{RUN_AGAIN}`. A disk of this program \
             that has lost its marker: make an empty file {MARKER} on it instead."
        ),
    )
}

/// Proves that the disk is blank but for what is `written`, as far as `choice` asks for it; its answer is a clause for
/// the report.
pub(super) async fn prove(host: &Host, node: &Path, choice: ProofChoice, written: Written) -> Result<String> {
    match proof::read(host, node, choice, written).await? {
        Finding::NonZero(at) => refuse(anyhow!("{}", unknown(at)), node),
        Finding::Zeros(proof) => {
            if proof.reading == Reading::Sampled {
                host.warn(format!("before {} was formatted, only samples of it were read: {proof}", node.display()));
            }
            Ok(proof.to_string())
        }
        Finding::Unproven(estimates) => Err(anyhow!("{} is not proven to be blank: {estimates}", node.display()))
            .classify(
                Code::DiskUnproven,
                format!(
                    "Set openclaw-data-disk-proof to full, to have every block read however long that takes, or to sampled; \
                     or attach a faster disk. Then run `{RUN_AGAIN}`."
                ),
            ),
    }
}

/// Where a format of ours writes on the disk `node`: mkfs shows it on a file of holes of the same size.
pub(super) async fn written_by_mkfs(host: &Host, node: &Path) -> Result<Written> {
    let size = probe::size_of(node).await?;
    let layout = host.path(MKFS_LAYOUT);
    forget(&layout).await?;
    let made = layout.clone();
    blocking(move || Ok(File::create_new(made)?.set_len(size)?))
        .await
        .with_context(|| format!("making a file of {}", text::size(size)))
        .classify(
            Code::DiskUnproven,
            "What a format left on so large a disk cannot be told from data: attach a blank one.",
        )?;
    let read = layout.clone();
    let written = async {
        mkfs(host, &layout, None).await?;
        blocking(move || Written::in_file(&File::open(read)?)).await
    };
    let written = written.await;
    forget(&layout).await?;
    let (declared, length) = format_intent::place(size);
    let written = classify_format(written.context("looking where mkfs writes"))?;
    Ok(written.and(declared, length))
}

/// Classifies what kept a file system from being made. What ended mkfs from outside has no code: the next run goes on.
pub(super) fn classify_format<T>(outcome: Result<T>) -> Result<T> {
    let Err(error) = outcome else { return outcome };
    // In the kernel's words, which a program repeats.
    let words = format!("{error:#}");
    let (code, remedy) = if error.is::<Diagnosis>() {
        return Err(error);
    } else if words.contains("No space left on device") {
        (Code::NoSpace, format!("Make room in {BOOT_DISK_DIR}"))
    } else if words.contains("Input/output error") {
        (Code::DiskDamaged, "The disk cannot be written: see `dmesg`, and attach another one if it says no more".into())
    } else {
        return Err(error);
    };
    Err(error).classify(code, format!("{remedy}; then run `{RUN_AGAIN}`."))
}

/// Runs mkfs, which keeps what it overwrites in `undo`.
async fn mkfs(host: &Host, node: &Path, undo: Option<&Path>) -> Result<()> {
    let undo_args = undo.iter().flat_map(|undo| [OsStr::new("-z"), undo.as_os_str()]);
    // No -F: mkfs may refuse for its own reasons. A blank disk has nothing to discard and nothing to overwrite.
    let made = host
        .command("mkfs.ext4")
        .args(["-q", "-m", "0", "-L", LABEL, "-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=1"])
        .args(undo_args)
        .arg(node)
        .timeout(MKFS_TIMEOUT)
        .run()
        .await
        .with_context(|| format!("formatting {}", node.display()))
        .map(drop);
    match made {
        Err(error) if io_kind(error.root_cause()) == Some(ErrorKind::NotFound) => Err(error).classify(
            Code::UnsupportedSystem,
            format!("Run `sudo apt-get install e2fsprogs`, then run `{RUN_AGAIN}`."),
        ),
        made => made,
    }
}

/// Makes the file system on a disk that is proven to be blank, or to hold only an interrupted format of ours.
/// `grounds` says which, for the report; what is overwritten is kept in `undo`.
pub(super) async fn format(host: &Host, node: &Path, undo: Option<&Path>, grounds: &str) -> Result<()> {
    let display_node = node.display();
    host.progress(format!("formatting {display_node}"));
    mkfs(host, node, undo).await?;
    host.changed(format!("formatted {display_node} as ext4: {grounds}"));
    find::udevadm(host, &["settle", "--timeout=5"]).await;
    let uuid = match probe::content(host, node).await? {
        Content::Ext4(Superblock { label, uuid, .. }) if label == LABEL => uuid,
        found => bail!("after formatting {display_node} there is {found:?} on it"),
    };
    if let Some(undo) = undo {
        undo::complete(host, undo, &uuid).await?;
    }
    format_intent::withdraw(node).await
}

/// What e2fsck's exit code means for us (e2fsck(8); the codes are bits).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FsckOutcome {
    Clean,
    /// 1 and 2: errors corrected.
    Repaired,
    /// 4, and every unknown code: errors left.
    Damaged,
    /// 8: it could not do its work.
    Failed,
}

impl FsckOutcome {
    fn of_exit_code(code: i32) -> Self {
        match code {
            0 => Self::Clean,
            1..=3 => Self::Repaired,
            8..=11 => Self::Failed,
            _ => Self::Damaged,
        }
    }
}

/// Checks an unmounted file system of ours and repairs what is safe to repair. One that cannot be made safe is left as
/// it was: what e2fsck has written by then is undone.
pub(super) async fn check(host: &Host, node: &Path) -> Result<()> {
    let display_node = node.display();
    host.progress(format!("checking {display_node}"));
    host.ensure_dir(BOOT_DISK_DIR, Access::root(0o700)).await?;
    let undo = host.path(E2FSCK_UNDO);
    forget(&undo).await?;
    let preen = [OsStr::new("-p"), OsStr::new("-z"), undo.as_os_str()];
    let (mut outcome, mut output) = e2fsck(host, &preen, node).await;
    match outcome {
        FsckOutcome::Damaged => {
            host.extend_deadline(2 * FSCK_TIMEOUT);
            if let Err(error) = take_back(host, &undo, node).await {
                host.warn(format!("what e2fsck wrote to {display_node} could not be undone: {error:#}"));
            }
        }
        // Possibly for lack of space for the undo file.
        FsckOutcome::Failed => (outcome, output) = e2fsck(host, &preen[..1], node).await,
        FsckOutcome::Clean | FsckOutcome::Repaired => {}
    }
    forget(&undo).await?;
    match outcome {
        FsckOutcome::Clean => {
            // After a power cut; e2fsck counts it as no correction.
            if output.contains("recovering journal") {
                host.changed(format!("replayed the journal of {display_node}"));
            }
            Ok(())
        }
        FsckOutcome::Repaired => {
            host.changed(format!("repaired the file system on {display_node}"));
            host.warn(format!("e2fsck repaired the file system on {display_node}: {output}"));
            Ok(())
        }
        FsckOutcome::Damaged | FsckOutcome::Failed => {
            Err(anyhow!("e2fsck could not make {display_node} safe, so it was not mounted: {output}")).classify(
                Code::DiskDamaged,
                format!("Take a snapshot of the disk, then run `e2fsck {display_node}` by hand and `{RUN_AGAIN}`."),
            )
        }
    }
}

/// Undoes what e2fsck has written.
async fn take_back(host: &Host, undo: &Path, node: &Path) -> Result<()> {
    let e2undo = || host.command("e2undo").timeout(FSCK_TIMEOUT);
    if e2undo().arg(undo).arg(node).run().await.is_ok() {
        return Ok(());
    }
    // When e2fsck was killed, its file is not complete and does not match the disk. Then it notes that a check is due.
    e2undo().arg("-f").arg(undo).arg(node).run().await.map(drop)
}

/// Removes an undo file, if there is one.
async fn forget(undo: &Path) -> Result<()> {
    let undo = undo.to_owned();
    blocking(move || remove_if_exists(&undo)).await.map(drop)
}

/// Checks an unmounted file system of somebody else without writing to it. It is read in full even if it calls itself
/// clean: this happens once in its life.
pub(super) async fn check_foreign(host: &Host, node: &Path) -> Result<()> {
    match e2fsck(host, &["-f", "-n"].map(OsStr::new), node).await {
        (FsckOutcome::Clean, _) => check_names(host, node).await,
        (_, output) => refuse(anyhow!("an ext4 file system with errors ({output})"), node),
    }
}

/// How it ended, and the end of what it printed. One that was killed, or that took too long, leaves errors.
async fn e2fsck(host: &Host, mode: &[&OsStr], node: &Path) -> (FsckOutcome, String) {
    let codes: Vec<i32> = (1..=15).collect();
    let e2fsck = host.command("e2fsck").args(mode).arg(node).answers(&codes).timeout(FSCK_TIMEOUT);
    let output = match e2fsck.run_lines(|_| {}).await {
        Ok(output) => output,
        Err(error) => return (FsckOutcome::Damaged, format!("{error:#}")),
    };
    let printed = if output.stdout.trim().is_empty() { output.stderr } else { output.stdout };
    // Its advice about the undo file is for people who run it by hand.
    let lines = printed.lines().map(str::trim).filter(|line| {
        !line.is_empty() && !line.starts_with("Overwriting existing filesystem") && !line.starts_with("e2undo ")
    });
    let printed = lines.collect::<Vec<_>>().join("; ");
    (FsckOutcome::of_exit_code(output.code), tail(&printed, OUTPUT_BYTES).to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;
    use crate::paths::MKFS_UNDO;

    fn ext4(label: &str, clean: bool, truncated: bool) -> Content {
        let (uuid, label) = ("u".into(), label.into());
        Content::Ext4(Superblock { uuid, label, clean, used: true, truncated, spare: 0 })
    }

    #[test]
    fn only_the_provably_blank_is_formatted() {
        use Preparation::{Adopt, Check, Format};
        let other = Content::Other("xfs".into());
        let table = Content::Table("gpt".into());
        let dirty = "an ext4 file system of somebody else that was not unmounted cleanly";
        let short = "The disk was cut short: attach the whole one, or restore it from a snapshot.";
        let cases = [
            (Content::Blank, false, 0, Ok(Usable::Here(Format))),
            (Content::Blank, false, 1, Err("zeros, but 1 partitions in the kernel's table")),
            (ext4(LABEL, true, false), false, 0, Ok(Usable::Here(Check))),
            (ext4(LABEL, false, false), false, 0, Ok(Usable::Here(Check))),
            (ext4("theirs", false, false), true, 0, Ok(Usable::Here(Check))),
            (ext4("theirs", true, false), false, 0, Ok(Usable::Here(Adopt))),
            (ext4("", false, false), false, 0, Err(dirty)),
            (ext4(LABEL, true, true), false, 0, Err(short)),
            (table.clone(), false, 1, Ok(Usable::InPartition)),
            (table.clone(), false, 0, Err("a partition table (gpt) with 0 partitions")),
            (table, false, 2, Err("a partition table (gpt) with 2 partitions")),
            (Content::Unknown(5), false, 0, Err("no known signature, but a non-zero byte at offset 5")),
            (other, false, 0, Err("xfs")),
            (
                Content::Other("ext3".into()),
                false,
                0,
                Err("an ext3 file system: only ext4 is used, and nothing is converted"),
            ),
        ];
        for (content, marked, partitions, expected) in cases {
            let found = decide(&content, marked, partitions, Intent::None).map_err(|error| error.to_string());
            assert_eq!(found, expected.map_err(str::to_owned), "{content:?}, {marked}, {partitions}");
        }
    }

    #[test]
    fn a_format_is_repeated_only_when_it_was_ours_and_nobody_used_the_disk_since() {
        let unused = match ext4(LABEL, true, false) {
            Content::Ext4(superblock) => Content::Ext4(Superblock { used: false, ..superblock }),
            other => other,
        };
        let cases = [
            (Content::Unknown(5), 0, Intent::Ours, Some(Preparation::FormatAgain)),
            (Content::Unknown(5), 0, Intent::Foreign, None),
            (Content::Unknown(5), 0, Intent::None, None),
            (Content::Unknown(5), 1, Intent::Ours, None),
            (unused.clone(), 0, Intent::Ours, Some(Preparation::FormatAgain)),
            (unused.clone(), 0, Intent::Foreign, None),
            (unused, 0, Intent::None, Some(Preparation::Check)),
            (ext4(LABEL, true, false), 0, Intent::Foreign, Some(Preparation::Check)),
            (ext4(LABEL, true, false), 0, Intent::Ours, Some(Preparation::Check)),
            (ext4("theirs", true, false), 0, Intent::Ours, Some(Preparation::Adopt)),
            (Content::Other("xfs".into()), 0, Intent::Ours, None),
            (Content::Table("dos".into()), 0, Intent::Ours, None),
        ];
        for (content, partitions, intent, expected) in cases {
            let found = decide(&content, false, partitions, intent).ok();
            assert_eq!(found, expected.map(Usable::Here), "{content:?} {intent:?}");
        }
    }

    #[tokio::test]
    async fn a_format_can_be_taken_back_before_the_first_mount() -> Result<()> {
        let root = tempfile::tempdir()?;
        let (host, image) = (Host::new(root.path()), root.path().join("image"));
        File::create_new(&image)?.set_len(1 << 29)?;
        // What samples did not see.
        let write = |offset, bytes: &[u8]| File::options().write(true).open(&image)?.write_all_at(bytes, offset);
        write(3 << 20, b"somebody's")?;
        let before = std::fs::read(&image)?;
        format_intent::declare(&host, &image).await?;
        let undo = undo::begin(&host, &image).await?;
        format(&host, &image, undo.as_deref(), "").await?;
        assert!(std::fs::read(&image)? != before);
        host.command("e2undo").arg(host.path(MKFS_UNDO)).arg(&image).run().await?;
        assert!(std::fs::read(&image)? == before);
        Ok(())
    }

    #[tokio::test]
    async fn a_cut_format_is_repeated_only_on_a_disk_that_holds_nothing_else() -> Result<()> {
        let root = tempfile::tempdir()?;
        let (host, image) = (Host::new(root.path()), root.path().join("image"));
        for (size, somebody_at) in [(1 << 29, 300 << 20), (3 << 30, 3_000_000_000)] {
            File::create(&image)?.set_len(size)?;
            let file = File::options().write(true).open(&image)?;
            format_intent::declare(&host, &image).await?;
            mkfs(&host, &image, None).await?;
            // The cut was before the superblock was written.
            file.write_all_at(&[0; 4096], 0)?;
            assert_eq!(format_intent::read(&host, &image).await?, Intent::Ours);
            let written = written_by_mkfs(&host, &image).await?;
            prove(&host, &image, ProofChoice::Auto, written.clone()).await?;
            assert!(prove(&host, &image, ProofChoice::Auto, Written::default()).await.is_err());

            file.write_all_at(b"x", somebody_at)?;
            let refused = prove(&host, &image, ProofChoice::Auto, written).await.map_err(|error| format!("{error:#}"));
            assert!(refused.is_err_and(|text| text.contains(&format!("byte at offset {somebody_at}"))));
        }
        Ok(())
    }

    /// Whatever they are; another name that begins like ours is none of them.
    #[tokio::test]
    async fn taken_names_are_found_on_a_disk() -> Result<()> {
        let root = tempfile::tempdir()?;
        let (host, image, top) = (Host::new(root.path()), root.path().join("image"), root.path().join("top"));
        std::fs::create_dir(&top)?;
        for (make, expected) in [(false, ""), (true, "openclaw, openclaw-init, backups")] {
            if make {
                std::fs::create_dir_all(top.join("openclaw"))?;
                std::fs::write(top.join("backups"), "")?;
                std::os::unix::fs::symlink("nowhere", top.join("openclaw-init"))?;
            }
            std::fs::write(top.join("openclaw-else"), "")?;
            File::create(&image)?.set_len(32 << 20)?;
            host.command("mkfs.ext4").args(["-q", "-d"]).arg(&top).arg(&image).run().await?;
            let refused = check_names(&host, &image).await.map_err(|error| format!("{error:#}"));
            let taken = refused.as_ref().err().map_or("", |said| said.rsplit(": ").next().unwrap_or_default());
            assert_eq!(taken, expected, "{refused:?}");
        }
        Ok(())
    }

    #[test]
    fn the_exit_codes_of_e2fsck_are_answers() {
        let cases = [
            (0, FsckOutcome::Clean),
            (1, FsckOutcome::Repaired),
            (2, FsckOutcome::Repaired),
            (3, FsckOutcome::Repaired),
            (4, FsckOutcome::Damaged),
            (5, FsckOutcome::Damaged),
            (8, FsckOutcome::Failed),
            (12, FsckOutcome::Damaged),
        ];
        for (code, expected) in cases {
            assert_eq!(FsckOutcome::of_exit_code(code), expected, "{code}");
        }
    }
}
