//! The gateway's own command line, for whoever sits at the VM: in the gateway's container while it runs, else in one of
//! its own with the same mounts.

use std::convert::Infallible;
use std::io::{self, ErrorKind, IsTerminal as _};
use std::pin::pin;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use bollard::container::LogOutput;
use bollard::errors::Error as DockerError;
use bollard::exec::StartExecResults;
use bollard::models::{
    ContainerCreateBody, ContainerInspectResponse, ContainerStateStatusEnum as Status, ExecConfig, ExecInspectResponse,
    HostConfig,
};
use bollard::query_parameters::CreateContainerOptionsBuilder;
use futures_util::{Stream, StreamExt as _};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncWrite, AsyncWriteExt as _};

use super::exec::exit_code;
use super::spec::no_health_check;
use super::{NAME, NEXT, PROGRAM, SPEC_LABEL, inspect, one_off, stop_container};
use crate::docker::{Engine, SOCKET};
use crate::error::{Classify as _, Code, RUN_AGAIN, io_kind};
use crate::host::{Command, Endings, Host};
use crate::lock::{RunLock, require_root};
use crate::paths::{LOCK, THIS_BOOT};

/// The exit code of a command whose output nobody reads any more, as a shell gives it (SIGPIPE).
const UNREAD: u8 = 141;

/// How long a container of its own may take to end what it does.
const GRACE_SECONDS: i32 = 30;

/// The keys that would leave a command alone. Those that docker takes unless told otherwise begin with Ctrl-P.
const UNTYPED_KEYS: &str = "ctrl-@,ctrl-_,ctrl-@";

/// A closed terminal ends docker's program and this one at the same moment.
const HANGUP_TIMEOUT: Duration = Duration::from_millis(50);

/// Runs one of the gateway's own commands with this process's streams; `terminal` is the kind of terminal, if they are
/// one. The exit code is the command's.
///
/// While the gateway does not run, no run may start it: the command has the state for itself.
pub async fn run(host: &Host, arguments: &[String], terminal: Option<&str>) -> Result<u8> {
    require_root()?;
    let engine = Engine::connect(SOCKET).await?;
    let has_terminal = io::stdin().is_terminal() && io::stdout().is_terminal();
    let command: Vec<String> = PROGRAM.map(str::to_owned).into_iter().chain(arguments.iter().cloned()).collect();
    if !is_alive(&ours(&engine).await?)? {
        return beside(host, &engine, command, has_terminal).await;
    }
    if has_terminal { with_terminal(host, &engine, command, terminal).await } else { inside(&engine, command).await }
}

/// Docker's own program, which knows terminals: their modes, their size, their keys. Root's own context for it, which
/// may be another machine's, does not count.
fn docker(host: &Host, does: &str) -> Command {
    let docker = host.command("docker").arg("--host").arg(format!("unix://{SOCKET}"));
    docker.args([does, "--interactive", "--detach-keys", UNTYPED_KEYS])
}

/// The gateway's container, as the engine describes it; the next one where none has come up yet.
async fn ours(engine: &Engine) -> Result<ContainerInspectResponse> {
    let found = match inspect(engine, NAME).await? {
        None => inspect(engine, NEXT).await?,
        found => found,
    };
    let found = found.filter(|found| {
        let labels = found.config.as_ref().and_then(|config| config.labels.as_ref());
        labels.is_some_and(|labels| labels.contains_key(SPEC_LABEL))
    });
    let found = found.ok_or_else(|| anyhow!("there is no gateway's container on this machine"));
    found.classify(Code::GatewayNotReady, format!("`{RUN_AGAIN}` makes it, or says why it cannot."))
}

/// An error unless the gateway runs.
pub(super) async fn must_run(engine: &Engine) -> Result<()> {
    let runs = if is_alive(&ours(engine).await?)? { Ok(()) } else { Err(anyhow!("the gateway does not run")) };
    runs.classify(Code::GatewayNotReady, format!("Start it with `{RUN_AGAIN}`."))
}

fn is_alive(container: &ContainerInspectResponse) -> Result<bool> {
    match container.state.as_ref().and_then(|state| state.status) {
        Some(Status::RUNNING) => Ok(true),
        Some(status @ (Status::PAUSED | Status::RESTARTING)) => {
            Err(anyhow!("the gateway can run no command now: docker says that it is {status}")).classify(
                Code::GatewayNotReady,
                "Stop it with `sudo openclaw-init stop`: then the command has the state for itself.",
            )
        }
        _ => Ok(false),
    }
}

