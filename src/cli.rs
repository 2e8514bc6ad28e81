//! The command line: its definitions. What the commands do is in the library.

pub(crate) mod help;

use std::ffi::OsString;
use std::path::Path;

use clap::{Parser, Subcommand};
use openclaw_init::paths::GATEWAY_CLI;
use openclaw_init::version::VersionChoice;
use openclaw_init::{backup, bake, pair};

/// Turns a bare Compute Engine VM into a ready OpenClaw gateway, and keeps it that way over every reboot.
///
/// Without a command it is the launcher: it installs itself and its units, starts openclaw-init.service and
/// follows it to the result. That is what a startup script, cloud-init or an operator runs.
#[derive(Debug, Parser)]
#[command(version, after_help = help::PROGRAM)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    /// Shows what is done in detail.
    #[arg(long, short, global = true)]
    pub(crate) verbose: bool,
}

/// The command line, whatever name this program was called by.
pub(crate) fn words(words: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut words = words.into_iter();
    let program = words.next().unwrap_or_default();
    let is_gateways = Path::new(&program).file_name() == Path::new(GATEWAY_CLI).file_name();
    let command = ["cli", "--"].map(OsString::from).into_iter().filter(|_| is_gateways);
    [program].into_iter().chain(command).chain(words).collect()
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Brings the gateway up, as at every boot: has openclaw-init.service run again and follows it to the result.
    /// Safe at any time, and never refused.
    #[command(after_help = help::BOOT)]
    Boot {
        /// Set by openclaw-init.service: does the work, and asks for another try after a failure that may heal.
        #[arg(long, hide = true)]
        unit: bool,
        /// Does the work in this process, once.
        #[arg(long, hide = true, conflicts_with = "unit")]
        foreground: bool,
    },
    /// Installs this program and its units, and enables them for the next boot, without starting anything.
    #[command(after_help = help::INSTALL)]
    Install,
    /// Asks the machine how the gateway is now, and shows how the last run went.
    #[command(after_help = help::STATUS)]
    Status {
        /// Prints the report as JSON: /run/openclaw-init/status.json as it is now, and what else was seen.
        #[arg(long)]
        json: bool,
        /// Draws when each stage of the run began and ended, and which of them the run waited for.
        #[arg(long, conflicts_with = "json")]
        timeline: bool,
        /// Waits for the result of the run in progress first.
        #[arg(long)]
        wait: bool,
    },
    /// Prints the link to the Control UI with the gateway's token, for a browser at the other end of an SSH tunnel.
    #[command(after_help = help::LINK)]
    Link {
        /// Goes on running, and shows how the gateway is, until Ctrl-C: it keeps the session open that has the tunnel.
        /// Behind a proxy there is no tunnel, and it ends.
        #[arg(long)]
        hold: bool,
    },
    /// Shows who asks the gateway to be paired, browsers, phones and nodes, and lets in exactly who is named.
    #[command(after_help = help::PAIR)]
    Pair(pair::Options),
    /// Runs one of the gateway's own commands, in its container. `sudo openclaw ARGUMENTS` is the same. While the
    /// gateway does not run, the command gets a container of its own with the same state, and no run begins.
    #[command(after_help = help::CLI, disable_help_flag = true)]
    Cli {
        /// What follows `openclaw` in the gateway's documentation
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
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
    /// Puts the state of a backup in the place of the current one, which is put aside, and boots into it.
    #[command(after_help = help::RESTORE)]
    Restore(backup::restore::Options),
    /// Removes the container, the units and this program. Data, Docker and images stay.
    #[command(after_help = help::UNINSTALL)]
    Uninstall,
    /// Brings the gateway to another version. The current state is copied first; if the new version does not
    /// become ready, image and state go back together. A newer version of the gateway migrates the state: going
    /// back later is `rollback`.
    #[command(after_help = help::UPDATE)]
    Update {
        /// An exact version or `latest` [default: what the attributes ask for, else the one this program was made for]
        #[arg(long, value_name = "VERSION")]
        to: Option<VersionChoice>,
    },
    /// Goes back to the version before the last update, with the state that it had.
    #[command(after_help = help::ROLLBACK)]
    Rollback {
        /// What was written since the update goes out of use: the newer state is renamed, not deleted.
        #[arg(long)]
        set_newer_state_aside: bool,
    },
    /// Prints the JSON schema of the instance attributes, to check them before a VM has them.
    #[command(after_help = help::SETTINGS)]
    Settings,
    /// Stops the gateway with the grace that this kind of machine allows. The next boot starts it again.
    #[command(after_help = help::STOP)]
    Stop,
    /// Keeps containers away from the metadata server: what openclaw-shield.service runs.
    #[command(hide = true)]
    Shield,
    /// Stands in for the metadata server where containers ask it: what openclaw-identity.service runs.
    #[command(hide = true)]
    Identity,
    /// Watches the gateway between the runs: what openclaw-watch.service runs.
    #[command(hide = true)]
    Watch,
    /// Writes shell completions and manual pages, for packages.
    #[command(hide = true)]
    Generate { directory: std::path::PathBuf },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gateways_name_is_a_command_of_ours() {
        for (called, read) in [
            (&["openclaw-init", "status"][..], &["openclaw-init", "status"][..]),
            (&["openclaw"], &["openclaw", "cli", "--"]),
            (&["/usr/local/bin/openclaw", "--help"], &["/usr/local/bin/openclaw", "cli", "--", "--help"]),
            (&["./openclaw", "a", "--", "b"], &["./openclaw", "cli", "--", "a", "--", "b"]),
        ] {
            let read_words = words(called.iter().map(OsString::from));
            assert_eq!(read_words, read);
            let parsed = Cli::try_parse_from(read_words).map(|cli| cli.command);
            let arguments = match &parsed {
                Ok(Some(Command::Cli { arguments })) => Some(arguments.join(" ")),
                _ => None,
            };
            assert_eq!(arguments, called[0].ends_with("openclaw").then(|| called[1..].join(" ")), "{parsed:?}");
        }
    }
}
