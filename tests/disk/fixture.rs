//! One machine as the disk stage sees it: a root directory with devices, and the metadata's list of disks.

use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use openclaw_init::config::{DiskChoice, DiskConfig, ProofChoice};
use openclaw_init::disk;
use openclaw_init::error::{Code, code_of, one_line};
use openclaw_init::host::Host;
use openclaw_init::lock::RunLock;
use openclaw_init::metadata::{Attributes, Disk, Instance};
use openclaw_init::state::{self, DataDir};
use openclaw_lab::{disks, program};
use sha2::{Digest as _, Sha256};

/// The device name of the disk under test.
pub(crate) const NAME: &str = "openclaw-data";

/// Set in the process that has the mount namespace.
const ALONE: &str = "OPENCLAW_DISK_TEST_ALONE";

/// Runs the test function `test` in a process with a mount namespace of its own.
pub(crate) fn alone(test: &str, body: impl FnOnce() -> Result<()>) -> Result<()> {
    #[expect(clippy::disallowed_methods, reason = "how a test's second process knows itself")]
    if std::env::var_os(ALONE).is_some() {
        return body();
    }
    let mut again = command("unshare");
    again.args(["--mount", "--propagation", "private", "--"]).arg(std::env::current_exe()?);
    let status = again.args(["--exact", test, "--ignored", "--nocapture"]).env(ALONE, "1").status()?;
    ensure!(status.success(), "{test} failed; see above");
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "tests make disks with the real tools")]
pub(crate) fn command(program: &str) -> Command {
    Command::new(program)
}

/// Runs the words of `line` as a program: `{}` stands for `file`, a no-break space for a blank within a word.
pub(crate) fn tool(line: &str, file: &Path) -> Result<String> {
    let words: Vec<String> =
        line.split(' ').map(|word| word.replace("{}", &file.to_string_lossy()).replace('\u{a0}', " ")).collect();
    let (program, arguments) = words.split_first().context("an empty line")?;
    program::run(command(program).args(arguments)).with_context(|| format!("running {line}"))
}

/// A disk that is attached; its block device goes with this.
#[derive(Debug)]
pub(crate) struct Attached {
    pub(crate) node: PathBuf,
    _held: File,
}

#[derive(Debug)]
pub(crate) struct Fixture {
    root: tempfile::TempDir,
    pub(crate) instance: Instance,
    pub(crate) proof: ProofChoice,
}

impl Fixture {
    pub(crate) fn new() -> Result<Self> {
        let root = tempfile::tempdir()?;
        for directory in ["dev/disk/by-id", "images"] {
            fs::create_dir_all(root.path().join(directory))?;
        }
        for shared in ["sys", "proc"] {
            symlink(Path::new("/").join(shared), root.path().join(shared))?;
        }
        let instance = Instance {
            id: 7,
            name: "vm".into(),
            zone: "us-central1-a".into(),
            project_id: "p".into(),
            project_number: 0,
            attributes: Attributes::default(),
            disks: vec![disk("boot", 0)],
            spot: false,
        };
        Ok(Self { root, instance, proof: ProofChoice::Auto })
    }

