//! A gateway that hangs: it runs, gives no answer, and does nothing.

use std::path::Path;
use std::time::Duration;

use crate::host::Host;
use crate::text::MIB;

/// How long a gateway gives no answer and does nothing before it hangs.
const HUNG_AFTER: Duration = Duration::from_secs(180);

/// One that started later may be reading a large database from a cold disk.
const START: Duration = Duration::from_secs(300);

/// Its work is measured over no less than this.
const SAMPLE: Duration = Duration::from_secs(30);

/// The share of a processor that the container's own health check may need: more than that is work.
const IDLE_PERCENT: u32 = 5;

/// Reading or writing so much of a disk in a second is work, too. A small standard disk does 1.5 MB/s.
const WORK_BYTES_PER_SECOND: u64 = MIB;

/// What a container has done since it started, where the kernel counts that.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Work {
    /// The time that processors have worked for it.
    cpu: Duration,
    /// What it has read from disks and written to them, in bytes.
    disk: u64,
}

impl Work {
    /// Whether it has done more than nothing within `elapsed`, since it had done `before`.
    fn is_more_than(self, before: Self, elapsed: Duration) -> bool {
        let cpu = self.cpu.saturating_sub(before.cpu);
        cpu * 100 > elapsed * IDLE_PERCENT
            || self.disk.saturating_sub(before.disk) >= WORK_BYTES_PER_SECOND * elapsed.as_secs()
    }
}

/// For how long a gateway has given no answer, and whether it works meanwhile. Times are since any one moment.
#[derive(Debug, Clone, Default)]
pub(crate) struct Silence {
    since: Option<Duration>,
    sample: Option<(Duration, Option<Work>)>,
}

impl Silence {
    /// Notes one question, and what the container has done until then.
    pub(crate) fn note(&mut self, now: Duration, is_silent: bool, work: Option<Work>) {
        if !is_silent {
            *self = Self::default();
            return;
        }
        let Some((then, before)) = self.sample else {
            (self.since, self.sample) = (Some(now), Some((now, work)));
            return;
        };
        let elapsed = now.saturating_sub(then);
        if elapsed < SAMPLE {
            return;
        }
        if work.zip(before).is_some_and(|(work, before)| work.is_more_than(before, elapsed)) {
            self.since = Some(now);
        }
        self.sample = Some((now, work));
    }

    /// Whether a gateway that has been up for so long hangs. Until `start` it may be starting.
    pub(crate) fn is_hung(&self, now: Duration, up: Option<Duration>, start: Duration) -> bool {
        let is_silent = self.since.is_some_and(|since| now.saturating_sub(since) >= HUNG_AFTER);
        is_silent && up.is_some_and(|up| up >= start.max(START))
    }
}

/// What the container with this process has done.
pub(crate) async fn work(host: &Host, process: i64) -> Option<Work> {
    let groups = host.read(format!("/proc/{process}/cgroup")).await.ok()??;
    let groups = String::from_utf8(groups).ok()?;
    let group = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let group = Path::new("/sys/fs/cgroup").join(group);
    let read = async |file: &str| String::from_utf8(host.read(group.join(file)).await.ok()??).ok();
    let (cpu, io) = (read("cpu.stat").await?, read("io.stat").await.unwrap_or_default());
    let micros = cpu.lines().find_map(|line| line.strip_prefix("usage_usec ")?.trim().parse().ok());
    // `8:0 rbytes=1 wbytes=2 rios=3 …` for each disk.
    let bytes = |field: &str| field.strip_prefix("rbytes=").or_else(|| field.strip_prefix("wbytes="))?.parse().ok();
    let disk = io.split_whitespace().filter_map(bytes).fold(0, u64::saturating_add);
    Some(Work { cpu: Duration::from_micros(micros?), disk })
}

#[cfg(test)]
mod tests {
    use super::*;

    type Seen<'a> = &'a [(bool, Option<(u64, u64)>)];

    #[test]
    fn only_a_gateway_that_neither_answers_nor_works_hangs() {
        let seconds = Duration::from_secs;
        // What is seen every minute: whether it is silent, and by how many seconds and MiB it worked in that minute.
        let cases: [(&str, Seen<'_>, u64, bool); 8] = [
            ("it answers", &[(false, Some((0, 0))); 9], 9000, false),
            ("it hangs", &[(true, Some((0, 0))); 4], 9000, true),
            ("a health check", &[(true, Some((1, 0))); 4], 9000, true),
            ("not yet", &[(true, Some((0, 0))); 3], 9000, false),
            ("it works", &[(true, Some((30, 0))); 9], 9000, false),
            ("it reads", &[(true, Some((0, 60))); 9], 9000, false),
            ("it has just started", &[(true, Some((0, 0))); 4], 240, false),
            ("nobody counts", &[(true, None); 4], 9000, true),
        ];
        for (what, seen, up, expected) in cases {
            let (mut silence, mut now, mut work) = (Silence::default(), seconds(0), Work::default());
            for (is_silent, worked) in seen {
                now += seconds(60);
                let (cpu, disk) = worked.unwrap_or_default();
                work = Work { cpu: work.cpu + seconds(cpu), disk: work.disk + disk * MIB };
                silence.note(now, *is_silent, worked.map(|_| work));
            }
            assert_eq!(silence.is_hung(now, Some(seconds(up)), START), expected, "{what}");
            assert!(!silence.is_hung(now, Some(seconds(up)), seconds(9001)), "{what}: it may be starting");
        }
    }

    #[tokio::test]
    async fn the_kernels_count_is_read() -> anyhow::Result<()> {
        let root = tempfile::tempdir()?;
        let host = Host::new(root.path());
        let group = root.path().join("sys/fs/cgroup/system.slice/docker-1.scope");
        std::fs::create_dir_all(&group)?;
        std::fs::create_dir_all(root.path().join("proc/7"))?;
        assert_eq!(work(&host, 7).await, None);
        std::fs::write(root.path().join("proc/7/cgroup"), "1:name=x:/y\n0::/system.slice/docker-1.scope\n")?;
        std::fs::write(group.join("cpu.stat"), "usage_usec 2500000\nuser_usec 1\n")?;
        let cpu = Duration::from_millis(2500);
        assert_eq!(work(&host, 7).await, Some(Work { cpu, disk: 0 }));
        std::fs::write(group.join("io.stat"), "8:0 rbytes=5 wbytes=7 rios=1\n8:16 rbytes=100 wbytes=0\n7:0 \n")?;
        assert_eq!(work(&host, 7).await, Some(Work { cpu, disk: 112 }));
        Ok(())
    }
}