/// In the gateway's container, with this terminal. Docker's own program leaves the command behind when it is ended.
async fn with_terminal(host: &Host, engine: &Engine, command: Vec<String>, terminal: Option<&str>) -> Result<u8> {
    let mut endings = Endings::listen()?;
    let before = ours(engine).await?.exec_ids.unwrap_or_default();
    let term = format!("TERM={}", terminal.unwrap_or("xterm"));
    let ended = docker(host, "exec").args(["--tty", "--env", &term, NAME]).args(&command).run_attached().await;
    if tokio::time::timeout(HANGUP_TIMEOUT, endings.next()).await.is_ok() {
        let after = ours(engine).await?.exec_ids.unwrap_or_default();
        for exec in after.iter().filter(|exec| !before.contains(exec)) {
            let found = engine.client.inspect_exec(exec).await.context("looking for what a closed terminal left")?;
            if runs(&found, &command) {
                send(engine, exec, Signal::SIGHUP).await?;
            }
        }
    }
    ended
}

/// Whether this is the command, and it has not ended.
fn runs(exec: &ExecInspectResponse, command: &[String]) -> bool {
    let words = exec.process_config.iter().flat_map(|it| it.entrypoint.iter().chain(it.arguments.iter().flatten()));
    exec.running == Some(true) && words.eq(command)
}

/// In the gateway's container, without a terminal. Docker's own program would leave the command behind at a signal.
async fn inside(engine: &Engine, command: Vec<String>) -> Result<u8> {
    let doing = || format!("running a command in container {NAME}");
    let config = ExecConfig {
        cmd: Some(command),
        attach_stdin: Some(true),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        ..Default::default()
    };
    let mut endings = Endings::listen()?;
    let exec = engine.client.create_exec(NAME, config).await.with_context(doing)?.id;
    let started = engine.client.start_exec(&exec, None).await.with_context(doing)?;
    let StartExecResults::Attached { output, input } = started else {
        return Err(anyhow!("the engine gives no streams")).with_context(doing);
    };
    let mut streams = pin!(pass_on(output, input));
    let passed = loop {
        tokio::select! {
            passed = &mut streams => break passed,
            signal = endings.next() => send(engine, &exec, signal).await?,
        }
    };
    let is_unread = passed.as_ref().is_err_and(|error| io_kind(error.root_cause()) == Some(ErrorKind::BrokenPipe));
    if passed.is_err() {
        send(engine, &exec, Signal::SIGTERM).await?;
    }
    if is_unread {
        return Ok(UNREAD);
    }
    passed.with_context(doing)?;
    let code = exit_code(engine, &exec).await.with_context(doing)?;
    Ok(u8::try_from(code).unwrap_or(u8::MAX))
}

/// Until the command has closed its output.
async fn pass_on(
    mut output: impl Stream<Item = Result<LogOutput, DockerError>> + Unpin,
    mut input: impl AsyncWrite + Unpin,
) -> Result<()> {
    let feed = async {
        // A command that does not read its input is judged by how it ends.
        drop(tokio::io::copy(&mut tokio::io::stdin(), &mut input).await);
        drop(input.shutdown().await);
        std::future::pending::<Infallible>().await
    };
    let show = async {
        let (mut stdout, mut stderr) = (tokio::io::stdout(), tokio::io::stderr());
        while let Some(part) = output.next().await {
            // What is not flushed may be lost when this process ends.
            match part? {
                LogOutput::StdErr { message } => {
                    stderr.write_all(&message).await?;
                    stderr.flush().await?;
                }
                part => {
                    stdout.write_all(part.as_ref()).await?;
                    stdout.flush().await?;
                }
            }
        }
        Ok(())
    };
    tokio::select! {
        shown = show => shown,
        never = feed => match never {},
    }
}

/// Sends a signal to the command, if it still runs.
async fn send(engine: &Engine, exec: &str, signal: Signal) -> Result<()> {
    let found = engine.client.inspect_exec(exec).await.context("asking for the command's process")?;
    let pid = found.pid.filter(|_| found.running == Some(true)).and_then(|pid| i32::try_from(pid).ok());
    match pid.filter(|pid| *pid > 1).map(|pid| kill(Pid::from_raw(pid), signal)) {
        None | Some(Ok(()) | Err(Errno::ESRCH)) => Ok(()),
        Some(Err(errno)) => Err(errno).context("passing the signal on"),
    }
}

