//! Where the configuration comes from: the one place that reads the environment, and the one that finds the file.
//!
//! Both are read once, into values. Everything after this module is a function of [`Environment`], [`Overrides`] and the
//! file's text, so tests hand in pairs instead of changing the process.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::expand::Lookup;
use super::keys;
use super::raw::mark_at;
use super::report::{Origin, Report};

/// Larger files are refused: the largest configuration that means anything is a hundredth of this.
pub const MAX_FILE_BYTES: usize = 1 << 20;

/// Searched in this order where no file is named (protocol 2.1).
const SEARCHED: [&str; 2] = ["/etc/bamf/agent.yaml", "./agent.yaml"];

/// Exists in every pod that may talk to its cluster (protocol chapter 13, detection).
const SERVICE_ACCOUNT_TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// What the command line says about the configuration; it wins over everything else.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// `--config FILE`
    pub config: Option<PathBuf>,
    /// `--debug`
    pub debug: bool,
    /// `--runtime-dir DIR`
    pub runtime_dir: Option<PathBuf>,
}

/// What the process found around it when it started.
///
/// All variables are kept, because the file may name any of them as `${NAME}`; `Debug` shows their names only.
#[derive(Clone, Default)]
pub struct Environment {
    /// `None` for a value that is not UTF-8.
    variables: BTreeMap<String, Option<String>>,
    /// The machine's host name, where it has one.
    pub host_name: Option<String>,
    /// A Kubernetes service account token is mounted.
    pub service_account: bool,
    /// Files that are tried in order where none is named.
    pub searched: Vec<PathBuf>,
}

impl Environment {
    /// Looks at the process's surroundings.
    #[must_use]
    pub fn snapshot() -> Self {
        let variables = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok())))
            .collect();
        Self {
            variables,
            host_name: nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()),
            service_account: Path::new(SERVICE_ACCOUNT_TOKEN).exists(),
            searched: SEARCHED.iter().map(PathBuf::from).collect(),
        }
    }

    /// Surroundings with these variables and nothing else: no host name, no cluster, no file to find.
    pub fn from_pairs<N: Into<String>, V: Into<String>>(pairs: impl IntoIterator<Item = (N, V)>) -> Self {
        let variables = pairs.into_iter().map(|(name, value)| (name.into(), Some(value.into()))).collect();
        Self { variables, ..Self::default() }
    }

    /// Takes over variables that are not set here, e.g. those of the running service.
    pub fn adopt(&mut self, pairs: impl IntoIterator<Item = (String, String)>) {
        for (name, value) in pairs {
            self.variables.entry(name).or_insert(Some(value));
        }
    }

    /// A variable that is set to something; empty means "not set" everywhere (protocol 2.2).
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.variables.get(name)?.as_deref().filter(|value| !value.is_empty())
    }

    /// A variable as `${NAME}` sees it, where empty is a value.
    #[must_use]
    pub fn lookup(&self, name: &str) -> Lookup<'_> {
        match self.variables.get(name) {
            None => Lookup::Unset,
            Some(None) => Lookup::NotUtf8,
            Some(Some(value)) => Lookup::Set(value),
        }
    }

    /// Names of all variables.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.variables.keys().map(String::as_str)
    }

    /// Whether the agent runs in Kubernetes (protocol chapter 13, detection).
    #[must_use]
    pub fn is_kubernetes(&self) -> bool {
        self.service_account || self.get("KUBERNETES_SERVICE_HOST").is_some()
    }
}

impl std::fmt::Debug for Environment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Environment")
            .field("names", &self.variables.keys())
            .field("host_name", &self.host_name)
            .field("service_account", &self.service_account)
            .field("searched", &self.searched)
            .finish()
    }
}

/// A file that was found and read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// The path as it was named.
    pub path: Arc<Path>,
    /// Who named it.
    pub named_by: Origin,
    /// What stands in it.
    pub text: String,
}

