//! The command line, as contract section 1 lists it.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};

use crate::update::site::UNIT;

/// Heading of the options that every command has, so that a command's own stand together.
const EVERYWHERE: &str = "Options of every command";
/// Heading of the options that say which installation is meant.
const INSTALLATION: &str = "Which agent";

/// The BAMF agent: gives people access to what runs next to it
#[derive(Debug, Parser)]
#[command(
    name = "bamf-agent",
    disable_version_flag = true,
    subcommand_required = false,
    args_conflicts_with_subcommands = false,
    after_help = "It joins a BAMF platform once, keeps its own certificate, carries the sessions of users to what is \
        configured, and updates itself. Without a command it runs the service.\n\n\
        Examples:\n  \
        bamf-agent --config /etc/bamf/agent.yaml\n  \
        sudo bamf-agent update\n  \
        bamf-agent status\n\n\
        Exit codes:\n   \
        0  done, or already up to date       24  an operator is needed\n   \
        1  unexpected failure                25  held back: old, pinned or known bad\n   \
        2  wrong usage                       26  another update is running\n  \
        10  an update is available            69  API or release source unreachable\n  \
        20  refused: newer than the API       74  disk full, faulty or read-only\n  \
        21  refused: not authentic            77  needs root\n  \
        22  refused: not self-updatable here  78  configuration or identity invalid\n  \
        23  rolled back to the old version"
)]
pub(super) struct Arguments {
    /// Configuration file [default: /etc/bamf/agent.yaml, then ./agent.yaml]
    #[arg(long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = EVERYWHERE)]
    pub(super) config: Option<PathBuf>,
    /// Log how things happen, not only what happens
    #[arg(long, global = true, help_heading = EVERYWHERE)]
    pub(super) debug: bool,
    /// Directory of the control socket [default: /run/bamf-agent]
    #[arg(long, global = true, value_name = "DIR", value_hint = ValueHint::DirPath, help_heading = EVERYWHERE)]
    pub(super) runtime_dir: Option<PathBuf>,
    /// Print the version
    #[arg(short = 'V', long, exclusive = true)]
    pub(super) version: bool,
    #[command(subcommand)]
    pub(super) command: Option<Command>,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run the service: join if needed, connect, serve
    #[command(after_help = "Example:\n  bamf-agent run --config /etc/bamf/agent.yaml\n\n\
        A stored certificate is used for ever after; the join token is needed once. SIGTERM ends it; where systemd is about \
        to restart it, open sessions go on in the next process.")]
    Run,
    /// Register once, store the certificate, exit
    #[command(after_help = "Examples:\n  sudo bamf-agent join --token-file /root/token\n  \
        echo \"$TOKEN\" | sudo bamf-agent join --token-file -\n\n\
        A token on the command line can be seen by other users of the machine while the command runs.")]
    Join(Join),
    /// Show what the running agent is doing; without one, what is stored
    #[command(after_help = "Examples:\n  bamf-agent status\n  bamf-agent status --json | jq .api.connected")]
    Status(Status),
    /// Update to the newest release that is not newer than the API
    #[command(after_help = "Examples:\n  sudo bamf-agent update\n  sudo bamf-agent update --check\n  \
        sudo bamf-agent update --version 1.2.0 --dry-run\n  \
        sudo bamf-agent update --source /media/releases\n\n\
        Upgrade order: API, then agents, then CLI. A version newer than the API is always refused.\n\n\
        Every form reads the configuration, which root and the group bamf may read: without sudo, \
        `update --check` works for members of that group.")]
    Update(Box<Update>),
    /// Go back to the binary that was installed before
    #[command(after_help = "Example:\n  sudo bamf-agent rollback\n\n\
        The version that it goes back from is remembered as bad: only `update --force` installs it again.")]
    Rollback(Rollback),
    /// Show what was installed when, by whom, and how it ended
    #[command(after_help = "Examples:\n  sudo bamf-agent history\n  sudo bamf-agent history --json | jq '.[-1]'")]
    History(History),
    /// Stay on a version
    #[command(
        after_help = "Examples:\n  sudo bamf-agent pin          # the installed one\n  sudo bamf-agent pin 1.2.0"
    )]
    Pin {
        /// Version to stay on [default: the installed one]
        #[arg(value_hint = ValueHint::Other)]
        version: Option<String>,
        #[command(flatten)]
        place: Place,
    },
    /// Follow the API's version again
    #[command(after_help = "Example:\n  sudo bamf-agent unpin && sudo bamf-agent update")]
    Unpin {
        #[command(flatten)]
        place: Place,
    },
    /// Check downloaded release files offline with the trusted keys
    #[command(after_help = "Examples:\n  \
        bamf-agent verify --checksums checksums.txt bamf-agent-linux-amd64\n  \
        bamf-agent verify --checksums checksums.txt --tag v1.2.0 install.sh\n\n\
        The signature is expected beside checksums.txt, as checksums.txt.minisig.")]
    Verify(Verify),
    /// Check or show the configuration
    #[command(subcommand, after_help = "Examples:\n  sudo bamf-agent config check\n  sudo bamf-agent config show")]
    Config(Config),
    /// Check that `run` could start here, touching nothing
    #[command(after_help = "Example:\n  sudo -u bamf bamf-agent selftest\n\n\
        Ends with 0, or with 78 and every problem named.")]
    Selftest,
    /// Take the agent off this machine
    #[command(after_help = "Examples:\n  sudo bamf-agent uninstall\n  sudo bamf-agent uninstall --purge --yes\n\n\
        Configuration and identity stay unless `--purge` is given.\n\
        What install.sh found of the Go agent and set aside is put back, and not started.")]
    Uninstall(Uninstall),
    /// Print a shell's completion script
    #[command(after_help = "Examples:\n  \
        source <(bamf-agent completions bash)\n  \
        bamf-agent completions fish > ~/.config/fish/completions/bamf-agent.fish")]
    Completions {
        /// Shell to print it for
        shell: Shell,
    },
    /// Print the manual page, or write those of all commands
    #[command(after_help = "Examples:\n  \
        bamf-agent man | man -l -\n  \
        sudo bamf-agent man --out /usr/local/share/man/man8")]
    Man {
        /// Directory for the pages of all commands
        #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
        out: Option<PathBuf>,
    },
    /// Print the version
    #[command(after_help = "Examples:\n  bamf-agent version\n  bamf-agent version --json | jq -r .version")]
    Version(Json),
}

