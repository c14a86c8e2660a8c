//! The commands that only look: what they print, where, and with which code.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use bamf_lab::agent::{Home, LIMIT, NAME};
use bamf_lab::plane::{ControlPlane, Options};

const BINARY: &str = env!("CARGO_BIN_EXE_bamf-agent");

fn home(yaml: &str) -> Home {
    let home = Home::new(BINARY);
    home.configure(yaml);
    home
}

#[test]
fn what_cannot_be_understood_is_code_2_with_usage_on_standard_error() {
    let home = home("platform_url: https://platform.example\n");
    let lines: [&[&str]; 6] =
        [&["dance"], &["run", "--fast"], &["join", "--token"], &["config"], &["status", "extra"], &["--config"]];
    for line in lines {
        let finished = home.run(line);
        assert_eq!((finished.code, finished.stdout.as_str()), (2, ""), "{line:?}: {finished:?}");
        assert!(finished.stderr.contains("Usage") || finished.stderr.contains("--help"), "{line:?}: {finished:?}");
    }
    let both = home.run(&["join", "--token", "x", "--token-file", "y"]);
    assert_eq!(both.code, 2);
    for line in [&["--help"][..], &["join", "--help"], &["config", "check", "--help"]] {
        let finished = home.run(line);
        assert_eq!((finished.code, finished.stderr.as_str()), (0, ""), "{line:?}");
    }
}

/// What bash offers behind `line` with the program's own completion script loaded.
fn offered(home: &Home, line: &str) -> Option<Vec<String>> {
    let script = home.run(&["completions", "bash"]).stdout;
    let words: Vec<&str> = line.split(' ').collect();
    let ask = "registered=$(complete -p bamf-agent); registered=${registered##*-F }; \
               COMP_WORDS=(\"$@\"); COMP_CWORD=$(($# - 1)); \
               ${registered%% *} bamf-agent \"${!#}\" \"${@:$#-1:1}\" && printf '%s\\n' \"${COMPREPLY[@]}\"";
    let bash =
        std::process::Command::new("bash").args(["-c", &format!("{script}\n{ask}"), "bash"]).args(words).output();
    let output = bash.ok()?;
    assert!(output.status.success(), "{output:?}");
    Some(String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect())
}

#[test]
fn a_shell_that_loads_the_completions_offers_commands_and_options() {
    let home = home("");
    let Some(commands) = offered(&home, "bamf-agent un") else {
        println!("skipped: bash is not installed");
        return;
    };
    assert_eq!(commands, ["unpin", "uninstall"]);
    assert_eq!(offered(&home, "bamf-agent update --allow").unwrap(), ["--allow-downgrade", "--allow-prerelease"]);
    assert_eq!(offered(&home, "bamf-agent completions z").unwrap(), ["zsh"]);
}

#[test]
fn manual_pages_are_printed_or_written_and_are_the_same_bytes_each_time() {
    let home = home("");
    let main = home.run(&["man"]).stdout;
    assert!(main.contains(".TH bamf-agent 8"), "{main}");
    let write = |name: &str| {
        let out = home.path(name);
        std::fs::create_dir(&out).unwrap();
        home.run(&["man", "--out", out.to_str().unwrap()]).expect(0, &[]);
        let mut pages: Vec<_> = std::fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().path()).collect();
        pages.sort();
        pages.into_iter().map(|page| (page.file_name().unwrap().to_owned(), std::fs::read(page).unwrap())).collect()
    };
    let (one, two): (Vec<_>, Vec<_>) = (write("one"), write("two"));
    assert!(one == two && one.len() > 15, "{} pages", one.len());
    assert!(one.iter().any(|(name, bytes)| name == "bamf-agent.8" && bytes == main.as_bytes()));
    home.run(&["man", "--out", home.path("nowhere").to_str().unwrap()]).expect(74, &["nowhere"]);
}

