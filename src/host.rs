//! The machine as the stages see it: files below a root, programs on a fixed path, and notes of what changed.
//!
//! This is the only module that starts programs. Everything a stage changes goes through here or is noted
//! here with [`Host::changed`], so "the second run changes nothing" is one number.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use nix::fcntl::OFlag;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, Command as Process};
use tokio::sync::watch;

use crate::cut;
use crate::stage::{self, Stage};

/// Where programs are looked for; the environment's own PATH is not trusted.
const PROGRAM_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How long a program may run when the caller sets no limit.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);

/// Opens a directory and nothing that stands in its place.
const DIRECTORY_ONLY: i32 = OFlag::O_DIRECTORY.union(OFlag::O_NOFOLLOW).bits();

/// How much of a failed program's error output goes into the message: its end, where the reason is.
const ERROR_TAIL_BYTES: usize = 1024;

/// What the stages have to tell besides their results.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Notes {
    /// Every change made to the machine, in order, with the stage that made it.
    pub changes: Vec<(Option<Stage>, String)>,
    /// What an operator should know although the run goes on. Each text once.
    pub warnings: Vec<String>,
    /// The latest progress of the long work of each stage; overwritten, never a history.
    pub progress: Option<(Stage, String)>,
}

/// A handle on the machine; clones share the notes.
#[derive(Debug, Clone)]
pub struct Host {
    root: PathBuf,
    proxy: Vec<(String, String)>,
    notes: Arc<watch::Sender<Notes>>,
}

/// Mode and owner of a file or directory that must be exactly so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// Permission bits, for example `0o600`.
    pub mode: u32,
    /// Numeric owner.
    pub uid: u32,
    /// Numeric group.
    pub gid: u32,
}

impl Access {
    /// Owned by root with `mode`.
    pub const fn root(mode: u32) -> Self {
        Self { mode, uid: 0, gid: 0 }
    }

    /// Owned by the gateway's user (uid and gid 1000 in the image) with `mode`.
    pub const fn gateway(mode: u32) -> Self {
        Self { mode, uid: 1000, gid: 1000 }
    }
}

impl Host {
    /// The machine whose file system is below `root` (`/` but in tests).
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), proxy: Vec::new(), notes: Arc::new(watch::Sender::new(Notes::default())) }
    }

    /// Gives every program these variables, which name the proxy to the internet.
    #[must_use]
    pub fn with_proxy(self, proxy: Vec<(String, String)>) -> Self {
        Self { proxy, ..self }
    }

    /// The variables of [`Host::with_proxy`].
    pub fn proxy(&self) -> &[(String, String)] {
        &self.proxy
    }

    /// Where the absolute `path` lies below this host's root.
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Notes a change that was made to the machine (past tense: `formatted /dev/sdb`).
    pub fn changed(&self, what: impl Into<String>) {
        let what = what.into();
        tracing::debug!("changed: {what}");
        self.notes.send_modify(|notes| notes.changes.push((stage::current(), what)));
        cut::step("changed").pass();
    }

    /// Whether anything was changed in this stage of the run.
    pub fn changed_in(&self, stage: Stage) -> bool {
        self.notes.borrow().changes.iter().any(|(of, _)| *of == Some(stage))
    }

    /// Warns the operator: printed once, kept in the report.
    pub fn warn(&self, what: impl Into<String>) {
        let what = what.into();
        self.notes.send_if_modified(|notes| {
            let new = !notes.warnings.contains(&what);
            if new {
                tracing::warn!("{what}");
                notes.warnings.push(what);
            }
            new
        });
    }

    /// Tells how far long work is; called as often as one likes, printed at a reader's pace.
    pub fn progress(&self, what: impl Into<String>) {
        if let Some(stage) = stage::current() {
            self.notes.send_modify(|notes| notes.progress = Some((stage, what.into())));
        }
    }

    /// A view of the notes that wakes its reader at every new one.
    pub fn notes(&self) -> watch::Receiver<Notes> {
        self.notes.subscribe()
    }

    /// A program to run on this host.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        Command {
            program: program.as_ref().to_owned(),
            args: Vec::new(),
            envs: self.proxy.iter().map(|(name, value)| (name.into(), value.into())).collect(),
            stdin: None,
            timeout: DEFAULT_TIMEOUT,
            answers: vec![0],
        }
    }

    /// The file's content, `None` when there is no such file.
    pub async fn read(&self, path: impl AsRef<Path>) -> Result<Option<Vec<u8>>> {
        let path = self.path(path);
        match tokio::fs::read(&path).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
        }
    }

    /// Makes the file hold exactly `content` with exactly `access`; true when something was changed.
    ///
    /// Written to a temporary name in the same directory, synced, renamed, and the directory synced:
    /// after a power cut there is the old file or the new one. Parent directories must exist.
    pub async fn ensure_file(
        &self,
        path: impl AsRef<Path>,
        content: impl Into<Vec<u8>>,
        access: Access,
    ) -> Result<bool> {
        let (path, content) = (self.path(path), content.into());
        let (shown, step) = (path.display().to_string(), cut::step("write"));
        let changed = tokio::task::spawn_blocking(move || {
            if holds(&path, &content, access)? {
                return Ok(false);
            }
            write_durably(&path, &content, access, &step).map(|()| true)
        })
        .await
        .context("waiting for a file to be written")?
        .with_context(|| format!("writing {shown}"))?;
        if changed {
            self.changed(format!("wrote {shown}"));
        }
        Ok(changed)
    }

    /// Makes `path` a directory with exactly `access`; true when something was changed. Parents are
    /// made as needed with mode 0755, owned by root.
    pub async fn ensure_dir(&self, path: impl AsRef<Path>, access: Access) -> Result<bool> {
        let path = self.path(path);
        let shown = path.display().to_string();
        let changed = tokio::task::spawn_blocking(move || make_dir(&path, access))
            .await
            .context("waiting for a directory to be made")?
            .with_context(|| format!("making the directory {shown}"))?;
        if changed {
            self.changed(format!("made the directory {shown}"));
        }
        Ok(changed)
    }

    /// Removes the file if it is there; true when it was.
    pub async fn remove_file(&self, path: impl AsRef<Path>) -> Result<bool> {
        let path = self.path(path);
        match tokio::fs::remove_file(&path).await {
            Ok(()) => {
                self.changed(format!("removed {}", path.display()));
                Ok(true)
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error).with_context(|| format!("removing {}", path.display())),
        }
    }
}

