//! The server's clock, which is Compute Engine's, as the `Date` of its answers tells it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use reqwest::header::{DATE, HeaderMap};

use crate::host::uptime;

/// What the latest answer told; clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Clock(Arc<Mutex<Option<Reading>>>);

/// A time of the server's clock, and of one that nobody sets.
#[derive(Debug, Clone, Copy)]
struct Reading {
    server: Timestamp,
    uptime: Duration,
}

impl Clock {
    /// Takes the time of an answer that has just arrived.
    pub(super) fn note(&self, headers: &HeaderMap) {
        let date = headers.get(DATE).and_then(|date| date.to_str().ok());
        if let (Some(server), Some(uptime)) = (date.and_then(parse), uptime()) {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Reading { server, uptime });
        }
    }

    /// How far it is behind the machine's clock now.
    pub(super) fn is_behind_by(&self) -> Option<SignedDuration> {
        let Reading { server, uptime: then } = (*self.0.lock().unwrap_or_else(PoisonError::into_inner))?;
        let server = server.checked_add(uptime()?.saturating_sub(then)).ok()?;
        Some(Timestamp::now().duration_since(server))
    }
}

/// The time of a `Date:` header (RFC 9110, 5.6.7: `Sun, 06 Nov 1994 08:49:37 GMT`).
fn parse(date: &str) -> Option<Timestamp> {
    Timestamp::strptime("%a, %d %b %Y %H:%M:%S %z", date.strip_suffix("GMT")?.to_owned() + "+0000").ok()
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderValue;

    use super::*;

    #[test]
    fn the_date_of_an_answer_is_compared_with_the_clock_of_now() {
        let ahead = |date: &str| {
            let (clock, mut headers) = (Clock::default(), HeaderMap::new());
            headers.insert(DATE, HeaderValue::from_str(date).ok()?);
            clock.note(&headers);
            clock.is_behind_by()
        };
        let date = |time: Timestamp| time.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
        for seconds in [0, 7200, -7200] {
            let server = Timestamp::now() - SignedDuration::from_secs(seconds);
            let error = ahead(&date(server)).map(|ahead| (ahead.as_secs() - seconds).abs());
            assert!(error.is_some_and(|error| error <= 2), "{seconds}: {error:?}");
        }
        assert_eq!(parse("Sun, 06 Nov 1994 08:49:37 GMT").map(Timestamp::as_second), Some(784_111_777));
        for date in ["", "GMT", "Sun, 06 Nov 1994 08:49:37", "Sunday, 06-Nov-94 08:49:37 GMT", "now GMT"] {
            assert_eq!(ahead(date), None, "{date}");
        }
        assert_eq!(Clock::default().is_behind_by(), None);
    }
}
