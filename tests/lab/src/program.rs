//! Running programs: one place where a failure names the program and quotes the end of what it said.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// How much of a failed program's standard error an error quotes, in bytes.
const QUOTED: usize = 2048;

/// Runs `command` with standard input closed and returns its standard output.
///
/// Fails when it cannot be started or does not exit with 0; the error names the program and quotes the end of its
/// standard error.
pub fn run(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("starting {program}"))?;
    if !output.status.success() {
        let tail = &output.stderr[output.stderr.len().saturating_sub(QUOTED)..];
        bail!("{program} failed ({}): {}", output.status, String::from_utf8_lossy(tail).trim_end());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_failure_names_the_program_and_quotes_the_end_of_its_words() {
        let mut loud = Command::new("sh");
        loud.args(["-c", "yes ü | head -c 9000 >&2; echo the end >&2; exit 3"]);
        let error = run(&mut loud).unwrap_err().to_string();
        assert!(error.starts_with("sh failed (exit status: 3)"), "{error}");
        assert!(error.ends_with("the end"), "{error}");
        assert!(error.len() < 2 * QUOTED);
    }

    #[test]
    fn standard_output_is_the_answer() {
        assert_eq!(run(Command::new("echo").arg("hello")).unwrap(), "hello\n");
    }
}
