//! Parse, run the command, exit with its code.

fn main() {}
