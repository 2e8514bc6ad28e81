//! `openclaw-source-url` and `openclaw-source-ref`: the source that an image is built from.

use super::check::{self, Checked};
use super::extras::digest;

/// Stands in the URL for the commit.
const COMMIT: &str = "{commit}";

/// Upstream's archive of a commit.
const UPSTREAM: &str = "https://github.com/openclaw/openclaw/archive/{commit}.tar.gz";

/// One commit of the gateway's source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceCommit {
    /// Where its tar.gz is, as `git archive` makes it below one directory.
    pub url: String,
    /// The commit id, which the archive must carry.
    pub commit: String,
    /// The id of the commit's tree, which the files must have.
    pub tree: Option<String>,
    /// The SHA-256 of the archive itself.
    pub sha256: Option<String>,
}

/// `COMMIT`, `COMMIT,tree=…`, `COMMIT,sha256=…` or all three; the URL is filled in by [`located`].
pub(super) fn pinned_commit(value: &str) -> Checked<SourceCommit> {
    let allowed = || {
        "must be a commit id of 40 hex digits, which may be followed by ,tree=ID (the commit's tree) and ,sha256=DIGEST \
         (the archive's)"
            .to_owned()
    };
    let mut parts = value.split(',').map(str::trim);
    let commit = parts.next().and_then(|part| digest(part, 40)).ok_or_else(allowed)?;
    let mut source = SourceCommit { url: String::new(), commit, tree: None, sha256: None };
    for part in parts {
        let (pin, digits, text) = match part.split_once('=') {
            Some(("tree", text)) => (&mut source.tree, 40, text),
            Some(("sha256", text)) => (&mut source.sha256, 64, text),
            _ => return Err(allowed()),
        };
        *pin = Some(digest(text, digits).ok_or_else(allowed)?);
    }
    Ok(source)
}

/// The source at `template`, or upstream's.
pub(super) fn located(source: SourceCommit, template: Option<&str>) -> Checked<SourceCommit> {
    let url = template.unwrap_or(UPSTREAM).replace(COMMIT, &source.commit);
    let checked = check::download_url(&url)?;
    if checked.scheme() == "http" && source.tree.is_none() && source.sha256.is_none() {
        return Err("must be an https:// URL unless openclaw-source-ref pins tree= or sha256=".to_owned());
    }
    Ok(SourceCommit { url: checked.into(), ..source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_a_commit_with_pins() -> Checked<()> {
        let (commit, sha) = ("0a".repeat(20), "0b".repeat(32));
        let plain = located(pinned_commit(&commit.to_uppercase())?, None)?;
        assert_eq!(plain.url, format!("https://github.com/openclaw/openclaw/archive/{commit}.tar.gz"));
        assert_eq!((&plain.commit, &plain.tree, &plain.sha256), (&commit, &None, &None));
        let pinned = pinned_commit(&format!("{commit}, tree={commit},sha256={sha}"))?;
        assert_eq!((&pinned.tree, &pinned.sha256), (&Some(commit.clone()), &Some(sha.clone())));
        assert_eq!(located(pinned, Some("http://h/{commit}.tgz"))?.url, format!("http://h/{commit}.tgz"));
        assert!(located(pinned_commit(&commit)?, Some("http://h/x.tgz")).is_err(), "http without a pin");
        for wrong in ["main", &commit[1..], &format!("{commit},tree=main"), &format!("{commit},sha1={commit}")] {
            assert!(pinned_commit(wrong).is_err(), "{wrong} was accepted");
        }
        Ok(())
    }
}
