//! The last lines of a container's log, fit for an error message.

use bollard::query_parameters::LogsOptionsBuilder;
use futures_util::StreamExt as _;

use crate::docker::Engine;
use crate::secret::Secret;

/// How many lines of the log go into a message, and how many characters of each.
const LINES_LIMIT: usize = 5;
const LINE_CHARS: usize = 240;

/// The last lines of `container`, on one line, without colours and without the token. Says so when there are none.
pub(super) async fn last_lines(engine: &Engine, container: &str, token: &Secret) -> String {
    let text = read(engine, container, "30").await;
    let lines = excerpt(&text, token);
    if lines.is_empty() { "it said nothing".to_owned() } else { lines }
}

/// Whether the last 200 lines of `container` have `words` in them.
pub(super) async fn contain(engine: &Engine, container: &str, words: &str) -> bool {
    plain(&read(engine, container, "200").await).contains(words)
}

async fn read(engine: &Engine, container: &str, tail: &str) -> String {
    let options = LogsOptionsBuilder::default().stdout(true).stderr(true).tail(tail).build();
    let output = engine.client.logs(container, Some(options));
    output
        .filter_map(|part| async move { part.ok().map(|part| String::from_utf8_lossy(part.as_ref()).into_owned()) })
        .collect::<String>()
        .await
}

fn excerpt(text: &str, token: &Secret) -> String {
    let text = token.redact(&plain(text));
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let cut = |line: &&str| line.chars().take(LINE_CHARS).collect::<String>();
    lines[lines.len().saturating_sub(LINES_LIMIT)..].iter().map(cut).collect::<Vec<_>>().join(" | ")
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
    fn the_last_lines_are_plain_short_and_without_the_token() {
        let token = Secret::new("s3cret");
        let text = "1\n2\n\u{1b}[31m3 bad\u{1b}[0m\r\n4 --token s3cret\n\n5\n6\n7\n";
        assert_eq!(excerpt(text, &token), "3 bad | 4 --token [redacted] | 5 | 6 | 7");
        assert_eq!(excerpt(&"x".repeat(999), &token).len(), LINE_CHARS);
        assert_eq!(excerpt("", &token), "");
    }
}
