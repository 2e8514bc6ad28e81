//! The command line: reads the environment, starts logging, runs one command, turns its outcome into an exit code.

mod help;

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};
use openclaw_init::carrier::{self, Followed};
use openclaw_init::failure::{code_of, one_line};
use openclaw_init::host::Host;
use openclaw_init::metadata::Client;
use openclaw_init::update::Request;
use openclaw_init::{backup, bake, bootstrap, console, cut, restore, seal, uninstall, units};

/// Turns a bare Compute Engine VM into a ready OpenClaw gateway, and keeps it that way over every reboot.
///
/// Without a command it is the carrier: it installs itself and its units, starts openclaw-init.service and
/// follows it to the result. That is what a startup script, cloud-init or an operator runs.
#[derive(Debug, Parser)]
#[command(version, after_help = help::PROGRAM)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    /// Shows what is done in detail.
    #[arg(long, short, global = true)]
    verbose: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Brings the gateway up: the work of openclaw-init.service. Safe to run again at any time.
    #[command(after_help = help::BOOT)]
    Boot {
        /// Set by openclaw-init.service: systemd will start another try after a failure that may heal.
        #[arg(long, hide = true)]
        unit: bool,
    },
    /// Installs this program and its units, and enables them for the next boot, without starting anything.
    #[command(after_help = help::INSTALL)]
    Install,
    /// Shows how the last run of this boot went.
    #[command(after_help = help::STATUS)]
    Status {
        /// Prints the report as JSON (/run/openclaw-init/status.json).
        #[arg(long)]
        json: bool,
        /// Waits for the result of the run in progress first.
        #[arg(long)]
        wait: bool,
    },
    /// Prepares the boot disk of an image: Docker, the gateway's image, this program and its units. No
    /// secrets, no state. `seal` comes next.
    #[command(after_help = help::BAKE)]
    Bake(Box<bake::Options>),
    /// Removes from the boot disk what must not be in an image: identities, secrets, caches, logs. The last
    /// command before the machine is switched off.
    #[command(after_help = help::SEAL)]
    Seal {
        /// Also on a machine that has a gateway: its container goes, and its data if that is on the boot disk.
        #[arg(long)]
        force: bool,
    },
    /// Writes everything that makes this gateway itself into one file, and verifies it. The gateway goes on
    /// running. The file is a credential.
    #[command(after_help = help::BACKUP)]
    Backup(backup::Options),
    /// Puts the state of a backup in the place of the present one, which is put aside, and boots into it.
    #[command(after_help = help::RESTORE)]
    Restore(restore::Options),
    /// Removes the container, the units and this program. Data, Docker and images stay.
    #[command(after_help = help::UNINSTALL)]
    Uninstall,
    /// Brings the gateway to another version. The present state is copied first; if the new version does not
    /// become ready, image and state go back together. A newer version of the gateway migrates the state: going
    /// back later is `rollback`.
    #[command(after_help = help::UPDATE)]
    Update {
        /// An exact version or `latest` [default: what the attributes ask for, else the one this program was made for]
        #[arg(long, value_name = "VERSION", value_parser = openclaw_init::config::parse_version)]
        to: Option<String>,
    },
    /// Goes back to the version before the last update, with the state that it had.
    #[command(after_help = help::ROLLBACK)]
    Rollback {
        /// What was written since the update goes out of use: the newer state is renamed, not deleted.
        #[arg(long)]
        set_newer_state_aside: bool,
    },
    /// Stops the gateway with the grace that this kind of machine allows. The next boot starts it again.
    #[command(after_help = help::STOP)]
    Stop,
    /// Writes shell completions and manual pages, for packages.
    #[command(hide = true)]
    Generate { directory: std::path::PathBuf },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    console::init(cli.verbose);
    cut::arm(environment("OPENCLAW_INIT_CUT"), environment("OPENCLAW_INIT_CUT_LOG").map(Into::into));
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
    let outcome = match command {
        None => carrier::run(&host).await.map(|followed| show(&followed)),
        Some(Command::Boot { unit }) => boot(&host, unit).await,
        Some(Command::Install) => units::install(&host).await.map(|_| ExitCode::SUCCESS),
        Some(Command::Status { json, wait }) => status(&host, json, wait).await,
        Some(Command::Bake(options)) => bake(&host, &options).await,
        Some(Command::Seal { force }) => told(&host, seal::run(&host, force)).await,
        Some(Command::Backup(options)) => backup(&host, &options).await,
        Some(Command::Restore(options)) => restore(&host, &options).await,
        Some(Command::Uninstall) => told(&host, uninstall::run(&host)).await,
        Some(Command::Update { to }) => replace(&host, Request::Update { to }).await,
        Some(Command::Rollback { set_newer_state_aside }) => {
            replace(&host, Request::Rollback { set_newer_state_aside }).await
        }
        Some(Command::Stop) => stop(&host).await,
        Some(Command::Generate { directory }) => help::generate(Cli::command(), &directory).map(|()| ExitCode::SUCCESS),
    };
    outcome.unwrap_or_else(|error| failed(&error))
}

