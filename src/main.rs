//! Parse, run the command, exit with its code.

use std::process::ExitCode;

fn main() -> ExitCode {
    // Read here and not in the library, so that building another version compiles this one file.
    bamf_agent::cli::main(option_env!("BAMF_VERSION"))
}