/// In a container of its own, made like the gateway's, while no run is at work.
async fn beside(host: &Host, engine: &Engine, command: Vec<String>, has_terminal: bool) -> Result<u8> {
    let lock = RunLock::try_acquire(&host.path(LOCK))?;
    let lock = lock.ok_or_else(|| anyhow!("a run, a backup or another `sudo openclaw` is at work"));
    let _lock = lock.classify(
        Code::GatewayNotReady,
        "Wait for its end: `sudo openclaw-init status --wait` follows a run, `sudo docker ps --filter \
         name=openclaw-one-off` shows a command.",
    )?;
    let gateway = ours(engine).await?;
    if is_alive(&gateway)? {
        return Err(anyhow!("the gateway was started meanwhile"))
            .classify(Code::GatewayNotReady, "Run the command again.");
    }
    one_off::remove_leftover(host, engine).await?;
    let options = CreateContainerOptionsBuilder::default().name(one_off::NAME).build();
    let body = like(gateway, command, has_terminal);
    tracing::info!("the gateway does not run: the command has a container of its own, with the same state");
    engine.client.create_container(Some(options), body).await.context("creating a container for the command")?;
    let ended = docker(host, "start").args(["--attach", one_off::NAME]).run_attached().await;
    // With a terminal docker's program passes no signal on when it is ended: the command is still at work.
    stop_container(engine, one_off::NAME, GRACE_SECONDS).await?;
    one_off::remove(engine).await?;
    ended
}

/// The gateway's container with another command, that nobody can reach and that is not started again.
fn like(gateway: ContainerInspectResponse, command: Vec<String>, has_terminal: bool) -> ContainerCreateBody {
    let config = gateway.config.unwrap_or_default();
    let mut host = gateway.host_config.unwrap_or_default();
    // It is no gateway that starts by itself.
    host.mounts.iter_mut().for_each(|mounts| mounts.retain(|mount| mount.source.as_deref() != Some(THIS_BOOT)));
    ContainerCreateBody {
        image: gateway.image,
        hostname: config.hostname,
        user: config.user,
        env: config.env,
        cmd: Some(command),
        tty: Some(has_terminal),
        open_stdin: Some(true),
        stdin_once: Some(true),
        healthcheck: Some(no_health_check()),
        host_config: Some(HostConfig { port_bindings: None, restart_policy: None, ..host }),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use bollard::models::{ContainerState, ProcessConfig};

    use super::*;
    use crate::error::{code_of, one_line};

    #[test]
    fn only_a_gateway_that_runs_gets_the_command() {
        let cases = [
            (Some(Status::RUNNING), Ok(true)),
            (Some(Status::PAUSED), Err("paused")),
            (Some(Status::RESTARTING), Err("restarting")),
            (Some(Status::EXITED), Ok(false)),
            (Some(Status::CREATED), Ok(false)),
            (None, Ok(false)),
        ];
        for (status, expected) in cases {
            let state = Some(ContainerState { status, ..Default::default() });
            let found = is_alive(&ContainerInspectResponse { state, ..Default::default() });
            match (found, expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{status:?}"),
                (Err(error), Err(word)) => {
                    assert_eq!(code_of(&error), Code::GatewayNotReady);
                    assert!(one_line(&error).contains(word), "{}", one_line(&error));
                }
                (found, expected) => panic!("{status:?}: {found:?} instead of {expected:?}"),
            }
        }
    }

    #[test]
    fn only_the_same_words_that_still_run_are_what_a_terminal_left() {
        let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let command = words("node openclaw.mjs logs --follow");
        let cases = [
            ("node openclaw.mjs logs --follow", Some(true), true),
            ("node openclaw.mjs logs --follow", Some(false), false),
            ("node openclaw.mjs logs --follow", None, false),
            ("node openclaw.mjs logs", Some(true), false),
            ("node openclaw.mjs logs --follow --json", Some(true), false),
            ("sh openclaw.mjs logs --follow", Some(true), false),
        ];
        for (line, running, expected) in cases {
            let mut arguments = words(line);
            let config = ProcessConfig {
                entrypoint: Some(arguments.remove(0)),
                arguments: Some(arguments),
                ..Default::default()
            };
            let exec = ExecInspectResponse { running, process_config: Some(config), ..Default::default() };
            assert_eq!(runs(&exec, &command), expected, "{line} {running:?}");
        }
        assert!(!runs(&ExecInspectResponse { running: Some(true), ..Default::default() }, &command));
    }
}