    /// Where `path` of the pretended machine is.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.root.path().join(path)
    }

    /// The image file of a disk to be.
    pub(crate) fn image(&self, name: &str) -> PathBuf {
        self.path("images").join(name)
    }

    /// Attaches an image as the disk of this device name.
    pub(crate) fn attach(&mut self, name: &str, read_only: bool) -> Result<Attached> {
        let node = disks::attach(&self.image(name), read_only)?;
        let held = File::open(&node)?;
        disks::release(&node)?;
        // Not every kernel that tests run on reads partition tables.
        drop(tool("partx --update {}", &node));
        let link = self.path("dev/disk/by-id").join(format!("google-{name}"));
        drop(fs::remove_file(&link));
        symlink(&node, &link)?;
        let first = PathBuf::from(format!("{}p1", node.display()));
        let part = self.path("dev/disk/by-id").join(format!("google-{name}-part1"));
        drop(fs::remove_file(&part));
        if first.exists() {
            symlink(first, part)?;
        }
        if !self.instance.disks.iter().any(|disk| disk.device_name == name) {
            let index = u32::try_from(self.instance.disks.len())?;
            self.instance.disks.push(disk(name, index));
        }
        Ok(Attached { node, _held: held })
    }

    /// One run of the disk stage and of the state's: their answer, and what they noted.
    pub(crate) fn run(&self) -> (Result<DataDir>, openclaw_init::host::Ledger) {
        let host = Host::new(self.root.path());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let config = DiskConfig { choice: DiskChoice::Default, proof: self.proof };
        let outcome = runtime.block_on(async {
            let lock = RunLock::acquire(&host.path(openclaw_init::paths::LOCK)).await?;
            let volume = disk::ensure(&host, &config, &self.instance, tokio::sync::oneshot::channel().0).await?;
            state::open(&host, &volume, &self.instance, &lock, &async || Ok(())).await
        });
        let notes = host.ledger().borrow().clone();
        (outcome, notes)
    }

    /// A run that must end well; the changes that it noted, in one line.
    pub(crate) fn changes(&self) -> Result<String> {
        let (outcome, notes) = self.run();
        outcome?;
        notes.warnings.iter().for_each(|warning| println!("warned: {warning}"));
        Ok(notes.changes.into_iter().map(|(_, what)| what).collect::<Vec<_>>().join("; "))
    }

    /// One run that must be refused: its code and its words. Nothing is formatted, and nothing stays mounted.
    pub(crate) fn refusal(&self) -> Result<(Code, String)> {
        let (outcome, notes) = self.run();
        let changes: Vec<String> = notes.changes.into_iter().map(|(_, what)| what).collect();
        ensure!(!changes.iter().any(|change| change.contains("formatted")), "it was formatted: {changes:?}");
        let error = outcome.err().context("it was accepted")?;
        ensure!(!is_mounted(&self.data())?, "it is mounted");
        Ok((code_of(&error), one_line(&error)))
    }

    /// Where the data disk is mounted.
    pub(crate) fn data(&self) -> PathBuf {
        self.path("mnt/disks").join(NAME)
    }

    /// Unmounts what the stage mounted, like a machine that goes down.
    pub(crate) fn unmount(&self) -> Result<()> {
        for point in [self.path("home/node/.openclaw"), self.data()] {
            if is_mounted(&point)? {
                tool("umount {}", &point)?;
            }
        }
        Ok(())
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        if let Err(error) = self.clear() {
            println!("the fixture is not cleared: {error:#}");
        }
    }
}

impl Fixture {
    /// Unmounts everything below the root and lets it be removed.
    fn clear(&self) -> Result<()> {
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let points = mounts.lines().rev().filter_map(|line| line.split(' ').nth(1)).map(Path::new);
        for point in points.filter(|point| point.starts_with(self.root.path())) {
            tool("umount --lazy {}", point)?;
        }
        for made in ["mnt", "home"].map(|path| self.path(path)).iter().filter(|path| path.exists()) {
            tool("chattr -R -i {}", made)?;
        }
        Ok(())
    }
}

pub(crate) fn is_mounted(point: &Path) -> Result<bool> {
    let Ok(point) = point.canonicalize() else { return Ok(false) };
    Ok(fs::read_to_string("/proc/self/mounts")?.contains(&format!(" {} ", point.display())))
}

fn disk(name: &str, index: u32) -> Disk {
    Disk { device_name: name.into(), index, read_only: false, kind: "PERSISTENT-BALANCED".into() }
}

/// Where a file has data: a hole costs nothing.
pub(crate) fn data(file: &File) -> Result<Vec<Range<u64>>> {
    let (mut found, mut end) = (Vec::new(), 0);
    loop {
        let start = match lseek(file, end, Whence::SeekData) {
            Err(Errno::ENXIO) => return Ok(found),
            start => start?,
        };
        end = lseek(file, start, Whence::SeekHole)?;
        found.push(u64::try_from(start)?..u64::try_from(end)?);
    }
}

/// The SHA-256 of a file's length and of every 4 KiB in it that are not zero, with their places.
pub(crate) fn sha256(file: &Path) -> Result<String> {
    let file = File::open(file)?;
    file.sync_all()?;
    let mut hash = Sha256::new();
    hash.update(file.metadata()?.len().to_le_bytes());
    let mut buffer = vec![0; 1 << 20];
    for Range { start: mut from, end } in data(&file)? {
        while from < end {
            let chunk = &mut buffer[..usize::try_from((end - from).min(1 << 20))?];
            file.read_exact_at(chunk, from)?;
            for (block, place) in chunk.chunks(4096).zip((from..).step_by(4096)) {
                if block.iter().any(|byte| *byte != 0) {
                    hash.update(place.to_le_bytes());
                    hash.update(block);
                }
            }
            from += chunk.len() as u64;
        }
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
