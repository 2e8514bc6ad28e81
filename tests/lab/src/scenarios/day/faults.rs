//! What happens to a machine in the course of its life, and what is to be read about each of it afterwards.

use std::time::Duration;

use crate::scenarios::random::Random;
use crate::scenarios::watch::hold_dpkg;

/// One thing that goes wrong.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) name: &'static str,
    /// How often it is drawn.
    weight: u32,
    /// Of one part only one thing goes wrong at a time, so that it is clear what must be told of it.
    part: &'static str,
    /// For what the watcher starts a run then: for the same soon again, it waits.
    pub(super) cause: Option<&'static str>,
    pub(super) act: Act,
    /// What the journal then has, of the watcher, of a run or of systemd. Empty: Docker heals it, or it passes, before
    /// anything is believed.
    pub(super) line: &'static str,
    /// Ends what no run ends, when the line is there.
    pub(super) end: &'static str,
    /// Whether an operator's run can be what ends it.
    is_for_runs: bool,
}

/// How it is done.
#[derive(Debug)]
pub(super) enum Act {
    /// By a line of shell in the machine.
    Shell(&'static str),
    /// By the metadata server.
    Metadata(&'static str),
    /// By an attribute that gets another value each time.
    Variable(&'static str),
    /// By an attribute that comes and goes.
    Attribute(&'static str),
}

/// Holds dpkg's lock as apt does, while the engine is stopped.
const UPGRADE: &str = concat!(
    "cat > /run/day-apt <<'PERL'\n",
    hold_dpkg!(),
    "\nPERL\n\
     systemd-run --quiet --unit=day-apt perl /run/day-apt\n\
     sleep 1; systemctl is-active day-apt && systemctl stop docker"
);

const KILL: &str = "p=$(docker inspect -f '{{.State.Pid}}' openclaw-gateway) && [ $p -gt 1 ] && kill -9 $p";
const FREEZE: &str = "p=$(docker top openclaw-gateway -o pid | tail -n +2); kill -STOP $p; sleep 20; kill -CONT $p";
const FILL_TMP: &str = "head --bytes=100M /dev/zero > \
                        /proc/$(docker inspect -f '{{.State.Pid}}' openclaw-gateway)/root/tmp/fill || true";
const FILL_DISK: &str = "fallocate --length $(($(stat --file-system --format '%a * %S' /) * 97 / 100)) /fill";
const FAILING: &str = r#"echo '{"ready":false,"failing":["database"]}' > /home/node/.openclaw/readyz.json"#;
const SUPPRESSED: &str = r#"echo '{"ready":true,"suppressed":["pigeon"]}' > /home/node/.openclaw/readyz.json"#;
const ANSWERS_AGAIN: &str = "rm /home/node/.openclaw/readyz.json";

/// A run that had to do something about the container.
macro_rules! or_run {
    ($line:literal) => {
        concat!($line, "|stage=gateway status=ok changes=[1-9]")
    };
}

const fn fault(name: &'static str, weight: u32, part: &'static str, act: Act) -> Fault {
    Fault { name, weight, part, cause: None, act, line: "", end: "", is_for_runs: true }
}

pub(super) static FAULTS: [Fault; 19] = [
    fault("process killed", 6, "gateway", Act::Shell(KILL)),
    Fault {
        cause: Some("container"),
        line: or_run!("container is gone"),
        ..fault("container removed", 4, "gateway", Act::Shell("docker rm -f openclaw-gateway"))
    },
    Fault {
        line: or_run!("stopped by hand"),
        end: "openclaw-init boot",
        ..fault("docker kill", 3, "gateway", Act::Shell("docker kill openclaw-gateway"))
    },
    Fault {
        cause: Some("container"),
        line: or_run!("nothing reaches"),
        ..fault("network lost", 2, "gateway", Act::Shell("docker network disconnect -f bridge openclaw-gateway"))
    },
    Fault {
        cause: Some("container"),
        line: "docker.service: Scheduled restart",
        ..fault("engine killed", 4, "gateway", Act::Shell("systemctl kill -s KILL docker"))
    },
    // The engine follows the new one after a while: until then it learns of no end.
    Fault {
        line: "containerd.service: Scheduled restart",
        end: "sleep 10",
        ..fault("containerd killed", 3, "gateway", Act::Shell("systemctl kill --kill-whom=main -s KILL containerd"))
    },
    Fault {
        cause: Some("engine"),
        line: "when apt has ended",
        end: "systemctl stop day-apt",
        is_for_runs: false,
        ..fault("upgrade", 2, "gateway", Act::Shell(UPGRADE))
    },
    // What Docker itself had there, Docker alone brings back.
    Fault {
        line: "loaded it again",
        end: "systemctl restart docker",
        ..fault("all rules flushed", 1, "gateway", Act::Shell("nft flush ruleset"))
    },
    Fault { is_for_runs: false, ..fault("frozen", 2, "gateway", Act::Shell(FREEZE)) },
    Fault {
        end: "rm -f /proc/$(docker inspect -f '{{.State.Pid}}' openclaw-gateway)/root/tmp/fill",
        ..fault("/tmp full", 3, "gateway", Act::Shell(FILL_TMP))
    },
    Fault {
        line: "database",
        end: ANSWERS_AGAIN,
        is_for_runs: false,
        ..fault("check fails", 1, "gateway", Act::Shell(FAILING))
    },
    Fault {
        line: "pigeon kept off",
        end: ANSWERS_AGAIN,
        is_for_runs: false,
        ..fault("channel off", 1, "gateway", Act::Shell(SUPPRESSED))
    },
    Fault {
        cause: Some("forwarding"),
        // An engine that starts switches it on.
        line: "ip_forward|stage=docker status=ok changes=[1-9]|Started docker.service",
        ..fault("forwarding off", 3, "forwarding", Act::Shell("sysctl -w net.ipv4.ip_forward=0"))
    },
    Fault {
        line: "loaded it again",
        ..fault("shield flushed", 5, "shield", Act::Shell("nft delete table inet openclaw_init"))
    },
    Fault {
        line: "openclaw-watch.service: Main process exited",
        ..fault("watcher killed", 4, "watcher", Act::Shell("systemctl kill -s KILL openclaw-watch"))
    },
    fault("metadata silent", 5, "metadata", Act::Metadata("blackhole,for=15s")),
    Fault {
        cause: Some("attributes"),
        line: or_run!("openclaw-env-DAY"),
        ..fault("variable changed", 3, "attributes", Act::Variable("openclaw-env-DAY"))
    },
    Fault {
        cause: Some("attributes"),
        line: "openclaw-port|stage=config status=ok",
        ..fault("same port", 2, "attributes", Act::Attribute("openclaw-port=18789"))
    },
    Fault { line: "less than 5 %", end: "rm /fill", ..fault("disk full", 1, "disk", Act::Shell(FILL_DISK)) },
];

/// What goes wrong at one time.
#[derive(Debug)]
pub(super) struct Step {
    /// Their numbers in [`FAULTS`].
    pub(super) faults: Vec<usize>,
    /// An operator has a run do about it what it can, after so long.
    pub(super) by_hand: Option<Duration>,
    /// How long nothing happens before.
    pub(super) pause: Duration,
}

/// `count` faults in steps.
pub(super) fn draw(random: &mut Random, count: usize) -> Vec<Step> {
    const PAUSE: Duration = Duration::from_secs(4);
    let (mut steps, mut left) = (Vec::new(), count);
    while left > 0 {
        // One, two of three times; else two, now and then three.
        let wanted = [1, 2, 3][random.weighted(&[6, 3, 1])].min(left);
        let mut faults: Vec<usize> = Vec::new();
        while faults.len() < wanted {
            let weights = FAULTS.each_ref().map(|fault| fault.weight);
            let drawn = random.weighted(&weights);
            if faults.iter().all(|other| FAULTS[*other].part != FAULTS[drawn].part) {
                faults.push(drawn);
            }
        }
        let is_by_hand = random.below(3) == 0 && faults.iter().all(|fault| FAULTS[*fault].is_for_runs);
        let by_hand = is_by_hand.then(|| random.up_to(PAUSE));
        steps.push(Step { faults, by_hand, pause: random.up_to(PAUSE) });
        left -= wanted;
    }
    steps
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_same_seed_draws_the_same_faults_and_two_hundred_are_all_kinds() {
        let draw = |seed, count| draw(&mut Random::of(seed), count);
        assert_eq!(format!("{:?}", draw(7, 200)), format!("{:?}", draw(7, 200)));
        assert_ne!(format!("{:?}", draw(7, 200)), format!("{:?}", draw(8, 200)));
        for seed in 0..20 {
            let steps = draw(seed, 200);
            let drawn: Vec<usize> = steps.iter().flat_map(|step| step.faults.clone()).collect();
            assert_eq!(drawn.len(), 200);
            assert!(drawn.iter().collect::<BTreeSet<_>>().len() >= FAULTS.len() - 2, "{drawn:?}");
            assert!(steps.iter().any(|step| step.faults.len() > 1) && steps.iter().any(|step| step.by_hand.is_some()));
        }
    }
}
