//! Machines in QEMU as a scenario uses them, one after the other, in one cloud that reaches nothing.

use std::collections::BTreeSet;
use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempPath;

use super::rig::Rig;
use crate::cloud;
use crate::cloud::docker_apt::DockerRepository;
use crate::cloud::fake_gateway;
use crate::cloud::metadata_server::{Level, Metadata};
use crate::cloud::network;
use crate::machine::attach::metadata_disks;
use crate::machine::disks;
use crate::machine::qemu::image;
use crate::machine::qemu::vm::{self, Drive, Vm, Writes};
use crate::product::{DATA_DISK, NAMESPACE};
use crate::size::Size;
use crate::state::{AttachedDisk, Lab, Os, Spec};

pub(super) const GIB: u64 = 1 << 30;
/// Generous: the processor is emulated, on a busy machine.
pub(super) const BOOT_LIMIT: Duration = Duration::from_secs(30 * 60);
pub(super) const COMMAND_LIMIT: Duration = Duration::from_secs(10 * 60);

/// Shows what a machine that did not become ready is like.
const EVIDENCE: &str = include_str!("../../scripts/qemu/show-evidence.sh");

/// A prepared image and a cloud for the machines made from it.
pub(super) struct VmBench {
    lab: Lab,
    image: TempPath,
    writes: Writes,
    /// The boots that have already told a result.
    known: BTreeSet<String>,
    /// The part of the second serial port's log that older disks wrote.
    passed: usize,
}

impl VmBench {
    /// A bench for machines from the prepared image, which is made first.
    pub(super) fn new(rig: &Rig, writes: Writes) -> Result<Self> {
        vm::install_tools()?;
        let image = prepared(rig)?;
        Self::of(rig, image, writes)
    }

    /// A bench for machines from `image`, the raw content of a boot disk.
    pub(super) fn of(rig: &Rig, image: TempPath, writes: Writes) -> Result<Self> {
        vm::install_tools()?;
        let lab = rig.machine()?;
        lab.create()?;
        open_cloud(&lab, None)?;
        fs::write(vm::second_port(&lab), "").context("making the log of the second serial port")?;
        Ok(Self { lab, image, writes, known: BTreeSet::new(), passed: 0 })
    }

    /// A new machine: a boot disk made from the image, a blank data disk or none.
    pub(super) fn fresh(&mut self, data_disk: bool) -> Result<()> {
        let boot = self.lab.boot_disk();
        if boot.exists() {
            fs::remove_file(&boot).context("removing the former boot disk")?;
        }
        disks::copy(&self.image, &boot)?;
        self.passed = fs::read_to_string(vm::second_port(&self.lab))?.len();
        self.set_disks(Vec::new())?;
        if data_disk { self.attach() } else { Ok(()) }
    }

    /// Attaches a blank data disk to the machine, which is off.
    pub(super) fn attach(&self) -> Result<()> {
        let file = self.lab.path("openclaw-data.img");
        if file.exists() {
            fs::remove_file(&file).context("removing the former data disk")?;
        }
        disks::create(&file, Size(10 * GIB))?;
        self.set_disks(vec![AttachedDisk { device_name: DATA_DISK.to_owned(), file, read_only: false }])
    }

    /// Sets an attribute of the instance.
    pub(super) fn attribute(&self, key: &str, value: &str) -> Result<()> {
        cloud::runtime()?.block_on(cloud::client(&self.lab)?.set_attribute(Level::Instance, key, value))
    }

    fn set_disks(&self, disks: Vec<AttachedDisk>) -> Result<()> {
        let spec = Spec { disks, ..self.lab.load()? };
        self.lab.save(&spec)?;
        let listed = metadata_disks(&self.lab, &spec);
        cloud::runtime()?.block_on(cloud::client(&self.lab)?.set_disks(listed))
    }

    pub(super) fn start(&self) -> Result<Vm> {
        let drive = |device_name: &str, file| Drive { device_name: device_name.to_owned(), file, writes: self.writes };
        let spec = self.lab.load()?;
        let data = spec.disks.into_iter().map(|disk| drive(&disk.device_name, disk.file));
        let drives: Vec<Drive> = [drive(self.lab.name(), self.lab.boot_disk())].into_iter().chain(data).collect();
        Vm::start(&self.lab, &drives)
    }

    /// Waits until the machine's init has begun a new boot; its id.
    pub(super) fn until_init(&self) -> Result<String> {
        let deadline = Instant::now() + BOOT_LIMIT;
        loop {
            let told = fs::read_to_string(vm::second_port(&self.lab))?;
            let mut boots = told.lines().filter_map(|line| line.trim().strip_prefix("boot "));
            if let Some(boot) = boots.next_back().filter(|boot| !self.known.contains(*boot)) {
                return Ok(boot.to_owned());
            }
            ensure!(Instant::now() < deadline, "the machine does not come up");
            sleep(Duration::from_millis(200));
        }
    }