/// A shell that completions can be printed for.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Shell {
    Bash,
    Zsh,
    Fish,
}

#[derive(Debug, Args)]
pub(super) struct Json {
    /// Print one JSON document
    #[arg(long)]
    pub(super) json: bool,
}

/// Which installation is meant.
#[derive(Debug, Default, Args)]
pub(super) struct Place {
    /// The agent is a unit of the caller's own service manager (`systemctl --user`); needs no root
    #[arg(long, help_heading = INSTALLATION)]
    pub(super) user: bool,
    /// The agent's unit, with or without `.service`
    #[arg(
        long,
        value_name = "NAME",
        default_value = UNIT,
        value_parser = unit_name,
        value_hint = ValueHint::Other,
        help_heading = INSTALLATION
    )]
    pub(super) unit: String,
}

#[derive(Debug, Args)]
pub(super) struct Status {
    /// Print one JSON document
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) place: Place,
}

#[derive(Debug, Args)]
pub(super) struct History {
    /// Print one JSON array
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) place: Place,
}

#[derive(Debug, Args)]
pub(super) struct Join {
    /// Join token
    #[arg(long, value_name = "TOKEN", value_hint = ValueHint::Other, conflicts_with = "token_file")]
    pub(super) token: Option<String>,
    /// File that holds the join token; - reads standard input
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(super) token_file: Option<PathBuf>,
    /// Register anew although a certificate is stored
    #[arg(long)]
    pub(super) force: bool,
}

