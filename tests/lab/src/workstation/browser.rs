//! A browser on the user's desk: Debian's Chromium with its driver, in a system of its own that apt has made.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::cache::Cache;
use crate::cloud::network::{self, CERTIFICATES, MACHINE};
use crate::cloud::{DOMAIN, acme};
use crate::machine::rootfs::{self, Flavour};
use crate::program::run;
use crate::sources::{Sources, Suite};
use crate::state::Lab;

/// Opens a link, writes a message and waits for its answer; see there.
const CHAT: &str = include_str!("../../scripts/readme/chat-in-browser.sh");
/// Where that leaves a picture of the page.
const PICTURE: &str = "root/page.png";

/// The system with the browser; it is gone with this.
#[derive(Debug)]
pub struct Browser {
    root: TempDir,
}

impl Browser {
    /// Unpacks the system, from the cache or made now (some minutes).
    pub fn prepare(cache: &Cache) -> Result<Self> {
        let sources = Sources::of_this_machine().context("reading this machine's package sources")?;
        let archive = rootfs::archive(cache, &sources, Suite::Bookworm, Flavour::Workstation)?;
        let root = tempfile::tempdir().context("making the workstation's directory")?;
        let mut tar = Command::new("tar");
        tar.args(["--extract", "--numeric-owner", "--file"]).arg(archive).arg("--directory").arg(root.path());
        run(&mut tar).context("unpacking the workstation")?;
        let hosts = format!("127.0.0.1 localhost\n{MACHINE} {DOMAIN}\n{CERTIFICATES} {}\n", acme::NAME);
        for (name, content) in [("chat.sh", CHAT), ("etc/hosts", &hosts)] {
            fs::write(root.path().join(name), content).with_context(|| format!("writing the workstation's {name}"))?;
        }
        Ok(Self { root })
    }

    /// The command that writes `message` into the chat and waits for `answer`. Its last argument, the link, is missing.
    /// The browser is in the internet of a `lab`, whose CA it trusts, or in the network of who runs the command. A
    /// `password` is entered where the page asks for it.
    pub fn chat(&self, lab: Option<&Lab>, password: &str, message: &str, answer: &str) -> Vec<String> {
        let options = ["--quiet", "--pipe", "--register=no", "--keep-unit", "--resolv-conf=off", "--timezone=off"];
        let directory = self.root.path().display().to_string();
        let internet = lab.map(|lab| format!("--network-namespace-path={}", network::path(&lab.cloud()).display()));
        let root = if lab.is_some() { acme::ROOT } else { "" };
        let command = ["systemd-nspawn"].into_iter().chain(options).chain(internet.as_deref());
        let command = command.chain(["--directory", &directory, "--", "sh", "/chat.sh"]);
        let command = command.chain([message, answer, root, password]);
        command.map(str::to_owned).collect()
    }

    /// Keeps the picture of the last page beside other temporary files, for who wants to see it.
    pub fn keep_picture(&self, name: &str) -> Result<PathBuf> {
        let kept = std::env::temp_dir().join(name);
        fs::copy(self.root.path().join(PICTURE), &kept).context("keeping the picture of the page")?;
        Ok(kept)
    }
}
