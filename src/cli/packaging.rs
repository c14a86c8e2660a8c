//! `completions` and `man`: what packages ship besides the binary, made from the definitions that parse the command line.
//!
//! Part of the program and not of its build, so that a package for another machine is made by running this one, and so that
//! who installed the bare binary has them as well. The pages carry no date: the same version makes the same bytes.

use std::path::Path;

use clap::{Command, CommandFactory as _};
use clap_complete::aot::{self, generate};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use super::arguments::{Arguments, Shell};
use super::{Call, Failed, Result, output};
use crate::durable;
use crate::exit::Exit;

/// hier(7): commands for the administrator.
const SECTION: &str = "8";

/// What the main page says beyond the definitions. Paths are those of a system-wide installation.
const FILES: [(&str, &str); 6] = [
    ("/etc/bamf/agent.yaml", "The configuration; root\u{2019}s to write, as it decides which releases root installs."),
    ("/etc/bamf/agent.env", "Environment of the service, such as proxies; optional."),
    ("/var/lib/bamf-agent/", "The certificate, its private key and the platform\u{2019}s authority."),
    ("/var/lib/bamf-agent-updater/", "What the updater is doing, what it did, and what it holds back."),
    ("/run/bamf-agent/agent.sock", "The control socket, for root and the group bamf."),
    (".bamf-agent.previous", "Beside the installed binary: the one that `rollback` goes back to."),
];

pub(super) fn completions(shell: Shell) -> Exit {
    output::line(script(shell).trim_end());
    Exit::Done
}

fn script(shell: Shell) -> String {
    let mut command = Arguments::command();
    let mut script = Vec::new();
    match shell {
        Shell::Bash => generate(aot::Bash, &mut command, "bamf-agent", &mut script),
        Shell::Zsh => generate(aot::Zsh, &mut command, "bamf-agent", &mut script),
        Shell::Fish => generate(aot::Fish, &mut command, "bamf-agent", &mut script),
    }
    // clap_complete up to 4.6.11 spells a name with a hyphen in two ways in one bash script, and no option of any command is
    // completed (clap-rs/clap#6421). Does nothing once that is repaired.
    String::from_utf8_lossy(&script).replace("bamf__subcmd__agent", "bamf__agent")
}

pub(super) fn man(call: &Call, out: Option<&Path>) -> Result {
    let pages = pages(&call.build.version.to_string())
        .map_err(|error| Failed { exit: Exit::Failed, message: format!("cannot make the manual pages: {error}") })?;
    match (out, pages.as_slice()) {
        (Some(out), pages) => {
            for page in pages {
                durable::write(&out.join(&page.name), page.text.as_bytes(), 0o644)
                    .map_err(|error| Failed::new(Exit::Disk, &error))?;
            }
        }
        (None, [.., main]) => output::line(main.text.trim_end()),
        (None, []) => {}
    }
    Ok(Exit::Done)
}

/// A manual page and the name of its file.
struct Page {
    name: String,
    text: String,
}

/// The pages of all commands; the main one comes last.
fn pages(version: &str) -> std::io::Result<Vec<Page>> {
    // A page about `help` would say what every page says.
    let mut root = Arguments::command().disable_help_subcommand(true);
    root.build();
    let mut pages = Vec::new();
    collect(&root, true, version, &mut pages)?;
    Ok(pages)
}

fn collect(command: &Command, main: bool, version: &str, pages: &mut Vec<Page>) -> std::io::Result<()> {
    for subcommand in command.get_subcommands().filter(|subcommand| !subcommand.is_hide_set()) {
        collect(subcommand, false, version, pages)?;
    }
    pages.push(page(command, main, version)?);
    Ok(())
}

