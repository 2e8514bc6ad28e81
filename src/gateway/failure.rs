//! Why the gateway does not come up, and what to do: from how it ended and from what its log says.

use std::fmt;
use std::time::Duration;

use bollard::models::{ContainerState, ContainerStateStatusEnum as Status};

use super::{EXIT_KILLED, NAME};
use crate::error::{Code, Diagnosis, RUN_AGAIN};
use crate::memory::LARGER_MACHINE;
use crate::paths::STATE_ALIAS;

/// The gateway's "restarting me will not help".
const EXIT_REFUSED: i64 = 78;

/// Ended by itself with SIGABRT, as Node does when its heap is full.
const EXIT_ABORTED: i64 = 134;

/// How often the gateway may end in one wait before its code is taken for its final word.
const CERTAIN_ENDS: usize = 2;
const LOOP_ENDS: usize = 3;

/// Words of the gateway's log (2026.9.6 and before), the code that they mean, and what to do. The first one counts.
const CAUSES: &[(&str, Code, &str)] = &[
    (
        "heap out of memory",
        Code::OutOfMemory,
        "Node's heap is too small for it: remove the attribute openclaw-env-NODE_OPTIONS, or give --max-old-space-size \
         in it a larger value; without that attribute, give the VM more memory",
    ),
    (
        "a shared token is also configured",
        Code::GatewayRefused,
        "gateway.auth.mode is trusted-proxy: remove gateway.auth.token from openclaw.json",
    ),
    (
        "tailscale serve/funnel requires gateway bind=loopback",
        Code::GatewayRefused,
        "In a container the gateway listens on all addresses of its own, whatever gateway.bind says, so it cannot use \
         Tailscale itself: set gateway.tailscale.mode to off in openclaw.json, and run Tailscale on the VM (`sudo \
         tailscale serve --bg 18789`)",
    ),
    (
        "tailscale funnel requires gateway auth mode=password",
        Code::GatewayRefused,
        "Set gateway.tailscale.mode to off in openclaw.json: in a container the gateway cannot use Tailscale",
    ),
    (
        "efusing to bind gateway to",
        Code::GatewayRefused,
        "In a container the gateway needs authentication: set gateway.auth.mode to token, password or trusted-proxy in \
         openclaw.json",
    ),
    (
        "trusted-proxy requires",
        Code::GatewayRefused,
        "gateway.auth.mode is trusted-proxy, which needs gateway.trustedProxies and gateway.auth.trustedProxy.userHeader: \
         set them in openclaw.json, or set the mode to token",
    ),
    (
        "gateway tls:",
        Code::GatewayRefused,
        "Correct gateway.tls in openclaw.json: certPath and keyPath are paths in the container, below the state directory, \
         and both files must be readable for the gateway's user; or set gateway.tls.enabled to false",
    ),
    (
        "ession store requires migration",
        Code::GatewayRefused,
        "Its sessions are in an older form that it does not import by itself: `sudo openclaw-init cli doctor \
         --session-sqlite import --session-sqlite-all-agents`",
    ),
    (
        "uses newer schema version",
        Code::GatewayRefused,
        "The state belongs to a newer version of the gateway: set the attribute openclaw-version to that one",
    ),
    (
        "owns gateway-lifecycle",
        Code::GatewayRefused,
        "Another process uses the same state: find it with `sudo docker ps` and `sudo lsof +D /home/node/.openclaw`, end it",
    ),
    (
        "EADDRINUSE",
        Code::GatewayRefused,
        "Something in the container listens on the gateway's port: look for 18789 in openclaw.json and its plugins",
    ),
    (
        "ENOSPC",
        Code::NoSpace,
        "Make room on the disk of the state (`df -h /home/node/.openclaw`, `df -i /home/node/.openclaw`), or enlarge it",
    ),
    (
        "EACCES",
        Code::GatewayRefused,
        "A file of the state is not the gateway's: `sudo chown -R --no-dereference 1000:1000 /home/node/.openclaw/.`",
    ),
    (
        "doctor --fix",
        Code::GatewayRefused,
        "If openclaw.json is right, let the gateway repair its state: `sudo openclaw-init cli doctor --fix \
         --non-interactive`",
    ),
];

/// How the container has ended since it was first waited for.
#[derive(Debug, Clone, Default)]
pub(super) struct Ends {
    /// Its exit codes, oldest first.
    pub(super) codes: Vec<i64>,
    /// How many of its starts were slowed by a disk. The next one finds in memory what they have read.
    pub(super) cold: usize,
    /// Whether the kernel has killed a process for lack of memory.
    pub(super) starved: bool,
}

/// Why waiting longer is of no use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Failure {
    Refused,
    OutOfMemory,
    Looping { code: i64, count: usize },
    Stopped(i64),
    Late { note: String, after: Duration },
}