    /// Waits for the result of the boot under way, which must be `ready`; returns the time since its init.
    pub(super) fn until_ready(&mut self) -> Result<Duration> {
        let boot = self.until_init()?;
        let took = self.until_result(|id| id == boot)?;
        self.known.insert(boot);
        Ok(took)
    }

    /// Waits until a wanted boot, by its id, has told a result. It must be `ready`; returns how long that took.
    pub(super) fn until_result(&self, is_wanted: impl Fn(&str) -> bool) -> Result<Duration> {
        let begun = Instant::now();
        let (runtime, client) = (cloud::runtime()?, cloud::client(&self.lab)?);
        while begun.elapsed() < BOOT_LIMIT {
            let attributes = runtime.block_on(client.guest_attributes(NAMESPACE))?;
            let text = |key: &str| attributes.get(key).map(String::as_str).unwrap_or_default();
            let result =
                Some(text("result")).filter(|it| !it.is_empty() && *it != "pending" && is_wanted(text("boot-id")));
            if let Some(result) = result {
                ensure!(result == "ready" && text("version") == fake_gateway::FIRST, "{attributes:?}");
                return Ok(begun.elapsed());
            }
            sleep(Duration::from_millis(500));
        }
        bail!("there was no result within {} s", BOOT_LIMIT.as_secs())
    }

    /// Cuts the power after a while and switches the machine on again: it must become ready, and every file that
    /// was on the disk before must be there.
    pub(super) fn cut(&mut self, machine: Vm, after: Duration) -> Result<Vm> {
        sleep(after);
        machine.cut()?;
        let cut = fs::read_to_string(vm::second_port(&self.lab))?;
        self.known.extend(cut.lines().filter_map(|line| Some(line.trim().strip_prefix("boot ")?.to_owned())));
        let state = cloud::runtime()?.block_on(cloud::client(&self.lab)?.guest_attributes(NAMESPACE))?;
        let kept: BTreeSet<&str> =
            cut[self.passed..].lines().filter_map(|line| line.trim().strip_prefix("marker ")).collect();
        let machine = self.start()?;
        let took = match self.until_ready() {
            Ok(took) => took,
            Err(error) => {
                let seen = machine.shell(EVIDENCE, COMMAND_LIMIT);
                println!("{}", seen.unwrap_or_else(|error| format!("{error:#}")));
                return Err(error.context(format!("{} s after {state:?}", after.as_secs())));
            }
        };
        let there = machine.shell("ls /home/node/.openclaw/markers 2> /dev/null || true", COMMAND_LIMIT)?;
        let there: BTreeSet<&str> = there.lines().collect();
        let lost: Vec<_> = kept.difference(&there).collect();
        ensure!(lost.is_empty(), "of {} files that were on the disk these are gone: {lost:?}", kept.len());
        println!(
            "cut {:.1} s into it (state {}), ready {} s after the next init, {} files kept",
            after.as_secs_f32(),
            state.get("state").map(String::as_str).unwrap_or_default(),
            took.as_secs(),
            kept.len()
        );
        Ok(machine)
    }
}

/// Starts the cloud of a lab that has no machine yet: what Packer's or QEMU's processes in its namespace reach.
pub(super) fn open_cloud(lab: &Lab, repository: Option<DockerRepository>) -> Result<()> {
    lab.save(&Spec { os: Os::Debian12, memory: None, disks: Vec::new() })?;
    network::create(lab)?;
    let mut metadata = Metadata::default();
    metadata.instance.attributes.insert("enable-guest-attributes".into(), "TRUE".into());
    lab.name().clone_into(&mut metadata.instance.name);
    cloud::start(lab, &metadata, repository, None)
}

/// An image with Docker, the fake gateway and a unit that makes marker files.
fn prepared(rig: &Rig) -> Result<TempPath> {
    let builder = rig.beside(&format!("{}-b", rig.machine()?.name().trim_start_matches("t-")))?;
    let binary = rig.binary();
    let binary = binary.to_str().context("the binary's path is not text")?;
    // Nothing in it ever gives a result.
    builder.lab_ends(1, "up", &["--boot", "bootable", "--disk", "none", "--binary", binary, "--timeout", "1s"])?;
    let recipe = image::recipe();
    let recipe: Vec<&str> = recipe.iter().map(String::as_str).collect();
    builder.lab_ends(0, "exec", &[&["--"], &recipe[..]].concat())?.has(&["sealed"])?;
    let labs = builder.machine()?.directory().parent().context("the lab has no parent directory")?.to_owned();
    let image = tempfile::Builder::new().prefix("image-").tempfile_in(labs).context("making a file for the image")?;
    let file = image.path().to_str().context("the image's path is not text")?;
    builder.lab_ends(0, "down", &["--keep-boot-disk", file])?;
    Ok(image.into_temp_path())
}
