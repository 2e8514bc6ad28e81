//! One user at work: a directory with a copy of the checkout's files, the fakes on `PATH`, and what Google Cloud
//! and Packer would remember.

use std::ffi::OsString;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::cloud::FORGE_NAME;
use crate::release;

/// The disks that were made by themselves.
pub(super) const DISKS: &str = "disks";
/// The snapshots of such disks.
pub(super) const SNAPSHOTS: &str = "snapshots";
/// What is published at the forge.
const FORGE: &str = "forge";

/// The names by which the fakes are called.
pub(super) const NAMES: [&str; 3] = ["gcloud", "packer", "cargo"];

const DIRECTORY: &str = "OPENCLAW_LAB_SESSION";
const MACHINE: &str = "OPENCLAW_LAB_SESSION_MACHINE";
const BINARY: &str = "OPENCLAW_LAB_SESSION_BINARY";

/// Where a user types. Gone with its directory.
#[derive(Debug)]
pub struct Session {
    directory: TempDir,
    machine: String,
    binary: PathBuf,
}

impl Session {
    /// A new user in a copy of the `checkout`, whose one VM is the lab called `machine`, and whose build of the program
    /// is `binary`; the fakes are links to `lab`.
    pub fn new(checkout: &Path, lab: &Path, machine: &str, binary: &Path) -> Result<Self> {
        let directory = tempfile::tempdir().context("making a user's directory")?;
        for name in ["bin", "work"] {
            fs::create_dir(directory.path().join(name)).with_context(|| format!("making the directory {name}"))?;
        }
        for name in NAMES {
            symlink(lab, directory.path().join("bin").join(name)).with_context(|| format!("linking {name}"))?;
        }
        for name in ["cloud-init", "packer"] {
            symlink(checkout.join(name), directory.path().join("work").join(name))
                .with_context(|| format!("linking {name}"))?;
        }
        Ok(Self { directory, machine: machine.to_owned(), binary: binary.to_owned() })
    }

    /// A shell in the user's directory that ends with the first command that fails: append what it is to run.
    pub fn shell(&self) -> Result<Command> {
        let root = self.directory.path();
        let path = std::env::var_os("PATH").unwrap_or_default();
        let path = std::env::join_paths([root.join("bin")].into_iter().chain(std::env::split_paths(&path)))?;
        let mut shell = Command::new("sh");
        shell.args(["-e", "-c"]).current_dir(root.join("work"));
        shell
            .env("PATH", path)
            .env("CURL_HOME", root)
            .env(DIRECTORY, root)
            .env(MACHINE, &self.machine)
            .env(BINARY, &self.binary);
        Ok(shell)
    }

    /// Publishes a release of the program under `address` at the forge; it is served at `server`, too, whose authority
    /// `ca` has signed for. The user's curl knows both, as it would know those of the internet.
    pub fn publish(&self, address: &str, server: impl FnOnce(PathBuf) -> Result<SocketAddr>, ca: &Path) -> Result<()> {
        let path = address.strip_prefix("https://").and_then(|rest| rest.strip_prefix(FORGE_NAME));
        let path = path.with_context(|| format!("{address} is not at {FORGE_NAME}"))?;
        let forge = self.directory.path().join(FORGE);
        release::make(&forge.join(path.trim_start_matches('/')), &self.binary)?;
        let settings = format!("connect-to = \"{FORGE_NAME}:443:{}\"\ncacert = \"{}\"\n", server(forge)?, ca.display());
        fs::write(self.directory.path().join(".curlrc"), settings).context("writing curl's settings")
    }

    /// Every call of `gcloud` so far with what it printed, oldest first.
    pub fn calls(&self) -> Result<String> {
        fs::read_to_string(self.directory.path().join("calls")).context("reading the calls of gcloud")
    }
}

/// The same, as a fake finds it.
#[derive(Debug)]
pub(super) struct Used {
    directory: PathBuf,
    /// The lab that is the one VM.
    pub(super) machine: String,
    /// The program under test.
    pub(super) binary: PathBuf,
}

impl Used {
    pub(super) fn from_env() -> Result<Self> {
        let variable = |name: &str| std::env::var_os(name).with_context(|| format!("{name} is not set"));
        let text = |value: OsString| value.into_string().ok().context("the machine's name is not text");
        Ok(Self {
            directory: variable(DIRECTORY)?.into(),
            machine: text(variable(MACHINE)?)?,
            binary: variable(BINARY)?.into(),
        })
    }

