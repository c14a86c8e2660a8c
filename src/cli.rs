//! The edge: reads the command line, calls one room, prints what came of it, and names the exit code.
//!
//! Every failure ends here as one `Failed`: the exit code of contract section 1 and a chain of sentences. Rooms know
//! nothing of codes but their reason words; nothing below this room prints.

mod arguments;
mod identity;
mod inspect;
mod output;
mod packaging;
mod status;
mod uninstall;
mod update;

use std::process::ExitCode;

use self::arguments::{Arguments, Command};
use crate::agent;
use crate::config::{self, Environment, Loaded, Overrides};
use crate::exit::Exit;
use crate::http;
use crate::telemetry::Build;
use crate::telemetry::log::{self, Verbosity};

/// Why a command failed, with the code that the process exits with.
#[derive(Debug)]
struct Failed {
    exit: Exit,
    message: String,
}

impl Failed {
    /// The error with all its causes.
    fn new(exit: Exit, error: &(dyn std::error::Error + 'static)) -> Self {
        Self { exit, message: http::chain(error) }
    }
}

type Result<T = Exit> = std::result::Result<T, Failed>;

/// What every command has at hand.
struct Call {
    build: Build,
    overrides: Overrides,
    environment: Environment,
}

/// Runs the program. `stamped` is the version that the binary was built as.
#[must_use]
pub fn main(stamped: Option<&str>) -> ExitCode {
    let build = match Build::current(stamped) {
        Ok(build) => build,
        Err(error) => {
            output::error(format!("this binary was built with an unusable BAMF_VERSION: {error}"));
            return ExitCode::from(Exit::Failed.code());
        }
    };
    let arguments = match arguments::parse(std::env::args_os()) {
        Ok(arguments) => arguments,
        Err(error) => return usage(&error),
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            output::error(format!("the runtime cannot be started: {error}"));
            return ExitCode::from(Exit::Failed.code());
        }
    };
    let exit = match runtime.block_on(dispatch(arguments, build)) {
        Ok(exit) => exit,
        Err(Failed { exit, message }) => {
            output::error(message);
            exit
        }
    };
    // A blocking name look-up may hang for as long as the resolver likes; nobody waits for it.
    runtime.shutdown_background();
    ExitCode::from(exit.code())
}

/// Help goes to standard output and is a success; a usage error goes to standard error and is code 2.
fn usage(error: &clap::Error) -> ExitCode {
    // A closed pipe is no reason to fail differently.
    drop(error.print());
    if error.use_stderr() { ExitCode::from(Exit::Usage.code()) } else { ExitCode::SUCCESS }
}

async fn dispatch(arguments: Arguments, build: Build) -> Result {
    let Arguments { config, debug, runtime_dir, version, command } = arguments;
    if version {
        output::line(format!("bamf-agent {build}"));
        return Ok(Exit::Done);
    }
    let overrides = Overrides { config, debug, runtime_dir };
    let call = Call { build, overrides, environment: Environment::snapshot() };
    let command = command.unwrap_or(Command::Run);
    call.start_log(&command);
    match command {
        Command::Run => run(&call).await,
        Command::Join(options) => identity::join(&call, options).await,
        Command::Status(options) => or_json(options.json, status::status(&call, &options).await),
        Command::Update(options) => update::update(&call, *options).await,
        Command::Rollback(options) => update::rollback(&call, options).await,
        Command::History(options) => or_json(options.json, update::history(&call, &options)),
        Command::Pin { version, place } => update::pin(&call, version.as_deref(), &place).await,
        Command::Unpin { place } => update::unpin(&call, &place),
        Command::Verify(options) => update::verify(&call, &options),
        Command::Config(arguments::Config::Check) => inspect::check(&call),
        Command::Config(arguments::Config::Show(options)) => or_json(options.json, inspect::show(&call, options.json)),
        Command::Selftest => inspect::selftest(&call),
        Command::Uninstall(options) => uninstall::uninstall(&call, &options).await,
        Command::Completions { shell } => Ok(packaging::completions(shell)),
        Command::Man { out } => packaging::man(&call, out.as_deref()),
        Command::Version(options) => {
            print_version(&call.build, options.json);
            Ok(Exit::Done)
        }
    }
}

impl Call {
    fn start_log(&self, command: &Command) {
        let debug = self.overrides.debug || self.environment.get("BAMF_DEBUG") == Some("true");
        let verbosity = if debug {
            Verbosity::Debug
        } else if matches!(command, Command::Run) {
            Verbosity::Normal
        } else {
            Verbosity::Quiet
        };
        let colours = self.environment.get("NO_COLOR").is_none_or(str::is_empty);
        log::start(verbosity, colours);
    }

    /// The effective configuration; every problem of it at once otherwise.
    fn load(&self) -> Result<Loaded> {
        config::load(&self.overrides, &self.environment).map_err(|invalid| {
            // A misspelt key may be the reason why another one is missing.
            for warning in &invalid.warnings {
                output::note(format!("warning: {warning}"));
            }
            Failed { exit: Exit::Config, message: invalid.to_string() }
        })
    }
}

async fn run(call: &Call) -> Result {
    let loaded = call.load()?;
    let warnings: Vec<String> = loaded.warnings.iter().map(ToString::to_string).collect();
    match agent::run(loaded.config, &warnings, &call.build).await {
        Ok(()) => Ok(Exit::Done),
        Err(error) => Err(Failed::new(identity::exit_of(&error), &error)),
    }
}

/// With `--json` a failure is a document too: a script that reads standard output finds one there, however it ends.
fn or_json(json: bool, result: Result) -> Result {
    match result {
        Err(Failed { exit, message }) if json => {
            output::json(&serde_json::json!({"error": message, "exit_code": exit.code()}));
            Ok(exit)
        }
        other => other,
    }
}

fn print_version(build: &Build, json: bool) {
    if json { output::json(build) } else { output::line(format!("bamf-agent {build}")) }
}
