//! How much memory the machine has, whether the kernel killed for lack of it, and what helps then.

pub mod swap;

use anyhow::{Result, anyhow};

use crate::host::Host;

/// What to do about a machine that is too small.
pub const LARGER_MACHINE: &str = "Give the VM more memory: `gcloud compute instances stop VM --zone=ZONE`, `gcloud compute instances \
     set-machine-type VM --zone=ZONE --machine-type=e2-medium`, `gcloud compute instances start VM --zone=ZONE`.";

/// `MemTotal` in bytes.
pub async fn total(host: &Host) -> Result<u64> {
    let meminfo = host.read("/proc/meminfo").await?.unwrap_or_default();
    mem_total(&String::from_utf8_lossy(&meminfo)).ok_or_else(|| anyhow!("no MemTotal in /proc/meminfo"))
}

/// How many processes the kernel has killed since it started because memory had run out, the machine's or a
/// container's. Exit code 137 is no proof of that: anyone may send SIGKILL.
pub async fn kills(host: &Host) -> u64 {
    match host.read("/proc/vmstat").await {
        Ok(vmstat) => oom_kill(&String::from_utf8_lossy(&vmstat.unwrap_or_default())),
        Err(error) => {
            tracing::debug!("{error:#}");
            0
        }
    }
}

fn mem_total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

fn oom_kill(vmstat: &str) -> u64 {
    let count = vmstat.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok());
    count.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_figures_are_read() {
        assert_eq!(mem_total("MemTotal:        4030412 kB\nMemFree: 1 kB\n"), Some(4_030_412 * 1024));
        assert_eq!(mem_total(""), None);
        assert_eq!(oom_kill("pgmajfault 1\noom_kill 3\ndrop_slab 0\n"), 3);
        assert_eq!(oom_kill("pgmajfault 1\n"), 0);
    }
}
