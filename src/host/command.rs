//! Programs: an empty environment, a time limit, an error that names the program and the end of its output.

use std::ffi::{OsStr, OsString};
use std::io::IsTerminal as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, Command as Process};
use tokio::signal::unix::{self, Signal as UnixSignal, SignalKind};

use super::Host;
use crate::failpoint;
use crate::text::{size, tail};

/// Where programs are looked for; the environment's own PATH is not trusted.
const PROGRAM_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How long a program may run when the caller sets no limit.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a program may take to end once it is killed: it may wait for a disk.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// How much of each stream of a program is kept: its end, where the reason of a failure is. An answer has some
/// kilobytes.
const OUTPUT_BYTES: usize = 4 << 20;

/// How much is read at once. A longer line is handed on in parts.
const CHUNK_BYTES: usize = 64 << 10;

/// How much of a failed program's error output goes into the message: its end, where the reason is.
const ERROR_TAIL_BYTES: usize = 1024;

impl Host {
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

/// What a program printed.
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
    ///
    /// So is an answer that is longer than any: what is left of it would say something else.
    pub async fn run(self) -> Result<Output> {
        let words = self.words();
        let (output, is_whole) = self.run_to_end(&mut |_| {}).await?;
        ensure!(is_whole, "{words} printed more than {}", size(OUTPUT_BYTES as u64));
        Ok(output)
    }

    /// Like [`Command::run`]; `on_line` gets each line of standard output while the program runs. Of long output only
    /// the end is returned.
    pub async fn run_lines(self, mut on_line: impl FnMut(&str)) -> Result<Output> {
        Ok(self.run_to_end(&mut on_line).await?.0)
    }

