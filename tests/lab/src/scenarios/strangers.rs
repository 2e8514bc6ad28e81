//! Other users of the VM, who are not root: what they try, and that they get nothing by it.

use anyhow::{Result, ensure};

use super::rig::{CommandOutput, Rig};

/// What they try; it must fail.
const ATTACKS: [(&str, &str); 22] = [
    ("read the locks", "ls /run/openclaw-init/private"),
    ("hold the run's lock", "flock -n /run/openclaw-init/private/lock true"),
    ("hold the loader's lock", "flock -n /run/openclaw-init/private/loader.lock true"),
    ("hold the lock of 0.1.0", "test -e /run/openclaw-init/lock && flock -n /run/openclaw-init/lock true"),
    ("forge the status", "echo x >> /run/openclaw-init/status.json"),
    ("replace the status", "mv /run/openclaw-init/status.json /run/openclaw-init/former"),
    ("put a file beside it", "touch /run/openclaw-init/x"),
    ("say that the shield is in force", "touch /run/openclaw-shield/in-force"),
    ("take the shield away", "rm -f /run/openclaw-shield/in-force || test ! -e /run/openclaw-shield/in-force"),
    ("read the disk's records", "cat /mnt/disks/openclaw-data/openclaw-init/record.json"),
    ("read a backup", "ls /mnt/disks/openclaw-data/backups"),
    ("read the disk itself", "head -c 1 \"$(findmnt -no SOURCE /mnt/disks/openclaw-data)\""),
    ("change the ruleset", "echo x >> /etc/openclaw-init/shield.nft"),
    ("flush the ruleset", "/usr/sbin/nft flush ruleset"),
    ("ask the engine", "curl -fsS -m 3 --unix-socket /run/docker.sock http://docker/info"),
    (
        "ask containerd",
        "perl -MSocket -e 'socket(S,PF_UNIX,SOCK_STREAM,0); \
        connect(S,sockaddr_un(\"/run/containerd/containerd.sock\")) or exit 1'",
    ),
    ("use the gateway without its token", "curl -fsS -m 3 -d {} http://127.0.0.1:18789/tools/invoke"),
    ("reach it beside loopback", "curl -sS -m 3 http://10.128.0.2:18789/readyz"),
    ("start a run", "openclaw-init boot --foreground"),
    ("stop the gateway", "openclaw-init stop"),
    ("take a backup", "openclaw-init backup --to /tmp/stolen.tar.gz"),
    ("stop the watcher", "kill -STOP $(systemctl show openclaw-watch -p MainPID --value)"),
];

pub(super) fn get_nothing(rig: &Rig) -> Result<()> {
    rig.shell("useradd --create-home stranger && id -u stranger | grep -x 1001")?;
    for (what, attack) in ATTACKS {
        let output = as_stranger(rig, attack)?;
        ensure!(output.code != 0, "another user can {what}:\n{}", output.text);
    }
    rig.shell("rm /run/openclaw-init/status.json; umask 000; openclaw-init boot --foreground")?;
    let open = rig.shell("find /run/openclaw-* /etc/openclaw-init /var/lib/openclaw-init -perm /022 ! -type l -ls")?;
    ensure!(open.is_empty(), "anybody may write what a run with umask 000 left:\n{open}");
    let told = as_stranger(rig, "openclaw-init stop 2>&1")?.text;
    ensure!(told.trim().lines().count() == 1 && told.contains("not root"), "another user is told {told}");
    rig.shell("userdel --remove stranger 2> /dev/null")?;
    opened_by_hand_is_told(rig)
}

/// Somebody's own proxy lets the network in.
fn opened_by_hand_is_told(rig: &Rig) -> Result<()> {
    let listen =
        "use IO::Socket::INET; my $s = IO::Socket::INET->new(LocalAddr => q(10.128.0.2:18789), Listen => 1); sleep";
    rig.lab_ends(0, "exec", &["--", "systemd-run", "--quiet", "--unit=opened", "perl", "-e", listen])?;
    rig.shell("timeout 30 sh -c \"until ss -Hltn 'src 10.128.0.2:18789' | grep -q .; do sleep 0.2; done\"")?;
    rig.boot(0)?.has(&["something answers at 10.128.0.2:18789", "changes=0"])?;
    rig.shell("systemctl stop opened").map(drop)
}

fn as_stranger(rig: &Rig, line: &str) -> Result<CommandOutput> {
    let user = ["--", "setpriv", "--reuid=1001", "--regid=1001", "--clear-groups", "--no-new-privs"];
    rig.lab("exec", &[&user[..], &["sh", "-c", line]].concat())
}
