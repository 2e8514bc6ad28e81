//! What the kernel says of processes: what those of a container have read from the disk, and since when the machine's
//! first one runs.

use jiff::Timestamp;

use crate::host::Host;

/// In which the kernel counts time for programs, whatever its own clock (`USER_HZ`, time(7)).
const MILLISECONDS_PER_TICK: i64 = 10;

/// Which of its words is the start of a process, after the name in parentheses (`proc_pid_stat(5)`).
const START_TIME: usize = 19;

/// More processes than a starting gateway has.
const PROCESSES_LIMIT: usize = 32;

/// How many bytes the process `pid` and those that it has started have read from disks so far: what was in memory
/// already costs nothing. Those that have ended are not counted any more.
pub(super) async fn read_bytes(host: &Host, pid: i64) -> u64 {
    let (mut processes, mut sum) = (vec![pid.to_string()], 0_u64);
    let mut at = 0;
    while let Some(process) = processes.get(at).filter(|_| at < PROCESSES_LIMIT) {
        let io = text(host, &format!("/proc/{process}/io")).await;
        let bytes = io.lines().find_map(|line| line.strip_prefix("read_bytes: ")?.trim().parse::<u64>().ok());
        sum = sum.saturating_add(bytes.unwrap_or_default());
        let children = text(host, &format!("/proc/{process}/task/{process}/children")).await;
        processes.extend(children.split_whitespace().map(str::to_owned));
        at += 1;
    }
    sum
}

/// When this machine came up: when its first process started, also where the kernel is another machine's, too.
pub(super) async fn booted_at(host: &Host) -> Option<Timestamp> {
    started_at(host, 1).await
}

/// When the process started, to a second: the kernel tells its own start in whole seconds.
pub async fn started_at(host: &Host, pid: u32) -> Option<Timestamp> {
    let (kernel, process) = (text(host, "/proc/stat").await, text(host, &format!("/proc/{pid}/stat")).await);
    start_of(&kernel, &process)
}

fn start_of(kernel: &str, process: &str) -> Option<Timestamp> {
    let booted: i64 = kernel.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok())?;
    let (_, words) = process.rsplit_once(')')?;
    let ticks: i64 = words.split_whitespace().nth(START_TIME)?.parse().ok()?;
    Timestamp::from_millisecond(booted * 1000 + ticks * MILLISECONDS_PER_TICK).ok()
}

/// A file of the kernel's; nothing for a process that is gone.
async fn text(host: &Host, file: &str) -> String {
    let bytes = host.read(file).await.ok().flatten().unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use anyhow::Result;

    use super::*;

    #[tokio::test]
    async fn what_all_processes_of_a_container_have_read_is_added_up() -> Result<()> {
        let root = tempfile::tempdir()?;
        let host = Host::new(root.path());
        let files = [
            ("proc/7/task/7/children", "8 9 "),
            ("proc/7/io", "rchar: 5\nread_bytes: 4096\nwrite_bytes: 1\n"),
            ("proc/8/io", "rchar: 5\nread_bytes: 8192\n"),
            ("proc/8/task/8/children", "10 \n"),
            ("proc/10/io", "read_bytes: 1\n"),
            ("proc/5/task/5/children", "5 5"),
        ];
        for (path, text) in files {
            let path = root.path().join(path);
            path.parent().map(std::fs::create_dir_all).transpose()?;
            std::fs::write(path, text)?;
        }
        for (pid, bytes) in [(7, 12289), (5, 0), (6, 0)] {
            assert_eq!(read_bytes(&host, pid).await, bytes, "{pid}");
        }
        Ok(())
    }

    #[test]
    fn a_machine_is_up_since_its_first_process_started() {
        let first = "1 (a (b) c) S 0 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 250 1 2";
        assert_eq!(start_of("cpu 1\nbtime 1000\n", first), Timestamp::from_millisecond(1_002_500).ok());
        assert_eq!(start_of("", first), None);
        assert_eq!(start_of("btime 1000\n", "1 (x) S"), None);
    }
}