fn holds(path: &Path, content: &[u8], access: Access) -> Result<bool> {
    match std::fs::metadata(path) {
        Ok(found) => Ok(has_access(&found, access)
            && found.len() == content.len() as u64
            && std::fs::read(path).context("comparing with the present file")? == content),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn has_access(found: &std::fs::Metadata, access: Access) -> bool {
    found.permissions().mode() & 0o7777 == access.mode && found.uid() == access.uid && found.gid() == access.gid
}

/// Gives the file exactly `access`; true when it had another.
///
/// Through the open file: its path may lie where the gateway can put a link to something else.
pub(crate) fn set_access(file: &File, access: Access) -> Result<bool> {
    if has_access(&file.metadata()?, access) {
        return Ok(false);
    }
    nix::unistd::fchown(file, Some(access.uid.into()), Some(access.gid.into()))
        .with_context(|| format!("giving it to {}:{}", access.uid, access.gid))?;
    file.set_permissions(std::fs::Permissions::from_mode(access.mode))
        .with_context(|| format!("setting mode {:04o}", access.mode))?;
    Ok(true)
}

fn write_durably(path: &Path, content: &[u8], access: Access, step: &cut::Step) -> Result<()> {
    let directory = path.parent().ok_or_else(|| anyhow!("the path has no directory"))?;
    step.at("before");
    let mut file = tempfile::NamedTempFile::new_in(directory).context("creating a temporary file beside it")?;
    file.write_all(content).context("writing the temporary file")?;
    set_access(file.as_file(), access)?;
    file.as_file().sync_all().context("syncing the temporary file")?;
    step.at("written");
    file.persist(path).map_err(|error| error.error).context("renaming the temporary file")?;
    sync_dir(directory)?;
    step.at("after");
    Ok(())
}

/// Syncs a directory, so that a rename in it survives a power cut.
pub fn sync_dir(directory: &Path) -> Result<()> {
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .with_context(|| format!("syncing the directory {}", directory.display()))
}

fn make_dir(path: &Path, access: Access) -> Result<bool> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.is_dir() => bail!("something that is not a directory is in its place"),
        Ok(found) if has_access(&found, access) => return Ok(false),
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => std::fs::create_dir_all(path)?,
        Err(error) => return Err(error.into()),
    }
    let directory = File::options().read(true).custom_flags(DIRECTORY_ONLY).open(path)?;
    set_access(&directory, access)?;
    Ok(true)
}

/// A program to run: empty environment but for a fixed PATH and locale, no standard input, a time limit.
#[derive(Debug, Clone)]
pub struct Command {
    program: OsString,
    args: Vec<OsString>,
    envs: Vec<(OsString, OsString)>,
    stdin: Option<Vec<u8>>,
    timeout: Duration,
    answers: Vec<i32>,
}

