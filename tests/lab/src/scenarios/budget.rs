//! What a run without anything to do costs, counted: a time depends on the machine, a count does not.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};

use super::rig::Rig;
use crate::product::BOOT_HERE;

/// What a trace of a run shows. `strace` must be installed.
#[derive(Debug, Default, PartialEq, Eq)]
struct Cost {
    programs: Vec<String>,
    /// Method and path of each HTTP request, without its query.
    requests: Vec<String>,
    /// Files outside `/run`, `/proc` and `/dev` that were opened for writing, made, renamed or removed.
    written: BTreeSet<String>,
    syncs: usize,
}

/// How often it asks systemd: about the engine, and about the shield.
const SYSTEMCTL: usize = 2;
/// To the metadata server, the engine and the gateway.
const REQUESTS: usize = 14;

/// What does not answer at once is asked again: the cheapest run shows what one costs.
const TRACED_RUNS: usize = 3;

/// It asks, and writes nothing. What is asked once more than now is a finding.
pub(super) fn idle_run_costs_next_to_nothing(rig: &Rig) -> Result<()> {
    const CALLS: &str = "execve,openat,creat,rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,fsync,fdatasync,\
                         syncfs,sync,write,writev,sendto,sendmsg";
    // A file for each thread: in one for all, a call that another interrupts would be on two lines.
    let run = format!("strace -ff -s 300 -o /root/idle/of -e trace={CALLS} {BOOT_HERE} > /dev/null 2>&1");
    let runs = (0..TRACED_RUNS).map(|_| {
        rig.shell(&format!("rm -rf /root/idle && mkdir /root/idle && {run}"))?;
        Ok(Cost::of(&rig.shell("cat $(ls -v /root/idle/of.*)")?))
    });
    let costs = runs.collect::<Result<Vec<_>>>()?;
    let cost = costs.iter().min_by_key(|cost| cost.requests.len()).context("no run was traced")?;
    println!("a run without anything to do: {} programs, {} requests", cost.programs.len(), cost.requests.len());
    let is_known = cost.programs.iter().all(|program| program == "/usr/bin/systemctl");
    ensure!(is_known && cost.programs.len() <= SYSTEMCTL, "other programs were started: {cost:?}");
    ensure!(cost.written.is_empty() && cost.syncs == 0, "something was written: {cost:?}");
    let to_metadata = cost.requests.iter().filter(|request| request.contains("/computeMetadata/")).count();
    ensure!(to_metadata == 1, "the metadata server was asked {to_metadata} times: {cost:?}");
    ensure!(cost.requests.len() <= REQUESTS, "too many requests: {cost:?}");
    Ok(())
}

impl Cost {
    fn of(trace: &str) -> Self {
        let mut cost = Self::default();
        for line in trace.lines().filter(|line| !line.contains(" = -1 ")) {
            let Some((call, rest)) = line.split_once('(') else { continue };
            match call {
                "execve" => cost.programs.extend(quoted(rest)),
                "fsync" | "fdatasync" | "syncfs" | "sync" => cost.syncs += 1,
                "write" | "writev" | "sendto" | "sendmsg" => cost.requests.extend(request(rest)),
                "openat" if !["O_WRONLY", "O_RDWR", "O_CREAT"].iter().any(|flag| rest.contains(flag)) => {}
                _ => cost.written.extend(quoted(rest).filter(|path| is_durable(path))),
            }
        }
        // The run itself.
        cost.programs.drain(..cost.programs.len().min(1));
        cost
    }
}

/// The first string among the arguments of a call.
fn quoted(arguments: &str) -> Option<String> {
    Some(arguments.split('"').nth(1)?.to_owned())
}

fn request(arguments: &str) -> Option<String> {
    let text = quoted(arguments)?;
    let (method, rest) = text.split_once(' ')?;
    let (path, rest) = rest.split_once(' ')?;
    let is_request = ["GET", "POST", "PUT", "DELETE", "HEAD"].contains(&method) && rest.starts_with("HTTP/1.1");
    is_request.then(|| format!("{method} {}", path.split('?').next().unwrap_or_default()))
}

fn is_durable(path: &str) -> bool {
    path.starts_with('/') && !["/run/", "/proc/", "/dev/"].iter().any(|start| path.starts_with(start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_counted() {
        let trace = r#"execve("/usr/local/bin/openclaw-init", ["openclaw-init"], 0x7ffe /* 9 vars */) = 0
openat(AT_FDCWD, "/etc/hosts", O_RDONLY|O_CLOEXEC) = 7
openat(AT_FDCWD, "/var/lib/x", O_WRONLY|O_CREAT|O_CLOEXEC, 0666) = 7
openat(AT_FDCWD, "/run/openclaw-init/status.json", O_WRONLY|O_CREAT|O_CLOEXEC, 0666) = 7
openat(AT_FDCWD, "/etc/gone", O_RDWR) = -1 ENOENT (No such file or directory)
sendto(9, "GET /v1.41/info?all=1 HTTP/1.1\r\nhost: docker\r\n", 60, MSG_NOSIGNAL, NULL, 0) = 60
write(1, "GET a life", 10) = 10
execve("/usr/sbin/nft", ["nft", "-j"], 0x7ffe /* 9 vars */) = 0
fsync(7) = 0
renameat2(AT_FDCWD, "/etc/a", AT_FDCWD, "/etc/b", 0) = 0
+++ exited with 0 +++"#;
        let expected = Cost {
            programs: vec!["/usr/sbin/nft".to_owned()],
            requests: vec!["GET /v1.41/info".to_owned()],
            written: ["/etc/a", "/var/lib/x"].map(str::to_owned).into(),
            syncs: 1,
        };
        assert_eq!(Cost::of(trace), expected);
    }
}
