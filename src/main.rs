//! Reads the environment, starts logging, runs one command, turns its outcome into an exit code.

mod cli;

use std::io::{IsTerminal as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};
use cli::{Cli, Command, help};
use nix::sys::stat::{Mode, umask};
use nix::sys::termios::{FlushArg, tcflush};
use openclaw_init::backup::restore;
use openclaw_init::bake::seal;
use openclaw_init::bootstrap::{self, StopCause, Trigger};
use openclaw_init::error::{TRY_AGAIN, code_of, one_line};
use openclaw_init::host::Host;
use openclaw_init::install::{self, launcher, uninstall};
use openclaw_init::lock::require_root;
use openclaw_init::metadata::Client;
use openclaw_init::report::follow::{self, RunOutcome};
use openclaw_init::report::{report_failure, stopped};
use openclaw_init::update::Request;
use openclaw_init::{backup, bake, failpoint, gateway, identity, link, log, pair, shield, status, watch};

fn main() -> ExitCode {
    without_backtraces();
    // Modes are those that the code names, whoever starts the program.
    umask(Mode::S_IWGRP | Mode::S_IWOTH);
    let cli = Cli::parse_from(cli::words(std::env::args_os()));
    log::init(cli.verbose);
    failpoint::arm(environment("OPENCLAW_INIT_FAILPOINT"), environment("OPENCLAW_INIT_FAILPOINT_LOG").map(Into::into));
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error.into()),
    };
    let code = runtime.block_on(run(cli.command));
    // Blocking work that outlived a deadline must not hold the exit.
    runtime.shutdown_background();
    code
}

async fn run(command: Option<Command>) -> ExitCode {
    let host = Host::new("/").with_proxy(proxy());
    // Everything else would end in the middle, with a file that may not be read.
    let is_for_everybody = matches!(
        command,
        Some(Command::Status { .. } | Command::Settings | Command::Generate { .. } | Command::Identity)
    );
    if !is_for_everybody && let Err(error) = require_root() {
        return failed(&error);
    }
    let outcome = match command {
        None => launch(&host).await,
        Some(Command::Boot { unit: true, .. }) => boot(&host, Trigger::Unit).await,
        Some(Command::Boot { foreground: true, .. }) => boot(&host, Trigger::Foreground).await,
        Some(Command::Boot { .. }) => launcher::carry_out(&host, &Request::Boot).await.map(|outcome| display(&outcome)),
        Some(Command::Install) => install::install(&host).await.map(|_| ExitCode::SUCCESS),
        Some(Command::Status { json, timeline, wait }) => status(&host, json, timeline, wait).await,
        Some(Command::Link { hold }) => link(&host, hold).await,
        Some(Command::Pair(options)) => pair(&host, &options).await,
        Some(Command::Cli { arguments }) => gateway_cli(&host, &arguments).await,
        Some(Command::Bake(options)) => bake(&host, &options).await,
        Some(Command::Seal { force }) => narrated(&host, seal::run(&host, force)).await,
        Some(Command::Backup(options)) => backup(&host, &options).await,
        Some(Command::Restore(options)) => restore(&host, &options).await,
        Some(Command::Uninstall) => uninstall(&host).await,
        Some(Command::Update { to }) => update(&host, Request::Update { to }).await,
        Some(Command::Rollback { set_newer_state_aside }) => {
            update(&host, Request::Rollback { set_newer_state_aside }).await
        }
        Some(Command::Settings) => {
            // A closed pipe is the reader's choice.
            let _ = write!(std::io::stdout(), "{}", include_str!("../docs/settings.schema.json"));
            Ok(ExitCode::SUCCESS)
        }
        Some(Command::Stop) => stop(&host).await,
        Some(Command::Shield) => shield(&host).await,
        Some(Command::Identity) => identity(&host).await,
        Some(Command::Watch) => watch(&host).await,
        Some(Command::Generate { directory }) => help::generate(Cli::command(), &directory).map(|()| ExitCode::SUCCESS),
    };
    outcome.unwrap_or_else(|error| failed(&error))
}

