//! The machine's clock, against that of Compute Engine.
//!
//! Its images keep the time over NTP. Where that does not work, certificates are not valid, apt refuses its lists, and
//! the gateway's jobs run when nobody wants them.

use jiff::SignedDuration;

use crate::error::one_line;
use crate::host::Host;
use crate::metadata::Client;
use crate::text;

/// A clock that is wrong by more is far off. Tokens and one-time passwords allow for less than a minute.
const TOLERANCE: SignedDuration = SignedDuration::from_secs(60);

/// How far the machine's clock is ahead of Compute Engine's, if it is far off.
pub(crate) fn far_off(metadata: &Client) -> Option<SignedDuration> {
    metadata.clock_is_ahead_by().filter(|ahead| ahead.abs() > TOLERANCE)
}

/// How far: `5 minutes behind`.
pub(crate) fn describe(ahead: SignedDuration) -> String {
    format!("{} {}", text::duration(ahead.abs()), if ahead.is_positive() { "ahead" } else { "behind" })
}

/// Sets a clock that is far off. One that cannot be set is a warning.
pub(crate) async fn ensure(host: &Host, metadata: &Client) {
    let Some(ahead) = far_off(metadata) else { return };
    let right = (jiff::Timestamp::now() - ahead).as_second();
    let how = describe(ahead);
    match host.command("date").args(["--utc", &format!("--set=@{right}")]).run().await {
        Ok(_) => host.changed(format!("set the clock, which was {how}")),
        Err(error) => host.warn(format!(
            "the clock is {how} and cannot be set ({}): see `timedatectl`, and `systemctl status chrony`",
            one_line(&error)
        )),
    }
}
