//! The last lines of a container's log, fit for an error message.

use std::time::Duration;

use bollard::query_parameters::LogsOptionsBuilder;
use futures_util::StreamExt as _;
use jiff::Timestamp;

use crate::docker::Engine;
use crate::secret::Redaction;
use crate::text::tail;

/// How much of a log is read, and for how long: its end is what counts.
const LOG_BYTES: usize = 256 << 10;
const LOG_TIMEOUT: Duration = Duration::from_secs(30);

/// How many lines of the log go into a message, and how many characters of each.
const LINES_LIMIT: usize = 5;
const LINE_CHARS: usize = 240;

/// How many lines of a log are read.
const TAIL: &str = "200";

/// The last lines of a `log`, on one line, without secrets. Says so when there are none.
pub(super) fn last_lines(log: &str, secrets: &Redaction) -> String {
    let lines = excerpt(log, secrets);
    if lines.is_empty() { "it said nothing".to_owned() } else { lines }
}

/// The end of the log of `container` since a moment, without colours.
pub(super) async fn read(engine: &Engine, container: &str, since: Timestamp) -> String {
    let since = i32::try_from(since.as_second()).unwrap_or_default();
    let options = LogsOptionsBuilder::default().stdout(true).stderr(true).tail(TAIL).since(since).build();
    let (mut output, mut text) = (engine.client.logs(container, Some(options)), String::new());
    let reading = async {
        while let Some(Ok(part)) = output.next().await {
            push_end(&mut text, &String::from_utf8_lossy(part.as_ref()));
        }
    };
    // What came until then is what there is.
    drop(tokio::time::timeout(LOG_TIMEOUT, reading).await);
    plain(&text)
}

/// Shows `see` every line of the log of `container` since a moment, without colours. What does not come in time is left
/// out.
pub(super) async fn each_line(engine: &Engine, container: &str, since: Timestamp, mut see: impl FnMut(&str)) {
    let since = i32::try_from(since.as_second()).unwrap_or_default();
    let options = LogsOptionsBuilder::default().stdout(true).stderr(true).since(since).build();
    let mut output = engine.client.logs(container, Some(options));
    // A part is a line, or 16 KiB of a longer one.
    let reading = async {
        while let Some(Ok(part)) = output.next().await {
            plain(&String::from_utf8_lossy(part.as_ref())).lines().for_each(&mut see);
        }
    };
    drop(tokio::time::timeout(LOG_TIMEOUT, reading).await);
}

/// Adds to a text of which only the end is kept. The word at the cut goes, too: it may be the rest of a secret.
fn push_end(text: &mut String, part: &str) {
    text.push_str(part);
    if text.len() > 2 * LOG_BYTES {
        let end = tail(text, LOG_BYTES);
        *text = end.find(char::is_whitespace).map_or("", |at| &end[at..]).to_owned();
    }
}

fn excerpt(text: &str, secrets: &Redaction) -> String {
    let text = secrets.redact(text);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty() && !is_frame(line)).collect();
    let cut = |line: &&str| line.chars().take(LINE_CHARS).collect::<String>();
    lines[lines.len().saturating_sub(LINES_LIMIT)..].iter().map(cut).collect::<Vec<_>>().join(" | ")
}

/// Whether a line is one of a native stack: addresses, which tell an operator nothing. `12: 0x7f3a [/lib/libc.so.6]`,
/// `#3 0x55d0 node::Abort()`, and their heading.
fn is_frame(line: &str) -> bool {
    let rest = line.trim_start_matches('#').trim_start_matches(|c: char| c.is_ascii_digit());
    let is_numbered = rest.len() < line.len() && rest.trim_start_matches(':').trim_start().starts_with("0x");
    is_numbered
        || line.contains("Native stack trace")
        || line.contains("JS stack trace")
        || line.contains("JS stacktrace")
}

/// `text` without terminal control sequences (`ESC [ … letter`) and other control characters.
pub(super) fn plain(text: &str) -> String {
    let mut parts = text.split("\u{1b}[");
    let first = parts.next().unwrap_or_default();
    let rest =
        parts.map(|part| part.trim_start_matches(|c: char| !c.is_ascii_alphabetic()).get(1..).unwrap_or_default());
    let characters = std::iter::once(first).chain(rest).flat_map(str::chars);
    characters.filter(|&c| c == '\n' || !c.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_without_end_is_read_to_a_limit() {
        let mut text = String::new();
        for number in 0..1_000_000 {
            push_end(&mut text, &format!("line {number}\n"));
            assert!(text.len() <= 2 * LOG_BYTES);
        }
        assert_eq!(excerpt(&text, &Redaction::default()).rsplit(" | ").next(), Some("line 999999"));
        push_end(&mut text, &"x".repeat(3 * LOG_BYTES));
        assert_eq!(text, "");
    }

    #[test]
    fn the_last_lines_are_plain_short_and_without_secrets() {
        let token = Redaction::of([("TOKEN", "s3cret")]);
        let text = "1\n2\n\u{1b}[31m3 bad\u{1b}[0m\r\n4 --token s3cret\n\n5\n6\n7\n";
        let text = &plain(text);
        assert_eq!(excerpt(text, &token), "3 bad | 4 --token [redacted] | 5 | 6 | 7");
        assert_eq!(excerpt(&"x".repeat(999), &token).len(), LINE_CHARS);
        assert_eq!(excerpt("", &token), "");
    }

    #[test]
    fn a_native_stack_is_left_out() {
        let log = "[1:0x2a] 9 ms: Mark-Compact 98.9 (101.4) MB\n\nFATAL ERROR: Reached heap limit Allocation failed - \
                   JavaScript heap out of memory\n----- Native stack trace -----\n\n 1: 0xe36436 node::OOMErrorHandler\n \
                   22: 0x7f12 \n#3 0x55d0 node::Abort()\n";
        let expected = "[1:0x2a] 9 ms: Mark-Compact 98.9 (101.4) MB | FATAL ERROR: Reached heap limit Allocation failed - \
                        JavaScript heap out of memory";
        assert_eq!(excerpt(log, &Redaction::default()), expected);
        for line in ["10: 0 errors", "# note", "0x12 is no key", "3 x"] {
            assert!(!is_frame(line), "{line}");
        }
    }
}
