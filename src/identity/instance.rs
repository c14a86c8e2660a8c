//! `instance.json`: the id of this agent instance, kept across restarts.
//!
//! The platform keeps commands and a tunnel count for each instance, and an instance that vanished stays a candidate for
//! 180 s and swallows what is sent to it (protocol 5.2 and 16). So a restart keeps the id. A cloned disk must not: two
//! machines with one id would steal each other's commands, therefore the id is bound to the machine id it was made on.
//! Losing the file costs nothing but a new id (contract section 3).

use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::durable;

/// Name of the file in the data directory.
pub const FILE: &str = "instance.json";
/// Version of the file's format.
const FORMAT: u32 = 1;
/// No honest file is larger; a larger one is not read.
const MAX_BYTES: u64 = 64 * 1024;

/// The content of `instance.json`. Unknown fields are ignored: a rollback lets an old agent read a new one's file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    format: u32,
    /// Random UUID v4 that the platform knows this instance by.
    pub instance_id: String,
    /// The agent's UUID at the platform, where a join or renewal has told it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<String>,
    /// Which machine the id was made on; a digest, since machine-id(5) asks not to show the id itself.
    machine: String,
}

impl Instance {
    /// Makes an instance with a new id on this machine.
    fn new(machine: String) -> Self {
        Self { format: FORMAT, instance_id: uuid::Uuid::new_v4().to_string(), agent_id: None, machine }
    }

    /// Reads the stored instance if it was made on this machine.
    #[must_use]
    pub fn read(data_dir: &Path) -> Option<Self> {
        Self::read_for(data_dir, &machine_digest())
    }

    /// Reads the stored instance or makes a new one. A file that cannot be used is replaced on the next [`Self::write`].
    #[must_use]
    pub fn load(data_dir: &Path) -> Self {
        Self::read(data_dir).unwrap_or_else(|| Self::new(machine_digest()))
    }

    /// The instance that a process before this one was, whatever the disk says: it may not have been able to store its id.
    #[must_use]
    pub fn continuing(mut self, instance_id: &str) -> Self {
        if uuid::Uuid::parse_str(instance_id).is_ok() {
            instance_id.clone_into(&mut self.instance_id);
        }
        self
    }

    /// The same agent with a new instance id.
    #[must_use]
    pub fn renewed(self) -> Self {
        Self { agent_id: self.agent_id.clone(), ..Self::new(self.machine) }
    }

    fn read_for(data_dir: &Path, machine: &str) -> Option<Self> {
        let path = data_dir.join(FILE);
        let mut text = Vec::new();
        durable::open_regular(&path).ok()?.take(MAX_BYTES).read_to_end(&mut text).ok()?;
        let stored: Self = serde_json::from_slice(&text).ok()?;
        (stored.machine == machine && uuid::Uuid::parse_str(&stored.instance_id).is_ok()).then_some(stored)
    }

    /// Stores the instance. Callers may go on without: the id then lasts as long as the process.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub fn write(&self, data_dir: &Path) -> durable::Result<()> {
        let path: PathBuf = data_dir.join(FILE);
        if Self::read_for(data_dir, &self.machine).as_ref() == Some(self) {
            return Ok(());
        }
        let text = serde_json::to_vec_pretty(self).expect("strings and numbers serialise");
        durable::write(&path, &text, 0o600)
    }
}

/// A digest of machine-id(5), keyed to this purpose; the host name where there is no machine id.
fn machine_digest() -> String {
    let id = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
    let id = if id.trim().is_empty() {
        nix::unistd::gethostname().unwrap_or_default().to_string_lossy().into_owned()
    } else {
        id
    };
    super::inspect::fingerprint(&Sha256::digest(format!("bamf-agent instance {}", id.trim())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_survives_a_restart_on_the_same_machine() {
        let directory = tempfile::tempdir().unwrap();
        let first = Instance::load(directory.path());
        first.write(directory.path()).unwrap();
        assert_eq!(Instance::load(directory.path()), first);
    }

    #[test]
    fn a_cloned_disk_makes_a_new_id() {
        let directory = tempfile::tempdir().unwrap();
        let cloned = Instance::new("another machine".into());
        cloned.write(directory.path()).unwrap();
        assert_ne!(Instance::load(directory.path()).instance_id, cloned.instance_id);
    }

    #[test]
    fn a_damaged_file_costs_nothing_but_a_new_id() {
        let directory = tempfile::tempdir().unwrap();
        for damaged in ["", "{", "[]", "null", r#"{"format":1,"instance_id":"../..","machine":"x"}"#] {
            durable::write(&directory.path().join(FILE), damaged.as_bytes(), 0o600).unwrap();
            let instance = Instance::load(directory.path());
            instance.write(directory.path()).unwrap();
            assert_eq!(Instance::load(directory.path()), instance);
        }
    }

    #[test]
    fn a_field_of_a_later_version_is_ignored() {
        let directory = tempfile::tempdir().unwrap();
        let instance = Instance::load(directory.path());
        let mut value = serde_json::to_value(&instance).unwrap();
        value["added_later"] = serde_json::json!({"deep": [1, 2, 3]});
        durable::write(&directory.path().join(FILE), value.to_string().as_bytes(), 0o600).unwrap();
        assert_eq!(Instance::load(directory.path()), instance);
    }
}
