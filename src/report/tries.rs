//! The tries of one boot: runs that systemd started, counted in `/run`. Runs that an operator asked for never count.

use anyhow::{Context, Result, bail};

use super::Ready;
use crate::error::StageError;
use crate::host::Host;
use crate::paths::TRIES;

/// Runs after which a failure that might heal is final.
const TRIES_LIMIT: u32 = 3;

/// One run among the tries of its boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Try {
    /// `None`: an operator asked for it, and watches.
    number: Option<u32>,
}

impl Try {
    /// Counts this run, if it `counts`, before it does anything: one that is killed has counted.
    pub async fn begin(host: &Host, counts: bool) -> Result<Self> {
        if !counts {
            return Ok(Self { number: None });
        }
        let counted = host.read(TRIES).await?.and_then(|bytes| String::from_utf8(bytes).ok()?.trim().parse().ok());
        let number = counted.unwrap_or(0_u32).saturating_add(1);
        tokio::fs::write(host.path(TRIES), number.to_string()).await.context("counting the tries of this boot")?;
        Ok(Self { number: Some(number) })
    }

    /// An error when all tries of this boot were killed before they could report how they ended.
    pub fn precondition(self) -> Result<()> {
        if self.number.is_some_and(|number| number > TRIES_LIMIT) {
            bail!(
                "{TRIES_LIMIT} runs of this boot were killed before they ended: see `sudo journalctl --boot --unit openclaw-init`"
            );
        }
        Ok(())
    }

    /// Whether systemd shall start another run. The next start after a final end is a first try again.
    pub async fn end(self, host: &Host, result: &Result<Ready, StageError>) -> bool {
        let is_retried = self.is_retried(result);
        if !is_retried && self.number.is_some() {
            // Left behind it would cost a later start one of its tries.
            drop(tokio::fs::remove_file(host.path(TRIES)).await);
        }
        is_retried
    }

    fn is_retried(self, result: &Result<Ready, StageError>) -> bool {
        let may_heal = result.as_ref().is_err_and(|error| !error.code().is_permanent());
        may_heal && self.number.is_some_and(|number| number < TRIES_LIMIT)
    }
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;
    use crate::error::{Classify as _, Code};
    use crate::stage::Stage;

    fn failed(code: Code) -> Result<Ready, StageError> {
        let error =
            Err::<(), _>(anyhow!("it broke")).classify(code, "Do something.").err().unwrap_or_else(|| anyhow!(""));
        Err(StageError { stage: Stage::Docker, error })
    }

    #[tokio::test]
    async fn only_failures_of_the_unit_that_may_heal_are_retried() -> Result<()> {
        let root = tempfile::tempdir()?;
        let host = Host::new(root.path());
        std::fs::create_dir_all(host.path(crate::paths::PRIVATE_RUN_DIR))?;
        let (ready, heals, permanent) = (
            Ok(Ready { version: "1".to_owned(), degraded: Vec::new() }),
            failed(Code::AptFailed),
            failed(Code::ConfigInvalid),
        );
        // counts, result, retried
        let runs = [
            (true, &heals, true),
            (true, &heals, true),
            (false, &heals, false),
            (true, &heals, false),
            (true, &heals, true),
            (true, &permanent, false),
            (true, &heals, true),
            (true, &ready, false),
            (true, &heals, true),
        ];
        for (index, (counts, result, is_retried)) in runs.into_iter().enumerate() {
            let attempt = Try::begin(&host, counts).await?;
            assert!(attempt.precondition().is_ok());
            assert_eq!(attempt.end(&host, result).await, is_retried, "run {index}");
        }
        Ok(())
    }

    #[tokio::test]
    async fn runs_that_were_killed_are_not_repeated_for_ever() -> Result<()> {
        let root = tempfile::tempdir()?;
        let host = Host::new(root.path());
        std::fs::create_dir_all(host.path(crate::paths::PRIVATE_RUN_DIR))?;
        for _ in 0..TRIES_LIMIT {
            assert!(Try::begin(&host, true).await?.precondition().is_ok());
        }
        let attempt = Try::begin(&host, true).await?;
        assert!(attempt.precondition().is_err());
        assert!(!attempt.end(&host, &failed(Code::Internal)).await);
        assert!(Try::begin(&host, true).await?.precondition().is_ok(), "started again by hand");
        Ok(())
    }
}
