//! Text for people and names: sizes, times, digests, and cuts that respect characters.

use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};

/// One mebibyte.
pub const MIB: u64 = 1 << 20;

/// One gibibyte.
pub const GIB: u64 = 1 << 30;

/// How much of a path is shown.
const PATH_BYTES: usize = 400;

/// `bytes` in MiB or GiB with one decimal, rounded up: `1.5 GiB`.
pub fn size(bytes: u64) -> String {
    let (unit, name) = unit(bytes);
    let tenths = (u128::from(bytes) * 10).div_ceil(u128::from(unit));
    format!("{}.{} {name}", tenths / 10, tenths % 10)
}

/// The unit in which `bytes` reads well, and its name.
pub fn unit(bytes: u64) -> (u64, &'static str) {
    if bytes >= GIB { (GIB, "GiB") } else { (MIB, "MiB") }
}

/// Lower-case hexadecimal digits.
pub fn hex(bytes: impl AsRef<[u8]>) -> String {
    bytes.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// For names of files and directories: `20261126T140503Z`.
pub fn file_time(time: Timestamp) -> String {
    time.strftime("%Y%m%dT%H%M%SZ").to_string()
}

/// RFC 3339 to the second: `2026-11-26T14:05:03Z`.
pub fn seconds(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// For sentences: `2026-11-26 14:05 UTC`.
pub fn minutes(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M UTC").to_string()
}

/// How long ago `then` was, in one unit: `3 days`, `2 hours`, `5 minutes`, `7 seconds`.
pub fn age(then: Timestamp, now: Timestamp) -> String {
    duration(now.duration_since(then))
}

/// The same of a time that passed.
pub fn duration(time: SignedDuration) -> String {
    let seconds = time.as_secs().max(0);
    let (count, unit) = match seconds {
        0..=119 => (seconds, "seconds"),
        120..=7_199 => (seconds / 60, "minutes"),
        7_200..=172_799 => (seconds / 3_600, "hours"),
        _ => (seconds / 86_400, "days"),
    };
    format!("{count} {unit}")
}

/// For sentences: `/a and /b`.
pub fn join_paths(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" and ")
}

/// A path for a sentence that has to say more: somebody else's may be as long as a line of the log.
pub fn short(path: &Path) -> String {
    printable(&path.to_string_lossy(), PATH_BYTES)
}

/// The first `bytes` of `text`, cut at a character.
pub fn head(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

/// The last `bytes` of `text`, cut at a character.
pub fn tail(text: &str, bytes: usize) -> &str {
    &text[text.ceil_char_boundary(text.len().saturating_sub(bytes))..]
}

/// `text` from outside, fit for a terminal and a report: what would move a cursor, begin a line or turn its direction
/// is escaped (`\u{1b}`), and of more than `bytes` only the beginning is left. Plain text stays as it is.
pub fn printable(text: &str, bytes: usize) -> String {
    let head = head(text, bytes);
    let mut printable = String::with_capacity(head.len());
    for character in head.chars() {
        if character.is_control() || is_invisible(character) {
            printable.extend(character.escape_default());
        } else {
            printable.push(character);
        }
    }
    if head.len() < text.len() {
        printable.push_str("...");
    }
    printable
}

/// Marks that have no width of their own and change how their neighbours are displayed.
fn is_invisible(character: char) -> bool {
    matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_are_rounded_up_to_a_tenth() {
        for (bytes, text) in [(0, "0.0 MiB"), (1, "0.1 MiB"), (MIB, "1.0 MiB"), (3 << 29, "1.5 GiB")] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn an_age_has_one_unit() -> anyhow::Result<()> {
        let cases =
            [(0, "0 seconds"), (119, "119 seconds"), (120, "2 minutes"), (7_200, "2 hours"), (172_800, "2 days")];
        for (seconds, expected) in cases {
            assert_eq!(age(Timestamp::UNIX_EPOCH, Timestamp::from_second(seconds)?), expected);
        }
        Ok(())
    }

    #[test]
    fn nothing_in_a_printable_text_reaches_the_terminal_as_a_command() {
        let cases = [
            ("telegram: no answer \u{fc}", "telegram: no answer \u{fc}"),
            ("a\nresult=ready\r", "a\\nresult=ready\\r"),
            ("\u{1b}[2J\u{9b}1m\u{7f}\0", "\\u{1b}[2J\\u{9b}1m\\u{7f}\\u{0}"),
            ("\u{202e}txt\u{2066}\u{feff}\u{2028}", "\\u{202e}txt\\u{2066}\\u{feff}\\u{2028}"),
        ];
        for (text, expected) in cases {
            assert_eq!(printable(text, 80), expected);
            assert_eq!(printable(expected, 80), expected, "again");
        }
        assert_eq!(printable(&"x".repeat(3 << 20), 4), "xxxx...");
    }

    #[test]
    fn a_text_is_cut_at_characters() {
        assert_eq!((head("a\u{e9}b", 2), tail("a\u{e9}b", 2)), ("a", "b"));
        assert_eq!((head("ab", 9), tail("ab", 9)), ("ab", "ab"));
        assert_eq!(hex([0, 255]), "00ff");
    }

    proptest! {
        #[test]
        fn any_text_is_printable_in_the_end(text in any::<String>(), bytes in 0..200_usize) {
            let shown = printable(&text, bytes);
            prop_assert!(!shown.contains(|character: char| character.is_control() || is_invisible(character)));
            prop_assert!(shown.len() <= 10 * bytes + 3);
            prop_assert_eq!(printable(&shown, shown.len()), shown);
        }
    }
}