#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the contract")]
pub(super) struct Update {
    /// Only say whether an update is available (exit code 10)
    #[arg(long)]
    pub(super) check: bool,
    /// Version to install [default: the newest that is not newer than the API]
    #[arg(long, value_name = "VERSION", value_hint = ValueHint::Other)]
    pub(super) version: Option<String>,
    /// Download, verify and try the new binary, but do not install it
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Install, but leave the restart to the operator
    #[arg(long)]
    pub(super) no_restart: bool,
    /// Allow a version older than the installed one
    #[arg(long)]
    pub(super) allow_downgrade: bool,
    /// Allow a pre-release
    #[arg(long)]
    pub(super) allow_prerelease: bool,
    /// Install again, past a pin, or although the version failed here before; never past the API
    #[arg(long)]
    pub(super) force: bool,
    /// The API's version, for control planes that do not report theirs
    #[arg(long, value_name = "VERSION", value_hint = ValueHint::Other)]
    pub(super) assume_api_version: Option<String>,
    /// Take releases from here instead of `update.source`
    #[arg(long, value_name = "URL|DIR", value_hint = ValueHint::DirPath)]
    pub(super) source: Option<String>,
    /// Run as the timer does: only if `update.auto` is on and within `update.window`
    #[arg(long)]
    pub(super) unattended: bool,
    /// Print one JSON document
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) place: Place,
}

#[derive(Debug, Args)]
pub(super) struct Rollback {
    /// Put the old binary back, but leave the restart to the operator
    #[arg(long)]
    pub(super) no_restart: bool,
    /// Print one JSON document
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) place: Place,
}

#[derive(Debug, Args)]
pub(super) struct Verify {
    /// The release's checksums.txt, with its signatures beside it
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(super) checksums: PathBuf,
    /// Tag that must have been signed, e.g. v1.2.0
    #[arg(long, value_name = "TAG", value_hint = ValueHint::Other)]
    pub(super) tag: Option<String>,
    /// Files to check
    #[arg(required = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(super) files: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct Uninstall {
    /// Remove configuration, identity and user as well, after asking; to come back, the machine has to join again
    #[arg(long)]
    pub(super) purge: bool,
    /// Do not ask
    #[arg(long)]
    pub(super) yes: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum Config {
    /// Report every problem of the configuration with file and line
    #[command(after_help = "Example:\n  sudo bamf-agent config check --config ./agent.yaml\n\n\
        Ends with 0, or with 78 and every problem named.")]
    Check,
    /// Print every value in effect, and where it came from
    #[command(after_help = "Examples:\n  sudo bamf-agent config show\n  \
        sudo bamf-agent config show --json | jq -r '.settings[].key'\n\n\
        Secrets are masked.")]
    Show(Json),
}

/// The full name of a service unit: whoever leaves `.service` out means the same unit, and so the same installation.
fn unit_name(text: &str) -> Result<String, String> {
    let stem = text.strip_suffix(".service").unwrap_or(text);
    // systemd.unit(5): "ASCII letters, digits, ":", "-", "_", ".", and "\"", at most 255 characters with the suffix.
    let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, ':' | '-' | '_' | '.' | '\\' | '@');
    let name = format!("{stem}.service");
    if stem.is_empty() || name.len() > 255 || !stem.chars().all(valid) {
        return Err("a unit's name has letters, digits and `:-_.\\@` only, such as bamf-agent.service".to_owned());
    }
    Ok(name)
}

/// Parses; the Go agent's single-dash spellings are understood (protocol 2.1).
pub(super) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Arguments, clap::Error> {
    Arguments::try_parse_from(arguments.into_iter().map(double_dash))
}

