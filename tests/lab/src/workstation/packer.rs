//! `packer`: Debian's checks the template, which is older than the plugins; an image is what a lab bakes later.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode, Output};

use anyhow::{Context, Result, ensure};

use super::session::Used;

/// Where the image of the template's default family is remembered.
pub(super) const IMAGES: &str = "image families";

/// The template without the file that names the plugins.
const TEMPLATE: [&str; 4] = ["openclaw.pkr.hcl", "variables.pkr.hcl", "seed/meta-data", "seed/user-data"];
const PLUGINS: &str = "plugins.pkr.hcl";

/// `packer` as far as the README calls it.
#[derive(Debug, clap::Parser)]
#[command(name = "packer")]
pub(super) enum Packer {
    Init {
        template: std::path::PathBuf,
    },
    /// Options begin with one dash, so they are taken as they are.
    Build {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
}

impl Packer {
    pub(super) fn run(self, session: &Used) -> Result<ExitCode> {
        match self {
            Self::Init { template } => {
                let file = template.join(PLUGINS);
                let text = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
                ensure!(text.contains("required_plugins"), "{} requires no plugins", file.display());
            }
            Self::Build { arguments } => {
                let (template, options) = arguments.split_last().context("packer build needs a template")?;
                let said = validate(&session.real_path()?, Path::new("."), Path::new(template), options)?;
                ensure!(said.status.success(), "packer says {}", String::from_utf8_lossy(&said.stdout));
                session.ensure(IMAGES, "openclaw")?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Lets the Packer on `path` check the `template` with `options`, called in `directory`.
pub fn validate(path: &std::ffi::OsStr, directory: &Path, template: &Path, options: &[OsString]) -> Result<Output> {
    let copy = tempfile::tempdir().context("making a directory for the template")?;
    fs::create_dir(copy.path().join("seed")).context("making the template's directory")?;
    for name in TEMPLATE {
        let from = directory.join(template).join(name);
        fs::copy(&from, copy.path().join(name)).with_context(|| format!("copying {}", from.display()))?;
    }
    let mut packer = Command::new("packer");
    packer.env("PATH", path).env("CHECKPOINT_DISABLE", "1");
    packer.env("PACKER_CONFIG_DIR", copy.path()).env("HOME", copy.path());
    packer.arg("validate").args(options).arg(copy.path()).current_dir(directory);
    packer.output().context("running packer")
}
