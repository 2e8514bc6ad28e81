//! `cargo lab`: see `openclaw_lab`.

use std::process::ExitCode;

use clap::Parser;
use openclaw_lab::cli::Cli;
use openclaw_lab::commands;
use openclaw_lab::workstation::Program;

fn main() -> ExitCode {
    let done = match Program::called() {
        Some(program) => program.run(commands::run),
        None => commands::run(Cli::parse().action),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}
