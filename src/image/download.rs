//! One file from the internet, checked against its digest before anybody uses it.

use std::path::Path;

use anyhow::{Context, Result, anyhow};
use reqwest::{Client, StatusCode, Url};
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncWriteExt as _;

use super::PAUSES;
use super::recipe::hex;
use crate::error::{Classify as _, Code};
use crate::host::Host;
use crate::http;

/// The largest download: far more than a program or a source has, far less than would fill a boot disk.
const LARGEST: u64 = 512 * 1024 * 1024;

const MEGABYTE: u64 = 1_000_000;

const REMEDY: &str = "Check the address in the attribute and the VM's way out to it, then run \
    `sudo openclaw-init boot`.";

/// What is downloaded, and what it must be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Download<'a> {
    /// What it is, for people.
    pub(super) what: &'a str,
    pub(super) url: &'a str,
    /// The pinned SHA-256 of the file.
    pub(super) sha256: Option<&'a str>,
    /// The attribute that pins it.
    pub(super) attribute: &'a str,
}

impl Download<'_> {
    /// Downloads it to `target`, three times if the network fails.
    ///
    /// A file with another digest is [`Code::DigestMismatch`] and names both digests; it is not tried again.
    pub(super) async fn fetch(&self, host: &Host, client: &Client, target: &Path) -> Result<()> {
        let mut failed = None;
        for pause in PAUSES {
            tokio::time::sleep(pause).await;
            match self.attempt(host, client, target).await {
                Ok(found) => return self.check(&found),
                Err((error, Again::Never)) => return Err(self.explain(error)).classify(Code::ImageBuildFailed, REMEDY),
                Err((error, Again::Soon)) => failed = Some(error),
            }
        }
        let error = failed.unwrap_or_else(|| anyhow!("it was not tried"));
        Err(self.explain(error)).classify(Code::ImageBuildFailed, REMEDY)
    }

    fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        error.context(format!("downloading {} from {}", self.what, shown(self.url)))
    }

    /// The digest of what was written to `target`.
    async fn attempt(&self, host: &Host, client: &Client, target: &Path) -> Result<String, (anyhow::Error, Again)> {
        let soon = |error: reqwest::Error| (error.without_url().into(), Again::Soon);
        let never = |error: anyhow::Error| (error, Again::Never);
        let mut response = http::send(client.get(self.url)).await.map_err(soon)?;
        let status = response.status();
        if !status.is_success() {
            let again = if is_transient(status) { Again::Soon } else { Again::Never };
            return Err((anyhow!("the server answers {status}"), again));
        }
        let total = response.content_length();
        let too_large = || never(anyhow!("it is larger than {} MB", LARGEST / MEGABYTE));
        if total.is_some_and(|total| total > LARGEST) {
            return Err(too_large());
        }
        let create = tokio::fs::File::create(target).await;
        let mut file = create.with_context(|| format!("creating {}", target.display())).map_err(never)?;
        let (mut hash, mut length) = (Sha256::new(), 0_u64);
        while let Some(chunk) = response.chunk().await.map_err(soon)? {
            length += chunk.len() as u64;
            if length > LARGEST {
                return Err(too_large());
            }
            hash.update(&chunk);
            let written = file.write_all(&chunk).await;
            written.with_context(|| format!("writing {}", target.display())).map_err(never)?;
            host.progress(progress(self.what, length, total));
        }
        file.flush().await.with_context(|| format!("writing {}", target.display())).map_err(never)?;
        Ok(hex(&hash.finalize()))
    }

    fn check(&self, found: &str) -> Result<()> {
        match self.sha256 {
            Some(wanted) if wanted != found => Err(anyhow!(
                "{} from {} has the SHA-256 {found}, but {wanted} is wanted",
                self.what,
                shown(self.url)
            ))
            .classify(
                Code::DigestMismatch,
                format!(
                    "Find out why the file is another one; only if it is the right one, correct the attribute {}.",
                    self.attribute
                ),
            ),
            _ => Ok(()),
        }
    }
}

/// Whether the same request may succeed a little later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Again {
    Soon,
    Never,
}

fn is_transient(status: StatusCode) -> bool {
    status.is_server_error() || [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS].contains(&status)
}

fn progress(what: &str, length: u64, total: Option<u64>) -> String {
    let of = total.map(|total| format!(" of {}", total / MEGABYTE)).unwrap_or_default();
    format!("downloading {what}: {}{of} MB", length / MEGABYTE)
}

/// The URL without its query, in which some servers want a signature.
fn shown(url: &str) -> String {
    let Ok(mut url) = Url::parse(url) else { return "a wrong URL".to_owned() };
    url.set_query(None);
    url.into()
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;
    use crate::error::{code_of, one_line};

    /// Answers every request on a port of its own with `answer`; the URL.
    async fn server(answer: &'static str) -> Result<String> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 1024];
                drop(stream.read(&mut request).await);
                drop(stream.write_all(answer.as_bytes()).await);
            }
        });
        Ok(format!("http://{address}/file?signature=hunter2"))
    }

    #[tokio::test]
    async fn only_the_pinned_file_is_accepted() -> Result<()> {
        let directory = tempfile::tempdir()?;
        let (host, client) = (Host::new(directory.path()), http::internet_client().await?);
        let target = directory.path().join("file");
        let good = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
        let other = "0".repeat(64);
        let hello = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello";
        let gone = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        let large = "HTTP/1.1 200 OK\r\nContent-Length: 9000000000\r\nConnection: close\r\n\r\nhello";
        let failed = |code: Code, words: &[&str]| Some((code, words.join(" ")));
        let cases = [
            (hello, good, None),
            (hello, &other, failed(Code::DigestMismatch, &[good, &other, "openclaw-binaries"])),
            (gone, good, failed(Code::ImageBuildFailed, &["404"])),
            (large, good, failed(Code::ImageBuildFailed, &["larger"])),
        ];
        for (answer, sha256, failure) in cases {
            let url = server(answer).await?;
            let download = Download { what: "gog", url: &url, sha256: Some(sha256), attribute: "openclaw-binaries" };
            let outcome = download.fetch(&host, &client, &target).await;
            let Some((code, words)) = failure else {
                outcome?;
                assert_eq!(std::fs::read(&target)?, b"hello");
                continue;
            };
            let Err(error) = outcome else { panic!("{answer} was accepted") };
            let text = one_line(&error);
            assert_eq!(code_of(&error), code, "{text}");
            assert!(words.split(' ').all(|word| text.contains(word)) && !text.contains("hunter2"), "{text}");
        }
        Ok(())
    }
}
