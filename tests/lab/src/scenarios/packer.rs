//! A real `packer build` with the template's source qemu, and a machine from its image.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::rig::Rig;
use super::vm_bench::{COMMAND_LIMIT, VmBench, open_cloud};
use crate::cloud::docker_apt::DockerRepository;
use crate::cloud::{fake_gateway, network};
use crate::host;
use crate::machine::boot_disk::{self, Boot};
use crate::machine::qemu::vm::Writes;
use crate::product::BOOT_HERE;
use crate::program::run;
use crate::size::Size;
use crate::state::{Lab, Os};

/// What only the packer source qemu needs.
const TOOLS: [(&str, &str); 1] = [("xorriso", "xorriso")];
/// Lists what is left of the user as whom Packer logged in; each line that is printed is too much.
const LEFT: &str = include_str!("../../scripts/packer/show-leftovers.sh");

/// The template as a user has it, from a cloud image that stands for Debian's; the machine from the built image
/// reaches nothing but the metadata server.
pub(super) fn built_image_boots_without_internet(rig: &Rig) -> Result<()> {
    host::install(&TOOLS)?;
    let directory = tempfile::tempdir_in(labs(rig)?).context("making a directory for Packer")?;
    let disk = directory.path().join("cloud.qcow2");
    let begun = Instant::now();
    let builder = rig.beside("packer-builder")?;
    cloud_image(&builder.machine()?, &disk)?;
    println!("the cloud image took {} s", begun.elapsed().as_secs());
    let begun = Instant::now();
    open_cloud(&builder.machine()?, Some(DockerRepository::Good))?;
    build(&builder, directory.path(), &disk, &rig.binary())?;
    println!("packer build took {} s", begun.elapsed().as_secs());
    drop(builder);

    let image = directory.path().join("image.raw");
    let mut convert = Command::new("qemu-img");
    convert.args(["convert", "-O", "raw"]).arg(directory.path().join("output-openclaw/packer-openclaw")).arg(&image);
    run(&mut convert).context("unpacking Packer's image")?;
    let mut bench = VmBench::of(rig, tempfile::TempPath::try_from_path(image)?, Writes::Kept)?;
    bench.fresh(true)?;
    let machine = bench.start()?;
    // Nothing on this machine tells the lab of its init, and no boot before this one has told a result.
    let took = bench.until_result(|_| true)?;
    println!("a machine from it was ready {} s after it was switched on", took.as_secs());
    let left = machine.shell(LEFT, COMMAND_LIMIT)?;
    ensure!(left.is_empty(), "Packer's user left:\n{left}");
    let reached = machine.shell("curl -s -m 5 https://ghcr.io/ || echo none", COMMAND_LIMIT)?;
    ensure!(reached == "none", "the machine reaches the internet: {reached}");
    let printed = machine.shell(&format!("{BOOT_HERE} 2>&1"), COMMAND_LIMIT)?;
    ensure!(printed.contains("result=ready") && printed.contains("changes=0"), "a second run says {printed}");
    machine.stop(COMMAND_LIMIT)
}

fn labs(rig: &Rig) -> Result<std::path::PathBuf> {
    Ok(rig.machine()?.directory().parent().context("the lab has no parent directory")?.to_owned())
}

/// A Debian as its makers publish it: never booted, smaller than the image that is made from it.
fn cloud_image(lab: &Lab, disk: &Path) -> Result<()> {
    boot_disk::make_unbooted(lab, Os::Debian12, Boot::Bootable, Size(8 << 30))?;
    let mut convert = Command::new("qemu-img");
    run(convert.args(["convert", "-O", "qcow2"]).arg(lab.boot_disk()).arg(disk)).context("packing the disk").map(drop)
}

/// Packer, and the machine that it makes, see only the lab's own cloud.
fn build(builder: &Rig, directory: &Path, disk: &Path, binary: &Path) -> Result<()> {
    let template = host::workspace()?.join("packer");
    for name in ["openclaw.pkr.hcl", "variables.pkr.hcl"] {
        fs::copy(template.join(name), directory.join(name)).with_context(|| format!("copying {name}"))?;
    }
    run(Command::new("cp").arg("--recursive").arg(template.join("seed")).arg(directory))?;
    let variable = |name: &str, value: &str| ["-var".to_owned(), format!("{name}={value}")];
    let path = |path: &Path| path.display().to_string();
    let mut packer = Command::new("nsenter");
    packer.arg(network::net_of(&builder.machine()?.cloud())).args([
        "timeout",
        "3600",
        "packer",
        "build",
        "-only=qemu.openclaw",
    ]);
    packer.args(variable("qemu_disk", &path(disk))).args(variable("binary", &path(binary)));
    packer.args(variable("openclaw_version", fake_gateway::FIRST)).args(variable("qemu_accelerator", "tcg")).arg(".");
    packer.env("CHECKPOINT_DISABLE", "1").env("PACKER_CONFIG_DIR", directory).env("HOME", directory);
    packer.env("PACKER_CACHE_DIR", directory.join("cache")).env("TMPDIR", directory);
    let output = builder.watch().output(packer.current_dir(directory)).context("running packer")?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "packer ended with {}:\n{printed}", output.status);
    Ok(())
}