impl Failure {
    /// `None` while the engine may still bring the gateway up.
    ///
    /// An end is believed when it was repeated while all that the gateway reads was in memory: its checks have time
    /// limits that a cold disk exceeds (openclaw issues 150762 and 150574).
    pub(super) fn of(ends: &Ends, state: &ContainerState) -> Option<Self> {
        let gone = !matches!(state.status, Some(Status::RUNNING | Status::RESTARTING));
        let count = |code| ends.codes.iter().filter(|&&end| end == code).count();
        let warm = ends.codes.len().saturating_sub(ends.cold);
        let is_repeated = |code| count(code) >= CERTAIN_ENDS && warm > 0;
        if is_repeated(EXIT_REFUSED) || gone && count(EXIT_REFUSED) > 0 {
            return Some(Self::Refused);
        }
        let certain = if ends.starved { 1 } else { CERTAIN_ENDS };
        if state.oom_killed == Some(true) || count(EXIT_KILLED) >= certain {
            return Some(Self::OutOfMemory);
        }
        let last = ends.codes.last().copied();
        if gone {
            return Some(Self::Stopped(last.or(state.exit_code).unwrap_or_default()));
        }
        let is_loop = ends.codes.len() >= LOOP_ENDS && warm >= CERTAIN_ENDS;
        last.filter(|_| is_loop || is_repeated(EXIT_ABORTED))
            .map(|code| Self::Looping { code, count: ends.codes.len() })
    }

    /// The cause that the gateway's `log` names, else what its end alone says.
    pub(super) fn diagnosis(&self, log: &str) -> Diagnosis {
        let named = match self {
            Self::Refused | Self::Looping { .. } | Self::Stopped(_) => cause(log),
            Self::OutOfMemory | Self::Late { .. } => None,
        };
        if let Some((code, what)) = named {
            return Diagnosis { code, remedy: format!("{what}. Then run `{RUN_AGAIN}`.") };
        }
        let (code, remedy) = match self {
            Self::Refused => (
                Code::GatewayRefused,
                format!(
                    "It was stopped, since starting it again cannot help. Correct {STATE_ALIAS}/openclaw.json as its \
                     last lines say, then run `{RUN_AGAIN}`."
                ),
            ),
            Self::OutOfMemory => (Code::OutOfMemory, LARGER_MACHINE.to_owned()),
            Self::Looping { .. } | Self::Stopped(_) | Self::Late { .. } => {
                (Code::GatewayNotReady, format!("See `sudo docker logs {NAME}`, then run `{RUN_AGAIN}`."))
            }
        };
        Diagnosis { code, remedy }
    }
}

fn cause(log: &str) -> Option<(Code, &'static str)> {
    CAUSES.iter().find(|(words, ..)| log.contains(words)).map(|(_, code, what)| (*code, *what))
}

