//! The closed list of ways a run can fail, shared by exit codes, guest attributes and documentation.
//!
//! An error is an `anyhow` chain whose every level says what was being done to which object. Where the cause is
//! understood, [`Classify::classify`] adds the one [`Code`] and the sentence that says what to do about it. Both are
//! found below any context that was added later.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, ErrorKind};
use std::str::FromStr;

use anyhow::{Error, anyhow};
use nix::errno::Errno;

use crate::stage::Stage;
use crate::text::printable;

/// The one command that every remedy names: has the unit run again and follows it. Never refused.
pub const RUN_AGAIN: &str = "sudo openclaw-init boot";

/// The exit status with which a run of the unit asks for another one (`EX_TEMPFAIL` of sysexits.h).
pub const TRY_AGAIN: u8 = 75;

macro_rules! codes {
    ($($(#[doc = $doc:literal])* $variant:ident = $exit:literal, $name:literal, $kind:ident;)*) => {
        /// Why a run failed. Names and numbers are an interface: they never change their meaning, and a number that
        /// is missing is not given again.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Code { $($(#[doc = $doc])* $variant,)* }

        impl Code {
            /// Every code, in the order of the table in the documentation.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The kebab-case name in the guest attribute `result` (`failed:<name>`).
            pub fn name(self) -> &'static str { match self { $(Self::$variant => $name,)* } }

            /// The process's exit code.
            pub fn exit_code(self) -> u8 { match self { $(Self::$variant => $exit,)* } }

            /// The lines of its documentation: the meaning, an empty line, the usual cause and what to do.
            #[cfg(test)]
            fn doc(self) -> &'static [&'static str] { match self { $(Self::$variant => &[$($doc),*],)* } }

            /// True when running again without an operator's help cannot succeed.
            pub fn is_permanent(self) -> bool { match self { $(Self::$variant => codes!(@$kind),)* } }
        }
    };
    (@permanent) => { true };
    (@transient) => { false };
}

// The first paragraph says what it means, the second the usual cause and what to do: docs/failures.md is made of them.
codes! {
    /// A defect of this program, or an error nobody classified.
    ///
    /// Run it again; when it stays, report it with the log of `sudo journalctl --boot --unit openclaw-init`.
    Internal = 1, "internal", transient;
    /// An attribute, or a command's argument, has a value that cannot be used.
    ///
    /// A typo, or a value of another version. The message names the key and what is allowed: correct or remove the
    /// attribute.
    ConfigInvalid = 10, "config-invalid", permanent;
    /// The metadata server did not answer within the deadline.
    ///
    /// A firewall rule, a route or a VPN on the VM takes over 169.254.169.254: let it through.
    MetadataUnreachable = 11, "metadata-unreachable", transient;
    /// The named data disk is not attached.
    ///
    /// `openclaw-data-disk` names a device name that no attached disk has. Attach the disk under this device name, or
    /// set the attribute to `none` to keep the state on the boot disk.
    DiskMissing = 12, "disk-missing", permanent;
    /// The disk holds something that is not ours.
    ///
    /// Another file system, a partition table, or data without any. Nothing was written to it: attach a blank disk,
    /// or the one that was meant.
    DiskForeign = 13, "disk-foreign", permanent;
    /// The file system needs a repair that could lose data.
    ///
    /// A defect that `e2fsck` does not mend unasked, or a disk that cannot be read. Take a snapshot first, then do
    /// what the message says.
    DiskDamaged = 14, "disk-damaged", permanent;
    /// The disk is attached read-only.
    ///
    /// Attach it with mode `rw`; where the file system itself became read-only, `dmesg` says why.
    DiskReadonly = 15, "disk-readonly", permanent;
    /// Both the boot disk and the data disk hold a gateway's state.
    ///
    /// A state began on the boot disk and another one was attached. They are never merged: rename the one that is not
    /// wanted; the message names both.
    TwoStates = 16, "two-states", permanent;
    /// apt could not install what is needed.
    ///
    /// A package source that cannot be reached or is broken. The message has apt's own words; mend the source.
    AptFailed = 17, "apt-failed", transient;
    /// Another program kept apt's lock for the whole deadline.
    ///
    /// An upgrade at boot that takes long, or one that hangs: `ps -ef` shows it. It is waited for 15 minutes.
    AptLocked = 18, "apt-locked", transient;
    /// The Docker Engine cannot be installed, started or trusted.
    ///
    /// A configuration with which it does not start, a masked unit, an engine that is too old, or a container of our
    /// name that somebody else made. The message has the engine's own words.
    DockerUnusable = 19, "docker-unusable", permanent;
    /// No registry has the wanted image.
    ///
    /// A version that does not exist, or a typo in `openclaw-version` or `openclaw-image`. Set one that does.
    ImageNotFound = 20, "image-not-found", permanent;
    /// No registry could be reached.
    ///
    /// No network, name resolution, or a registry that is down. A VM without an external address needs Cloud NAT, or
    /// a mirror (`openclaw-registry-mirror`).
    ImagePullFailed = 21, "image-pull-failed", transient;
    /// The image could not be built.
    ///
    /// A step of the build failed, mostly for want of network; the message has its last lines.
    ImageBuildFailed = 22, "image-build-failed", transient;
    /// The gateway or the build ended for lack of memory.
    ///
    /// The machine type is too small: choose a larger one, or let `openclaw-swap` make more swap; or `openclaw-memory`
    /// leaves too little. If the message speaks of Node's heap, `openclaw-env-NODE_OPTIONS` makes it too small.
    OutOfMemory = 23, "out-of-memory", permanent;
    /// A disk is full.
    ///
    /// The message names the disk: make room there (`df -h`, `df -i`), or resize the disk and run it again.
    NoSpace = 24, "no-space", permanent;
    /// `openclaw.json` and the attribute `openclaw-gateway-token` differ.
    ///
    /// Remove `gateway.auth.token` from `openclaw.json`, or set the attribute to the same value.
    TokenConflict = 25, "token-conflict", permanent;
    /// A secret that an attribute names cannot be read from Secret Manager, or is no value for a variable; or no token
    /// can be made of the account that `openclaw-metadata-account` names.
    ///
    /// The VM's account may not do it, the VM lacks the scope `cloud-platform`, the API is not enabled, or there is
    /// no such version or account. The message has Google's words and the command that mends it.
    SecretDenied = 26, "secret-denied", permanent;
    /// Another program listens on the published port.
    ///
    /// `sudo ss -ltnp` shows which. Stop it, or name another port in `openclaw-port` or `openclaw-publish`. With
    /// `openclaw-metadata-access=identity` it may be port 18780, which cannot be changed.
    PortTaken = 27, "port-taken", permanent;
    /// The gateway does not start with its settings or its state; the message names the cause where its log does.
    ///
    /// Mostly a key or value in `openclaw.json` that this version does not accept: do what the message says.
    GatewayRefused = 28, "gateway-refused", permanent;
    /// The gateway did not become ready within its deadline.
    ///
    /// A slow or busy machine, or a gateway that fails as it starts. `sudo docker logs openclaw-gateway` says more.
    GatewayNotReady = 29, "gateway-not-ready", transient;
    /// Not a supported distribution, or not run as root.
    ///
    /// Use Debian 12 or 13, or Ubuntu 22.04 or 24.04 (not tested); run commands with `sudo`.
    UnsupportedSystem = 30, "unsupported-system", permanent;
    /// The loader could not fetch this program, and none was installed.
    ///
    /// The address in `openclaw-init-url` is wrong or cannot be reached, or `openclaw-init-sha256` is missing.
    /// Correct it and reboot.
    LoaderFailed = 31, "loader-failed", permanent;
    /// A download is not the file whose digest is pinned.
    ///
    /// A wrong digest in an attribute, or a file that was changed at its source. Find out which before you correct
    /// the digest.
    DigestMismatch = 32, "digest-mismatch", permanent;
    /// An update, rollback or restore was refused or undone; the gateway is as it was before.
    ///
    /// The new version did not become ready, does not exist, or is older. The message says which: choose another
    /// version, or correct what it names and update again.
    UpdateFailed = 33, "update-failed", permanent;
    /// A disk cannot be read in time to prove that it is blank; it was not formatted.
    ///
    /// A large or slow disk. Set `openclaw-data-disk-proof` to `sampled` or to `full`.
    DiskUnproven = 34, "disk-unproven", permanent;
    /// An administrator has masked one of this program's units.
    ///
    /// It is respected. `sudo systemctl unmask UNIT` takes it back.
    UnitMasked = 36, "unit-masked", permanent;
    /// The gateway refuses the settings of `openclaw-config`, or did not come up with a changed `openclaw-env-NAME`,
    /// `openclaw-memory`, `openclaw-pids` or `openclaw-tmp`; it runs with those before.
    ///
    /// A key or a value that this version does not accept, or with which it does not start: the message has its own
    /// words. Correct the attribute, or remove it. The same value is not tried again.
    ConfigRefused = 38, "config-refused", permanent;
    /// Secret Manager could not be reached, and there is no former value of the secret to go on with.
    ///
    /// No network or name resolution on the VM, or Google's API is down. A VM without an external address needs Cloud
    /// NAT or Private Google Access.
    SecretUnreachable = 39, "secret-unreachable", transient;
    /// The gateway is not served at `openclaw-domain`. It runs: the state is `degraded`, the result is not this code.
    ///
    /// The name does not lead to this VM, the firewall keeps port 80 closed, the CA is down, another program has port
    /// 80 or 443, or there is a Caddy of somebody else's. The message has Caddy's own words.
    ProxyFailed = 41, "proxy-failed", transient;
}

impl FromStr for Code {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        let code = Self::ALL.iter().find(|code| code.name() == name);
        code.copied().ok_or_else(|| anyhow!("{name:?} is no code of this version"))
    }
}

