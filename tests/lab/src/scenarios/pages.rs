//! The blocks of commands in the README and in `docs/`, as scenarios type them.

use anyhow::{Context, Result};

use crate::cloud::metadata_server::PROJECT;

/// Every page whose commands are typed. The Chinese README has the same blocks, as a test of the house keeps.
const PAGES: [(&str, &str); 14] = [
    ("README.md", include_str!("../../../../README.md")),
    ("docs/architecture.md", include_str!("../../../../docs/architecture.md")),
    ("docs/backups.md", include_str!("../../../../docs/backups.md")),
    ("docs/closed-networks.md", include_str!("../../../../docs/closed-networks.md")),
    ("docs/disks.md", include_str!("../../../../docs/disks.md")),
    ("docs/failures.md", include_str!("../../../../docs/failures.md")),
    ("docs/gcloud.md", include_str!("../../../../docs/gcloud.md")),
    ("docs/operations.md", include_str!("../../../../docs/operations.md")),
    ("docs/security.md", include_str!("../../../../docs/security.md")),
    ("docs/settings.md", include_str!("../../../../docs/settings.md")),
    ("docs/small-machines.md", include_str!("../../../../docs/small-machines.md")),
    ("docs/updates.md", include_str!("../../../../docs/updates.md")),
    ("docs/watch.md", include_str!("../../../../docs/watch.md")),
    ("docs/ways-in.md", include_str!("../../../../docs/ways-in.md")),
];

/// A block of commands, known by words that no other has. Each is typed by a scenario: the compiler warns of one that
/// nobody names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Block {
    /// The script's commands.
    QuickStart,
    Open,
    Update,
    Delete,
    /// The lab itself.
    Lab,
    /// The same as plain commands.
    PlainRelease,
    PlainCreate,
    /// The loop that ends with a boot's result, and what goes before it at a reboot.
    Wait,
    Reset,
    PlainOpen,
    PlainUpdate,
    PlainDelete,
    PlainDeleteDisk,
    /// The program in a bucket, and an account that can read it.
    Upload,
    /// Other ways to make the VM.
    LoaderWay,
    Ask,
    Approve,
    ApproveFromOutside,
    HttpsAddress,
    Https,
    CloudInitWay,
    BinaryWay,
    /// An image of one's own.
    ImageWay,
    Look,
    Cli,
    Set,
    Unset,
    Programs,
    OwnPrograms,
    BackUp,
    TakeOff,
    Restore,
    Schedule,
    Snapshot,
    GoBack,
    Larger,
    VmAccount,
    Deployer,
    Secret,
    Nat,
    NoNat,
    NoAddress,
    Registry,
    NoRegistry,
    Brought,
    MoveIn,
    Undo,
}

impl Block {
    #[cfg(test)]
    const ALL: [Self; 47] = [
        Self::QuickStart,
        Self::Open,
        Self::Update,
        Self::Delete,
        Self::Lab,
        Self::PlainRelease,
        Self::PlainCreate,
        Self::Wait,
        Self::Reset,
        Self::PlainOpen,
        Self::PlainUpdate,
        Self::PlainDelete,
        Self::PlainDeleteDisk,
        Self::Upload,
        Self::LoaderWay,
        Self::Ask,
        Self::Approve,
        Self::ApproveFromOutside,
        Self::HttpsAddress,
        Self::Https,
        Self::CloudInitWay,
        Self::BinaryWay,
        Self::ImageWay,
        Self::Look,
        Self::Cli,
        Self::Set,
        Self::Unset,
        Self::Programs,
        Self::OwnPrograms,
        Self::BackUp,
        Self::TakeOff,
        Self::Restore,
        Self::Schedule,
        Self::Snapshot,
        Self::GoBack,
        Self::Larger,
        Self::VmAccount,
        Self::Deployer,
        Self::Secret,
        Self::Nat,
        Self::NoNat,
        Self::NoAddress,
        Self::Registry,
        Self::NoRegistry,
        Self::Brought,
        Self::MoveIn,
        Self::Undo,
    ];

