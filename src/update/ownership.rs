//! May this binary replace itself here, or does something else own it?
//!
//! A package manager that finds a file changed lies about it afterwards or puts the old one back; an image forgets the
//! change at the next start; a loop of update and restart is worse than no update. The decision is a pure function of
//! [`Facts`], and each refusal names the command that does update this machine. What probes the machine is beside it, in
//! `probe`.
//!
//! A *system container* (LXC, nspawn) that runs systemd is a machine like any other and may update itself.

pub mod probe;

use std::path::PathBuf;

use crate::exit::Reason;

/// What was found out about the machine and the installed binary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The process runs in Kubernetes.
    pub kubernetes: bool,
    /// The sign by which a container was recognised, e.g. `/.dockerenv`.
    pub container: Option<String>,
    /// systemd is the service manager (`sd_booted(3)`: `/run/systemd/system` exists).
    pub systemd: bool,
    /// Who owns the installed file.
    pub owner: Owner,
    /// The installed file, links resolved.
    pub installed: PathBuf,
    /// What writing beside the installed file led to.
    pub directory: Writable,
    /// The caller's effective uid.
    pub euid: u32,
}

/// Who put the installed file there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Owner {
    /// Nobody that was found: install.sh, or hands.
    #[default]
    Nobody,
    /// Debian's package of this name.
    Dpkg(String),
    /// The RPM package of this name.
    Rpm(String),
    /// A read-only store, e.g. `/nix/store`.
    Store,
    /// A container image or chart, by its marker file.
    Image,
    /// Something that this version does not know, by its marker file.
    Other(String),
}

/// Whether a file can be made in the installed file's directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writable {
    /// It can.
    Yes,
    /// The file system is mounted read-only.
    ReadOnly,
    /// The caller may not.
    Denied,
    /// Anything else went wrong.
    Failed,
}

/// Why the binary is not replaced. The message names what to do instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The image is what to update.
    #[error(
        "this agent runs in Kubernetes, where the image is updated and not the file: `helm upgrade RELEASE CHART --reuse-values --set agent.image.tag=vX.Y.Z`, or set the new image tag in whatever deploys it"
    )]
    Kubernetes,
    /// The image is what to update.
    #[error(
        "this agent runs in a container ({sign}) without systemd, where a replaced file is gone at the next start: pull the new image and start it"
    )]
    Container {
        /// How it was recognised.
        sign: String,
    },
    /// The package is what to update.
    #[error("{} belongs to the package {package}: update it with `{command}`", installed.display())]
    Package {
        /// The package.
        package: String,
        /// The command that updates it.
        command: String,
        /// The installed file.
        installed: PathBuf,
    },
    /// A store that is never written in place.
    #[error("{} lies in a store that is never changed in place: update the configuration that put it there", installed.display())]
    Store {
        /// The installed file.
        installed: PathBuf,
    },
    /// The caller is not root, and the directory is not its own.
    #[error("replacing {} needs root: run the command with sudo", installed.display())]
    NotRoot {
        /// The installed file.
        installed: PathBuf,
    },
    /// The file system is read-only.
    #[error("{} lies on a read-only file system: update the image of this machine, or install the agent elsewhere with `install.sh --prefix`", installed.display())]
    ReadOnly {
        /// The installed file.
        installed: PathBuf,
    },
    /// Root may not write, for whatever reason.
    #[error("no file can be made beside {}: look at the directory's permissions, attributes (`lsattr -d`) and the unit's sandbox", installed.display())]
    NotWritable {
        /// The installed file.
        installed: PathBuf,
    },
}

impl Refusal {
    /// The stable reason word (contract section 1).
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Kubernetes => Reason::InKubernetes,
            Self::Container { .. } => Reason::InContainer,
            Self::Package { .. } | Self::Store { .. } => Reason::PackageManaged,
            Self::NotRoot { .. } => Reason::NotPermitted,
            Self::ReadOnly { .. } | Self::NotWritable { .. } => Reason::NotWritable,
        }
    }
}

