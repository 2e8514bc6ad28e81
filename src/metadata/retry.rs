//! Why a request to the metadata server failed, and whether it is worth another try.

use std::error::Error as StdError;
use std::fmt;

use anyhow::{Error, anyhow};
use reqwest::StatusCode;

/// Whether the same request may succeed later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heals {
    /// A server that is starting, being migrated, rate limiting, or not reachable yet.
    Soon,
    /// 403: usually a setting, rarely a passing check of the host. One more try, no more.
    Once,
    /// Asking again cannot help.
    Never,
}

impl Heals {
    /// How a status heals; statuses that are answers count as [`Heals::Never`].
    pub fn of_status(status: StatusCode) -> Self {
        match status {
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => Self::Soon,
            status if status.is_server_error() => Self::Soon,
            StatusCode::FORBIDDEN => Self::Once,
            _ => Self::Never,
        }
    }
}

/// A failed request to the metadata server.
#[derive(Debug)]
pub struct Trouble {
    /// Whether another try may do better.
    pub heals: Heals,
    error: Error,
}

impl Trouble {
    pub(super) fn new(heals: Heals, error: Error) -> Self {
        Self { heals, error }
    }

    pub(super) fn of_status(status: StatusCode) -> Self {
        let error = if status.is_redirection() {
            anyhow!("it answered {status}, a redirect, which is not followed")
        } else {
            anyhow!("it answered {status}")
        };
        Self::new(Heals::of_status(status), error)
    }

    /// No connection, a connection that broke, a time-out, half a body: all of them pass.
    pub(super) fn of_transport(error: reqwest::Error) -> Self {
        let heals = if error.is_builder() { Heals::Never } else { Heals::Soon };
        Self::new(heals, error.without_url().into())
    }

    /// A body that ends too early passes; one that is no metadata tree does not.
    pub(super) fn of_json(error: &serde_json::Error) -> Self {
        let heals = if error.is_eof() { Heals::Soon } else { Heals::Never };
        Self::new(heals, anyhow!("its answer is not the metadata's JSON: {error}"))
    }

    /// Adds what was being done.
    pub(super) fn doing(self, what: String) -> Self {
        Self { heals: self.heals, error: self.error.context(what) }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.error, out)
    }
}

impl StdError for Trouble {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.error.source()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_heal_as_documented() {
        let table = [
            (200, Heals::Never),
            (301, Heals::Never),
            (400, Heals::Never),
            (403, Heals::Once),
            (404, Heals::Never),
            (408, Heals::Soon),
            (429, Heals::Soon),
            (500, Heals::Soon),
            (503, Heals::Soon),
            (504, Heals::Soon),
        ];
        for (status, heals) in table {
            assert_eq!(StatusCode::from_u16(status).map(Heals::of_status).ok(), Some(heals), "{status}");
        }
    }

    #[test]
    fn the_chain_says_each_level_once() {
        let trouble = Trouble::of_status(StatusCode::MOVED_PERMANENTLY).doing("reading instance/".to_owned());
        let error = Error::from(trouble);
        assert_eq!(
            crate::error::one_line(&error),
            "reading instance/: it answered 301 Moved Permanently, a redirect, which is not followed"
        );
    }
}
