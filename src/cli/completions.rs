//! `streambus completions`.

use std::io::Write as _;

use clap::{Args, CommandFactory as _};
use clap_complete::{Shell, generate};

use super::Cli;
use super::output::written;

/// Prints a completion script.
#[derive(Debug, Args)]
pub(super) struct Completions {
    /// Shell to complete in
    shell: Shell,
}

impl Completions {
    pub(super) fn run(self) -> anyhow::Result<()> {
        // Generating into memory cannot fail, and writing that can without a panic.
        let mut script = Vec::new();
        generate(self.shell, &mut Cli::command(), "streambus", &mut script);
        let mut out = std::io::stdout().lock();
        written(out.write_all(&script).and_then(|()| out.flush()))
    }
}
