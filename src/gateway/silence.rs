//! A gateway that hangs: it runs, gives no answer, and does nothing.

use std::path::Path;
use std::time::Duration;

use crate::host::Host;

/// How long a gateway gives no answer and does nothing before it hangs.
const HUNG_AFTER: Duration = Duration::from_secs(180);

/// One that started later may be reading a large database from a cold disk.
const START: Duration = Duration::from_secs(300);

/// Its work is measured over no less than this.
const SAMPLE: Duration = Duration::from_secs(30);

/// The share of a processor that the container's own health check may need: more than that is work.
const IDLE_PERCENT: u32 = 5;

/// For how long a gateway has given no answer, and whether it works meanwhile. Times are since any one moment.
#[derive(Debug, Clone, Default)]
pub(crate) struct Silence {
    since: Option<Duration>,
    sample: Option<(Duration, Option<Duration>)>,
}

impl Silence {
    /// Notes one question; `cpu`: the time that processors have worked for the container.
    pub(crate) fn note(&mut self, now: Duration, is_silent: bool, cpu: Option<Duration>) {
        if !is_silent {
            *self = Self::default();
            return;
        }
        let Some((then, before)) = self.sample else {
            (self.since, self.sample) = (Some(now), Some((now, cpu)));
            return;
        };
        let elapsed = now.saturating_sub(then);
        if elapsed < SAMPLE {
            return;
        }
        let worked = cpu.zip(before).map_or(Duration::ZERO, |(cpu, before)| cpu.saturating_sub(before));
        if worked * 100 > elapsed * IDLE_PERCENT {
            self.since = Some(now);
        }
        self.sample = Some((now, cpu));
    }

    /// Whether a gateway that has been up for so long hangs. Until `start` it may be starting.
    pub(crate) fn is_hung(&self, now: Duration, up: Option<Duration>, start: Duration) -> bool {
        let is_silent = self.since.is_some_and(|since| now.saturating_sub(since) >= HUNG_AFTER);
        is_silent && up.is_some_and(|up| up >= start.max(START))
    }
}

/// How long processors have worked for the container with this process, where the kernel counts that.
pub(crate) async fn cpu_time(host: &Host, process: i64) -> Option<Duration> {
    let groups = host.read(format!("/proc/{process}/cgroup")).await.ok()??;
    let groups = String::from_utf8(groups).ok()?;
    let group = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let stat = host.read(Path::new("/sys/fs/cgroup").join(group).join("cpu.stat")).await.ok()??;
    let stat = String::from_utf8(stat).ok()?;
    let micros = stat.lines().find_map(|line| line.strip_prefix("usage_usec ")?.trim().parse().ok());
    micros.map(Duration::from_micros)
}

#[cfg(test)]
mod tests {
    use super::*;

    type Seen<'a> = &'a [(bool, Option<u64>)];

    #[test]
    fn only_a_gateway_that_neither_answers_nor_works_hangs() {
        let seconds = Duration::from_secs;
        // What is seen every minute: whether it is silent, and by how much it worked in that minute.
        let cases: [(&str, Seen<'_>, u64, bool); 7] = [
            ("it answers", &[(false, Some(0)); 9], 9000, false),
            ("it hangs", &[(true, Some(0)); 4], 9000, true),
            ("a health check", &[(true, Some(1)); 4], 9000, true),
            ("not yet", &[(true, Some(0)); 3], 9000, false),
            ("it works", &[(true, Some(30)); 9], 9000, false),
            ("it has just started", &[(true, Some(0)); 4], 240, false),
            ("nobody counts", &[(true, None); 4], 9000, true),
        ];
        for (what, seen, up, expected) in cases {
            let (mut silence, mut now, mut cpu) = (Silence::default(), seconds(0), seconds(0));
            for (is_silent, worked) in seen {
                now += seconds(60);
                cpu += seconds(worked.unwrap_or_default());
                silence.note(now, *is_silent, worked.map(|_| cpu));
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
        assert_eq!(cpu_time(&host, 7).await, None);
        std::fs::write(root.path().join("proc/7/cgroup"), "1:name=x:/y\n0::/system.slice/docker-1.scope\n")?;
        std::fs::write(group.join("cpu.stat"), "usage_usec 2500000\nuser_usec 1\n")?;
        assert_eq!(cpu_time(&host, 7).await, Some(Duration::from_millis(2500)));
        Ok(())
    }
}
