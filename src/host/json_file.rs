//! Durable records: JSON files that only root writes, each with the number of its format.
//!
//! A record that decides what happens to the state is read with [`read`]: one that cannot be understood stops the
//! run. A record that only helps is read with [`read_hint`]: one that cannot be understood is a warning. A disk may
//! come with records that others made, so they are read like all files of others.

use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use nix::unistd::geteuid;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Access, Host, untrusted};
use crate::error::{Classify as _, Code, RUN_AGAIN, io_kind};
use crate::text::MIB;

/// No record is larger: one of settings on trial holds two files of 4 MiB, each byte of which may take six.
const MAX_BYTES: u64 = 64 * MIB;

/// The format that this program writes. Files without a number are of version 0.1.0, which wrote none.
pub(crate) const FORMAT: u64 = 1;

/// The record at `path`, `None` when there is none. Anything but a whole record of a known format is an error.
pub(crate) async fn read<T: DeserializeOwned>(host: &Host, path: impl AsRef<Path>) -> Result<Option<T>> {
    let path = path.as_ref();
    let found = content(host, path).await;
    refuse(found.and_then(|bytes| {
        bytes.map(|bytes| parse(&bytes)).transpose().with_context(|| format!("reading {}", path.display()))
    }))
}

/// The record at `path`; `None`, with a warning, also for one that cannot be understood. What the kernel has against it
/// is an error: a disk that cannot be read, a directory that no record can take the place of.
pub(crate) async fn read_hint<T: DeserializeOwned>(host: &Host, path: impl AsRef<Path>) -> Result<Option<T>> {
    let path = path.as_ref();
    let found = content(host, path).await.and_then(|bytes| bytes.map(|bytes| parse(&bytes)).transpose());
    match found {
        Err(error) if io_kind(error.root_cause()).is_none() => {
            let why = error.root_cause();
            host.warn(format!("{} cannot be read ({why}): going on without it", path.display()));
            Ok(None)
        }
        found => refuse(found),
    }
}

/// Makes the record durable, mode 0600; true when it was not so already.
pub(crate) async fn write(host: &Host, path: impl AsRef<Path>, record: &impl Serialize) -> Result<bool> {
    let path = path.as_ref();
    let mut value = serde_json::to_value(record).with_context(|| format!("encoding {}", path.display()))?;
    if let Some(object) = value.as_object_mut() {
        object.insert("format".to_owned(), FORMAT.into());
    }
    let mut bytes = serde_json::to_vec_pretty(&value)?;
    bytes.push(b'\n');
    host.ensure_file(path, bytes, Access::root(0o600)).await
}

/// The file's content; a warning names one that another user than root (in tests: this one) could have written.
async fn content(host: &Host, path: &Path) -> Result<Option<Vec<u8>>> {
    let Some((bytes, owner)) = untrusted::content(host, path, MAX_BYTES).await? else { return Ok(None) };
    if owner != geteuid().as_raw() {
        host.warn(format!("{} belongs to uid {owner}, and only root writes it: find out who did", path.display()));
    }
    Ok(Some(bytes))
}

/// A disk that does not answer is asked again by the next run.
fn refuse<T>(outcome: Result<T>) -> Result<T> {
    if outcome.as_ref().is_err_and(|error| io_kind(error.root_cause()) == Some(ErrorKind::TimedOut)) {
        return outcome;
    }
    outcome.classify(
        Code::DiskDamaged,
        format!("The record was left as it is: look at it and at `dmesg`, move it aside, then run `{RUN_AGAIN}`."),
    )
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    let value: serde_json::Value = serde_json::from_slice(bytes)?;
    let format = value.get("format").and_then(serde_json::Value::as_u64).unwrap_or(FORMAT);
    if format > FORMAT {
        return Err(anyhow!("it was written by a newer openclaw-init (format {format}): install that version again"));
    }
    Ok(serde_json::from_value(value)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{code_of, one_line};

    #[derive(serde::Deserialize)]
    struct Sample {
        a: u32,
    }

    #[tokio::test]
    async fn a_record_is_whole_and_of_a_known_format_or_an_error() -> Result<()> {
        let root = tempfile::tempdir()?;
        let host = Host::new(root.path());
        let cases = [
            (None, Some(None)),
            (Some(r#"{"format":1,"a":7}"#), Some(Some(7))),
            (Some(r#"{"a":7}"#), Some(Some(7))),
            (Some(r#"{"format":2,"a":7}"#), None),
            (Some(r#"{"a":"#), None),
            (Some(""), None),
        ];
        for (text, expected) in cases {
            if let Some(text) = text {
                std::fs::write(host.path("/record"), text)?;
            }
            let found = read::<Sample>(&host, "/record").await.map(|found| found.map(|sample| sample.a));
            assert_eq!(found.ok(), expected, "{text:?}");
            let hint = read_hint::<Sample>(&host, "/record").await?.map(|sample| sample.a);
            assert_eq!(hint, expected.flatten(), "{text:?}");
        }
        Ok(())
    }

    /// None of them is waited for, followed or read in full.
    #[tokio::test]
    async fn a_record_is_a_small_file() -> Result<()> {
        type Make = fn(&Path) -> Result<()>;
        let cases: [(&str, bool, Make); 4] = [
            ("not a regular file", true, |path| Ok(nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU)?)),
            ("symbolic link", true, |path| Ok(std::os::unix::fs::symlink("whole", path)?)),
            ("larger than 64.0 MiB", true, |path| Ok(std::fs::File::create(path)?.set_len(900 << 20)?)),
            ("not a regular file", false, |path| Ok(std::fs::create_dir(path)?)),
        ];
        for (reason, is_left_out, make) in cases {
            let root = tempfile::tempdir()?;
            let host = Host::new(root.path());
            std::fs::write(host.path("/whole"), r#"{"format":1,"a":7}"#)?;
            make(&host.path("/record"))?;
            let Err(error) = read::<Sample>(&host, "/record").await else { panic!("{reason}: it was read") };
            assert_eq!(code_of(&error), Code::DiskDamaged, "{error:#}");
            assert!(one_line(&error).contains(reason), "{}", one_line(&error));
            let hint = read_hint::<Sample>(&host, "/record").await.map(|sample| sample.is_none());
            assert_eq!(hint.ok(), is_left_out.then_some(true), "{reason}");
            let warned = host.ledger().borrow().warnings.iter().any(|warning| warning.contains(reason));
            assert_eq!(warned, is_left_out, "{reason}");
        }
        Ok(())
    }

    #[tokio::test]
    async fn a_record_of_somebody_else_is_named() -> Result<()> {
        if !geteuid().is_root() {
            return Ok(());
        }
        let root = tempfile::tempdir()?;
        let host = Host::new(root.path());
        std::fs::write(host.path("/record"), r#"{"format":1,"a":7}"#)?;
        for (owner, expected) in [(0, 0), (1000, 1)] {
            std::os::unix::fs::chown(host.path("/record"), Some(owner), None)?;
            assert_eq!(read::<Sample>(&host, "/record").await?.map(|sample| sample.a), Some(7));
            assert_eq!(read_hint::<Sample>(&host, "/record").await?.map(|sample| sample.a), Some(7));
            let warnings = host.ledger().borrow().warnings.clone();
            assert_eq!(
                warnings.iter().filter(|warning| warning.contains("/record belongs to uid 1000")).count(),
                expected
            );
        }
        Ok(())
    }
}
