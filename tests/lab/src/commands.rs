//! What each command of `cargo lab` does.

use std::os::unix::process::CommandExt;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::cli::progress::{self, Console, Outcome};
use crate::cli::up::{self, Keep};
use crate::cli::{Action, DiskChange, Metadata, Named, Up};
use crate::cloud::content;
use crate::cloud::metadata_server::Level;
use crate::machine::{attach, boot_disk, control_group, tunnel};
use crate::product::NAMESPACE;
use crate::state::Lab;
use crate::{cloud, host, machine, release, runner, scenarios};

/// The port on which the product publishes the gateway.
const GATEWAY_PORT: u16 = 18789;

/// Does it. The exit code is the command's verdict; an error means that there is none.
pub fn run(action: Action) -> Result<ExitCode> {
    if !matches!(action, Action::Test(_) | Action::Release) {
        host::require_root()?;
    }
    match action {
        Action::Up(options) => return start(&options),
        Action::Exec { lab, command } => return exec(&existing(&lab)?, &command),
        Action::Reboot { lab, hard, limit } => return reboot(&existing(&lab)?, hard, limit.timeout),
        Action::Disk { lab, change } => disk(&existing(&lab)?, &change)?,
        Action::Test(tests) => {
            return Ok(if runner::run(&tests)? { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Action::Bench { comparison, rounds } => {
            host::install_tools()?;
            println!("{:#}", scenarios::compare(comparison, rounds)?);
        }
        Action::Release => release::build()?,
        Action::Tunnel { lab, port } => tunnel::open(&existing(&lab)?, port)?,
        Action::GuestAttributes(lab) => guest_attributes(&existing(&lab)?)?,
        Action::Metadata { lab, change } => metadata(&existing(&lab)?, change)?,
        Action::Requests(lab) => requests(&existing(&lab)?)?,
        Action::Down { lab, keep_disk, keep_boot_disk } => {
            up::down(&Lab::named(&lab.name)?, &Keep { data_disk: keep_disk, boot_disk: keep_boot_disk })?;
        }
        Action::Serve { lab, docker_repository, closed, acme } => {
            cloud::serve(&existing(&lab)?, (!closed).then_some(docker_repository), acme)?;
        }
        Action::Supervise(lab) => machine::supervise(&existing(&lab)?)?,
        Action::Prepare { lab, archive, boot } => boot_disk::fill(&existing(&lab)?, &archive, boot)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn existing(lab: &Named) -> Result<Lab> {
    let lab = Lab::named(&lab.name)?;
    lab.load()?;
    Ok(lab)
}

fn start(options: &Up) -> Result<ExitCode> {
    let lab = up::up(options)?;
    let console = Console::from_start(&lab)?;
    verdict(&lab, console, options.limit.timeout)
}

fn reboot(lab: &Lab, hard: bool, limit: Duration) -> Result<ExitCode> {
    let console = Console::from_end(lab)?;
    if hard {
        println!("lab: cutting the power");
        machine::cut(lab)?;
        machine::start(lab)?;
    } else {
        println!("lab: rebooting the machine");
        machine::reboot(lab)?;
    }
    verdict(lab, console, limit)
}

/// Waits for the result of the boot under way and says how to go on.
fn verdict(lab: &Lab, console: Console, limit: Duration) -> Result<ExitCode> {
    let outcome = cloud::runtime()?.block_on(progress::wait(lab, console, limit))?;
    match &outcome {
        Outcome::Result(result) => println!("\n{result}"),
        Outcome::Ended(how) => println!("\n{how}"),
        Outcome::TimedOut => println!("\nno result within {} s", limit.as_secs()),
    }
    let name = if lab.name() == "lab" { String::new() } else { format!(" --name {}", lab.name()) };
    if outcome.is_ready() {
        println!(
            "\nControl UI   cargo lab tunnel{name}, then http://127.0.0.1:{GATEWAY_PORT}/\n             \
             on Compute Engine: gcloud compute ssh {} -- -N -L {GATEWAY_PORT}:127.0.0.1:{GATEWAY_PORT}",
            lab.name()
        );
    } else if let Some(status) = progress::status(lab) {
        println!("{status:#}");
    }
    println!(
        "look inside  cargo lab exec{name} -- bash\n             \
         cargo lab exec{name} -- journalctl --unit openclaw-init.service --unit google-startup-scripts.service\n\
         remove it    cargo lab down{name}"
    );
    Ok(if outcome.is_ready() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Becomes the command inside the machine; returns only when that fails.
fn exec(lab: &Lab, command: &[String]) -> Result<ExitCode> {
    let mut inside = machine::inside(lab)?;
    control_group::join_machine(lab).context("joining the machine's control groups")?;
    let error = inside.args(command).exec();
    Err(error).context("entering the machine")
}

fn guest_attributes(lab: &Lab) -> Result<()> {
    let attributes = cloud::runtime()?.block_on(cloud::client(lab)?.guest_attributes(NAMESPACE))?;
    println!("{}", serde_json::to_string(&attributes).context("writing the guest attributes as JSON")?);
    Ok(())
}

fn disk(lab: &Lab, change: &DiskChange) -> Result<()> {
    match change {
        DiskChange::Attach { device_name, content, read_only } => attach::attach(lab, device_name, content, *read_only),
        DiskChange::Detach { device_name } => attach::detach(lab, device_name),
        DiskChange::Resize { device_name, size } => attach::resize(lab, device_name, *size),
    }
}

fn metadata(lab: &Lab, change: Metadata) -> Result<()> {
    let (runtime, client) = (cloud::runtime()?, cloud::client(lab)?);
    let level = |project| if project { Level::Project } else { Level::Instance };
    match change {
        Metadata::Set { pair: (key, value), project } => {
            runtime.block_on(client.set_attribute(level(project), &key, &value))
        }
        Metadata::Unset { key, project } => runtime.block_on(client.unset_attribute(level(project), &key)),
        Metadata::Scopes { scopes } => runtime.block_on(client.set_scopes(&scopes)),
        Metadata::Fault { spec } => runtime.block_on(client.fault(spec)),
    }
}

fn requests(lab: &Lab) -> Result<()> {
    fn print(request: &impl Serialize) -> Result<()> {
        println!("{}", serde_json::to_string(request).context("writing a request as JSON")?);
        Ok(())
    }
    content::requests(&lab.content())?.iter().try_for_each(print)?;
    let metadata = cloud::runtime()?.block_on(cloud::client(lab)?.requests())?;
    metadata.iter().try_for_each(print)
}
