//! The end of an operation that was interrupted, be it by this run or by one that was cut.

use std::io::ErrorKind;

use anyhow::{Context, Result};

use super::operation::{Action, Found, Operation, Pending, Purpose, Update, decide};
use super::switch;
use super::{DataDir, Record, SafetyCopy, publish};
use crate::host::{Host, blocking};
use crate::lock::RunLock;
use crate::text::join_paths;
use crate::version::GatewayVersion;

/// What this run tried, and why it failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// The attribute's value that asked for it; nothing when it was asked for by hand.
    pub(crate) choice: Option<String>,
    /// Trying again cannot succeed.
    pub(crate) is_permanent: bool,
    /// One sentence.
    pub(crate) why: String,
}

/// Ends what was left half done on the state in `data`: afterwards it has one owner and no operation is under way.
/// `stop` leaves no gateway that could write to it.
pub(crate) async fn recover(
    host: &Host,
    data: &DataDir,
    refusal: Option<&Refusal>,
    lock: &RunLock,
    stop: &impl AsyncFn() -> Result<()>,
) -> Result<()> {
    switch::complete_pending(host, data, lock).await?;
    let Some(pending) = Pending::read(host, data).await? else {
        if refusal.is_some() {
            noted(Record::read(host, data).await?, None, refusal).write(host, data, lock).await?;
        }
        return Ok(());
    };
    if let Operation::Update(update) = &pending.operation {
        let record = Record::read(host, data).await?;
        match decide(Some(&pending.operation), found(host, data, update, &record)?) {
            Action::AcceptUpdate => discard_superseded(host, data, update).await?,
            Action::DiscardCopy => {
                noted(record, None, refusal).write(host, data, lock).await?;
                update.copy.discard(host, data).await?;
            }
            Action::UndoUpdate => undo(host, data, update, noted(record, Some(update), refusal), lock, stop).await?,
            _ => {}
        }
    }
    pending.forget(host, lock).await
}

fn found(host: &Host, data: &DataDir, update: &Update, record: &Record) -> Result<Found> {
    let is_accepted = record.previous.as_ref().is_some_and(|previous| previous.copy == update.copy);
    let safety_copy = host.path(data.beside(&update.copy.state)?).is_dir();
    Ok(Found { is_accepted, safety_copy, ..Found::default() })
}

/// The record with what has become of the attribute's choice: a choice that failed for good is not tried again
/// at the next boot, nor one whose version was `started` twice when the machine was cut.
fn noted(record: Record, started: Option<&Update>, refusal: Option<&Refusal>) -> Record {
    let refused = |choice: &String, why: &str| Record {
        choice: Some(choice.clone()),
        refused: Some(why.to_owned()),
        interrupted: None,
        ..record.clone()
    };
    match (refusal, started.and_then(|update| update.choice.as_ref())) {
        (Some(Refusal { choice: Some(choice), is_permanent: true, why }), _) => refused(choice, why),
        (None, Some(choice)) if record.interrupted.as_ref() == Some(choice) => {
            refused(choice, "the machine was cut twice while that version started")
        }
        (None, Some(choice)) => Record { interrupted: Some(choice.clone()), ..record },
        _ => record,
    }
}

/// Image and state go back together; the state of the attempt is renamed aside.
async fn undo(
    host: &Host,
    data: &DataDir,
    update: &Update,
    record: Record,
    lock: &RunLock,
    stop: &impl AsyncFn() -> Result<()>,
) -> Result<()> {
    host.progress(format!("undoing the update to OpenClaw {}", update.to));
    // Nothing may start the new version on the old state.
    stop().await?;
    let prepared = update.copy.prepared(data, record)?;
    let aside = switch::replace(host, data, Purpose::Rollback, &prepared, lock).await?;
    publish(host, data).await?;
    let from = update.from.as_ref().map_or("the version before", GatewayVersion::as_str);
    host.warn(format!(
        "the update to OpenClaw {} was undone: {from} has its state again; that of the attempt is now {}",
        update.to,
        join_paths(&aside)
    ));
    Ok(())
}

/// Ends an update whose version owns the state.
pub(crate) async fn accept(host: &Host, data: &DataDir, update: &Update, lock: &RunLock) -> Result<()> {
    discard_superseded(host, data, update).await?;
    Operation::forget(host, data, lock).await
}

async fn discard_superseded(host: &Host, data: &DataDir, update: &Update) -> Result<()> {
    match &update.superseded {
        Some(superseded) => superseded.discard(host, data).await,
        None => Ok(()),
    }
}

impl SafetyCopy {
    /// What takes the place of the current data when this copy does, with the record that belongs to it.
    pub(crate) fn prepared(&self, data: &DataDir, record: Record) -> Result<switch::Prepared> {
        Ok(switch::Prepared { state: data.beside(&self.state)?, config: Some(data.beside(&self.config)?), record })
    }

    /// Removes the copy; what is not there is fine.
    async fn discard(&self, host: &Host, data: &DataDir) -> Result<()> {
        for name in [&self.state, &self.config] {
            let path = data.beside(name)?;
            let (removed, path_display) = (host.path(&path), path.display());
            let gone = blocking(move || match std::fs::remove_dir_all(removed) {
                Ok(()) => Ok(true),
                Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
                Err(error) => Err(error.into()),
            });
            if gone.await.with_context(|| format!("removing the copy {path_display}"))? {
                host.changed(format!("removed the copy {path_display}"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::super::operation::Phase;
    use super::*;

    fn started(choice: Option<&str>) -> Update {
        let copy = SafetyCopy { state: "openclaw.new".to_owned(), config: "config-openclaw.new".to_owned() };
        let (choice, since) = (choice.map(str::to_owned), Timestamp::UNIX_EPOCH);
        Update { phase: Phase::Starting, from: None, to: "2.0.0".into(), choice, copy, superseded: None, since }
    }

    #[test]
    fn a_choice_is_given_up_when_it_failed_for_good_or_was_cut_twice() {
        let refusal = |choice: Option<&str>, is_permanent| Refusal {
            choice: choice.map(str::to_owned),
            is_permanent,
            why: "it broke".to_owned(),
        };
        let once = Record { interrupted: Some("v".to_owned()), ..Record::default() };
        let given_up = |why: &str| (Some("v".to_owned()), Some(why.to_owned()), None);
        let unchanged = (None, None, None);
        let cut_twice = given_up("the machine was cut twice while that version started");
        let (by_attribute, by_hand) = (Some(started(Some("v"))), Some(started(None)));
        #[rustfmt::skip]
        let cases = [
            (Record::default(), None, Some(refusal(Some("v"), true)), given_up("it broke")),
            (once.clone(), by_attribute.clone(), Some(refusal(Some("v"), true)), given_up("it broke")),
            (Record::default(), None, Some(refusal(Some("v"), false)), unchanged.clone()),
            (Record::default(), None, Some(refusal(None, true)), unchanged.clone()),
            (Record::default(), by_attribute.clone(), None, (None, None, Some("v".to_owned()))),
            (once, by_attribute, None, cut_twice),
            (Record::default(), by_hand, None, unchanged),
        ];
        for (record, started, refusal, expected) in cases {
            let Record { choice, refused, interrupted, .. } = noted(record.clone(), started.as_ref(), refusal.as_ref());
            assert_eq!((choice, refused, interrupted), expected, "{record:?} {refusal:?}");
        }
    }
}