    fn mark(self) -> &'static str {
        match self {
            Self::QuickStart => "/openclaw-gcp\" && sh",
            Self::Open => "openclaw-gcp open",
            Self::Update => "openclaw-gcp update",
            Self::Delete => "openclaw-gcp delete",
            Self::Lab => "cargo lab up",
            Self::PlainRelease => "/startup-script.sh\" && curl",
            Self::PlainCreate => "--shielded-secure-boot",
            Self::Wait => "until result=",
            Self::Reset => "instances reset",
            Self::PlainOpen => "openclaw-init link --hold",
            Self::PlainUpdate => "--metadata=openclaw-version=",
            Self::PlainDelete => "--keep-disks=data",
            Self::PlainDeleteDisk => "disks delete",
            Self::Upload => "gcloud storage cp",
            Self::LoaderWay => "=startup-script=cloud-init/",
            Self::Ask => "openclaw-init pair --wait",
            Self::Approve => "openclaw-init pair ID",
            Self::ApproveFromOutside => "--metadata=openclaw-approve=ID",
            Self::HttpsAddress => "--target-tags=openclaw-https",
            Self::Https => "openclaw-domain=$DOMAIN",
            Self::CloudInitWay => "=user-data=",
            Self::BinaryWay => "startup-script-url=",
            Self::ImageWay => "packer build",
            Self::Look => "get-serial-port-output",
            Self::Cli => "openclaw channels status",
            Self::Set => "=openclaw-ready-timeout=10m",
            Self::Unset => "remove-metadata",
            Self::Programs => "openclaw-binaries=gog",
            Self::OwnPrograms => "openclaw-binaries=binaries.json",
            Self::BackUp => "to backups/ on the data disk",
            Self::TakeOff => "sudo cat /root/backup.tar.gz",
            Self::Restore => "openclaw-init restore FILE",
            Self::Schedule => "--daily-schedule",
            Self::Snapshot => "snapshots create",
            Self::GoBack => "--source-snapshot",
            Self::Larger => "set-machine-type",
            Self::VmAccount => "set-service-account",
            Self::Deployer => "instanceAdmin",
            Self::Secret => "gcloud secrets create",
            Self::Nat => "routers nats create",
            Self::NoNat => "routers delete",
            Self::NoAddress => "CREATE_FLAGS=",
            Self::Registry => "artifactregistry.reader",
            Self::NoRegistry => "repositories delete",
            Self::Brought => "docker save",
            Self::MoveIn => "value(disks[].deviceName)",
            Self::Undo => "e2undo",
        }
    }

    /// Its text in the pages, with a reader's own project in the place of `my-project`.
    pub(super) fn text(self) -> Result<String> {
        let found = PAGES.into_iter().flat_map(|(_, page)| blocks(page)).find(|block| block.contains(self.mark()));
        let found = found.with_context(|| format!("no page has commands with {:?}", self.mark()))?;
        Ok(found.replace("my-project", PROJECT))
    }

    /// The same, pasted twice. The shell's own `-e` lets a list of `&&` fail.
    pub(super) fn twice(self) -> Result<String> {
        self.text().map(|text| [&*text, &text, ""].join("\n[ $? = 0 ]\n"))
    }

    /// The lines of it that set variables: what a reader's shell still knows when the next block is typed.
    pub(super) fn variables(self) -> Result<String> {
        let text = self.text()?;
        let sets = |line: &&str| {
            let name = line.trim_start_matches("export ").split_once('=').map(|(name, _)| name);
            name.is_some_and(|name| name.chars().all(|c| c.is_ascii_uppercase()))
        };
        Ok(text.lines().filter(sets).collect::<Vec<_>>().join("\n"))
    }
}

/// Every fenced block, each line with its end, without its fences.
fn blocks(text: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line.trim_start().starts_with("```") {
            let block = lines.by_ref().take_while(|line| !line.trim_start().starts_with("```"));
            blocks.push(block.map(|line| format!("{line}\n")).collect());
        }
    }
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What nobody types, and why.
    #[rustfmt::skip]
    const NOT_TYPED: [(&str, &str); 6] = [
        ("ground ← host", "it is the rule of imports, which a test of the house reads"),
        ("gog auth add", "it needs an account at Google, and a terminal"),
        ("openclaw-metadata-account=", "`debian-13` does it with the lab's own commands"),
        ("google_secret_manager_secret", "Terraform is not here"),
        ("jsonencode", "Terraform is not here; `configured` sets the same"),
        ("HTTP_PROXY=", "it is a file, not commands"),
    ];

    /// What is typed once, and why.
    #[rustfmt::skip]
    const ONCE: [(&str, &str); 4] = [
        ("cargo lab up", "there is one machine of a name: the second is refused, with the way out, which a test shows"),
        ("pair --wait", "without a terminal it ends as if somebody had said no, which a test shows"),
        ("pair ID", "a request is approved once, which a test shows"),
        ("restore FILE", "what the first paste brings up has used the state: the second is refused, which a test shows"),
    ];

    #[test]
    fn every_block_of_the_pages_is_known_and_short() {
        let others = NOT_TYPED.map(|(mark, _)| mark);
        let marks: Vec<_> = Block::ALL.into_iter().map(Block::mark).chain(others).collect();
        let mut seen = 0;
        for block in PAGES.into_iter().flat_map(|(_, page)| blocks(page)) {
            let known: Vec<_> = marks.iter().filter(|mark| block.contains(**mark)).collect();
            assert_eq!(known.len(), 1, "{known:?} is this block:\n{block}");
            let is_typed = Block::ALL.iter().any(|typed| block.contains(typed.mark()));
            assert!(!is_typed || block.lines().count() <= 10, "more than ten lines:\n{block}");
            seen += 1;
        }
        assert_eq!(seen, marks.len());
        for (mark, _) in ONCE {
            assert!(PAGES.into_iter().any(|(_, page)| page.contains(mark)), "no page has {mark}");
        }
    }

    #[test]
    fn every_page_is_among_them() -> Result<()> {
        let root = crate::host::workspace()?;
        for entry in std::fs::read_dir(root.join("docs"))? {
            let path = entry?.path();
            let known = PAGES.into_iter().any(|(page, _)| root.join(page) == path);
            assert!(known || path.extension().is_none_or(|it| it != "md"), "{} is not among them", path.display());
        }
        Ok(())
    }

    #[test]
    fn variables_are_what_a_later_block_needs() -> Result<()> {
        assert!(Block::QuickStart.variables()?.starts_with("export PROJECT=openclaw-lab "));
        assert_eq!(Block::QuickStart.variables()?.lines().count(), 2);
        assert!(Block::Upload.variables()?.starts_with("BUCKET="));
        Ok(())
    }
}