/// What asks for backtraces. The released program has no tables for one, and would end where an error is made.
const BACKTRACES: [&str; 2] = ["RUST_BACKTRACE", "RUST_LIB_BACKTRACE"];

/// Begins anew where the environment asks for them. Where that does not work, it goes on as it is.
#[expect(clippy::disallowed_methods, reason = "this program itself, in the place of this process")]
fn without_backtraces() {
    if BACKTRACES.iter().all(|name| environment(name).is_none()) {
        return;
    }
    let mut arguments = std::env::args_os();
    let mut again = std::process::Command::new("/proc/self/exe");
    again.arg0(arguments.next().unwrap_or_default()).args(arguments);
    for name in BACKTRACES {
        again.env_remove(name);
    }
    let _ = again.exec();
}

#[expect(clippy::disallowed_methods, reason = "the one place that reads the environment")]
fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// The metadata server of this machine, or the one that Google's clients would be pointed at.
fn metadata() -> anyhow::Result<Client> {
    Client::new(environment("GCE_METADATA_HOST").as_deref())
}

/// The proxy to the internet, as a drop-in of the unit names it, in both spellings: programs look for one or the other.
fn proxy() -> Vec<(String, String)> {
    let mut proxy = Vec::new();
    for lower in ["http_proxy", "https_proxy", "no_proxy"] {
        let upper = lower.to_ascii_uppercase();
        if let Some(value) = environment(lower).or_else(|| environment(&upper)) {
            proxy.extend([(lower.to_owned(), value.clone()), (upper, value)]);
        }
    }
    proxy
}

async fn launch(host: &Host) -> anyhow::Result<ExitCode> {
    Ok(display(&launcher::run(host, &metadata()?).await?))
}

async fn boot(host: &Host, trigger: Trigger) -> anyhow::Result<ExitCode> {
    let metadata = metadata()?;
    let outcome = match bootstrap::boot(host, metadata.clone(), trigger).await {
        Err(error) if trigger == Trigger::Unit => {
            report_failure(host, &metadata, &error).await;
            return Err(error);
        }
        outcome => outcome?,
    };
    Ok(match outcome.result {
        Ok(_) => ExitCode::SUCCESS,
        Err(_) if outcome.is_retried => TRY_AGAIN.into(),
        Err(error) => error.code().exit_code().into(),
    })
}

async fn bake(host: &Host, options: &bake::Options) -> anyhow::Result<ExitCode> {
    narrated(host, bake::run(host, &metadata()?, options)).await
}

/// Prints each change that the command makes, and its last words.
async fn narrated(host: &Host, work: impl Future<Output = anyhow::Result<String>>) -> anyhow::Result<ExitCode> {
    tracing::info!("{}", log::narrate(host, work).await?);
    Ok(ExitCode::SUCCESS)
}

/// An update or rollback: done by the unit, so that it goes on when this terminal is closed.
async fn update(host: &Host, request: Request) -> anyhow::Result<ExitCode> {
    let outcome = launcher::carry_out(host, &request).await?;
    display(&outcome);
    Ok(outcome.update_exit_code())
}

async fn backup(host: &Host, options: &backup::Options) -> anyhow::Result<ExitCode> {
    let made = log::narrate(host, backup::run(host, options)).await?;
    if options.json {
        writeln!(std::io::stdout(), "{}", serde_json::to_string_pretty(&made)?)?;
    } else {
        tracing::info!("{made}");
    }
    Ok(ExitCode::SUCCESS)
}

async fn restore(host: &Host, options: &restore::Options) -> anyhow::Result<ExitCode> {
    log::narrate(host, restore::run(host, &metadata()?, options)).await?;
    launcher::carry_out(host, &Request::Boot).await.map(|outcome| display(&outcome))
}

async fn stop(host: &Host) -> anyhow::Result<ExitCode> {
    bootstrap::stop(host, &metadata()?, StopCause::Asked).await?;
    Ok(ExitCode::SUCCESS)
}