#[expect(clippy::disallowed_methods, reason = "the one place that reads the environment")]
fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// The metadata server of this machine, or the one that Google's clients would be pointed at.
fn metadata() -> anyhow::Result<Client> {
    Client::new(environment("GCE_METADATA_HOST").as_deref())
}

/// The proxy to the internet, as a drop-in of the unit names it. Some programs look for one spelling, some for the
/// other.
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

async fn boot(host: &Host, unit: bool) -> anyhow::Result<ExitCode> {
    let tries = if unit { bootstrap::Tries::Unit } else { bootstrap::Tries::Once };
    match bootstrap::boot(host, metadata()?, tries).await? {
        Ok(_) => Ok(ExitCode::SUCCESS),
        Err(failure) => Ok(failure.code().exit_code().into()),
    }
}

async fn bake(host: &Host, options: &bake::Options) -> anyhow::Result<ExitCode> {
    told(host, bake::run(host, &metadata()?, options)).await
}

/// A command that tells each of its changes, and its last words.
async fn told(host: &Host, work: impl Future<Output = anyhow::Result<String>>) -> anyhow::Result<ExitCode> {
    tracing::info!("{}", console::narrate(host, work).await?);
    Ok(ExitCode::SUCCESS)
}

/// Another version: done by the unit, so that it goes on when this terminal is closed.
async fn replace(host: &Host, request: Request) -> anyhow::Result<ExitCode> {
    let followed = request.carry_out(host).await?;
    show(&followed);
    Ok(followed.update_exit_code())
}

async fn backup(host: &Host, options: &backup::Options) -> anyhow::Result<ExitCode> {
    let made = console::narrate(host, backup::run(host, options)).await?;
    if options.json {
        writeln!(std::io::stdout(), "{}", serde_json::to_string_pretty(&made)?)?;
    } else {
        tracing::info!("{made}");
    }
    Ok(ExitCode::SUCCESS)
}

async fn restore(host: &Host, options: &restore::Options) -> anyhow::Result<ExitCode> {
    let followed = console::narrate(host, restore::run(host, &metadata()?, options)).await?;
    Ok(show(&followed))
}

async fn stop(host: &Host) -> anyhow::Result<ExitCode> {
    bootstrap::stop(host, &metadata()?).await?;
    Ok(ExitCode::SUCCESS)
}

async fn status(host: &Host, json: bool, wait: bool) -> anyhow::Result<ExitCode> {
    let followed = if wait { carrier::follow(host).await? } else { carrier::last(host).await? };
    if json {
        writeln!(std::io::stdout(), "{}", followed.json()?)?;
        return Ok(followed.exit_code());
    }
    Ok(show(&followed))
}

fn show(followed: &Followed) -> ExitCode {
    // A closed pipe is the reader's choice, not a failure of the machine.
    let _ = writeln!(std::io::stdout(), "{followed}");
    followed.exit_code()
}

fn failed(error: &anyhow::Error) -> ExitCode {
    if std::io::stderr().is_terminal() {
        tracing::debug!("{error:?}");
    }
    tracing::error!("{}", one_line(error));
    code_of(error).exit_code().into()
}