fn page(command: &Command, main: bool, version: &str) -> std::io::Result<Page> {
    let man = Man::new(command.clone())
        .section(SECTION)
        .source(format!("bamf-agent {version}"))
        .manual("BAMF agent".to_owned());
    let mut text = Vec::new();
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    let mut rest = Roff::new();
    let after = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let (prose, blocks): (Vec<_>, Vec<_>) = after.split("\n\n").partition(|paragraph| !paragraph.contains("\n "));
    for paragraph in prose.iter().filter(|paragraph| !paragraph.is_empty()) {
        rest.control("PP", []).text([roman(paragraph.replace('\n', " "))]);
    }
    rest.to_writer(&mut text)?;
    man.render_options_section(&mut text)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut text)?;
    }
    let mut rest = Roff::new();
    for block in blocks {
        literal(&mut rest, block);
    }
    if main {
        files(&mut rest);
    }
    see_also(&mut rest, main);
    rest.to_writer(&mut text)?;
    Ok(Page { name: man.get_filename(), text: String::from_utf8_lossy(&text).into_owned() })
}

/// A heading that ends with a colon, and indented lines that stay as they are.
fn literal(roff: &mut Roff, block: &str) {
    let mut lines = block.lines();
    let heading = lines.next().unwrap_or_default().trim_end_matches(':').to_uppercase();
    // man-pages(7) has names for these.
    let heading = match heading.as_str() {
        "EXAMPLE" => "EXAMPLES",
        "EXIT CODES" => "EXIT STATUS",
        other => other,
    };
    roff.control("SH", [heading]).control("nf", []);
    for line in lines {
        roff.text([roman(line.strip_prefix("  ").unwrap_or(line))]);
    }
    roff.control("fi", []);
}

fn files(roff: &mut Roff) {
    roff.control("SH", ["FILES"]);
    for (path, meaning) in FILES {
        roff.control("TP", []).text([bold(path)]).text([roman(meaning)]);
    }
}

fn see_also(roff: &mut Roff, main: bool) {
    roff.control("SH", ["SEE ALSO"]);
    if !main {
        roff.text([bold("bamf-agent"), roman("(8)")]).control("PP", []);
    }
    roff.text([
        roman(concat!(env!("CARGO_PKG_REPOSITORY"), " has the documentation: every key of the configuration, ")),
        roman("the outside that scripts may rely on, and what is guaranteed."),
    ]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commands(command: &Command) -> Vec<Command> {
        command.get_subcommands().flat_map(commands).chain([command.clone()]).collect()
    }

    /// Every command with the long options that are its own.
    fn all() -> Vec<Command> {
        let mut root = Arguments::command().disable_help_subcommand(true);
        root.build();
        commands(&root)
    }

    fn options(command: &Command) -> Vec<String> {
        command.get_arguments().filter_map(|argument| argument.get_long().map(str::to_owned)).collect()
    }

    #[test]
    fn every_command_has_a_page_with_all_its_options() {
        let pages = pages("1.2.0").unwrap();
        let names: Vec<&str> = pages.iter().map(|page| page.name.as_str()).collect();
        assert_eq!(names.last(), Some(&"bamf-agent.8"));
        assert_eq!(names.len(), all().len());
        for command in all() {
            let name = format!("{}.8", command.get_display_name().unwrap_or("bamf-agent"));
            let page = pages.iter().find(|page| page.name == name).unwrap_or_else(|| panic!("{name} in {names:?}"));
            for option in options(&command) {
                let option = option.replace('-', "\\-");
                assert!(page.text.contains(&format!("\\-\\-{option}")), "{name} lacks --{option}:\n{}", page.text);
            }
            for section in ["NAME", "SYNOPSIS", "DESCRIPTION", "EXAMPLES", "SEE ALSO"] {
                let heading = [format!(".SH {section}\n"), format!(".SH \"{section}\"\n")];
                assert!(heading.iter().any(|heading| page.text.contains(heading)), "{name} lacks {section}");
            }
            assert!(page.text.contains("bamf-agent 1.2.0"), "{name}");
        }
    }

    #[test]
    fn every_shell_completes_every_command_and_option() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let script = script(shell);
            for command in all() {
                let name = command.get_name();
                assert!(script.contains(name), "{shell:?} lacks {name}");
                for option in options(&command) {
                    // fish writes `-l option`, the others `--option`.
                    let spellings = [format!("--{option}"), format!("-l {option}")];
                    assert!(spellings.iter().any(|text| script.contains(text)), "{shell:?} lacks --{option} of {name}");
                }
            }
        }
    }
}
