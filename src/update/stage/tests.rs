//! What is staged is what was signed, and nothing else.

use super::*;
use crate::update::elf::own_header;

struct Scene {
    directory: tempfile::TempDir,
    paths: Paths,
    expected: Expected,
    download: PathBuf,
}

fn program(length: usize) -> Vec<u8> {
    let mut bytes = own_header();
    bytes.resize(length, 7);
    bytes
}

impl Scene {
    fn new(content: &[u8]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let installed = directory.path().join("bamf-agent");
        durable::write(&installed, b"old", 0o755).unwrap();
        let download = directory.path().join("download");
        durable::write(&download, content, 0o600).unwrap();
        let expected = Expected {
            sha256: Sha256::of_reader(content).unwrap(),
            size: content.len() as u64,
            machine: Machine::current().unwrap(),
        };
        Self { paths: Paths::resolve(&installed).unwrap(), directory, expected, download }
    }

    fn stage(&self) -> Result<Staged, Error> {
        stage(&File::open(&self.download).unwrap(), &self.expected, &self.paths)
    }

    fn assert_nothing_staged(&self) {
        assert_eq!(std::fs::read_dir(self.directory.path()).unwrap().count(), 2);
        assert_eq!(std::fs::read(&self.paths.installed).unwrap(), b"old");
    }
}

#[test]
fn the_staged_file_has_the_signed_bytes_wherever_the_reader_stood() {
    let content = program(COPY_BUFFER_BYTES * 2 + 11);
    let scene = Scene::new(&content);
    let mut source = File::open(&scene.download).unwrap();
    io::copy(&mut source, &mut io::sink()).unwrap();
    let staged = stage(&source, &scene.expected, &scene.paths).unwrap();
    assert_eq!(std::fs::read(staged.path()).unwrap(), content);
    assert_eq!(staged.sha256(), scene.expected.sha256);
}

#[test]
fn bytes_that_changed_since_the_check_are_refused_and_removed() {
    let scene = Scene::new(&program(5000));
    let mut changed = program(5000);
    changed[4999] ^= 1;
    durable::write(&scene.download, &changed, 0o600).unwrap();
    let error = scene.stage().unwrap_err();
    assert_eq!(error.reason(), Reason::BadChecksum);
    scene.assert_nothing_staged();
}

#[test]
fn a_shorter_or_longer_file_is_refused_and_removed() {
    for length in [4999, 5001, 50_000, 0] {
        let scene = Scene::new(&program(5000));
        let bytes = if length == 0 { Vec::new() } else { program(length) };
        durable::write(&scene.download, &bytes, 0o600).unwrap();
        let error = scene.stage().unwrap_err();
        assert!(matches!(error, Error::Size { expected: 5000, .. }), "{length}: {error}");
        scene.assert_nothing_staged();
    }
}

#[test]
fn a_page_instead_of_a_program_is_refused_even_if_it_was_signed() {
    let scene = Scene::new(b"<!DOCTYPE html><html><body>Sign in to the network</body></html>");
    assert_eq!(scene.stage().unwrap_err().reason(), Reason::WrongPlatform);
    scene.assert_nothing_staged();
}

#[test]
fn the_old_files_mode_is_kept_without_dangerous_bits() {
    for (old, new) in [(0o750, 0o750), (0o4755, 0o755), (0o6777, 0o755), (0o700, 0o700)] {
        let scene = Scene::new(&program(100));
        std::fs::set_permissions(&scene.paths.installed, Permissions::from_mode(old)).unwrap();
        let staged = scene.stage().unwrap();
        assert_eq!(staged.path().metadata().unwrap().mode() & 0o7777, new, "{old:o}");
    }
}

#[test]
fn the_old_files_owner_is_kept() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let scene = Scene::new(&program(100));
    std::os::unix::fs::chown(&scene.paths.installed, Some(0), Some(12)).unwrap();
    let about = scene.stage().unwrap().path().metadata().unwrap();
    assert_eq!((about.uid(), about.gid()), (0, 12));
}

#[test]
fn a_planted_link_is_removed_and_not_followed() {
    let scene = Scene::new(&program(100));
    let victim = scene.directory.path().join("victim");
    durable::write(&victim, b"precious", 0o600).unwrap();
    std::os::unix::fs::symlink(&victim, &scene.paths.staged).unwrap();
    let staged = scene.stage().unwrap();
    assert!(staged.path().symlink_metadata().unwrap().is_file());
    assert_eq!(std::fs::read(victim).unwrap(), b"precious");
}

#[test]
fn a_stale_staged_file_is_replaced() {
    let scene = Scene::new(&program(100));
    durable::write(&scene.paths.staged, &program(9000), 0o600).unwrap();
    assert_eq!(scene.stage().unwrap().path().metadata().unwrap().len(), 100);
}

#[test]
fn a_full_disk_is_called_so() {
    let full = durable::Error::new("write", "x", io::Error::from(io::ErrorKind::StorageFull));
    assert_eq!(Error::from(full).reason(), Reason::NoSpace);
    let failed = durable::Error::new("write", "x", io::Error::other("EIO"));
    assert_eq!(Error::from(failed).reason(), Reason::DiskError);
}

#[test]
fn a_security_label_is_copied_where_the_kernel_lets_us_set_one() {
    let scene = Scene::new(&program(100));
    let label = b"system_u:object_r:bin_t:s0\0";
    let flags = rustix::fs::XattrFlags::empty();
    if rustix::fs::setxattr(&scene.paths.installed, SELINUX_LABEL, label, flags).is_err() {
        return;
    }
    let staged = scene.stage().unwrap();
    let mut found = [0_u8; 64];
    let length = rustix::fs::getxattr(staged.path(), SELINUX_LABEL, &mut found[..]).unwrap();
    assert_eq!(&found[..length], label);
}