    /// What was published at the forge, if anything was.
    pub(super) fn forge(&self) -> Option<PathBuf> {
        Some(self.directory.join(FORGE)).filter(|forge| forge.exists())
    }

    /// The file that is the disk `name`.
    pub(super) fn disk(&self, name: &str) -> PathBuf {
        self.content(DISKS, name)
    }

    /// The disk that is this `file`, if it is one that was made by itself.
    pub(super) fn disk_in(&self, file: &Path) -> Option<String> {
        let name = file.strip_prefix(self.directory.join(DISKS)).ok()?.parent()?;
        name.to_str().map(str::to_owned)
    }

    /// The file that is a thing of a `kind`.
    pub(super) fn content(&self, kind: &str, name: &str) -> PathBuf {
        self.directory.join(kind).join(name).join("content")
    }

    /// Where an object of Cloud Storage is kept.
    pub(super) fn object(&self, bucket: &str, object: &str) -> PathBuf {
        self.directory.join("buckets").join(bucket).join(object)
    }

    /// Makes a thing of a `kind` exist; it is an error when it does.
    pub(super) fn create(&self, kind: &str, name: &str) -> Result<()> {
        let path = self.directory.join(kind).join(name);
        ensure!(!path.exists(), "{name} already exists among the {kind}");
        fs::create_dir_all(&path).with_context(|| format!("creating {name} among the {kind}"))
    }

    /// Makes a thing exist unless it does already.
    pub(super) fn ensure(&self, kind: &str, name: &str) -> Result<()> {
        if self.has(kind, name) { Ok(()) } else { self.create(kind, name) }
    }

    /// Makes a thing not exist any more; it is an error when it did not.
    pub(super) fn delete(&self, kind: &str, name: &str) -> Result<()> {
        self.needs(kind, name)?;
        fs::remove_dir_all(self.directory.join(kind).join(name)).with_context(|| format!("deleting {name}"))
    }

    /// Prints the name of a thing, which must exist.
    pub(super) fn describe(&self, kind: &str, name: &str) -> Result<()> {
        self.needs(kind, name)?;
        println!("{name}");
        Ok(())
    }

    /// Keeps a text about a thing.
    pub(super) fn remember(&self, kind: &str, name: &str, text: &str) -> Result<()> {
        fs::write(self.content(kind, name), text).with_context(|| format!("remembering something of {name}"))
    }

    /// The text about a thing, if one was kept.
    pub(super) fn remembered(&self, kind: &str, name: &str) -> Result<Option<String>> {
        let file = self.content(kind, name);
        file.exists().then(|| fs::read_to_string(file)).transpose().with_context(|| format!("looking {name} up"))
    }

    /// Notes that the VM is switched on now. A reset does not change it.
    pub(super) fn starts(&self) -> Result<()> {
        let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        fs::write(self.directory.join("started"), now).context("noting the start")
    }

    /// When the VM was switched on last.
    pub(super) fn last_start(&self) -> Result<String> {
        fs::read_to_string(self.directory.join("started")).context("looking the start up")
    }

    /// Whether the thing was created.
    pub(super) fn has(&self, kind: &str, name: &str) -> bool {
        self.directory.join(kind).join(name).exists()
    }

    /// An error unless the thing was created.
    pub(super) fn needs(&self, kind: &str, name: &str) -> Result<()> {
        ensure!(self.has(kind, name), "there is no {name} among the {kind}");
        Ok(())
    }

    /// Notes a call and what it printed.
    pub(super) fn note(&self, text: &str) -> Result<()> {
        use std::io::Write as _;
        let mut file = fs::File::options().create(true).append(true).open(self.directory.join("calls"))?;
        writeln!(file, "{text}").context("noting a call")
    }

    /// `PATH` without the fakes.
    pub(super) fn real_path(&self) -> Result<OsString> {
        let (path, own) = (std::env::var_os("PATH").unwrap_or_default(), self.directory.join("bin"));
        std::env::join_paths(std::env::split_paths(&path).filter(|directory| *directory != own)).context("joining PATH")
    }
}