/// What a program said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Its exit code, one of the accepted ones.
    pub code: i32,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Command {
    /// Adds one argument. Never a secret: arguments are visible to every process.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.envs.push((key.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Gives the program this standard input.
    #[must_use]
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = Some(bytes.into());
        self
    }

    /// Sets the time limit (60 s unless set); the program is killed at its end.
    #[must_use]
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.timeout = limit;
        self
    }

    /// Accepts these exit codes as answers besides 0.
    #[must_use]
    pub fn answers(mut self, codes: &[i32]) -> Self {
        self.answers.extend_from_slice(codes);
        self
    }

    /// Runs the program to its end. An exit code that is not accepted, a signal and the time limit are
    /// errors that name the program, its arguments and the end of its error output.
    pub async fn run(self) -> Result<Output> {
        self.run_lines(|_| {}).await
    }

    /// Like [`Command::run`], and shows each line of standard output while the program runs.
    pub async fn run_lines(self, on_line: impl FnMut(&str)) -> Result<Output> {
        let (shown, step) = (self.shown(), cut::step(&self.program.to_string_lossy()));
        tracing::debug!("running {shown}");
        step.at("before");
        let child = self.spawn().with_context(|| format!("starting {shown}"))?;
        let output = tokio::time::timeout(self.timeout, collect(child, self.stdin, on_line))
            .await
            .map_err(|_| anyhow!("{shown} did not end within {} s", self.timeout.as_secs()))?
            .with_context(|| format!("running {shown}"))?;
        step.at("after");
        match output {
            (Some(code), stdout, stderr) if self.answers.contains(&code) => Ok(Output { code, stdout, stderr }),
            (code, stdout, stderr) => {
                let ended = code.map_or("was killed".to_owned(), |code| format!("ended with exit code {code}"));
                let said = if stderr.trim().is_empty() { stdout } else { stderr };
                bail!("{shown} {ended}: {}", tail(said.trim(), ERROR_TAIL_BYTES))
            }
        }
    }

    fn shown(&self) -> String {
        let words = std::iter::once(&self.program).chain(&self.args);
        words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    #[expect(clippy::disallowed_methods, reason = "the one place that starts programs")]
    fn spawn(&self) -> Result<Child> {
        let mut process = Process::new(&self.program);
        process
            .args(&self.args)
            .env_clear()
            .env("PATH", PROGRAM_PATH)
            .env("LC_ALL", "C.UTF-8")
            .envs(self.envs.iter().map(|(key, value)| (key, value)))
            .stdin(if self.stdin.is_some() { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        Ok(process.spawn()?)
    }
}

async fn collect(
    mut child: Child,
    stdin: Option<Vec<u8>>,
    mut on_line: impl FnMut(&str),
) -> Result<(Option<i32>, String, String)> {
    let mut pipe = child.stdin.take();
    let out = child.stdout.take().ok_or_else(|| anyhow!("no standard output"))?;
    let mut err = child.stderr.take().ok_or_else(|| anyhow!("no standard error"))?;
    let feed = async {
        if let (Some(pipe), Some(bytes)) = (&mut pipe, stdin) {
            // A program that ends without reading its input is judged by its exit code.
            drop(pipe.write_all(&bytes).await);
        }
        drop(pipe.take());
    };
    let read_out = async {
        let (mut lines, mut all) = (BufReader::new(out), Vec::new());
        loop {
            let start = all.len();
            if lines.read_until(b'\n', &mut all).await? == 0 {
                return Ok::<_, std::io::Error>(String::from_utf8_lossy(&all).into_owned());
            }
            on_line(String::from_utf8_lossy(&all[start..]).trim_end());
        }
    };
    let read_err = async {
        let mut all = Vec::new();
        err.read_to_end(&mut all).await?;
        Ok::<_, std::io::Error>(String::from_utf8_lossy(&all).into_owned())
    };
    let ((), stdout, stderr) = tokio::join!(feed, read_out, read_err);
    let status = child.wait().await.context("waiting for its end")?;
    Ok((status.code(), stdout?, stderr?))
}

/// The last `bytes` of `text`, cut at a character.
pub fn tail(text: &str, bytes: usize) -> &str {
    let mut start = text.len().saturating_sub(bytes);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    &text[start..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_program_gets_the_proxy_and_nothing_else_of_the_environment() -> Result<()> {
        let proxy = vec![("https_proxy".to_owned(), "http://proxy.example:3128".to_owned())];
        let said = Host::new("/").with_proxy(proxy).command("env").run().await?.stdout;
        let mut names: Vec<_> = said.lines().filter_map(|line| line.split('=').next()).collect();
        names.sort_unstable();
        assert_eq!(names, ["LC_ALL", "PATH", "https_proxy"]);
        assert!(said.contains("https_proxy=http://proxy.example:3128"), "{said}");
        Ok(())
    }
}
