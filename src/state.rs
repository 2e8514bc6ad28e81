//! The state: what lies on a [`Volume`], and how it changes hands without ever being lost.
//!
//! [`open`] is the one way in for a run. It ends an operation that was interrupted, moves a state that began on the
//! boot disk, makes the directories and publishes the state where people look for it. After it the state has one
//! owner, and no operation is under way.

pub mod copy;
mod data_dir;
mod layout;
mod locate;
mod operation;
mod publish;
mod record;
mod recover;
mod relocate;
pub(crate) mod room;
mod settings;
pub(crate) mod switch;

use anyhow::Result;

use crate::account;
use crate::disk::Volume;
use crate::host::{Access, Host};
use crate::lock::RunLock;
use crate::metadata::Instance;

pub use data_dir::DataDir;
pub use locate::{aside, current, find, unmount};
pub(crate) use operation::{Operation, Phase, Purpose, Update};
pub use publish::publish;
pub(crate) use publish::unpublish;
pub use record::{Owner, Previous, Record, SafetyCopy};
pub(crate) use recover::{Refusal, accept, recover};
pub use settings::{Owned, OwnedSettings, RefusedSettings, settings_trial};
pub(crate) use switch::Prepared;

/// Makes the state on `volume` whole, in one place and visible to people, and returns its directories. `stop` leaves
/// no gateway that could write to it; it is called only when the state itself must be touched.
///
/// Cut anywhere and run again, it completes. Fails with two-states, no-space or disk-damaged, and then leaves both
/// states as they are.
pub async fn open(
    host: &Host,
    volume: &Volume,
    instance: &Instance,
    lock: &RunLock,
    stop: &impl AsyncFn() -> Result<()>,
) -> Result<DataDir> {
    account::ensure(host).await;
    let data = DataDir::on(volume);
    let is_due = relocate::prepare(host, &data, volume, lock).await?;
    let furnished = async {
        if !volume.is_adopted {
            host.ensure_dir(&volume.root, Access::root(0o700)).await?;
        }
        layout::ensure(host, &data).await?;
        volume.claim(host).await
    };
    volume.furnish(host, furnished).await?;
    if is_due {
        relocate::relocate(host, &data, volume, instance, lock, stop).await?;
    }
    recover(host, &data, None, lock, stop).await?;
    publish(host, &data).await?;
    Ok(data)
}
