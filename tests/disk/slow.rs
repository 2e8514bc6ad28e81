//! Disks that fail or are slow where they are read: a server of blocks, with a file in front of it.

use std::fs::File;
use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use openclaw_init::config::ProofChoice;
use openclaw_init::error::Code;

use crate::fixture::{Fixture, NAME, alone, command};
use crate::images::MIB;

/// A machine whose disk is what nbdkit serves with these arguments. The server ends when the fixture unmounts it.
pub(crate) fn served(nbdkit: &[&str]) -> Result<Fixture> {
    let fixture = Fixture::new()?;
    let directory = fixture.path("images/served");
    std::fs::create_dir(&directory)?;
    let file = directory.join("disk");
    let mut server = command("nbdfuse");
    server.arg(&file).args(["[", "nbdkit", "--exit-with-parent"]).args(nbdkit).arg("]").spawn()?;
    let start = Instant::now();
    while !file.exists() {
        ensure!(start.elapsed() < Duration::from_secs(30), "nbdfuse serves nothing");
        std::thread::sleep(Duration::from_millis(100));
    }
    symlink(file, fixture.image(NAME))?;
    Ok(fixture)
}

fn is_unproven(fixture: &Fixture, texts: [&str; 2]) -> Result<()> {
    let (code, said) = fixture.refusal()?;
    ensure!(code == Code::DiskUnproven && texts.iter().all(|text| said.contains(text)), "{code}: {said}");
    println!("{said}");
    Ok(())
}

#[test]
#[ignore = "needs root and nbdkit: cargo lab test machine"]
fn a_blank_disk_with_an_unreadable_place_is_damaged() -> Result<()> {
    alone("slow::a_blank_disk_with_an_unreadable_place_is_damaged", || {
        let pread = "pread=[ $4 -lt 300000000 ] || [ $4 -gt 301000000 ] || { echo EIO >&2; exit 1; }; \
                     head -c $3 /dev/zero";
        let mut fixture = served(&["eval", "get_size=echo 600M", pread, "pwrite=cat > /dev/null"])?;
        let _disk = fixture.attach(NAME, false)?;
        let (code, said) = fixture.refusal()?;
        ensure!(code == Code::DiskDamaged && said.contains("at offset 29") && said.contains("dmesg"), "{code}: {said}");
        Ok(())
    })
}

/// At 4 MB/s every block of 10 GiB takes three quarters of an hour.
#[test]
#[ignore = "needs root and nbdkit, takes a minute: cargo lab test machine"]
fn a_slow_disk_is_formatted_only_after_the_operators_choice() -> Result<()> {
    alone("slow::a_slow_disk_is_formatted_only_after_the_operators_choice", || {
        let mut fixture = served(&["--filter=rate", "memory", "10G", "rate=32M"])?;
        let _disk = fixture.attach(NAME, false)?;
        is_unproven(&fixture, ["reading every block takes about", "openclaw-data-disk-proof"])?;
        fixture.proof = ProofChoice::Sampled;
        let (outcome, notes) = fixture.run();
        outcome?;
        let warned = notes.warnings.iter().find(|warning| warning.contains("only samples of it were read"));
        println!("{}", warned.context("it does not warn")?);
        fixture.unmount()
    })
}

/// A read takes at least a millisecond: every block of 16 TiB takes hours, and so does one of each MiB.
#[test]
#[ignore = "needs root and nbdkit, takes a minute: cargo lab test machine"]
fn a_vast_slow_disk_is_formatted_by_no_reading() -> Result<()> {
    alone("slow::a_vast_slow_disk_is_formatted_by_no_reading", || {
        let mut fixture = served(&["--filter=delay", "memory", "16T", "rdelay=1ms"])?;
        let _disk = fixture.attach(NAME, false)?;
        is_unproven(&fixture, ["reading every block takes about", "reading one block of each MiB takes about"])
    })
}

/// As large as a file can be here, without a delay: the operator's choice formats it.
#[test]
#[ignore = "needs root, reads 17 million blocks: cargo lab test --long"]
fn a_vast_disk_is_formatted_after_samples() -> Result<()> {
    alone("slow::a_vast_disk_is_formatted_after_samples", || {
        let mut fixture = Fixture::new()?;
        File::create_new(fixture.image(NAME))?.set_len((16 << 40) - MIB)?;
        let _disk = fixture.attach(NAME, false)?;
        fixture.proof = ProofChoice::Sampled;
        let start = Instant::now();
        let (outcome, notes) = fixture.run();
        outcome?;
        let warned = notes.warnings.iter().find(|warning| warning.contains("only samples of it were read"));
        println!("{} s: {}", start.elapsed().as_secs(), warned.context("it does not warn")?);
        fixture.unmount()
    })
}
