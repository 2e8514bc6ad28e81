//! The outcomes as a JUnit report, which most continuous-integration systems read.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use super::Outcome;

/// Writes the report.
pub(super) fn write(file: &Path, outcomes: &[Outcome]) -> Result<()> {
    let text = report(outcomes).context("writing the report")?;
    fs::write(file, text).with_context(|| format!("writing {}", file.display()))
}

fn report(outcomes: &[Outcome]) -> Result<String, std::fmt::Error> {
    let failures = outcomes.iter().filter(|outcome| outcome.failure.is_some()).count();
    let took: Duration = outcomes.iter().map(|outcome| outcome.took).sum();
    let mut text = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    let (tests, seconds) = (outcomes.len(), took.as_secs_f32());
    let numbers = format!("tests=\"{tests}\" failures=\"{failures}\" time=\"{seconds:.1}\"");
    writeln!(text, "<testsuite name=\"cargo lab test\" {numbers}>")?;
    for outcome in outcomes {
        let (tier, name, seconds) = (outcome.tier, outcome.name, outcome.took.as_secs_f32());
        write!(text, "  <testcase classname=\"{tier}\" name=\"{name}\" time=\"{seconds:.1}\">")?;
        if let Some(failure) = &outcome.failure {
            write!(text, "<failure>{}</failure>", escaped(failure))?;
        }
        writeln!(text, "</testcase>")?;
    }
    writeln!(text, "</testsuite>")?;
    Ok(text)
}

/// Text for XML, which has no way to say most control characters.
fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '\n' | '\t' => escaped.push(c),
            c if c.is_control() => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_failure_is_told_with_what_xml_allows() {
        let outcome = |name, failure: Option<&str>| Outcome {
            tier: "machine",
            name,
            took: Duration::from_millis(1500),
            failure: failure.map(str::to_owned),
        };
        let text = report(&[outcome("good", None), outcome("bad", Some("<a> & \u{1b}[1mb\nc"))]).unwrap();
        let expected = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
            <testsuite name=\"cargo lab test\" tests=\"2\" failures=\"1\" time=\"3.0\">\n\
            \x20 <testcase classname=\"machine\" name=\"good\" time=\"1.5\"></testcase>\n\
            \x20 <testcase classname=\"machine\" name=\"bad\" time=\"1.5\">\
            <failure>&lt;a&gt; &amp; \u{fffd}[1mb\nc</failure></testcase>\n\
            </testsuite>\n";
        assert_eq!(text, expected);
    }
}
