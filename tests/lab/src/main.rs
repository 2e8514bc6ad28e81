//! `cargo lab`: see `openclaw_lab`.

use std::process::ExitCode;

use clap::Parser;
use openclaw_lab::cli::Cli;
use openclaw_lab::commands;

fn main() -> ExitCode {
    match commands::run(Cli::parse().action) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}