async fn uninstall(host: &Host) -> anyhow::Result<ExitCode> {
    let code = narrated(host, uninstall::run(host)).await?;
    if let Err(error) = stopped(host, &metadata()?, "openclaw-init was uninstalled").await {
        tracing::debug!("reporting the end: {error:#}");
    }
    Ok(code)
}

async fn watch(host: &Host) -> anyhow::Result<ExitCode> {
    watch::run(host, metadata()?).await?;
    Ok(ExitCode::SUCCESS)
}

async fn shield(host: &Host) -> anyhow::Result<ExitCode> {
    shield::guard(host, identity::stand_in(host).await?, async || {
        bootstrap::stop(host, &metadata()?, StopCause::Shield).await
    })
    .await?;
    Ok(ExitCode::SUCCESS)
}

async fn identity(host: &Host) -> anyhow::Result<ExitCode> {
    identity::run(host, metadata()?).await?;
    Ok(ExitCode::SUCCESS)
}

async fn status(host: &Host, json: bool, timeline: bool, wait: bool) -> anyhow::Result<ExitCode> {
    if wait {
        follow::wait(host).await?;
    }
    let seen = status::look(host, &metadata()?).await?;
    let is_terminal = std::io::stdout().is_terminal();
    let text = match (json, timeline) {
        (true, _) => seen.json()?,
        (_, true) => follow::last(host).await?.timeline()?,
        _ if is_terminal => seen.table(has_colour()),
        _ => seen.to_string(),
    };
    // A closed pipe is the reader's choice, not a failure of the machine.
    let _ = writeln!(std::io::stdout(), "{text}");
    Ok(seen.exit_code())
}

async fn link(host: &Host, hold: bool) -> anyhow::Result<ExitCode> {
    let link = link::find(host, watch::Orders::origin(host).await).await?;
    writeln!(std::io::stdout(), "{}", link.url())?;
    if hold && link.needs_tunnel() {
        // A closed pipe is the reader's choice.
        let show = |state: &str| drop(writeln!(std::io::stdout(), "gateway: {state}"));
        link::hold(&link, show).await;
    }
    Ok(ExitCode::SUCCESS)
}

async fn pair(host: &Host, options: &pair::Options) -> anyhow::Result<ExitCode> {
    let has_terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let show = |text: &str| drop(writeln!(std::io::stdout(), "{text}"));
    let is_done = pair::run(host, options, show, has_terminal.then_some(confirm)).await?;
    Ok(if is_done { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Whether somebody at the terminal agrees.
fn confirm(question: &str) -> std::io::Result<bool> {
    let (mut stdout, mut answer) = (std::io::stdout(), String::new());
    // What was typed before is no answer to it.
    tcflush(std::io::stdin(), FlushArg::TCIFLUSH)?;
    write!(stdout, "{question}")?;
    stdout.flush()?;
    std::io::stdin().read_line(&mut answer)?;
    Ok(["y", "yes"].contains(&answer.trim().to_ascii_lowercase().as_str()))
}

async fn gateway_cli(host: &Host, arguments: &[String]) -> anyhow::Result<ExitCode> {
    gateway::cli::run(host, arguments, environment("TERM").as_deref()).await.map(ExitCode::from)
}

fn has_colour() -> bool {
    environment("NO_COLOR").is_none_or(|value| value.is_empty())
}

fn display(outcome: &RunOutcome) -> ExitCode {
    let is_terminal = std::io::stdout().is_terminal();
    let text = if is_terminal { outcome.table(has_colour()) } else { outcome.to_string() };
    // A closed pipe is the reader's choice, not a failure of the machine.
    let _ = writeln!(std::io::stdout(), "{text}");
    if is_terminal && outcome.exit_code() == ExitCode::SUCCESS {
        let _ = writeln!(std::io::stdout(), "open it  sudo openclaw-init link");
    }
    outcome.exit_code()
}

fn failed(error: &anyhow::Error) -> ExitCode {
    if std::io::stderr().is_terminal() {
        tracing::debug!("{error:?}");
    }
    tracing::error!("{}", one_line(error));
    code_of(error).exit_code().into()
}
