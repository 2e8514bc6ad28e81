//! The metadata as they change: one request that waits, at a time.

use std::time::Duration;

use tokio::sync::watch;

use super::TICK;
use super::orders::Orders;
use crate::host::{Host, uptime};
use crate::http::backoff;
use crate::metadata::{Answered, Attributes, Client, RequestError};
use crate::report::{self, BootEnd};

/// Attributes that two equal answers had, [`QUIET`] apart: one answer may be wrong, and an operator may go on.
#[derive(Debug, Clone)]
pub(super) struct Believed {
    pub(super) attributes: Attributes,
    /// When the latest of these answers came, since the kernel's start.
    pub(super) at: Option<Duration>,
}

/// How long one request waits for a change.
const POLL: Duration = Duration::from_secs(300);

/// How long nothing may change before a change is believed.
const QUIET: Duration = Duration::from_secs(10);

/// Between two requests, however fast attributes change.
const INTERVAL: Duration = Duration::from_secs(2);

/// The pause after a failed request, doubled each time.
const FIRST_BACKOFF: Duration = Duration::from_secs(5);
const MAX_BACKOFF: Duration = Duration::from_secs(60);

/// One server's answers, and what is believed of them.
#[derive(Debug, Default)]
struct Answers {
    etag: Option<String>,
    last: Option<Attributes>,
    /// The last two answers were the same.
    is_settled: bool,
    failures: u32,
}

impl Answers {
    /// How long the next request may wait.
    fn wait(&self) -> Duration {
        if self.is_settled { POLL } else { QUIET }
    }

    /// Takes an answer; true when its attributes are to be believed.
    fn take(&mut self, etag: String, attributes: Attributes) -> bool {
        self.failures = 0;
        self.is_settled = self.last.as_ref() == Some(&attributes);
        self.etag = Some(etag);
        self.last = Some(attributes);
        self.is_settled
    }

    /// Takes a failure; how long to wait after it. What was half seen is seen again.
    fn fail(&mut self) -> Duration {
        self.is_settled = false;
        let pause = backoff(FIRST_BACKOFF, self.failures, MAX_BACKOFF);
        self.failures += 1;
        pause
    }
}

/// Follows the attributes, as long as the watcher is wanted.
pub(super) async fn follow(host: &Host, metadata: &Client, believed: &watch::Sender<Option<Believed>>) {
    let mut answers = Answers::default();
    loop {
        if !Orders::are_on(host).await {
            tokio::time::sleep(TICK).await;
            continue;
        }
        let pause = match metadata.wait_for_change(answers.etag.as_deref(), answers.wait()).await {
            Ok(Answered { etag, attributes, is_preempted }) => {
                if is_preempted {
                    note_preemption(host).await;
                }
                if answers.take(etag, attributes.clone()) {
                    publish(believed, Believed { attributes, at: uptime() });
                }
                INTERVAL
            }
            Err(error) => failed(&mut answers, &error),
        };
        tokio::time::sleep(pause).await;
    }
}

/// The shutdown notes it, too, if it comes so far.
async fn note_preemption(host: &Host) {
    if let Err(error) = report::note_end(host, BootEnd::Preempted).await {
        tracing::warn!("noting that the VM is preempted: {error:#}");
    }
}

fn publish(believed: &watch::Sender<Option<Believed>>, now: Believed) {
    believed.send_if_modified(|before| {
        let is_new = before.as_ref().is_none_or(|before| before.attributes != now.attributes);
        *before = Some(now);
        is_new
    });
}

fn failed(answers: &mut Answers, error: &RequestError) -> Duration {
    tracing::debug!("following the attributes: {error:#}");
    answers.fail()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(port: u16) -> Attributes {
        Attributes { values: [("openclaw-port".to_owned(), port.to_string())].into(), ..Attributes::default() }
    }

    #[test]
    fn a_change_is_believed_when_it_is_seen_twice_and_quiet() {
        let mut answers = Answers::default();
        for (value, is_believed) in [
            (1, false),
            (1, true),
            (1, true),
            (2, false),
            (3, false),
            (4, false),
            (4, true),
            (5, false),
            (4, false),
            (4, true),
        ] {
            assert_eq!(answers.take("e".to_owned(), port(value)), is_believed, "{value}");
            assert_eq!(answers.wait(), if is_believed { POLL } else { QUIET });
        }
    }

    #[test]
    fn a_server_that_is_gone_is_asked_once_a_minute() {
        let mut answers = Answers::default();
        let pauses: Vec<u64> = (0..7).map(|_| answers.fail().as_secs()).collect();
        assert_eq!(pauses, [5, 10, 20, 40, 60, 60, 60]);
        assert!(!answers.take("e".to_owned(), port(1)));
        assert_eq!(answers.fail().as_secs(), 5, "it was back");
    }
}
