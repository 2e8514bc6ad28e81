//! A failed request to the metadata server, and whether it is worth another try.

use std::error::Error as StdError;
use std::fmt;

use anyhow::{Error, anyhow};
use reqwest::StatusCode;

use crate::http::{Failure, Retry};

/// A failed request to the metadata server.
#[derive(Debug)]
pub struct RequestError {
    /// Whether another try may do better.
    pub retry: Retry,
    error: Error,
}

impl RequestError {
    pub(super) fn new(retry: Retry, error: Error) -> Self {
        Self { retry, error }
    }

    pub(super) fn of_status(status: StatusCode) -> Self {
        let redirect = if status.is_redirection() { ", a redirect, which is not followed" } else { "" };
        Self::new(Retry::of_status(status), anyhow!("it answered {status}{redirect}"))
    }

    pub(super) fn of_failure(failure: Failure) -> Self {
        Self::new(failure.retry(), failure.into())
    }

    /// A body that ends too early passes; one that is no metadata tree does not.
    pub(super) fn of_json(error: &serde_json::Error) -> Self {
        let retry = if error.is_eof() { Retry::Yes } else { Retry::No };
        Self::new(retry, anyhow!("its answer is not the metadata's JSON: {error}"))
    }

    /// Adds what was being done.
    pub(super) fn doing(self, what: String) -> Self {
        Self { retry: self.retry, error: self.error.context(what) }
    }
}

impl fmt::Display for RequestError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.error, out)
    }
}

impl StdError for RequestError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.error.source()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chain_says_each_level_once() {
        let error = RequestError::of_status(StatusCode::MOVED_PERMANENTLY).doing("reading instance/".to_owned());
        assert_eq!(
            crate::error::one_line(&Error::from(error)),
            "reading instance/: it answered 301 Moved Permanently, a redirect, which is not followed"
        );
    }
}
