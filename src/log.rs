//! Log lines as the serial console and the journal want them: short, ASCII, no time stamps, no colours.

use std::fmt;
use std::future::Future;
use std::io::{self, Write};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::prelude::*;
use tracing_subscriber::registry::LookupSpan;

use tokio::time::Instant;

use crate::host::Host;
use crate::text::head;

/// The longest line: Google's script runner dies of one over 64 KiB, and people read the serial console.
const LINE_BYTES: usize = 2000;

/// Sends this program's log lines to standard error; `verbose` adds the details.
pub fn init(verbose: bool) {
    let level = if verbose { Level::DEBUG } else { Level::INFO };
    let filter =
        tracing_subscriber::filter::Targets::new().with_target("openclaw_init", level).with_default(Level::ERROR);
    let lines = tracing_subscriber::fmt::layer().with_writer(|| Console).event_format(Lines);
    tracing_subscriber::registry().with(lines.with_filter(filter)).init();
}

/// How often a command that is not a boot prints how far it is.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(10);

/// Prints every change that `work` makes to the machine, as it makes it, and now and then its progress.
pub async fn narrate<T>(host: &Host, work: impl Future<Output = T>) -> T {
    let (mut work, mut ledger) = (pin!(work), host.ledger());
    let (mut printed, mut last) = (ledger.borrow().changes.len(), Instant::now());
    loop {
        let outcome = tokio::select! {
            outcome = &mut work => Some(outcome),
            _ = ledger.changed() => None,
        };
        let now = ledger.borrow_and_update().clone();
        for (_, change) in &now.changes[printed..] {
            tracing::info!("{change}");
        }
        if let Some(outcome) = outcome {
            return outcome;
        }
        if let Some((stage, text)) =
            now.progress.filter(|_| now.changes.len() == printed && last.elapsed() > PROGRESS_INTERVAL)
        {
            tracing::info!("{stage}: {text}");
            last = Instant::now();
        }
        printed = now.changes.len();
    }
}

/// A live line longer than a narrow terminal would wrap and could not be overwritten.
const LIVE_COLUMNS: usize = 78;

const ERASE_LINE: &[u8] = b"\r\x1b[K";

/// Whether an unfinished live line stands on the terminal.
static LIVE: AtomicBool = AtomicBool::new(false);

/// Standard error for the log. A log line takes the place of a live progress line, and is ASCII, which every serial
/// console can display.
#[derive(Debug, Clone, Copy, Default)]
pub struct Console;

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        erase_live();
        let mut out = io::stderr().lock();
        out.write_all(&ascii(&String::from_utf8_lossy(bytes)))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// Puts `line` in the place of the live line before it.
pub(crate) fn print_live(line: &str) {
    let mut out = io::stderr().lock();
    let bytes = [ERASE_LINE, head(&plain(line), LIVE_COLUMNS).as_bytes()].concat();
    // A terminal that went away is no reason to end the run.
    drop(out.write_all(&bytes).and_then(|()| out.flush()));
    LIVE.store(true, Ordering::Relaxed);
}

/// Takes the live line away, if one stands on the terminal.
pub(crate) fn erase_live() {
    if LIVE.swap(false, Ordering::Relaxed) {
        let mut out = io::stderr().lock();
        drop(out.write_all(ERASE_LINE).and_then(|()| out.flush()));
    }
}

/// Control sequences of our own log formatter pass; what is not ASCII becomes a question mark.
fn ascii(text: &str) -> Vec<u8> {
    text.chars().map(|character| u8::try_from(character).ok().filter(u8::is_ascii).unwrap_or(b'?')).collect()
}

struct Lines;

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut text = String::new();
        context.field_format().format_fields(Writer::new(&mut text), event)?;
        let level = match *event.metadata().level() {
            Level::ERROR => "error: ",
            Level::WARN => "warning: ",
            Level::DEBUG => "debug: ",
            _ => "",
        };
        writeln!(out, "openclaw: {level}{}", plain(&text))
    }
}

/// One printable ASCII line of at most [`LINE_BYTES`] bytes.
fn plain(text: &str) -> String {
    let mut line: String = text
        .chars()
        .map(|char| match char {
            '\u{2013}' | '\u{2014}' => '-',
            '\u{2026}' => '.',
            _ if char.is_ascii_graphic() || char == ' ' => char,
            _ if char.is_whitespace() => ' ',
            _ => '?',
        })
        .collect();
    line.truncate(LINE_BYTES);
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_one_short_printable_line() {
        assert_eq!(plain("a\nb\tc \u{1b}[31mred"), "a b c ?[31mred");
        assert_eq!(ascii("45\u{a0}% \u{2026}"), b"45?% ?");
        assert_eq!(plain(&"x".repeat(70_000)).len(), LINE_BYTES);
    }
}