impl fmt::Display for Code {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

/// The understood part of an error: its class, and what the operator should do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnosis {
    /// The class of the failure.
    pub code: Code,
    /// One sentence: what to do next.
    pub remedy: String,
}

impl fmt::Display for Diagnosis {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.remedy)
    }
}

/// Attaches a [`Diagnosis`] to an error.
pub trait Classify<T> {
    /// Classifies the error as `code` and says what the operator should do (a full sentence), in the place of what was
    /// said further in.
    fn classify(self, code: Code, remedy: impl Into<String>) -> anyhow::Result<T>;
}

impl<T, E: Into<Error>> Classify<T> for Result<T, E> {
    fn classify(self, code: Code, remedy: impl Into<String>) -> anyhow::Result<T> {
        self.map_err(|error| {
            let (mut error, diagnosis) = (error.into(), Diagnosis { code, remedy: remedy.into() });
            match error.downcast_mut::<Diagnosis>() {
                Some(inner) => *inner = diagnosis,
                None => return error.context(diagnosis),
            }
            error
        })
    }
}

/// A stage's failure: where, and the error with its chain.
#[derive(Debug)]
pub struct StageError {
    /// The stage that failed.
    pub stage: Stage,
    /// What was being done, why it failed, and (see [`code_of`]) its class.
    pub error: Error,
}

