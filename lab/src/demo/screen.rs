//! What the demo shows: steps as they happen, a table at the end. Colour on a terminal only, and not against NO_COLOR.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "this is what the program prints")]

use std::io::IsTerminal;
use std::time::Duration;

/// One line of the table.
#[derive(Clone, Debug)]
pub struct Row {
    /// What was shown.
    pub what: String,
    /// What was seen.
    pub seen: String,
    /// How long it took, where that says something.
    pub took: Option<Duration>,
}

/// Prints a line.
pub fn line(text: &str) {
    println!("{text}");
}

/// Prints a step that begins.
pub fn step(text: &str) {
    println!("{} {text}", paint("36", "==>"));
}

/// Prints what a step has led to.
pub fn seen(row: &Row) {
    println!("    {} {}{}", paint("32", "ok"), row.seen, row.took.map(took).unwrap_or_default());
}

/// Prints why the program ends.
pub fn error(text: &str) {
    eprintln!("bamf-lab: {text}");
}

/// Prints the table of everything that was shown.
pub fn table(rows: &[Row]) {
    let width = |text: fn(&Row) -> usize| rows.iter().map(text).max().unwrap_or_default();
    let (what, seen) = (width(|row| row.what.chars().count()), width(|row| row.seen.chars().count()));
    println!("\n{:what$}  {:seen$}  {:>9}", "shown", "seen", "measured");
    println!("{}", "-".repeat(what + seen + 13));
    for row in rows {
        let took = row.took.map_or_else(|| "-".to_owned(), |took| format!("{} ms", took.as_millis()));
        println!("{:what$}  {:seen$}  {took:>9}", row.what, row.seen);
    }
}

fn took(took: Duration) -> String {
    format!("  ({} ms)", took.as_millis())
}

fn paint(colour: &str, text: &str) -> String {
    let wanted = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    if wanted { format!("\x1b[{colour}m{text}\x1b[0m") } else { text.to_owned() }
}