#[test]
fn a_check_lists_every_problem_with_file_and_line() {
    let home = home(
        "platform_url: http://platform.example\nagent_name: Not Valid\nresources:\n  - name: wiki\n    port: 99999\n\
         zone: [public]\nupdate:\n  required_signatures: 0\nplatfrom_url: x\n",
    );
    let file = home.path("agent.yaml").display().to_string();
    let finished = home.run(&["config", "check"]);
    assert_eq!((finished.code, finished.stdout.as_str()), (78, ""));
    // The harness writes two lines before these.
    for (line, key) in [
        (3, "platform_url"),
        (4, "agent_name"),
        (7, "resources[0].port"),
        (8, "zone"),
        (10, "update.required_signatures"),
    ] {
        let problem =
            |text: &str| text.contains(&format!("{file}:{line}:")) && text.contains(key) && text.contains("expected");
        assert!(finished.stderr.lines().any(problem), "{line} {key} is missing in\n{}", finished.stderr);
    }
    for command in ["run", "selftest", "join"] {
        let same = home.run(&[command]);
        assert_eq!(same.code, 78, "{command}");
        assert!(same.stderr.contains(&format!("{file}:7:")), "{command}: {}", same.stderr);
    }
}

#[test]
fn a_misspelt_key_is_a_warning_that_names_the_nearest() {
    let home = home("platform_url: https://platform.example\nagent_nam: edge-1\n");
    let finished = home.run(&["config", "check"]);
    finished.expect(0, &["agent_nam", "agent_name", "agent.yaml:4"]);
    assert!(finished.stdout.contains("valid, 0 resources"), "{}", finished.stdout);
}

#[test]
fn the_effective_configuration_says_where_each_value_came_from_and_hides_secrets() {
    let mut home = home("platform_url: https://platform.example\njoin_token: s3cret-token\nagent_name: edge-1\n");
    home.set("BAMF_AGENT_NAME", "edge-2");
    home.set("HTTPS_PROXY", "http://me:s3cret-password@proxy.example:3128");
    home.set("GITHUB_TOKEN", "s3cret-github");
    let file = home.path("agent.yaml").display().to_string();
    let finished = home.run(&["config", "show"]);
    assert_eq!(finished.code, 0, "{finished:?}");
    let row = |key: &str| {
        let found = finished.stdout.lines().find(|line| line.split_whitespace().next() == Some(key));
        found.unwrap_or_else(|| panic!("{key} is missing in\n{}", finished.stdout)).to_owned()
    };
    assert!(row("platform_url").ends_with(&format!("# {file}:3")), "{}", row("platform_url"));
    assert!(row("join_token").contains("***") && row("join_token").ends_with(&format!("# {file}:4")));
    assert!(row("agent_name").contains("edge-2") && row("agent_name").ends_with("# BAMF_AGENT_NAME"));
    assert!(row("runtime_dir").ends_with("# --runtime-dir"));
    assert!(row("heartbeat_interval").ends_with("# default"));
    let json: serde_json::Value = serde_json::from_str(&home.run(&["config", "show", "--json"]).stdout).unwrap();
    let settings = json["settings"].as_array().unwrap();
    assert!(
        settings
            .iter()
            .any(|row| row["key"] == "agent_name" && row["value"] == "edge-2" && row["origin"] == "BAMF_AGENT_NAME")
    );
    for shown in [&finished.stdout, &finished.stderr, &json.to_string()] {
        assert!(!shown.contains("s3cret"), "{shown}");
    }
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let home = home("platform_url: https://platform.example\n");
    for arguments in [&["config", "show"][..], &["status"], &["--help"], &["config", "show", "--json"], &["version"]] {
        let mut child = home.command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {errors}");
        assert!(!errors.contains("panicked"), "{arguments:?}: {errors}");
    }
    let mut child = home.command(&["config", "show"]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut first = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut first).unwrap();
    assert!(first.starts_with("config_file"), "{first}");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn an_error_whose_reader_goes_away_keeps_its_code() {
    let home = home("platform_url: nonsense\n");
    for arguments in [&["config", "check"][..], &["run"], &["join"], &["selftest"]] {
        let mut child = home.command(arguments).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stderr.take());
        assert_eq!(child.wait().unwrap().code(), Some(78), "{arguments:?}");
    }
}