impl StageError {
    /// The class of the failure.
    pub fn code(&self) -> Code {
        code_of(&self.error)
    }

    /// The sentence for the operator, on one line.
    pub fn sentence(&self) -> String {
        one_line(&self.error)
    }
}

/// The outermost diagnosis of an error. Where nobody gave one, the kernel's own answer may be one: any place of the
/// machine can be full or read-only.
fn diagnosis(error: &Error) -> Option<Cow<'_, Diagnosis>> {
    if let Some(found) = error.downcast_ref() {
        return Some(Cow::Borrowed(found));
    }
    let kind = error.chain().find_map(io_kind)?;
    let (code, what) = match kind {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => (Code::NoSpace, "Make room there (`df -h`, `df -i`)"),
        ErrorKind::ReadOnlyFilesystem => (Code::DiskReadonly, "Make it writable (see `findmnt` and `dmesg`)"),
        _ => return None,
    };
    Some(Cow::Owned(Diagnosis { code, remedy: format!("{what}, then run `{RUN_AGAIN}`.") }))
}

/// What the kernel answered, if `cause` is its answer.
pub(crate) fn io_kind(cause: &(dyn std::error::Error + 'static)) -> Option<ErrorKind> {
    let errno = cause.downcast_ref::<Errno>().map(|errno| io::Error::from(*errno).kind());
    errno.or_else(|| cause.downcast_ref::<io::Error>().map(io::Error::kind))
}

/// The code of an error: that of its diagnosis, else [`Code::Internal`].
pub fn code_of(error: &Error) -> Code {
    diagnosis(error).map_or(Code::Internal, |diagnosis| diagnosis.code)
}

/// The longest level of a chain: the output of a program has been cut before.
const LEVEL_BYTES: usize = 4096;

/// The whole error on one line: what was being done, level by level, then what to do about it.
pub fn one_line(error: &Error) -> String {
    let what = what(error);
    match diagnosis(error).map(|diagnosis| level(&diagnosis.remedy)) {
        Some(remedy) if what.is_empty() => remedy,
        Some(remedy) => format!("{}. {remedy}", what.trim_end_matches('.')),
        None => what,
    }
}

/// What was being done and why it failed, on one line, without what to do about it.
pub fn what(error: &Error) -> String {
    let remedy = error.downcast_ref::<Diagnosis>().map(|diagnosis| level(&diagnosis.remedy));
    let mut levels: Vec<String> = Vec::new();
    for cause in error.chain() {
        let text = level(&cause.to_string());
        let repeats = levels.last().is_some_and(|last| last.ends_with(&text));
        if !text.is_empty() && !repeats && remedy.as_ref() != Some(&text) {
            levels.push(text);
        }
    }
    levels.join(": ")
}

/// One level: on one line, and fit for a terminal. Names of attributes and files may be in it.
fn level(text: &str) -> String {
    printable(&text.split_whitespace().collect::<Vec<_>>().join(" "), LEVEL_BYTES)
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn names_and_exit_codes_are_unique() {
        for (index, code) in Code::ALL.iter().enumerate() {
            for other in &Code::ALL[index + 1..] {
                assert_ne!(code.name(), other.name());
                assert_ne!(code.exit_code(), other.exit_code());
            }
        }
    }

    #[test]
    fn a_remedy_is_said_once_on_one_line_whatever_names_are_in_it() {
        for remedy in ["Do  it.", "Do\nit.", "Do \u{1b}[2K\0it."] {
            let error = Err::<(), _>(anyhow::anyhow!("why")).classify(Code::Internal, remedy).unwrap_err();
            let line = one_line(&error);
            assert!(line.starts_with("why. Do ") && line.matches("Do").count() == 1, "{line:?}");
            assert!(!line.contains(char::is_control), "{line:?}");
        }
    }

    /// `UPDATE_EXPECT=1` writes it.
    #[test]
    fn the_page_of_failures_is_made_of_the_codes() {
        let rows = Code::ALL.iter().map(|code| {
            let lines: Vec<_> = code.doc().iter().map(|line| line.trim()).collect();
            let parts: Vec<_> = lines.split(|line| line.is_empty()).map(|part| part.join(" ")).collect();
            let [meaning, advice] = &parts[..] else { panic!("{code} does not say what it means and what to do") };
            let again = if code.is_permanent() { "no" } else { "yes" };
            format!("| `{code}` | {} | {again} | {meaning} | {advice} |\n", code.exit_code())
        });
        let page = format!("{}{}", include_str!("error/failures.md"), rows.collect::<String>());
        expect_test::expect_file!["../docs/failures.md"].assert_eq(&page);
    }

    #[test]
    fn a_diagnosis_is_found_below_added_context() {
        let error = Err::<(), _>(anyhow!("signature xfs found"))
            .classify(Code::DiskForeign, "Attach an empty disk.")
            .context("preparing /dev/sdb")
            .map_err(|error| (code_of(&error), one_line(&error)));
        assert_eq!(
            error,
            Err((Code::DiskForeign, "preparing /dev/sdb: signature xfs found. Attach an empty disk.".into()))
        );
    }

    #[test]
    fn of_two_remedies_the_outer_one_is_given() {
        let inner = Err::<(), _>(anyhow!("it is no file")).classify(Code::GatewayRefused, "Correct it.");
        let error =
            inner.context("reading .env").classify(Code::GatewayNotReady, "Stop the gateway first.").unwrap_err();
        assert_eq!(code_of(&error), Code::GatewayNotReady);
        assert_eq!(one_line(&error), "reading .env: it is no file. Stop the gateway first.");
    }

    #[test]
    fn a_full_or_read_only_place_is_known_by_the_kernels_answer() {
        let io = |errno: Errno| Error::from(io::Error::from(errno));
        for (error, code) in [
            (io(Errno::ENOSPC), Code::NoSpace),
            (io(Errno::EDQUOT), Code::NoSpace),
            (io(Errno::EROFS), Code::DiskReadonly),
            (Error::from(Errno::ENOSPC), Code::NoSpace),
            (io(Errno::EACCES), Code::Internal),
            (io(Errno::ENOSPC).context(Diagnosis { code: Code::AptFailed, remedy: "x".into() }), Code::AptFailed),
        ] {
            let error = error.context("writing a file");
            assert_eq!(code_of(&error), code, "{error:?}");
            assert_eq!(one_line(&error).contains("sudo openclaw-init boot"), code_is_of_the_kernel(code), "{error:?}");
        }
    }

    fn code_is_of_the_kernel(code: Code) -> bool {
        matches!(code, Code::NoSpace | Code::DiskReadonly)
    }

    #[test]
    fn an_unclassified_error_is_internal_and_keeps_its_chain() {
        let error = anyhow!("no such file").context("reading /etc/os-release");
        assert_eq!(code_of(&error), Code::Internal);
        assert_eq!(one_line(&error), "reading /etc/os-release: no such file");
    }
}
