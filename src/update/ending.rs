//! The end of every update, also of one that was cut: either its version owns the state, or all is as before.

use anyhow::Result;

use super::journal::{Journal, Phase};
use super::{Machine, ROLLBACK, Wish, copy, shown, wish};
use crate::disk::{self, DataDir};
use crate::failure::what;
use crate::gateway;
use crate::host::Host;
use crate::record::Record;
use crate::stage::Failure;
use crate::switch;

/// Puts an end to what a run left half done, be it this one or one that was cut: an update whose version became
/// ready is completed, any other is undone. `failed` is what this run tried, and why it failed.
pub async fn settle(on: Machine<'_>, failed: Option<(&Wish, &Failure)>) -> Result<()> {
    let Machine { host, data, config, .. } = on;
    let record = Record::read(host, data).await?;
    match Journal::read(host, data).await? {
        None if failed.is_some() => drop(noted(record, None, failed).write(host, data).await?),
        None => {}
        Some(journal) => match ending(&journal, &record, host.path(journal.copy.state_of(data)?).is_dir()) {
            Ending::Succeeded => succeed(host, data, &journal).await?,
            Ending::NotBegun => {
                noted(record, None, failed).write(host, data).await?;
                copy::discard(host, data, &journal.copy).await?;
                Journal::forget(host, data).await?;
            }
            Ending::Undone => Journal::forget(host, data).await?,
            Ending::ToUndo => undo(on, &journal, noted(record, Some(&journal), failed)).await?,
        },
    }
    if failed.is_none()
        && let Some(warning) = wish::held(&config.image, &Record::read(host, data).await?)
    {
        host.warn(warning);
    }
    Ok(())
}

/// How an update ended, or must end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// The new version owns the state.
    Succeeded,
    /// The present version still did.
    NotBegun,
    /// The copy is the state again.
    Undone,
    /// The new version may have changed the state, and never became ready.
    ToUndo,
}

fn ending(journal: &Journal, record: &Record, copy_exists: bool) -> Ending {
    let owned = record.previous.as_ref().is_some_and(|previous| previous.copy == journal.copy);
    match journal.phase {
        _ if owned => Ending::Succeeded,
        Phase::Copying => Ending::NotBegun,
        Phase::Starting if copy_exists => Ending::ToUndo,
        Phase::Starting => Ending::Undone,
    }
}

/// The record with what has become of the attribute's choice: a choice that failed for good is not tried again
/// at the next boot, nor one whose version was `started` twice when the machine was cut.
fn noted(record: Record, started: Option<&Journal>, failed: Option<(&Wish, &Failure)>) -> Record {
    let refused = |choice: &String, why| Record {
        choice: Some(choice.clone()),
        refused: Some(why),
        interrupted: None,
        ..record.clone()
    };
    match (failed, started.and_then(|journal| journal.choice.as_ref())) {
        (Some((Wish::Update { choice: Some(choice), .. }, failure)), _) if failure.code().is_permanent() => {
            refused(choice, what(&failure.error))
        }
        (None, Some(choice)) if record.interrupted.as_ref() == Some(choice) => {
            refused(choice, "the machine was cut twice while that version started".to_owned())
        }
        (None, Some(choice)) => Record { interrupted: Some(choice.clone()), ..record },
        _ => record,
    }
}

/// Image and state go back together; the state of the attempt is renamed aside.
async fn undo(on: Machine<'_>, journal: &Journal, record: Record) -> Result<()> {
    let Machine { host, engine, data, .. } = on;
    host.progress(format!("undoing the update to OpenClaw {}", journal.to));
    // Nothing may start the new version on the old state.
    gateway::remove(host, engine).await?;
    let prepared = journal.copy.prepared(data, record)?;
    let aside = switch::replace(host, data, ROLLBACK, &prepared).await?;
    disk::show(host, data).await?;
    Journal::forget(host, data).await?;
    let from = journal.from.as_deref().unwrap_or("the version before");
    host.warn(format!(
        "the update to OpenClaw {} was undone: {from} has its state again; that of the attempt is now {}",
        journal.to,
        shown(&aside)
    ));
    Ok(())
}