    /// Runs the program with this process's own streams, for as long as it takes; its exit code, to which a signal adds
    /// 128 as in a shell. What ends this process ends the program first.
    pub async fn run_attached(self) -> Result<u8> {
        let words = self.words();
        let mut endings = Endings::listen()?;
        let mut process = self.process();
        let is_typed = std::io::stdin().is_terminal();
        if !is_typed {
            // What comes to a whole group of processes shall come to the program once, by us.
            process.process_group(0);
        }
        let mut child = process.spawn().with_context(|| format!("starting {words}"))?;
        let status = loop {
            tokio::select! {
                status = child.wait() => break status.with_context(|| format!("waiting for {words}"))?,
                // The keyboard's interrupt reaches the program without us.
                signal = endings.next() => if !(is_typed && signal == Signal::SIGINT) { pass_on(&child, signal)? },
            }
        };
        let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
        Ok(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX))
    }

    /// What the program printed, and whether its standard output is all there.
    async fn run_to_end(self, on_line: &mut dyn FnMut(&str)) -> Result<(Output, bool)> {
        let (words, failpoint) = (self.words(), failpoint::counted(&self.program.to_string_lossy()));
        tracing::debug!("running {words}");
        failpoint.hit_at("before");
        let mut child = self.spawn().with_context(|| format!("starting {words}"))?;
        let Ok(ended) = tokio::time::timeout(self.timeout, collect(&mut child, self.stdin, on_line)).await else {
            // What it held is free for who comes next.
            let _ = tokio::time::timeout(KILL_TIMEOUT, child.kill()).await;
            bail!("{words} did not end within {} s", self.timeout.as_secs());
        };
        let (code, stdout, stderr) = ended.with_context(|| format!("running {words}"))?;
        failpoint.hit_at("after");
        let ((stdout, is_whole), (stderr, _)) = (stdout.text(), stderr.text());
        match code {
            Some(code) if self.answers.contains(&code) => Ok((Output { code, stdout, stderr }, is_whole)),
            code => {
                let ended = code.map_or("was killed".to_owned(), |code| format!("ended with exit code {code}"));
                let output = if stderr.trim().is_empty() { stdout } else { stderr };
                bail!("{words} {ended}: {}", tail(output.trim(), ERROR_TAIL_BYTES))
            }
        }
    }

    /// The program and its arguments, for messages.
    fn words(&self) -> String {
        let words = std::iter::once(&self.program).chain(&self.args);
        words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    #[expect(clippy::disallowed_methods, reason = "the one place that starts programs")]
    fn process(&self) -> Process {
        let mut process = Process::new(&self.program);
        process
            .args(&self.args)
            .env_clear()
            .env("PATH", PROGRAM_PATH)
            .env("LC_ALL", "C.UTF-8")
            .envs(self.envs.iter().map(|(key, value)| (key, value)));
        process
    }

    fn spawn(&self) -> Result<Child> {
        let mut process = self.process();
        process
            .stdin(if self.stdin.is_some() { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        Ok(process.spawn()?)
    }
}

fn pass_on(child: &Child, signal: Signal) -> Result<()> {
    match child.id().and_then(|pid| i32::try_from(pid).ok()) {
        Some(pid) => kill(Pid::from_raw(pid), signal).context("passing a signal on"),
        None => Ok(()),
    }
}

/// The signals that end a program, which do not end this one while it listens.
#[derive(Debug)]
pub struct Endings([(Signal, UnixSignal); 3]);

impl Endings {
    /// Begins to listen.
    pub fn listen() -> Result<Self> {
        let listen = |kind| unix::signal(kind).context("listening for signals");
        Ok(Self([
            (Signal::SIGINT, listen(SignalKind::interrupt())?),
            (Signal::SIGTERM, listen(SignalKind::terminate())?),
            (Signal::SIGHUP, listen(SignalKind::hangup())?),
        ]))
    }

    /// The next one that comes.
    pub async fn next(&mut self) -> Signal {
        let [(interrupt, on_interrupt), (terminate, on_terminate), (hangup, on_hangup)] = &mut self.0;
        tokio::select! {
            _ = on_interrupt.recv() => *interrupt,
            _ = on_terminate.recv() => *terminate,
            _ = on_hangup.recv() => *hangup,
        }
    }
}

async fn collect(
    child: &mut Child,
    stdin: Option<Vec<u8>>,
    on_line: &mut dyn FnMut(&str),
) -> Result<(Option<i32>, Tail, Tail)> {
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
    let (mut stdout, mut stderr) = (Tail::new(), Tail::new());
    let read_out = async {
        let mut out = BufReader::with_capacity(CHUNK_BYTES, out);
        let mut line = Vec::new();
        loop {
            let chunk = out.fill_buf().await?;
            let length = chunk.iter().position(|byte| *byte == b'\n').map_or(chunk.len(), |at| at + 1);
            line.extend_from_slice(&chunk[..length]);
            let is_end = length == 0;
            out.consume(length);
            if line.ends_with(b"\n") || line.len() >= CHUNK_BYTES || is_end && !line.is_empty() {
                on_line(String::from_utf8_lossy(&line).trim_end());
                stdout.push(&line);
                line.clear();
            }
            if is_end {
                return Ok::<_, std::io::Error>(());
            }
        }
    };
    let read_err = async {
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            match err.read(&mut chunk).await? {
                0 => return Ok::<_, std::io::Error>(()),
                length => stderr.push(&chunk[..length]),
            }
        }
    };
    let ((), read_out, read_err) = tokio::join!(feed, read_out, read_err);
    read_out.and(read_err).context("reading its output")?;
    let status = child.wait().await.context("waiting for its end")?;
    Ok((status.code(), stdout, stderr))
}

/// The last [`OUTPUT_BYTES`] of a stream.
struct Tail {
    bytes: Vec<u8>,
    is_whole: bool,
}

impl Tail {
    fn new() -> Self {
        Self { bytes: Vec::new(), is_whole: true }
    }

    /// Cuts when half as much again has come together, so that not every chunk moves what is kept.
    fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        if self.bytes.len() > OUTPUT_BYTES + OUTPUT_BYTES / 2 {
            self.cut();
        }
    }

    fn cut(&mut self) {
        let excess = self.bytes.len().saturating_sub(OUTPUT_BYTES);
        self.bytes.drain(..excess);
        self.is_whole &= excess == 0;
    }

    /// And whether it is everything.
    fn text(mut self) -> (String, bool) {
        self.cut();
        let text = String::from_utf8(self.bytes);
        let text = text.unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned());
        (text, self.is_whole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_program_gets_the_proxy_and_nothing_else_of_the_environment() -> Result<()> {
        let proxy = vec![("https_proxy".to_owned(), "http://proxy.example:3128".to_owned())];
        let output = Host::new("/").with_proxy(proxy).command("env").run().await?.stdout;
        let mut names: Vec<_> = output.lines().filter_map(|line| line.split('=').next()).collect();
        names.sort_unstable();
        assert_eq!(names, ["LC_ALL", "PATH", "https_proxy"]);
        assert!(output.contains("https_proxy=http://proxy.example:3128"), "{output}");
        Ok(())
    }

    #[tokio::test]
    async fn a_program_that_took_too_long_has_ended() -> Result<()> {
        let root = tempfile::tempdir()?;
        let noted = root.path().join("pid");
        let script = format!("echo $$ > {}; exec sleep 60", noted.display());
        let command = Host::new("/").command("sh").args(["-c", &script]).timeout(Duration::from_secs(3));
        let why = command.run().await.err().map(|error| error.to_string()).unwrap_or_default();
        assert!(why.contains("did not end within 3 s"), "{why}");
        let pid = std::fs::read_to_string(&noted)?;
        assert!(!std::path::Path::new("/proc").join(pid.trim()).exists());
        Ok(())
    }

    /// 10 MB on each stream, in lines, in one line and in none; what is returned is the end.
    #[tokio::test]
    async fn output_without_end_takes_little_memory() -> Result<()> {
        let scripts = [
            ("yes line | head -c 10000000; echo end", true),
            ("head -c 10000000 /dev/zero | tr '\\0' x; echo; echo end", true),
            ("head -c 10000000 /dev/zero | tr '\\0' x >&2; printf end", false),
        ];
        for (script, is_cut) in scripts {
            let mut longest = 0;
            let command = Host::new("/").command("sh").args(["-c", script]);
            let output = command.clone().run_lines(|line| longest = longest.max(line.len())).await?;
            assert!(output.stdout.trim_end().ends_with("end"), "{script}");
            for stream in [&output.stdout, &output.stderr] {
                assert!(stream.len() <= OUTPUT_BYTES && stream.capacity() <= 4 * OUTPUT_BYTES, "{script}");
            }
            assert!(longest <= 2 * CHUNK_BYTES, "{script}: a line of {longest} bytes");
            let answer = command.run().await.map_err(|error| format!("{error:#}"));
            assert_eq!(answer.as_ref().is_err_and(|why| why.contains("printed more than 4.0 MiB")), is_cut, "{script}");
            let failed = Host::new("/").command("sh").args(["-c", &format!("{script}; exit 3")]).run().await;
            let why = failed.err().map(|error| format!("{error:#}")).unwrap_or_default();
            assert!(why.contains("exit code 3") && why.len() < 2 * ERROR_TAIL_BYTES, "{why}");
        }
        Ok(())
    }
}
