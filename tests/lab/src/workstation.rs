//! A user's desk: the checkout, and fakes of the programs that the README calls and that cannot run here.
//!
//! The lab's own program plays them when it is called `gcloud`, `packer` or `cargo`. It checks the command line as
//! strictly as the real program does, and then does in a lab what it can. Things without an equivalent, such as a
//! service account, are remembered, and required where the real program would need them.

mod browser;
mod gcloud;
mod instances;
mod networks;
pub mod packer;
#[cfg(test)]
mod script;
mod session;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser as _;

use crate::cli::{Action, Cli};
pub use browser::Browser;
use gcloud::Gcloud;
use packer::Packer;
pub use session::Session;
use session::{NAMES, Used};

/// A program that has a fake here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// The gcloud CLI.
    Gcloud,
    /// `HashiCorp` Packer.
    Packer,
    /// Cargo, in the checkout.
    Cargo,
}

impl Program {
    /// Which one this process was started as.
    pub fn called() -> Option<Self> {
        let called = std::env::args_os().next()?;
        let name = Path::new(&called).file_name()?;
        let programs = [Self::Gcloud, Self::Packer, Self::Cargo];
        NAMES.into_iter().zip(programs).find(|(known, _)| name == *known).map(|(_, program)| program)
    }

    /// Carries out its command line; one of `cargo lab` with `lab`. What the real program refuses ends the process.
    pub fn run(self, lab: impl FnOnce(Action) -> Result<ExitCode>) -> Result<ExitCode> {
        let session = Used::from_env()?;
        match self {
            Self::Gcloud => Gcloud::parse().run(&session),
            Self::Packer => Packer::parse().run(&session),
            Self::Cargo => Cargo::parse().run(&session, lab),
        }
    }
}

/// `cargo` as a user of the checkout calls it.
#[derive(Debug, clap::Parser)]
#[command(name = "cargo")]
enum Cargo {
    /// Hands over the program under test, in the place where cargo would have put it.
    Build {
        #[arg(long, required = true)]
        release: bool,
    },
    #[command(disable_help_flag = true)]
    Lab {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

impl Cargo {
    fn run(self, session: &Used, lab: impl FnOnce(Action) -> Result<ExitCode>) -> Result<ExitCode> {
        match self {
            Self::Build { .. } => {
                let built = Path::new("target/x86_64-unknown-linux-gnu/release/openclaw-init");
                std::fs::create_dir_all(built.parent().context("the target has no directory")?)?;
                std::fs::copy(&session.binary, built).context("copying the program under test")?;
                Ok(ExitCode::SUCCESS)
            }
            Self::Lab { arguments } => {
                let mut cli = Cli::try_parse_from([&["lab".to_owned()], &arguments[..]].concat())?;
                if let Action::Up(up) = &mut cli.action {
                    up.lab.name.clone_from(&session.machine);
                    up.binary = Some(session.binary.clone());
                }
                // The gate is what runs this.
                if matches!(cli.action, Action::Test(_)) { Ok(ExitCode::SUCCESS) } else { lab(cli.action) }
            }
        }
    }
}
