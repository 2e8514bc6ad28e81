//! What apt and dpkg print in the C locale: their status lines and why they failed.

/// Why apt or dpkg failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Cause {
    /// Another program has the lock: this one, as far as the message names it.
    Locked(String),
    /// The disk is full.
    NoSpace,
    /// A file of apt's sources cannot be read, and with it none of them.
    Sources,
    /// Another try would not help.
    Permanent,
    /// A mirror or the network may have had a bad moment.
    Transient,
}

/// What the failed program printed, without the long command line in front of it: a report has little room.
pub(super) fn output(message: &str) -> &str {
    let after = message.split_once(" ended with exit code ").and_then(|(_, rest)| rest.split_once(": "));
    after.map_or(message, |(_, output)| output)
}

/// Why a program failed, from its message; the texts are those of apt 2.4 to 3.0 and dpkg 1.21 to 1.22 in the C locale.
pub(super) fn cause(message: &str) -> Cause {
    let says = |texts: &[&str]| texts.iter().any(|text| message.contains(text));
    if let Some(holder) = lock_holder(message) {
        Cause::Locked(holder)
    } else if says(&["No space left on device", "You don't have enough free space"]) {
        Cause::NoSpace
    } else if says(&["The list of sources could not be read"]) {
        Cause::Sources
    } else if says(&[
        "Unable to locate package",
        "has no installation candidate",
        "but remove is disabled",
        "unmet dependencies",
    ]) {
        Cause::Permanent
    } else {
        Cause::Transient
    }
}

/// Who holds the lock, `None` when the message is not about a lock.
fn lock_holder(message: &str) -> Option<String> {
    const TAKEN: [&str; 4] = [
        "Could not get lock",
        "Unable to acquire the dpkg frontend lock",
        "Unable to lock",
        "was locked by another process",
    ];
    if !TAKEN.iter().any(|text| message.contains(text)) {
        return None;
    }
    let after = |text: &str| message.split_once(text).map(|(_, rest)| rest);
    let by = after("held by process ").or_else(|| after("another process with pid "));
    let digits = |text: &str| text.chars().take_while(char::is_ascii_digit).collect::<String>();
    Some(match by.map(|rest| (digits(rest), rest)) {
        Some((pid, rest)) if !pid.is_empty() => {
            let name = rest[pid.len()..].strip_prefix(" (").and_then(|rest| rest.split_once(')'));
            name.map_or(format!("process {pid}"), |(name, _)| format!("{name} (process {pid})"))
        }
        _ => "another program".to_owned(),
    })
}

/// A line of apt's status protocol (`README.progress-reporting` in apt's documentation).
#[derive(Debug, Clone, PartialEq)]
pub(super) enum StatusLine {
    Progress { percent: f64, what: String },
    Error { what: String },
}

pub(super) fn parse_status(line: &str) -> Option<StatusLine> {
    let (kind, rest) = line.split_once(':')?;
    // `kind:package:percent:text`, where the package may be `name:architecture`.
    let (subject, percent, what) = rest.match_indices(':').find_map(|(at, _)| {
        let (percent, what) = rest[at + 1..].split_once(':')?;
        Some((&rest[..at], percent.parse::<f64>().ok()?, what.trim()))
    })?;
    match kind {
        "dlstatus" | "pmstatus" => Some(StatusLine::Progress { percent, what: what.to_owned() }),
        "pmerror" => Some(StatusLine::Error { what: format!("{subject}: {what}") }),
        _ => None,
    }
}

