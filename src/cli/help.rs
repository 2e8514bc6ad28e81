//! The second half of each command's help: how it is called, and where its outcome is. Completions and manual pages for
//! packages are made from the same definitions.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use clap_complete::Shell;

/// Writes completions for bash, fish and zsh and one manual page for each command into a directory. Who makes a package
/// has the sources: no VM carries the generators.
pub(crate) fn generate(command: clap::Command, directory: &Path) -> Result<()> {
    ensure!(cfg!(debug_assertions), "only a development build writes them: `cargo run -- generate DIRECTORY`");
    let mut command = command.disable_help_subcommand(true);
    let name = command.get_name().to_owned();
    for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
        clap_complete::generate_to(shell, &mut command, &name, directory)
            .with_context(|| format!("writing completions for {shell} into {}", directory.display()))?;
    }
    clap_mangen::generate_to(command, directory)
        .with_context(|| format!("writing manual pages into {}", directory.display()))
}

/// Without a command.
pub(crate) const PROGRAM: &str = "\
Examples:
  sudo openclaw-init                   installs itself, starts the service, follows it to the result
  sudo openclaw-init boot              brings the gateway up again; safe at any time
  sudo openclaw-init status            how the gateway is now, and what to do

Settings are instance attributes (openclaw-*), listed in docs/settings.md and by openclaw-init settings:
  gcloud compute instances add-metadata VM --zone=ZONE --metadata=openclaw-port=18790

Exit codes: 0 ready; otherwise one per class of failure, see docs/failures.md.
The same outcome is in the guest attribute openclaw/result, in /run/openclaw-init/status.json
and on the serial console (lines that start with \"openclaw:\").";

/// `boot`.
pub(crate) const BOOT: &str = "\
Examples:
  sudo openclaw-init boot              one more run of the service, after the one in progress
  sudo openclaw-init boot && echo up   the exit code tells

The service does the work, so it goes on when this terminal is closed. Every step: journalctl --unit openclaw-init.
Outcome: one line per stage here, then result=ready or result=failed:CODE; the exit code is CODE's.
Also in the guest attributes openclaw/*, and in /run/openclaw-init/status.json.";

/// `status`.
pub(crate) const STATUS: &str = "\
Examples:
  sudo openclaw-init status            state now, address, version, warnings, what takes room, next step
  sudo openclaw-init status --wait     the run in progress, to its result
  sudo openclaw-init status --timeline where the time went
  sudo openclaw-init status --json | jq .timeline

The exit code is of what is now: 0 ready, 29 stopped or not ready, else the code of the run that failed.";

/// `cli`.
pub(crate) const CLI: &str = "\
Examples:
  sudo openclaw channels status        the gateway's command `openclaw channels status`
  sudo openclaw configure              with this terminal
  sudo openclaw config get gateway | jq .port

The exit code is the command's. Where another program is called openclaw: sudo openclaw-init cli ARGUMENTS.
It reads standard input: in a loop or a script that is itself read from there, add </dev/null.";

/// `link`.
pub(crate) const LINK: &str = "\
Examples:
  sudo openclaw-init link              http://localhost:18789/#token=TOKEN
  gcloud compute ssh VM --zone=ZONE -- -t -L 18789:127.0.0.1:18789 sudo openclaw-init link --hold

Who has the link is the gateway's owner: it is printed to standard output and nowhere else.";

/// `pair`.
pub(crate) const PAIR: &str = "\
Examples:
  sudo openclaw-init pair              who asks: id, role, name, address, age
  sudo openclaw-init pair a50129ea-d1b5-402d-97fc-ee0a17cdb4ed
  sudo openclaw-init pair --wait 5m    who asks, if need be in five minutes, and whether to let that one in

A device's request ends after five minutes. A node that gave up is started again after it was approved, connects, and
asks once more: for the commands that it may be given. Names are the clients' own words, the device id is of their key.
Without SSH: the attribute openclaw-approve=ID. Exit code 1: nobody asked in time, or nobody was approved.";

/// `bake`.
pub(crate) const BAKE: &str = "\
Examples:
  sudo openclaw-init bake
  sudo openclaw-init bake --version 2026.9.6 --docker distro
  sudo openclaw-init bake --image registry.example/openclaw@sha256:DIGEST

What was baked is in /etc/openclaw-init/baked.json; the attributes of a VM made from the image win over it.
Every change is printed. Next: openclaw-init seal, then switch the machine off and make the image.";

/// `seal`.
pub(crate) const SEAL: &str = "\
Examples:
  sudo openclaw-init seal              refuses on a machine that has a gateway
  sudo openclaw-init seal --force      also there: the data on the boot disk is lost

Everything that is removed is printed.";

/// `uninstall`.
pub(crate) const UNINSTALL: &str = "\
Example:
  sudo openclaw-init uninstall

The data stays on its disk; an attribute startup-script or user-data would install it again at the next boot:
  gcloud compute instances remove-metadata VM --zone=ZONE --keys=startup-script";

/// `update`.
pub(crate) const UPDATE: &str = "\
Examples:
  sudo openclaw-init update --to 2026.9.6
  sudo openclaw-init update            to what the attributes ask for, also when that failed before

The service does the work, so it goes on when this terminal is closed: openclaw-init status --wait follows it again.
Exit code 0 when the new version is ready; update-failed when it was undone, and then the version before is ready.";

/// `rollback`.
pub(crate) const ROLLBACK: &str = "\
Examples:
  sudo openclaw-init rollback          says what it would restore, and how old that is
  sudo openclaw-init rollback --set-newer-state-aside

The newer state is then beside the state directory, as openclaw.before-rollback-TIME.";

/// `backup`.
pub(crate) const BACKUP: &str = "\
Examples:
  sudo openclaw-init backup            a new file in backups/ on the data disk; the gateway goes on running
  sudo openclaw-init backup --to /root/openclaw.tar.gz
  sudo openclaw-init backup --json | jq -r .file

The file is read back before it gets its name. It holds every credential of the gateway.";

/// `restore`.
pub(crate) const RESTORE: &str = "\
Examples:
  sudo openclaw-init restore /root/openclaw.tar.gz
  sudo openclaw-init restore --replace-newer FILE    also when the current state was used since

Nothing is deleted: the current state is kept as openclaw.before-restore-TIME on the data disk.
The exit code is that of the boot into the restored state.";

/// `settings`.
pub(crate) const SETTINGS: &str = "\
Examples:
  openclaw-init settings > openclaw.schema.json
  check-jsonschema --schemafile openclaw.schema.json metadata.json    a map of names and values

It knows the form of each value; a run of openclaw-init knows more. What they mean is in docs/settings.md.";

/// `stop`.
pub(crate) const STOP: &str = "\
Examples:
  sudo openclaw-init stop
  sudo openclaw-init boot              starts it again

Outcome: the gateway's exit code here, and the guest attribute openclaw/state is stopped.";

/// `install`.
pub(crate) const INSTALL: &str = "\
Example:
  sudo ./openclaw-init install         in a chroot or an image; the next boot brings the gateway up";