fn double_dash(argument: OsString) -> OsString {
    let Some(text) = argument.to_str() else { return argument };
    let long = ["config", "debug"].into_iter().any(|name| {
        let rest = text.strip_prefix('-').and_then(|text| text.strip_prefix(name));
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
    });
    if long { OsString::from(format!("-{text}")) } else { argument }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Arguments {
        parse(line.split(' ').map(OsString::from)).unwrap()
    }

    #[test]
    fn the_definitions_are_consistent() {
        <Arguments as clap::CommandFactory>::command().debug_assert();
    }

    fn commands(command: &clap::Command) -> Vec<clap::Command> {
        command.get_subcommands().flat_map(commands).chain([command.clone()]).collect()
    }

    #[test]
    fn the_help_of_every_command_has_an_example_and_breaks_none_of_its_lines_at_80_columns() {
        let mut root = <Arguments as clap::CommandFactory>::command().disable_help_subcommand(true);
        root.build();
        for command in commands(&root) {
            let name = command.get_bin_name().unwrap_or_default().to_owned();
            let about = command.get_about().unwrap_or_default().to_string();
            assert!(!about.is_empty() && !about.ends_with('.'), "{name}: {about}");
            let after = command.get_after_help().unwrap_or_default().to_string();
            assert!(after.contains("Example:\n  ") || after.contains("Examples:\n  "), "{name}: {after}");
            // What is indented is meant to stay one line; the rest is prose that may be broken anywhere.
            for line in after.lines().filter(|line| line.starts_with(' ')) {
                assert!(line.len() < 80, "{name}: {line}");
            }
            let help = command.term_width(80).render_long_help().to_string();
            assert!(help.lines().all(|line| line.chars().count() <= 80), "{name}:\n{help}");
            // A command's row in the list of commands is one line.
            assert!(about.len() <= 65, "{name}: {about}");
        }
    }

    #[test]
    fn a_unit_file_of_the_go_agent_keeps_working() {
        for line in
            ["bamf-agent --config /e/a.yaml", "bamf-agent -config /e/a.yaml -debug", "bamf-agent -config=/e/a.yaml"]
        {
            let arguments = parsed(line);
            assert!(arguments.command.is_none(), "{line}");
            assert_eq!(arguments.config.as_deref(), Some(std::path::Path::new("/e/a.yaml")), "{line}");
        }
    }

    #[test]
    fn global_options_stand_before_or_behind_the_command() {
        for line in ["bamf-agent --runtime-dir /r status --json", "bamf-agent status --json --runtime-dir /r"] {
            let arguments = parsed(line);
            assert!(matches!(arguments.command, Some(Command::Status(Status { json: true, .. }))), "{line}");
            assert_eq!(arguments.runtime_dir, Some(PathBuf::from("/r")));
        }
    }

    #[test]
    fn a_unit_is_the_same_with_and_without_its_suffix_and_what_is_no_name_is_a_usage_error() {
        let unit = |name: &str| {
            let line = ["bamf-agent", "history", "--unit", name].map(OsString::from);
            parse(line).map(|parsed| match parsed.command {
                Some(Command::History(history)) => history.place.unit,
                other => panic!("{other:?}"),
            })
        };
        for (name, full) in [
            ("bamf-agent", UNIT),
            (UNIT, UNIT),
            ("bamf-agent@two", "bamf-agent@two.service"),
            ("edge.two", "edge.two.service"),
            ("..", "...service"),
        ] {
            assert_eq!(unit(name).unwrap(), full, "{name}");
        }
        let long = "x".repeat(248);
        for name in ["", ".service", "a/b", "../etc", "a b", "a\nb", "a\u{1b}[2J", "Über", long.as_str()] {
            assert_eq!(unit(name).unwrap_err().exit_code(), 2, "{name:?}");
        }
    }

    #[test]
    fn a_version_for_the_update_is_not_the_version_flag() {
        let Some(Command::Update(update)) = parsed("bamf-agent update --version v1.2.0").command else { panic!() };
        assert_eq!(update.version.as_deref(), Some("v1.2.0"));
    }
}