/// Whether the answer of `apt-cache policy` names a version to install.
pub(super) fn parse_candidate(policy: &str) -> bool {
    policy.lines().filter_map(|line| line.trim().strip_prefix("Candidate: ")).any(|version| version != "(none)")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn status_lines_of_apt() {
        let progress = |percent, what: &str| Some(StatusLine::Progress { percent, what: what.into() });
        for (line, expected) in [
            (
                "dlstatus:1:12.5000:Retrieving file 2 of 5 (3s remaining)",
                progress(12.5, "Retrieving file 2 of 5 (3s remaining)"),
            ),
            (
                "pmstatus:docker-ce:45.4545:Installing docker-ce (amd64)",
                progress(45.4545, "Installing docker-ce (amd64)"),
            ),
            ("pmstatus:libc6:amd64:20.0:Unpacking libc6:amd64", progress(20.0, "Unpacking libc6:amd64")),
            ("pmstatus:dpkg-exec:0.0000:Running dpkg", progress(0.0, "Running dpkg")),
            (
                "pmerror:/var/cache/apt/archives/x.deb:60:trying to overwrite '/usr/bin/docker'",
                Some(StatusLine::Error {
                    what: "/var/cache/apt/archives/x.deb: trying to overwrite '/usr/bin/docker'".into(),
                }),
            ),
            ("pmconffile:/etc/x:50:'/etc/x' '/etc/x.new' 1 1", None),
            ("Setting up nftables (1.0.6-2) ...", None),
            ("dlstatus:nonsense", None),
            ("", None),
        ] {
            assert_eq!(parse_status(line), expected, "{line}");
        }
    }

    #[test]
    fn failures_are_told_apart() {
        let locked = |holder: &str| Cause::Locked(holder.into());
        for (message, expected) in [
            (
                "E: Could not get lock /var/lib/apt/lists/lock. It is held by process 812 (apt-get) E: Unable to lock directory /var/lib/apt/lists/",
                locked("apt-get (process 812)"),
            ),
            (
                "E: Could not get lock /var/lib/dpkg/lock-frontend. It is held by process 17028 (unattended-upgr)",
                locked("unattended-upgr (process 17028)"),
            ),
            (
                "E: Unable to acquire the dpkg frontend lock (/var/lib/dpkg/lock-frontend), is another process using it?",
                locked("another program"),
            ),
            ("dpkg: error: dpkg frontend lock was locked by another process with pid 16863", locked("process 16863")),
            ("dpkg: error processing archive x.deb: failed to write: No space left on device", Cause::NoSpace),
            ("E: You don't have enough free space in /var/cache/apt/archives/.", Cause::NoSpace),
            (
                "E: Malformed entry 1 in list file /etc/apt/sources.list.d/x.list (Component) E: The list of sources could not be read.",
                Cause::Sources,
            ),
            (
                "E: Type 'debb' is not known on line 1 in source list /etc/apt/sources.list.d/x.list E: The list of sources could not be read.",
                Cause::Sources,
            ),
            (
                "E: Failed to fetch http://mirror.example/debian/dists/bookworm/InRelease  Temporary failure resolving 'mirror.example' E: Some index files failed to download.",
                Cause::Transient,
            ),
            ("E: Unable to locate package docker-ce", Cause::Permanent),
            ("E: Packages need to be removed but remove is disabled.", Cause::Permanent),
            ("E: Failed to fetch http://mirror/x.deb  503  Service Unavailable", Cause::Transient),
        ] {
            assert_eq!(cause(message), expected, "{message}");
        }
    }

    #[test]
    fn a_failure_is_reported_in_the_program_s_own_words() {
        for (message, expected) in [
            (
                "apt-get -y -o A=b install x ended with exit code 100: E: Unable to locate package x",
                "E: Unable to locate package x",
            ),
            ("apt-get update did not end within 900 s", "apt-get update did not end within 900 s"),
        ] {
            assert_eq!(output(message), expected);
        }
    }

    #[test]
    fn a_candidate_is_a_version() {
        for (policy, expected) in [
            ("docker.io:\n  Installed: (none)\n  Candidate: 20.10.24+dfsg1-1\n  Version table:\n", true),
            ("docker-ce:\n  Installed: (none)\n  Candidate: (none)\n", false),
            ("", false),
        ] {
            assert_eq!(parse_candidate(policy), expected);
        }
    }

    proptest! {
        #[test]
        fn any_output_has_a_cause(text in "(dlstatus|pmstatus|pmerror|Candidate| ended with exit code |held by process )?[:0-9a-z(). ]{0,40}|\\PC{0,80}") {
            drop((parse_status(&text), parse_candidate(&text), output(&text)));
            let locked = cause(&["Could not get lock. ", &text].concat());
            prop_assert!(matches!(locked, Cause::Locked(_)));
        }

        #[test]
        fn the_holder_of_a_lock_is_named(pid in any::<u32>(), name in "[a-z-]{1,15}") {
            let message = format!("E: Could not get lock /var/lib/x. It is held by process {pid} ({name})");
            prop_assert_eq!(cause(&message), Cause::Locked(format!("{name} (process {pid})")));
        }
    }
}
