//! What a person who watches sees: progress of long work, and the last words.

use std::io::{self, IsTerminal as _};
use std::time::Duration;

use tokio::sync::watch;

use super::run::Run;
use crate::host::Ledger;
use crate::log::print_live;
use crate::text::head;

/// On a serial console and in the journal every line stays: few of them.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// On a terminal one line is written over and over.
const LIVE_INTERVAL: Duration = Duration::from_millis(100);

/// Longest line: a serial console has one of its own, and the script runner gives up on long ones.
const LINE_BYTES: usize = 1000;

/// Prints the latest progress of the stages that are in progress, at the pace of its reader.
pub(super) async fn print_progress(mut ledger: watch::Receiver<Ledger>, run: watch::Receiver<Run>) {
    let live = io::stderr().is_terminal();
    let mut last = None;
    while ledger.changed().await.is_ok() {
        let progress = ledger.borrow_and_update().progress.clone();
        let Some((stage, text)) = progress else { continue };
        if run.borrow().has_ended(stage) || last.as_ref() == Some(&text) {
            continue;
        }
        if live {
            print_live(&format!("openclaw: stage={stage} {text}"));
        } else {
            tracing::info!("stage={stage} {}", head(&text, LINE_BYTES));
        }
        last = Some(text);
        tokio::time::sleep(if live { LIVE_INTERVAL } else { LINE_INTERVAL }).await;
    }
}

/// A text as lines that are short enough, broken at spaces.
pub(super) fn lines(text: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.is_empty() => head(word, LINE_BYTES).clone_into(line),
            Some(line) if line.len() + 1 + word.len() <= LINE_BYTES => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(head(word, LINE_BYTES).to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_short() {
        assert_eq!(lines("one two"), ["one two"]);
        let long = lines(&"word\u{e9} ".repeat(400));
        assert!(long.len() > 1 && long.iter().all(|line| line.len() <= LINE_BYTES), "{long:?}");
        assert_eq!(lines(&"x".repeat(3000)).len(), 1);
    }
}