impl fmt::Display for Failure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused => write!(out, "the gateway refused to start (exit code {EXIT_REFUSED})"),
            Self::OutOfMemory => out.write_str("the gateway was killed for lack of memory, and stays stopped"),
            Self::Looping { code, count } => {
                write!(out, "the gateway ended {count} times, last with exit code {code}")
            }
            Self::Stopped(code) => write!(out, "the gateway's container stopped with exit code {code}"),
            Self::Late { note, after } => {
                write!(
                    out,
                    "the gateway was not ready after {} s ({note}); the attribute openclaw-ready-timeout gives it more time",
                    after.as_secs()
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(status: Status, oom: bool) -> ContainerState {
        ContainerState { status: Some(status), oom_killed: Some(oom), ..Default::default() }
    }

    #[test]
    fn the_failures_are_told_apart() {
        let looping = |code, count| Some(Failure::Looping { code, count });
        #[rustfmt::skip]
        let cases: [(&[i64], _, _, Option<Failure>); 15] = [
            (&[], Status::RUNNING, false, None),
            (&[78], Status::RUNNING, false, None),
            (&[78], Status::RESTARTING, false, None),
            (&[78, 78], Status::RUNNING, false, Some(Failure::Refused)),
            (&[78], Status::EXITED, false, Some(Failure::Refused)),
            (&[137], Status::RESTARTING, true, Some(Failure::OutOfMemory)),
            (&[137], Status::RESTARTING, false, None),
            (&[137, 137], Status::RUNNING, false, Some(Failure::OutOfMemory)),
            (&[137], Status::EXITED, false, Some(Failure::Stopped(137))),
            (&[134], Status::RESTARTING, false, None),
            (&[134, 134], Status::RESTARTING, false, looping(134, 2)),
            (&[1, 1], Status::RESTARTING, false, None),
            (&[1, 0, 1], Status::RESTARTING, false, looping(1, 3)),
            (&[0], Status::EXITED, false, Some(Failure::Stopped(0))),
            (&[], Status::CREATED, false, Some(Failure::Stopped(0))),
        ];
        for (codes, status, oom, failure) in cases {
            let ends = Ends { codes: codes.to_vec(), ..Ends::default() };
            assert_eq!(Failure::of(&ends, &state(status, oom)), failure, "{codes:?} {status:?} {oom}");
        }
        let starved = |codes: &[i64], status| {
            Failure::of(&Ends { codes: codes.to_vec(), cold: 0, starved: true }, &state(status, false))
        };
        assert_eq!(starved(&[137], Status::RESTARTING), Some(Failure::OutOfMemory));
        assert_eq!(starved(&[137], Status::EXITED), Some(Failure::OutOfMemory));
        assert_eq!(starved(&[1], Status::RESTARTING), None);
    }

    /// A version that really loops or refuses is known as early as without a cold disk: its second start is warm.
    #[test]
    fn an_end_counts_when_no_disk_is_to_blame() {
        let looping = Some(Failure::Looping { code: 1, count: 3 });
        #[rustfmt::skip]
        let cases: [(&[i64], usize, Option<Failure>); 9] = [
            (&[78, 78], 1, Some(Failure::Refused)),
            (&[78, 78], 2, None),
            (&[78, 78, 78], 2, Some(Failure::Refused)),
            (&[78, 78, 78], 3, None),
            (&[1, 1, 1], 1, looping.clone()),
            (&[1, 1, 1], 2, None),
            (&[1, 1, 1, 1], 2, Some(Failure::Looping { code: 1, count: 4 })),
            (&[1, 1, 1], 0, looping),
            (&[137, 137], 2, Some(Failure::OutOfMemory)),
        ];
        for (codes, cold, failure) in cases {
            let ends = Ends { codes: codes.to_vec(), cold, starved: false };
            assert_eq!(Failure::of(&ends, &state(Status::RESTARTING, false)), failure, "{codes:?} {cold}");
        }
        let ends = Ends { codes: vec![78], cold: 1, starved: false };
        assert_eq!(
            Failure::of(&ends, &state(Status::EXITED, false)),
            Some(Failure::Refused),
            "nothing starts it again"
        );
    }

    #[test]
    fn the_cause_that_the_log_names_has_its_own_remedy() {
        let (refused, looping) = (Failure::Refused, Failure::Looping { code: 1, count: 3 });
        let late = Failure::Late { note: "starting".to_owned(), after: Duration::from_secs(300) };
        let heap = "FATAL ERROR: Reached heap limit Allocation failed - JavaScript heap out of memory";
        let proxy = "gateway auth mode is trusted-proxy, but a shared token is also configured; remove it";
        let sessions = "Legacy session store requires migration at sessions.json. Run \"openclaw doctor --fix\".";
        #[rustfmt::skip]
        let cases = [
            (&Failure::Looping { code: 134, count: 2 }, heap, Code::OutOfMemory, "openclaw-env-NODE_OPTIONS"),
            (&looping, proxy, Code::GatewayRefused, "remove gateway.auth.token"),
            (&refused, "tailscale serve/funnel requires gateway bind=loopback (127.0.0.1)", Code::GatewayRefused, "gateway.tailscale.mode to off"),
            (&refused, "Refusing to bind gateway to lan without auth.", Code::GatewayRefused, "gateway.auth.mode to token"),
            (&looping, "gateway tls: cert/key missing", Code::GatewayRefused, "certPath and keyPath"),
            (&refused, sessions, Code::GatewayRefused, "openclaw-init cli doctor --session-sqlite import"),
            (&refused, "uses newer schema version 18; this build supports 15", Code::GatewayRefused, "openclaw-version"),
            (&refused, "Error: EACCES: permission denied, mkdir '/home/node/.openclaw/state'", Code::GatewayRefused, "chown"),
            (&refused, "write ENOSPC. Run `openclaw doctor --fix`", Code::NoSpace, "df -h"),
            (&refused, "Config invalid. Run: openclaw doctor --fix", Code::GatewayRefused, "openclaw-init cli doctor --fix --non-interactive"),
            (&refused, "Missing config", Code::GatewayRefused, "openclaw.json as its last lines say"),
            (&looping, "TypeError: x is not a function", Code::GatewayNotReady, "docker logs"),
            (&late, heap, Code::GatewayNotReady, "docker logs"),
            (&Failure::OutOfMemory, "", Code::OutOfMemory, "set-machine-type"),
        ];
        for (failure, log, code, words) in cases {
            let Diagnosis { code: found, remedy } = failure.diagnosis(log);
            assert_eq!(found, code, "{failure} {log}");
            assert!(remedy.contains(words) && remedy.ends_with('.'), "{log}: {remedy}");
        }
        assert!(late.to_string().contains("openclaw-ready-timeout"));
    }
}
