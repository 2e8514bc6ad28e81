//! What a person who watches sees: progress of long work, and the last words.

use std::io::{self, IsTerminal as _, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::watch;

use super::run::Run;
use crate::host::Notes;

/// On a serial console and in the journal every line stays: few of them.
const LINE_PACE: Duration = Duration::from_secs(10);

/// On a terminal one line is written over and over.
const LIVE_PACE: Duration = Duration::from_millis(100);

/// A live line longer than a narrow terminal would wrap and could not be overwritten.
const LIVE_COLUMNS: usize = 78;

/// Longest line: a serial console has one of its own, and the script runner gives up on long ones.
const LINE_BYTES: usize = 1000;

const ERASE_LINE: &[u8] = b"\r\x1b[K";

/// Whether an unfinished live line stands on the terminal.
static LIVE: AtomicBool = AtomicBool::new(false);

/// Standard error for the log: makes way for its lines where a live progress line stands, and keeps them
/// ASCII, which every serial console can show.
#[derive(Debug, Clone, Copy, Default)]
pub struct Console;

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut out = io::stderr().lock();
        if LIVE.swap(false, Ordering::Relaxed) {
            out.write_all(ERASE_LINE)?;
        }
        out.write_all(&ascii(&String::from_utf8_lossy(bytes)))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// Shows the latest progress of the stages that are still at work, at the pace of whoever reads it.
pub(super) async fn show_progress(mut notes: watch::Receiver<Notes>, run: watch::Receiver<Run>) {
    let live = io::stderr().is_terminal();
    let mut last = None;
    while notes.changed().await.is_ok() {
        let progress = notes.borrow_and_update().progress.clone();
        let Some((stage, text)) = progress else { continue };
        if run.borrow().has_ended(stage) || last.as_ref() == Some(&text) {
            continue;
        }
        if live {
            show_live(&format!("openclaw: stage={stage} {text}"));
        } else {
            tracing::info!("stage={stage} {}", cut(&text, LINE_BYTES));
        }
        last = Some(text);
        tokio::time::sleep(if live { LIVE_PACE } else { LINE_PACE }).await;
    }
}

fn show_live(line: &str) {
    let mut out = io::stderr().lock();
    let bytes = [ERASE_LINE, &ascii(cut(line, LIVE_COLUMNS))].concat();
    // A terminal that went away is no reason to end the run.
    drop(out.write_all(&bytes).and_then(|()| out.flush()));
    LIVE.store(true, Ordering::Relaxed);
}

/// A text as lines that are short enough, broken at spaces.
pub(super) fn lines(text: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.is_empty() => cut(word, LINE_BYTES).clone_into(line),
            Some(line) if line.len() + 1 + word.len() <= LINE_BYTES => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(cut(word, LINE_BYTES).to_owned()),
        }
    }
    lines
}

/// The first `bytes` of `text`, cut at a character.
fn cut(text: &str, bytes: usize) -> &str {
    let mut end = bytes.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Control sequences of our own log formatter pass; what is not ASCII becomes a question mark.
fn ascii(text: &str) -> Vec<u8> {
    text.chars().map(|character| u8::try_from(character).ok().filter(u8::is_ascii).unwrap_or(b'?')).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_short_and_ascii() {
        assert_eq!(lines("one two"), ["one two"]);
        let long = lines(&"word\u{e9} ".repeat(400));
        assert!(long.len() > 1 && long.iter().all(|line| line.len() <= LINE_BYTES), "{long:?}");
        assert_eq!(lines(&"x".repeat(3000)).len(), 1);
        assert_eq!(ascii("45\u{a0}% \u{2026}"), b"45?% ?");
        assert_eq!(cut("a\u{e9}b", 2), "a");
    }
}
