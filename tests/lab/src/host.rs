//! The development machine: what the lab needs of it.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail, ensure};

use crate::program::run;

/// A program that the lab runs, and the Debian package that brings it.
const TOOLS: [(&str, &str); 13] = [
    ("mmdebstrap", "mmdebstrap"),
    ("systemd-nspawn", "systemd-container"),
    ("slirp4netns", "slirp4netns"),
    ("dnsmasq", "dnsmasq-base"),
    ("docker-registry", "docker-registry"),
    ("skopeo", "skopeo"),
    ("nft", "nftables"),
    ("ip", "iproute2"),
    ("gpg", "gnupg"),
    ("apt-ftparchive", "apt-utils"),
    ("mkfs.ext4", "e2fsprogs"),
    ("packer", "packer"),
    ("shellcheck", "shellcheck"),
];
/// What the disk stage is tested with.
pub const DISK_TOOLS: [(&str, &str); 33] = [
    ("mkfs.exfat", "exfatprogs"),
    ("mkntfs", "ntfs-3g"),
    ("mkfs.f2fs", "f2fs-tools"),
    ("mkfs.nilfs2", "nilfs-tools"),
    ("mkfs.jfs", "jfsutils"),
    ("mkfs.reiserfs", "reiserfsprogs"),
    ("mkudffs", "udftools"),
    ("mkfs.gfs2", "gfs2-utils"),
    ("make-bcache", "bcache-tools"),
    ("mkfs.ocfs2", "ocfs2-tools"),
    ("drbdmeta", "drbd-utils"),
    ("pvcreate", "lvm2"),
    ("zfs-fuse", "zfs-fuse"),
    ("mkfs.reiser4", "reiser4progs"),
    ("mkapfs", "apfsprogs"),
    ("hformat", "hfsutils"),
    ("makefs", "makefs"),
    ("mkfs.cramfs", "util-linux"),
    ("mkfs.erofs", "erofs-utils"),
    ("mkfs.ubifs", "mtd-utils"),
    ("genromfs", "genromfs"),
    ("nbdkit", "nbdkit"),
    ("nbdfuse", "libnbd-bin"),
    ("fusermount3", "fuse3"),
    ("mkfs.xfs", "xfsprogs"),
    ("mkfs.btrfs", "btrfs-progs"),
    ("mkfs.vfat", "dosfstools"),
    ("cryptsetup", "cryptsetup-bin"),
    ("sfdisk", "fdisk"),
    ("xorriso", "xorriso"),
    ("mksquashfs", "squashfs-tools"),
    ("strace", "strace"),
    ("mkfs.ext4", "e2fsprogs"),
];
const TARGET: &str = "target/x86_64-unknown-linux-gnu";

/// An error unless the caller is root: namespaces, mounts and block devices need it.
pub fn require_root() -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "the lab makes namespaces and mounts: run it as root");
    Ok(())
}

/// Installs the tools that every lab needs.
pub fn install_tools() -> Result<()> {
    install(&TOOLS)
}

/// Held while packages are installed: two scenarios may want some at once.
static INSTALLING: Mutex<()> = Mutex::new(());

