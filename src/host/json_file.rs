//! Durable records: JSON files that only root writes, each with the number of its format.
//!
//! A record that decides what happens to the state is read with [`read`]: one that cannot be understood stops the
//! run. A record that only helps is read with [`read_hint`]: one that cannot be understood is a warning.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use nix::unistd::geteuid;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Access, Host};

/// The format that this program writes. Files without a number are of version 0.1.0, which wrote none.
pub(crate) const FORMAT: u64 = 1;

/// The record at `path`, `None` when there is none. Anything but a whole record of a known format is an error.
pub(crate) async fn read<T: DeserializeOwned>(host: &Host, path: impl AsRef<Path>) -> Result<Option<T>> {
    let path = path.as_ref();
    let Some(bytes) = content(host, path).await? else { return Ok(None) };
    parse(&bytes).map(Some).with_context(|| format!("reading {}", path.display()))
}

/// The record at `path`; `None`, with a warning, also for one that cannot be understood.
pub(crate) async fn read_hint<T: DeserializeOwned>(host: &Host, path: impl AsRef<Path>) -> Result<Option<T>> {
    let path = path.as_ref();
    let Some(bytes) = content(host, path).await? else { return Ok(None) };
    let record = parse(&bytes)
        .map_err(|error| host.warn(format!("{} cannot be read ({error}): going on without it", path.display())));
    Ok(record.ok())
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
    let Some(bytes) = host.read(path).await? else { return Ok(None) };
    let owner = std::fs::symlink_metadata(host.path(path)).map(|found| found.uid());
    if let Ok(owner) = owner
        && owner != geteuid().as_raw()
    {
        host.warn(format!("{} belongs to uid {owner}, and only root writes it: find out who did", path.display()));
    }
    Ok(Some(bytes))
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