/// Decides whether the installed binary may be replaced.
///
/// # Errors
/// The refusal that an operator should hear first: who owns the file before who may write it.
pub fn decide(facts: &Facts) -> Result<(), Refusal> {
    let installed = facts.installed.clone();
    if facts.kubernetes {
        return Err(Refusal::Kubernetes);
    }
    if let Some(sign) = &facts.container
        && !facts.systemd
    {
        return Err(Refusal::Container { sign: sign.clone() });
    }
    if let Some(refusal) = owned(&facts.owner, &installed) {
        return Err(refusal);
    }
    match facts.directory {
        Writable::Yes => Ok(()),
        Writable::ReadOnly => Err(Refusal::ReadOnly { installed }),
        Writable::Denied if facts.euid != 0 => Err(Refusal::NotRoot { installed }),
        Writable::Denied | Writable::Failed => Err(Refusal::NotWritable { installed }),
    }
}

fn owned(owner: &Owner, installed: &std::path::Path) -> Option<Refusal> {
    let package = |package: &str, command: String| {
        Some(Refusal::Package { package: package.to_owned(), command, installed: installed.to_owned() })
    };
    match owner {
        Owner::Nobody => None,
        Owner::Dpkg(name) => package(name, format!("apt-get install --only-upgrade {name}")),
        Owner::Rpm(name) => package(name, format!("dnf upgrade {name}")),
        Owner::Other(name) => package(name, name.clone()),
        Owner::Store => Some(Refusal::Store { installed: installed.to_owned() }),
        Owner::Image => Some(Refusal::Container { sign: "its image says so".to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts {
            kubernetes: false,
            container: None,
            systemd: true,
            owner: Owner::Nobody,
            installed: "/usr/local/bin/bamf-agent".into(),
            directory: Writable::Yes,
            euid: 0,
        }
    }

    #[test]
    fn a_plain_install_may_be_replaced_also_in_a_system_container_or_by_its_own_user() {
        for facts in [
            facts(),
            Facts { container: Some("lxc".into()), ..facts() },
            Facts { euid: 1000, ..facts() },
            Facts { systemd: false, ..facts() },
        ] {
            assert_eq!(decide(&facts), Ok(()), "{facts:?}");
        }
    }

    #[test]
    fn each_refusal_has_its_word_and_names_what_to_do() {
        let docker = Some("/.dockerenv".to_owned());
        let cases = [
            (Facts { kubernetes: true, ..facts() }, Reason::InKubernetes, "helm upgrade"),
            (Facts { container: docker.clone(), systemd: false, ..facts() }, Reason::InContainer, "pull the new image"),
            (
                Facts { owner: Owner::Dpkg("bamf-agent".into()), ..facts() },
                Reason::PackageManaged,
                "apt-get install --only-upgrade bamf-agent",
            ),
            (
                Facts { owner: Owner::Rpm("bamf-agent".into()), ..facts() },
                Reason::PackageManaged,
                "dnf upgrade bamf-agent",
            ),
            (Facts { owner: Owner::Store, ..facts() }, Reason::PackageManaged, "the configuration that put it there"),
            (Facts { owner: Owner::Other("pacman".into()), ..facts() }, Reason::PackageManaged, "pacman"),
            (Facts { owner: Owner::Image, ..facts() }, Reason::InContainer, "pull the new image"),
            (Facts { directory: Writable::ReadOnly, ..facts() }, Reason::NotWritable, "install.sh --prefix"),
            (Facts { directory: Writable::Denied, euid: 1000, ..facts() }, Reason::NotPermitted, "sudo"),
            (Facts { directory: Writable::Denied, ..facts() }, Reason::NotWritable, "lsattr"),
            (Facts { directory: Writable::Failed, ..facts() }, Reason::NotWritable, "permissions"),
        ];
        for (facts, reason, text) in cases {
            let refusal = decide(&facts).unwrap_err();
            assert_eq!(refusal.reason(), reason, "{facts:?}");
            assert!(refusal.to_string().contains(text), "{refusal}");
        }
    }

    #[test]
    fn the_owner_comes_before_permissions_and_kubernetes_before_all() {
        let all = Facts {
            kubernetes: true,
            container: Some("/.dockerenv".into()),
            systemd: false,
            owner: Owner::Dpkg("bamf-agent".into()),
            directory: Writable::ReadOnly,
            euid: 1000,
            ..facts()
        };
        assert_eq!(decide(&all).unwrap_err().reason(), Reason::InKubernetes);
        let package = Facts { kubernetes: false, container: None, ..all };
        assert_eq!(decide(&package).unwrap_err().reason(), Reason::PackageManaged);
    }
}
