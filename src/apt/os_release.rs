//! Which distribution the machine runs.

use anyhow::{Context, Result, anyhow};

use crate::error::{Classify, Code};
use crate::host::Host;

const PATH: &str = "/etc/os-release";

/// What this program runs on: `ID`, `VERSION_ID`, code name. The Debian releases are tested end to end in the lab. The
/// Ubuntu releases, which have the same packages and paths, are not.
const SUPPORTED: &[(&str, &str, &str)] = &[
    ("debian", "12", "bookworm"),
    ("debian", "13", "trixie"),
    ("ubuntu", "22.04", "jammy"),
    ("ubuntu", "24.04", "noble"),
];

/// A supported distribution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Distribution {
    /// `debian` or `ubuntu`; also the directory of Docker's repository for it.
    pub id: &'static str,
    /// The release's number, for example `12`.
    pub version: &'static str,
    /// The release's name in apt's sources, for example `bookworm`.
    pub codename: &'static str,
}

/// The distribution of this machine; one that is not supported is an error that names it.
pub async fn observe(host: &Host) -> Result<Distribution> {
    let bytes = host
        .read(PATH)
        .await?
        .with_context(|| format!("reading {PATH}: no such file"))
        .classify(Code::UnsupportedSystem, remedy())?;
    parse(&String::from_utf8_lossy(&bytes))
}

fn parse(text: &str) -> Result<Distribution> {
    let value = |key: &str| {
        let line = text.lines().rev().find_map(|line| line.trim().strip_prefix(key)?.strip_prefix('='));
        line.map_or("", |value| value.trim_matches(['"', '\'']))
    };
    let (id, version) = (value("ID"), value("VERSION_ID"));
    let known = SUPPORTED.iter().find(|(known, release, _)| *known == id && *release == version);
    if let Some(&(id, version, codename)) = known {
        return Ok(Distribution { id, version, codename });
    }
    let found = match (id, value("PRETTY_NAME")) {
        ("cos", _) => "Container-Optimized OS has no package manager and a read-only root".to_owned(),
        (_, "") => format!("this machine runs {}", if id.is_empty() { "an unnamed system" } else { id }),
        (_, name) => format!("this machine runs {name}"),
    };
    Err(anyhow!(found)).classify(Code::UnsupportedSystem, remedy())
}

fn remedy() -> String {
    let names: Vec<String> = SUPPORTED.iter().map(|(id, version, _)| format!("{id} {version}")).collect();
    format!("Create the VM from one of: {} (gcloud compute images list).", names.join(", "))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::error::{code_of, one_line};

    #[test]
    fn supported_releases_have_their_code_name() {
        for (text, expected) in [
            ("PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nVERSION_ID=\"12\"\nID=debian\n", "bookworm"),
            ("ID=debian\nVERSION_ID=13\n", "trixie"),
            ("VERSION_ID=\"22.04\"\nID=ubuntu\nID_LIKE=debian\n", "jammy"),
            ("ID='ubuntu'\nVERSION_ID='24.04'\nUBUNTU_CODENAME=noble", "noble"),
        ] {
            assert_eq!(parse(text).unwrap().codename, expected);
        }
    }

    #[test]
    fn everything_else_is_named() {
        for (text, expected) in [
            ("ID=debian\nVERSION_ID=\"11\"\nPRETTY_NAME=\"Debian GNU/Linux 11 (bullseye)\"\n", "Debian GNU/Linux 11"),
            ("ID=debian\nPRETTY_NAME=\"Debian GNU/Linux forky/sid\"\n", "forky/sid"),
            ("ID=\"rocky\"\nVERSION_ID=\"9.4\"\n", "runs rocky"),
            ("NAME=\"Container-Optimized OS\"\nID=cos\nVERSION_ID=117\n", "Container-Optimized OS has no package"),
            ("", "an unnamed system"),
        ] {
            let error = parse(text).unwrap_err();
            assert_eq!(code_of(&error), Code::UnsupportedSystem);
            assert!(one_line(&error).contains(expected), "{}", one_line(&error));
        }
    }
}