#[test]
fn a_pipe_and_no_color_get_plain_text() {
    let mut home = home("platform_url: https://platform.example\n");
    for no_color in [false, true] {
        if no_color {
            home.set("NO_COLOR", "1");
        }
        for arguments in [&["--help"][..], &["config", "show"], &["status"], &["dance"]] {
            let finished = home.run(arguments);
            assert!(!format!("{}{}", finished.stdout, finished.stderr).contains('\u{1b}'), "{arguments:?}");
        }
    }
}

#[test]
fn the_log_on_a_terminal_has_colours_unless_no_color_is_set() {
    let plane = ControlPlane::start(Options::default()).unwrap();
    for no_color in [false, true] {
        let mut home = Home::of(BINARY, &plane, "");
        home.set("TERM", "xterm-256color");
        if no_color {
            home.set("NO_COLOR", "1");
        }
        // script(1) gives the command a terminal.
        home.launch_by(&["script", "-qec", "\"$0\" \"$@\"", "/dev/null"]);
        if std::process::Command::new("script").arg("--version").output().is_err() {
            println!("skipped: there is no script(1)");
            return;
        }
        let log = terminal_log(&home);
        assert!(log.contains("bamf-agent starts"), "{log:?}");
        assert_eq!(log.contains('\u{1b}'), !no_color, "{log:?}");
    }
}

/// What `run` writes to a terminal before it finds out that there is no token.
fn terminal_log(home: &Home) -> String {
    let command = home.command(&["run"]);
    let words: Vec<String> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .filter(|word| !["script", "-qec", "\"$0\" \"$@\"", "/dev/null"].contains(&word.as_str()))
        .collect();
    let mut script = std::process::Command::new("script");
    script.args(["-qec", &words.join(" "), "/dev/null"]).env_clear().stdin(Stdio::null());
    for (name, value) in command.get_envs() {
        script.env(name, value.unwrap_or_default());
    }
    String::from_utf8_lossy(&script.output().unwrap().stdout).into_owned()
}

#[test]
fn an_agent_can_be_asked_while_its_configuration_is_being_broken() {
    let plane = ControlPlane::start(Options::default()).unwrap();
    let home = Home::joining(BINARY, &plane);
    let agent = home.connect(&plane);
    home.configure("platform_url: [\n");
    let finished = home.run(&["status"]);
    finished.expect(0, &["invalid", "agent.yaml"]);
    assert!(finished.stdout.contains(": connected"), "{finished:?}");
    assert_eq!(home.status()["pid"], agent.pid(), "standard output is one JSON object all the same");
    agent.kill();
    home.run(&["status"]).expect(78, &["agent.yaml"]);
}

#[test]
fn a_warning_of_the_configuration_reaches_the_log_of_the_service() {
    let plane = ControlPlane::start(Options::default()).unwrap();
    let home = Home::joining(BINARY, &plane);
    home.configure(&format!(
        "platform_url: {}\nagent_name: {NAME}\njoin_tokn: x\njoin_token: {}\n",
        plane.url(),
        plane.issue_token(1)
    ));
    let agent = home.connect(&plane);
    assert!(agent.log().contains("join_tokn"), "{}", agent.log());
    assert_eq!(agent.terminate(LIMIT).code, 0);
}

#[test]
fn status_neither_waits_for_nor_reads_what_is_no_file_in_the_data_directory() {
    for name in ["agent.crt", "agent.key", "ca.crt", "instance.json"] {
        for device in [false, true] {
            let home = home("platform_url: https://platform.example\n");
            std::fs::create_dir_all(home.data_dir()).unwrap();
            let path = home.data_dir().join(name);
            if device {
                std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
            } else {
                nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
            }
            let finished = home.run(&["status"]);
            if name == "instance.json" {
                finished.expect(0, &[]);
            } else {
                finished.expect(78, &[name, "a file"]);
            }
        }
    }
}
