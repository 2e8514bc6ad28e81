//! Control groups of one machine on the development machine.
//!
//! The machine's processes get a group of their own in the unified tree (systemd inside manages what is below it)
//! and, when its memory is limited, one in the memory controller, which may still be a version 1 hierarchy.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::size::Size;
use crate::state::Lab;

/// Puts the calling process into the lab's groups, made if need be; everything it starts is in them, too.
pub fn enter(lab: &Lab, memory: Option<Size>) -> Result<()> {
    for group in groups(lab, memory.is_some())? {
        fs::create_dir_all(&group).with_context(|| format!("making the control group {}", group.display()))?;
        join(&group)?;
        let limits = ["memory.limit_in_bytes", "memory.max"].map(|file| group.join(file));
        if let (Some(limit), Some(file)) = (memory, limits.iter().find(|file| file.exists())) {
            fs::write(file, limit.0.to_string()).with_context(|| format!("limiting memory in {}", file.display()))?;
        }
    }
    Ok(())
}

/// Puts the calling process into the groups of the running machine's own processes.
pub fn join_machine(lab: &Lab) -> Result<()> {
    for group in groups(lab, true)? {
        // systemd-nspawn's name for the group of what it runs.
        let payload = group.join("payload");
        if let Some(group) = [payload, group].iter().find(|group| group.exists()) {
            join(group)?;
        }
    }
    Ok(())
}

/// Removes the lab's groups in every hierarchy. Their processes must have ended.
pub fn remove(lab: &Lab) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("reading /proc/self/mounts")?;
    let trees = mounts.lines().map(fields).filter(|(_, kind, _)| kind.starts_with("cgroup"));
    for (tree, _, _) in trees {
        remove_tree(&Path::new(tree).join(lab.machine()))?;
    }
    Ok(())
}

/// `/proc/meminfo` of the development machine, as a machine with `limit` bytes and no swap would show it.
pub fn meminfo(limit: Size) -> Result<String> {
    let text = fs::read_to_string("/proc/meminfo").context("reading /proc/meminfo")?;
    Ok(limited(&text, limit.0 >> 10))
}

/// Caps the total, and everything that cannot exceed it, at `limit` KiB.
fn limited(meminfo: &str, limit: u64) -> String {
    let cap = |line: &str| {
        let (name, rest) = line.split_once(':')?;
        let value: u64 = rest.trim().strip_suffix(" kB")?.parse().ok()?;
        let value = match name {
            "MemTotal" => limit.min(value),
            "SwapTotal" | "SwapFree" | "SwapCached" => 0,
            // What the kernel and the machine's own first processes need.
            "MemFree" | "MemAvailable" => value.min(limit - limit / 10),
            "VmallocTotal" | "VmallocUsed" | "DirectMap4k" | "DirectMap2M" | "DirectMap1G" => value,
            _ => value.min(limit / 10),
        };
        Some(format!("{:<15} {value:>8} kB\n", format!("{name}:")))
    };
    meminfo.lines().map(|line| cap(line).unwrap_or_else(|| format!("{line}\n"))).collect()
}

/// The lab's groups: where systemd looks, in both layouts, and in the memory controller's own tree if there is one.
fn groups(lab: &Lab, memory: bool) -> Result<Vec<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("reading /proc/self/mounts")?;
    let unified = hierarchy(&mounts, "cgroup2", "").context("no cgroup2 file system is mounted")?;
    let named = hierarchy(&mounts, "cgroup", "name=systemd");
    let memory = if memory { hierarchy(&mounts, "cgroup", "memory") } else { None };
    Ok([Some(unified), named, memory].into_iter().flatten().map(|tree| tree.join(lab.machine())).collect())
}

fn join(group: &Path) -> Result<()> {
    let file = group.join("cgroup.procs");
    fs::write(&file, "0").with_context(|| format!("joining the control group {}", group.display()))
}

/// Where a hierarchy of this kind, with this controller, is mounted.
fn hierarchy(mounts: &str, kind: &str, controller: &str) -> Option<PathBuf> {
    let mut mounts = mounts.lines().map(fields);
    let found = mounts.find(|(_, has, options)| {
        *has == kind && (controller.is_empty() || options.split(',').any(|option| option == controller))
    });
    found.map(|(path, _, _)| path.into())
}

/// Mount point, file system type and options of one line of `/proc/self/mounts`.
fn fields(line: &str) -> (&str, &str, &str) {
    let mut words = line.split(' ').skip(1);
    let mut next = || words.next().unwrap_or_default();
    (next(), next(), next())
}

/// Removes a group and the groups below it. The kernel may need a moment after the last process ended.
fn remove_tree(group: &Path) -> Result<()> {
    if !group.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(group).with_context(|| format!("reading {}", group.display()))? {
        let path = entry.with_context(|| format!("reading {}", group.display()))?.path();
        if path.is_dir() {
            remove_tree(&path)?;
        }
    }
    for _ in 0..50 {
        if fs::remove_dir(group).is_ok() {
            return Ok(());
        }
        sleep(Duration::from_millis(100));
    }
    fs::remove_dir(group).with_context(|| format!("removing the control group {}", group.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n\
                          cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
                          cgroup /sys/fs/cgroup/memory cgroup rw,relatime,memory 0 0\n\
                          cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";

    #[test]
    fn hierarchies_are_found_by_kind_and_controller() {
        let memory = hierarchy(MOUNTS, "cgroup", "memory");
        assert_eq!(memory.as_deref(), Some(Path::new("/sys/fs/cgroup/memory")));
        let unified = hierarchy(MOUNTS, "cgroup2", "");
        assert_eq!(unified.as_deref(), Some(Path::new("/sys/fs/cgroup/unified")));
        assert_eq!(hierarchy(MOUNTS, "cgroup", "pids"), None);
    }

    #[test]
    fn a_small_machine_shows_its_own_memory() {
        let host = "MemTotal:       24683656 kB\nMemAvailable:   23000000 kB\nSwapTotal:       1000 kB\nHugePages_Total:       0\n";
        let expected = "MemTotal:        2097152 kB\nMemAvailable:    1887437 kB\nSwapTotal:             0 kB\nHugePages_Total:       0\n";
        assert_eq!(limited(host, 2 << 20), expected);
    }
}
