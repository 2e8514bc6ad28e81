//! One file from the internet, checked against its digest before it is used.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use reqwest::{Client, StatusCode, Url};
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncWriteExt as _;

use super::RETRY_BACKOFF;
use crate::error::{Classify as _, Code, RUN_AGAIN};
use crate::host::Host;
use crate::http::{self, Limit, Retry};
use crate::text::hex;

/// Far more than a program or a source has, far less than would fill a boot disk; as long as a build may take.
const LIMIT: Limit = Limit { time: Duration::from_secs(30 * 60), bytes: 512 << 20 };

const MEGABYTE: u64 = 1_000_000;

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
        let mut failed = anyhow!("it was not tried");
        for backoff in RETRY_BACKOFF {
            tokio::time::sleep(backoff).await;
            match self.attempt(host, client, target).await {
                Ok(found) => return self.check(&found),
                Err(failure) => {
                    failed = failure.error;
                    if !failure.is_transient {
                        break;
                    }
                }
            }
        }
        Err(failed.context(format!("downloading {} from {}", self.what, without_query(self.url)))).classify(
            Code::ImageBuildFailed,
            format!("Check the address in the attribute and the VM's way out to it, then run `{RUN_AGAIN}`."),
        )
    }

    /// The digest of what was written to `target`.
    async fn attempt(&self, host: &Host, client: &Client, target: &Path) -> Result<String, Failure> {
        let failed =
            |failure: http::Failure| Failure { is_transient: failure.retry() != Retry::No, error: failure.into() };
        let permanent = |error: anyhow::Error| Failure { error, is_transient: false };
        let mut response = http::send(client.get(self.url), LIMIT).await.map_err(failed)?;
        let status = response.status();
        if !status.is_success() {
            return Err(Failure { error: anyhow!("the server answers {status}"), is_transient: is_transient(status) });
        }
        let total = response.length();
        let create = tokio::fs::File::create(target).await;
        let mut file = create.with_context(|| format!("creating {}", target.display())).map_err(permanent)?;
        let (mut hash, mut length) = (Sha256::new(), 0_u64);
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            let chunk = chunk.as_ref();
            length += chunk.len() as u64;
            hash.update(chunk);
            let written = file.write_all(chunk).await;
            written.with_context(|| format!("writing {}", target.display())).map_err(permanent)?;
            host.progress(progress(self.what, length, total));
        }
        file.flush().await.with_context(|| format!("writing {}", target.display())).map_err(permanent)?;
        Ok(hex(hash.finalize()))
    }

    fn check(&self, found: &str) -> Result<()> {
        match self.sha256 {
            Some(pinned) if pinned != found => Err(anyhow!(
                "{} from {} has the SHA-256 {found}, but {pinned} is wanted",
                self.what,
                without_query(self.url)
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

/// Why a download failed.
struct Failure {
    error: anyhow::Error,
    /// The same request may succeed a little later.
    is_transient: bool,
}

fn is_transient(status: StatusCode) -> bool {
    status.is_server_error() || [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS].contains(&status)
}

fn progress(what: &str, length: u64, total: Option<u64>) -> String {
    let of = total.map(|total| format!(" of {}", total / MEGABYTE)).unwrap_or_default();
    format!("downloading {what}: {}{of} MB", length / MEGABYTE)
}

/// The URL without its query, in which some servers want a signature.
pub(super) fn without_query(url: &str) -> String {
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