/// Why a file gave no text.
#[derive(Debug)]
enum Unread {
    Missing,
    Refused { origin: Origin, found: String, expected: &'static str },
}

/// Finds and reads the file. `None` with a problem in `report` where it is in trouble, `None` without one where there
/// is no file, which is fine.
pub fn find(overrides: &Overrides, environment: &Environment, report: &mut Report) -> Option<Document> {
    if let Some((path, named_by)) = named(overrides, environment, report) {
        return match read(&path, named_by.clone()) {
            Ok(document) => Some(document),
            Err(Unread::Missing) => {
                missing(&path, named_by, environment, report);
                None
            }
            Err(refused) => refuse(refused, report),
        };
    }
    for path in &environment.searched {
        match read(path, Origin::Default) {
            Ok(document) => return Some(document),
            Err(Unread::Missing) => {}
            Err(refused) => return refuse(refused, report),
        }
    }
    None
}

/// `--config`, else `BAMF_CONFIG_FILE`.
fn named(overrides: &Overrides, environment: &Environment, report: &mut Report) -> Option<(PathBuf, Origin)> {
    if let Some(path) = &overrides.config {
        return Some((path.clone(), Origin::Flag("--config")));
    }
    let variable = keys::CONFIG_FILE.variables[0];
    let origin = Origin::Variable(variable.into());
    if environment.lookup(variable) == Lookup::NotUtf8 {
        report.problem(origin, keys::CONFIG_FILE.path, "bytes that are not UTF-8", keys::CONFIG_FILE.expected);
        return None;
    }
    environment.get(variable).map(|path| (PathBuf::from(path), origin))
}

/// "A file named by `--config` or `BAMF_CONFIG_FILE` that does not exist is an error, unless the environment alone
/// configures the agent (then a warning)." The platform's address is what makes a configuration.
///
/// Off-contract for protocol 2.1, which ignores a missing file silently; the contract is the newer word.
fn missing(path: &Path, named_by: Origin, environment: &Environment, report: &mut Report) {
    if keys::PLATFORM_URL.variables.iter().any(|name| environment.get(name).is_some()) {
        let message = format!("{} does not exist; the environment alone configures the agent", path.display());
        report.warning(named_by, keys::CONFIG_FILE.path, message);
    } else {
        let found = format!("{}, which does not exist", path.display());
        report.problem(named_by, keys::CONFIG_FILE.path, found, "a file, or BAMF_PLATFORM_URL in the environment");
    }
}

fn refuse(unread: Unread, report: &mut Report) -> Option<Document> {
    if let Unread::Refused { origin, found, expected } = unread {
        report.problem(origin, "", found, expected);
    }
    None
}

/// Root takes a file from the working directory only if nobody else could have put it there: its `update` section
/// decides what root installs, and the working directory may be `/tmp`. Asked of the open file, which cannot be swapped.
fn open_to_others(file: &File) -> bool {
    let by_others = |meta: std::fs::Metadata| meta.uid() != 0 || meta.mode() & 0o022 != 0;
    nix::unistd::geteuid().is_root() && file.metadata().map_or(true, by_others)
}

/// Reads one file, bounded, as UTF-8.
fn read(path: &Path, named_by: Origin) -> Result<Document, Unread> {
    let shared: Arc<Path> = Arc::from(path);
    let refused = |found: String, expected| Unread::Refused {
        origin: Origin::File { path: Arc::clone(&shared), mark: None },
        found,
        expected,
    };
    let unreadable = |error: std::io::Error| {
        let missing = error.kind() == ErrorKind::NotFound;
        if missing { Unread::Missing } else { refused(error.to_string(), "a file that can be read") }
    };
    let file = File::open(path).map_err(unreadable)?;
    let searched = named_by == Origin::Default;
    if searched && path.is_relative() && open_to_others(&file) {
        let found = "a file in the working directory that others than root can write".to_owned();
        return Err(refused(found, "--config where root should use it"));
    }
    let mut bytes = Vec::new();
    let limit = u64::try_from(MAX_FILE_BYTES + 1).unwrap_or(u64::MAX);
    file.take(limit).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() > MAX_FILE_BYTES {
        return Err(refused("more than 1 MiB".to_owned(), "a configuration, which is smaller"));
    }
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Document { path: shared, named_by, text }),
        Err(error) => {
            let valid = error.utf8_error().valid_up_to();
            let mark = mark_at(&String::from_utf8_lossy(&error.as_bytes()[..valid]));
            let origin = Origin::File { path: shared, mark: Some(mark) };
            let found = "bytes that are not UTF-8".to_owned();
            Err(Unread::Refused { origin, found, expected: "a YAML file in UTF-8" })
        }
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "the files under test need no durability")]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn found(overrides: &Overrides, environment: &Environment) -> (Option<Document>, Report) {
        let mut report = Report::default();
        let document = find(overrides, environment, &mut report);
        (document, report)
    }

    fn naming(path: &Path) -> Overrides {
        Overrides { config: Some(path.to_owned()), ..Overrides::default() }
    }

    #[test]
    fn the_flag_wins_over_the_variable_and_both_over_the_search() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for name in ["flag", "variable", "first", "second"] {
            std::fs::write(path(name), name).unwrap();
        }
        let mut environment = Environment::from_pairs([("BAMF_CONFIG_FILE", path("variable").to_str().unwrap())]);
        environment.searched = vec![path("first"), path("second")];
        let text = |overrides: &Overrides, environment: &Environment| found(overrides, environment).0.unwrap().text;

        assert_eq!(text(&naming(&path("flag")), &environment), "flag");
        assert_eq!(text(&Overrides::default(), &environment), "variable");
        environment.variables.clear();
        assert_eq!(text(&Overrides::default(), &environment), "first");
        std::fs::remove_file(path("first")).unwrap();
        assert_eq!(text(&Overrides::default(), &environment), "second");
        std::fs::remove_file(path("second")).unwrap();
        let (document, report) = found(&Overrides::default(), &environment);
        assert_eq!((document, report.problems, report.warnings), (None, vec![], vec![]));
    }

    #[test]
    fn a_named_file_that_is_missing_is_an_error_and_there_is_no_fallback() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("agent.yaml"), "").unwrap();
        let mut environment = Environment::from_pairs([("BAMF_CONFIG_FILE", "/nowhere/agent.yaml")]);
        environment.searched = vec![dir.path().join("agent.yaml")];
        let (document, report) = found(&Overrides::default(), &environment);
        assert_eq!(document, None);
        assert_eq!(
            report.problems[0].to_string(),
            "BAMF_CONFIG_FILE: config_file: found /nowhere/agent.yaml, which does not exist, \
             expected a file, or BAMF_PLATFORM_URL in the environment"
        );
    }

    #[test]
    fn a_named_file_that_is_missing_is_a_warning_where_the_environment_configures_the_agent() {
        for variable in ["BAMF_PLATFORM_URL", "BAMF_API_URL"] {
            let environment = Environment::from_pairs([(variable, "https://bamf.test")]);
            let (document, report) = found(&naming(Path::new("/nowhere/agent.yaml")), &environment);
            assert_eq!((document, report.problems.len(), report.warnings.len()), (None, 0, 1));
        }
    }

    #[test]
    fn a_file_that_cannot_be_read_is_an_error_and_not_skipped() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        std::fs::write(dir.path().join("large"), " ".repeat(MAX_FILE_BYTES + 1)).unwrap();
        std::fs::write(dir.path().join("latin1"), b"a: b\nc: \xe4\n").unwrap();
        for (path, part) in [
            (dir.path().to_owned(), "directory"),
            (dir.path().join("file/below"), "directory"),
            (dir.path().join("large"), "more than 1 MiB"),
            (PathBuf::from("/dev/zero"), "more than 1 MiB"),
            (dir.path().join("latin1"), "latin1:2:4: found bytes that are not UTF-8"),
        ] {
            let environment = Environment { searched: vec![path.clone()], ..Environment::default() };
            for (document, report) in [found(&naming(&path), &environment), found(&Overrides::default(), &environment)]
            {
                assert_eq!((document, report.problems.len()), (None, 1), "{path:?}");
                let shown = report.problems[0].to_string().to_lowercase();
                assert!(shown.contains(&part.to_lowercase()), "{shown}");
            }
        }
    }

    #[test]
    fn a_file_of_exactly_the_limit_is_read() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), " ".repeat(MAX_FILE_BYTES)).unwrap();
        assert!(found(&naming(&dir.path().join("file")), &Environment::default()).0.is_some());
    }

    #[test]
    fn root_does_not_take_what_others_left_in_the_working_directory() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let file = tempfile::NamedTempFile::new_in(".").unwrap();
        let relative = PathBuf::from(file.path().file_name().unwrap());
        let environment = Environment { searched: vec![relative.clone()], ..Environment::default() };
        assert!(found(&Overrides::default(), &environment).0.is_some());
        std::fs::set_permissions(&relative, std::fs::Permissions::from_mode(0o666)).unwrap();
        let (document, report) = found(&Overrides::default(), &environment);
        assert_eq!((document, report.problems.len()), (None, 1));
        // Naming it is consent.
        assert!(found(&naming(&relative), &environment).0.is_some());
    }

    #[test]
    fn the_environment_shows_names_and_no_values() {
        let environment = Environment::from_pairs([("BAMF_JOIN_TOKEN", "s3cret")]);
        let shown = format!("{environment:?}");
        assert!(shown.contains("BAMF_JOIN_TOKEN") && !shown.contains("s3cret"), "{shown}");
    }

    #[test]
    fn kubernetes_is_detected_by_the_token_or_the_variable() {
        assert!(!Environment::default().is_kubernetes());
        assert!(!Environment::from_pairs([("KUBERNETES_SERVICE_HOST", "")]).is_kubernetes());
        assert!(Environment::from_pairs([("KUBERNETES_SERVICE_HOST", "10.0.0.1")]).is_kubernetes());
        assert!(Environment { service_account: true, ..Environment::default() }.is_kubernetes());
    }
}