pub(super) async fn succeed(host: &Host, data: &DataDir, journal: &Journal) -> Result<()> {
    if let Some(superseded) = &journal.superseded {
        copy::discard(host, data, superseded).await?;
    }
    Journal::forget(host, data).await
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use jiff::Timestamp;

    use super::*;
    use crate::failure::{Blame as _, Code};
    use crate::record::{Copy, Previous};
    use crate::stage::Stage;

    fn copy(name: &str) -> Copy {
        Copy { state: format!("openclaw.{name}"), config: format!("config-openclaw.{name}") }
    }

    fn journal(phase: Phase, choice: Option<&str>) -> Journal {
        Journal {
            phase,
            from: Some("1.0.0".to_owned()),
            to: "2.0.0".to_owned(),
            choice: choice.map(str::to_owned),
            copy: copy("new"),
            superseded: None,
            since: Timestamp::UNIX_EPOCH,
        }
    }

    fn with_previous(name: &str) -> Record {
        let previous =
            Previous { record: Record::default(), image: String::new(), copy: copy(name), of: Timestamp::UNIX_EPOCH };
        Record { previous: Some(Box::new(previous)), ..Record::default() }
    }

    #[test]
    fn an_update_that_was_cut_is_judged_by_what_is_there() {
        let (none, older, own) = (Record::default(), with_previous("old"), with_previous("new"));
        let cases = [
            (Phase::Copying, &none, true, Ending::NotBegun),
            (Phase::Copying, &none, false, Ending::NotBegun),
            (Phase::Copying, &older, true, Ending::NotBegun),
            (Phase::Starting, &none, true, Ending::ToUndo),
            (Phase::Starting, &older, true, Ending::ToUndo),
            (Phase::Starting, &older, false, Ending::Undone),
            (Phase::Starting, &own, true, Ending::Succeeded),
        ];
        for (phase, record, copy_exists, expected) in cases {
            assert_eq!(ending(&journal(phase, None), record, copy_exists), expected, "{phase:?} {record:?}");
        }
    }

    #[test]
    fn a_choice_is_given_up_when_it_failed_for_good_or_was_cut_twice() {
        let by = |choice: Option<&str>| Wish::Update { to: None, choice: choice.map(str::to_owned) };
        let failure = |code| Failure {
            stage: Stage::Update,
            error: Err::<(), _>(anyhow::anyhow!("it broke")).blame(code, "Do something.").unwrap_err(),
        };
        let (undone, transient) = (failure(Code::UpdateFailed), failure(Code::ImagePullFailed));
        let (attribute, hand) = (by(Some("v")), by(None));
        let started = journal(Phase::Starting, Some("v"));
        let started_by_hand = journal(Phase::Starting, None);
        let once = Record { interrupted: Some("v".to_owned()), ..Record::default() };
        let given_up = |why: &str| (Some("v".to_owned()), Some(why.to_owned()), None);
        let unchanged = (None, None, None);
        let cut_twice = given_up("the machine was cut twice while that version started");
        #[rustfmt::skip]
        let cases = [
            (Record::default(), None, Some((&attribute, &undone)), given_up("it broke")),
            (once.clone(), Some(&started), Some((&attribute, &undone)), given_up("it broke")),
            (Record::default(), None, Some((&attribute, &transient)), unchanged.clone()),
            (Record::default(), None, Some((&hand, &undone)), unchanged.clone()),
            (Record::default(), Some(&started), None, (None, None, Some("v".to_owned()))),
            (once, Some(&started), None, cut_twice),
            (Record::default(), Some(&started_by_hand), None, unchanged),
        ];
        for (record, started, failed, expected) in cases {
            let Record { choice, refused, interrupted, .. } = noted(record.clone(), started, failed);
            assert_eq!((choice, refused, interrupted), expected, "{record:?} {failed:?}");
        }
    }
}
