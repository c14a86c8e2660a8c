//! The command line, as contract section 1 lists it.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::update::site::UNIT;

/// The BAMF agent: gives people access to what runs next to it, and keeps itself up to date.
#[derive(Debug, Parser)]
#[command(
    name = "bamf-agent",
    disable_version_flag = true,
    subcommand_required = false,
    args_conflicts_with_subcommands = false,
    after_help = "Without a command it runs the service.\n\n\
        Examples:\n  \
        bamf-agent --config /etc/bamf/agent.yaml\n  \
        sudo bamf-agent update\n  \
        bamf-agent status\n\n\
        Exit codes: 0 done, 1 failed, 2 usage, 10 update available,\n\
        20 beyond the API, 21 not authentic, 22 not self-updatable here,\n\
        23 rolled back, 24 operator needed, 25 held back, 26 another update runs,\n\
        69 unreachable, 74 disk, 77 not permitted,\n\
        78 configuration or identity invalid."
)]
pub(super) struct Arguments {
    /// Configuration file [default: /etc/bamf/agent.yaml, then ./agent.yaml]
    #[arg(long, global = true, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// Log how things happen, not only what happens
    #[arg(long, global = true)]
    pub(super) debug: bool,
    /// Directory of the control socket [default: /run/bamf-agent]
    #[arg(long, global = true, value_name = "DIR")]
    pub(super) runtime_dir: Option<PathBuf>,
    /// Print the version
    #[arg(short = 'V', long, exclusive = true)]
    pub(super) version: bool,
    #[command(subcommand)]
    pub(super) command: Option<Command>,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run the service: join if needed, reconnect with the stored certificate, serve
    #[command(after_help = "Example:\n  bamf-agent run --config /etc/bamf/agent.yaml")]
    Run,
    /// Register once, store the certificate, exit
    #[command(after_help = "Examples:\n  bamf-agent join --token-file /root/token\n  \
        echo \"$TOKEN\" | bamf-agent join --token-file -\n\n\
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
        Every form reads the configuration, which root and the group bamf may read: without sudo, `update --check`\n\
        works for members of that group.")]
    Update(Box<Update>),
    /// Go back to the binary that was installed before, and do not go forward to this one again by itself
    #[command(after_help = "Example:\n  sudo bamf-agent rollback")]
    Rollback(Rollback),
    /// Show what was installed when, from where, by what, and how it ended
    #[command(after_help = "Example:\n  sudo bamf-agent history --json | jq '.[-1]'")]
    History(History),
    /// Stay on a version
    #[command(
        after_help = "Examples:\n  sudo bamf-agent pin          # the installed one\n  sudo bamf-agent pin 1.2.0"
    )]
    Pin {
        /// Version to stay on [default: the installed one]
        version: Option<String>,
        #[command(flatten)]
        place: Place,
    },
    /// Follow the API's version again
    Unpin {
        #[command(flatten)]
        place: Place,
    },
    /// Check downloaded release files offline with the trusted keys
    #[command(after_help = "Example:\n  bamf-agent verify --checksums checksums.txt bamf-agent-linux-amd64\n\n\
        The signature is expected beside it, as checksums.txt.minisig.")]
    Verify(Verify),
    /// Check or show the configuration
    #[command(subcommand)]
    Config(Config),
    /// Check that `run` could start here, touching nothing
    #[command(after_help = "Exit code 0, or 78 with every problem named.")]
    Selftest,
    /// Take the agent off this machine; configuration and identity stay unless `--purge` is given
    #[command(after_help = "Examples:\n  sudo bamf-agent uninstall\n  sudo bamf-agent uninstall --purge --yes\n\n\
        What install.sh found of the Go agent and set aside is put back, and not started.")]
    Uninstall(Uninstall),
    /// Print the version
    Version(Json),
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
    #[arg(long)]
    pub(super) user: bool,
    /// The agent's unit, with or without `.service`
    #[arg(long, value_name = "NAME", default_value = UNIT, value_parser = unit_name)]
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
    #[arg(long, value_name = "T", conflicts_with = "token_file")]
    pub(super) token: Option<String>,
    /// File that holds the join token; - reads standard input
    #[arg(long, value_name = "F")]
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
    #[arg(long, value_name = "V")]
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
    #[arg(long, value_name = "V")]
    pub(super) assume_api_version: Option<String>,
    /// Take releases from here instead of `update.source`
    #[arg(long, value_name = "URL|DIR")]
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
    #[arg(long, value_name = "F")]
    pub(super) checksums: PathBuf,
    /// Tag that must have been signed, e.g. v1.2.0
    #[arg(long, value_name = "V")]
    pub(super) tag: Option<String>,
    /// Files to check
    #[arg(required = true, value_name = "FILE")]
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
    Check,
    /// Print the effective configuration, secrets masked, with where each value came from
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
