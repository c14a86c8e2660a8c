//! Files of a machine, reached from outside through `/proc/PID/root`.
//!
//! The kernel resolves an absolute symbolic link below `/proc/PID/root` against the *caller's* root: writing to the
//! machine's `/var/run/x` would write to the host's `/run/x`. So links are walked here, with the machine's root.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Component, Path, PathBuf};

use super::{Error, Machine, host};

/// As many as Linux follows in one path resolution (`path_resolution(7)`).
const LINKS_AT_MOST: u32 = 40;

/// `path`, seen from outside, with every link resolved inside `root`; a loop of links is left as it stands.
pub(super) fn inside(root: &Path, path: &Path) -> PathBuf {
    let mut todo = components(path);
    let mut done = PathBuf::new();
    let mut links = 0;
    while let Some(name) = todo.pop_front() {
        if name == ".." {
            done.pop();
            continue;
        }
        let target = if links < LINKS_AT_MOST { std::fs::read_link(root.join(&done).join(&name)).ok() } else { None };
        let Some(target) = target else {
            done.push(name);
            continue;
        };
        links += 1;
        if target.is_absolute() {
            done.clear();
        }
        let mut rest = components(&target);
        rest.append(&mut todo);
        todo = rest;
    }
    root.join(done)
}

fn components(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
        })
        .collect()
}

/// Lets `fill` write a new file beside `path`, then gives it mode and owner and moves it into place, so that a running
/// binary can be replaced and a reader never sees half a file.
pub(super) fn put(
    machine: &Machine,
    path: &Path,
    mode: u32,
    owner: &str,
    fill: impl FnOnce(&Path) -> io::Result<()>,
) -> Result<(), Error> {
    let failed = || format!("write {} in the machine", path.display());
    let target = machine.path(path);
    let directory = target.parent().unwrap_or(&target);
    std::fs::create_dir_all(directory).map_err(host(failed()))?;
    let staged = tempfile::NamedTempFile::new_in(directory).map_err(host(failed()))?.into_temp_path();
    fill(&staged).map_err(host(failed()))?;
    if owner != "root:root" {
        let within = Path::new("/").join(staged.strip_prefix(machine.keeper.root()).unwrap_or(&staged));
        machine.check(["chown".as_ref(), owner.as_ref(), within.as_os_str()])?;
    }
    // After chown, which takes set-user-id bits away.
    std::fs::set_permissions(&staged, std::fs::Permissions::from_mode(mode)).map_err(host(failed()))?;
    staged.persist(&target).map_err(|error| error.error).map_err(host(failed()))
}

#[cfg(test)]
mod tests {
    use super::inside;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    #[test]
    fn an_absolute_link_stays_in_the_machine() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("run/deep")).unwrap();
        std::fs::create_dir_all(root.path().join("var")).unwrap();
        symlink("/run", root.path().join("var/run")).unwrap();
        symlink("../../../../run/deep", root.path().join("var/up")).unwrap();
        for (path, expected) in
            [("/var/run/x", "run/x"), ("/var/up/x", "run/deep/x"), ("/../../etc", "etc"), ("/new/file", "new/file")]
        {
            assert_eq!(inside(root.path(), Path::new(path)), root.path().join(expected), "{path}");
        }
    }

    #[test]
    fn a_loop_of_links_ends() {
        let root = tempfile::tempdir().unwrap();
        symlink("/b", root.path().join("a")).unwrap();
        symlink("/a", root.path().join("b")).unwrap();
        assert!(inside(root.path(), Path::new("/a/x")).starts_with(root.path()));
    }
}
