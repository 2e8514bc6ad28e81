//! What a run did to the machine, what an operator should know of it, and how far long work is.

use std::time::Duration;

use tokio::sync::watch;

use super::Host;
use crate::failpoint;
use crate::stage::{self, Stage};
use crate::text::printable;

/// The longest entry. Names and messages in it may be the gateway's: every one is printable, wherever it goes.
const ENTRY_BYTES: usize = 2000;

/// What the stages record beside their results.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ledger {
    /// Every change made to the machine, in order, with the stage that made it.
    pub changes: Vec<(Option<Stage>, String)>,
    /// What an operator should know although the run goes on. Each text once.
    pub warnings: Vec<String>,
    /// The latest progress of the long work of each stage; overwritten, never a history.
    pub progress: Option<(Stage, String)>,
    /// How much longer than its deadline the run may take: for work that the operator asked for at any length.
    pub extension: Duration,
}

impl Host {
    /// Notes a change that was made to the machine (past tense: `formatted /dev/sdb`).
    pub fn changed(&self, what: impl Into<String>) {
        let what = printable(&what.into(), ENTRY_BYTES);
        tracing::debug!("changed: {what}");
        self.ledger.send_modify(|ledger| ledger.changes.push((stage::current(), what)));
        failpoint::counted("changed").hit();
    }

    /// Whether anything was changed in this stage of the run.
    pub fn changed_in(&self, stage: Stage) -> bool {
        self.ledger.borrow().changes.iter().any(|(of, _)| *of == Some(stage))
    }

    /// Warns the operator: printed once, kept in the report.
    pub fn warn(&self, what: impl Into<String>) {
        let what = printable(&what.into(), ENTRY_BYTES);
        self.ledger.send_if_modified(|ledger| {
            let new = !ledger.warnings.contains(&what);
            if new {
                tracing::warn!("{what}");
                ledger.warnings.push(what);
            }
            new
        });
    }

    /// Notes how far long work is. Call it as often as you like: it is printed at a reader's pace.
    pub fn progress(&self, what: impl Into<String>) {
        if let Some(stage) = stage::current() {
            let what = printable(&what.into(), ENTRY_BYTES);
            self.ledger.send_modify(|ledger| ledger.progress = Some((stage, what)));
        }
    }

    /// Lets the run take this much longer, in all, than its deadline.
    pub fn extend_deadline(&self, extension: Duration) {
        self.ledger.send_modify(|ledger| ledger.extension = ledger.extension.max(extension));
    }

    /// A view of the ledger that wakes its reader at every new entry.
    pub fn ledger(&self) -> watch::Receiver<Ledger> {
        self.ledger.subscribe()
    }
}