/// Installs those of `tools` (program, package) that are missing, from the development machine's own package
/// sources.
pub fn install(tools: &[(&str, &str)]) -> Result<()> {
    let _one_at_a_time = INSTALLING.lock().unwrap_or_else(PoisonError::into_inner);
    let missing: Vec<&str> = tools.iter().filter(|(tool, _)| !on_path(tool)).map(|(_, package)| *package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    println!("lab: installing {}", missing.join(" "));
    run(Command::new("apt-get").args(["--quiet", "update"])).context("reading the package lists")?;
    // Run level 1 keeps Debian's init scripts from starting what a package brings.
    let mut install = Command::new("apt-get");
    install.env("DEBIAN_FRONTEND", "noninteractive").env("RUNLEVEL", "1");
    // Nothing of the developer's own gives way: better no test than that.
    install.args(["--quiet", "--yes", "--no-install-recommends", "--no-remove", "install"]).args(&missing);
    run(&mut install).context("installing the lab's tools").map(drop)
}

/// The static binary of this working tree, built now if its sources changed.
///
/// As released, unless `$OPENCLAW_LAB_PROFILE` names another profile: `dev` builds in a tenth of the time.
pub fn binary() -> Result<PathBuf> {
    build(&["build"], &profile(), "openclaw-init", "openclaw-init", &[])
}

/// The same as it is published: with the list of the crates that it is made of (`cargo audit bin` reads it).
pub fn released_binary() -> Result<PathBuf> {
    let binary = build(&["auditable", "build"], &profile(), "openclaw-init", "openclaw-init", &[])
        .context("building it with its list of crates (cargo install --locked cargo-auditable)")?;
    let sections = run(Command::new("readelf").args(["--wide", "--section-headers"]).arg(&binary))?;
    ensure!(sections.contains(" .dep-v0 "), "{} has no list of its crates", binary.display());
    Ok(binary)
}

/// The same built quickly, with the build's `settings`: for tests that need a program which is another.
pub fn another_binary(settings: &[(&str, &str)]) -> Result<PathBuf> {
    build(&["build"], "dev", "openclaw-init", "openclaw-init", settings)
}

/// The cargo profile of the program under test.
pub fn profile() -> String {
    env::var("OPENCLAW_LAB_PROFILE").unwrap_or_else(|_| "release".into())
}

/// The fake gateway's program, built now if its sources changed.
pub fn fake_gateway() -> Result<PathBuf> {
    build(&["build"], "release", "openclaw-fake-gateway", "fake-gateway", &[])
}

fn build(command: &[&str], profile: &str, package: &str, program: &str, settings: &[(&str, &str)]) -> Result<PathBuf> {
    let tree = workspace()?;
    let mut build = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    build.args(command).args(["--quiet", "--profile", profile, "--package", package, "--bin", program]);
    if profile == "release" {
        build.arg("--config").arg(release_flags());
    }
    build.envs(settings.iter().copied());
    let status = build.current_dir(&tree).stdin(Stdio::null()).status().context("starting cargo")?;
    if !status.success() {
        bail!("building {program} failed ({status})");
    }
    let directory = if profile == "dev" { "debug" } else { profile };
    Ok(tree.join(TARGET).join(directory).join(program))
}

/// The setting that makes a release smaller. The builder's own directories are left out of the paths of the crates'
/// files, which a program names where it ends in a panic: a hundredth, and it says the same wherever it is built.
/// Sequences of instructions that several functions have are one (LLVM's machine outliner): a thirtieth.
fn release_flags() -> String {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo"))).unwrap_or_default();
    let sources = fs::read_dir(home.join("registry/src")).into_iter().flatten().flatten();
    let mut flags: Vec<_> =
        sources.map(|source| format!("--remap-path-prefix={}/=", source.path().display())).collect();
    flags.sort();
    flags.push("-Cllvm-args=-enable-machine-outliner=always".to_owned());
    format!("target.x86_64-unknown-linux-gnu.rustflags={flags:?}")
}

/// This program's own file, to be started once more while this process lives. Under this name it is found also when
/// building the tests has put a newer one in its place.
pub fn own_program() -> PathBuf {
    format!("/proc/{}/exe", std::process::id()).into()
}

/// The top of the working tree: the nearest directory upwards that has the lab in it.
pub fn workspace() -> Result<PathBuf> {
    let here = env::current_dir().context("finding the current directory")?;
    let top = here.ancestors().find(|directory| directory.join("tests/lab/Cargo.toml").exists());
    top.map(Path::to_path_buf).context("this is not the working tree of openclaw-init: run it from there")
}

fn on_path(tool: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    env::split_paths(&path).chain(usual).any(|directory| directory.join(tool).exists())
}
