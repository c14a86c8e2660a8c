//! Writes a release in the layout of contract section 4, right or with named flaws.
//!
//! A `Release` is a description; only [`Release::write`] touches the disk, and it can be called for several directories.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::flaws::{Damage, HTML, ListFlaw, SignatureFlaw};
use super::key::{Form, SigningKey};

/// The name of the signed list.
pub const CHECKSUMS: &str = "checksums.txt";
/// The name of the first signature.
pub const SIGNATURE: &str = "checksums.txt.minisig";

/// The trusted comment's time: fixed, so that equal releases are equal bytes.
const SIGNED_AT: u64 = 1_760_000_000;

/// What is in an asset.
#[derive(Clone, Debug)]
pub enum Content {
    /// These bytes.
    Bytes(Vec<u8>),
    /// What this file holds when the release is written.
    File(PathBuf),
}

impl From<Vec<u8>> for Content {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Bytes(bytes)
    }
}

impl From<&[u8]> for Content {
    fn from(bytes: &[u8]) -> Self {
        Self::Bytes(bytes.to_vec())
    }
}

impl From<&str> for Content {
    fn from(text: &str) -> Self {
        Self::Bytes(text.as_bytes().to_vec())
    }
}

impl From<PathBuf> for Content {
    fn from(path: PathBuf) -> Self {
        Self::File(path)
    }
}

impl From<&Path> for Content {
    fn from(path: &Path) -> Self {
        Self::File(path.to_owned())
    }
}

/// A release to be written.
#[derive(Clone, Debug)]
pub struct Release {
    tag: String,
    directory: String,
    assets: BTreeMap<String, Content>,
    signers: Vec<SigningKey>,
    list_flaws: Vec<ListFlaw>,
    signature_flaws: Vec<SignatureFlaw>,
    damages: Vec<(String, Damage)>,
}

impl Release {
    /// A release `vX.Y.Z` with small stand-ins for both binaries (an ELF header each) and the unit file, and no signature.
    #[must_use]
    pub fn new(tag: &str) -> Self {
        let release = Self {
            tag: tag.to_owned(),
            directory: tag.to_owned(),
            assets: BTreeMap::new(),
            signers: Vec::new(),
            list_flaws: Vec::new(),
            signature_flaws: Vec::new(),
            damages: Vec::new(),
        };
        let unit = "[Service]\nExecStart=/usr/local/bin/bamf-agent --config /etc/bamf/agent.yaml\n";
        release.binary("amd64", elf("amd64")).binary("arm64", elf("arm64")).asset("bamf-agent.service", unit)
    }

    /// Puts this in as `bamf-agent-linux-<arch>`. The wrong machine's binary under a right name is
    /// `binary("amd64", elf("arm64"))`, an empty one with a right checksum `binary("amd64", "")`.
    #[must_use]
    pub fn binary(self, arch: &str, content: impl Into<Content>) -> Self {
        self.asset(&binary_name(arch), content)
    }

    /// Puts any asset in; one of the same name is replaced.
    #[must_use]
    pub fn asset(mut self, name: &str, content: impl Into<Content>) -> Self {
        self.assets.insert(name.to_owned(), content.into());
        self
    }

    /// Signs with this key. The first key's signature is `checksums.txt.minisig`, every further one's
    /// `checksums.txt.<keyid>.minisig`.
    #[must_use]
    pub fn signed_by(mut self, key: &SigningKey) -> Self {
        self.signers.push(key.clone());
        self
    }

    /// Makes the signed list wrong.
    #[must_use]
    pub fn list_flaw(mut self, flaw: ListFlaw) -> Self {
        self.list_flaws.push(flaw);
        self
    }

    /// Makes every signature wrong.
    #[must_use]
    pub fn signature_flaw(mut self, flaw: SignatureFlaw) -> Self {
        self.signature_flaws.push(flaw);
        self
    }

    /// Damages a file after signing: an asset, [`CHECKSUMS`] or a signature.
    #[must_use]
    pub fn damaged(mut self, file: &str, damage: Damage) -> Self {
        self.damages.push((file.to_owned(), damage));
        self
    }

    /// Publishes under this tag what is signed for another: an old release served under a new name.
    #[must_use]
    pub fn published_as(mut self, tag: &str) -> Self {
        tag.clone_into(&mut self.directory);
        self
    }

    /// Writes `<parent>/<tag>/` and answers its path. What was there before is replaced.
    ///
    /// # Errors
    /// The directory cannot be written, a file given as content cannot be read, or a damage names a file that the release
    /// does not have.
    pub fn write(&self, parent: &Path) -> io::Result<PathBuf> {
        let dir = parent.join(&self.directory);
        if dir.exists() {
            fs::remove_dir_all(&dir)?;
        }
        fs::create_dir_all(&dir)?;
        let mut hashes = Vec::new();
        for (name, content) in &self.assets {
            let path = dir.join(name);
            match content {
                Content::Bytes(bytes) => fs::write(&path, bytes)?,
                Content::File(from) => drop(fs::copy(from, &path).map_err(|error| about(from, &error))?),
            }
            hashes.push((name.clone(), sha256_hex(&path)?));
        }
        let list = self.list(hashes);
        self.write_signatures(&dir, &list)?;
        let altered = self.signature_flaws.iter().any(|flaw| matches!(flaw, SignatureFlaw::AlteredList));
        fs::write(dir.join(CHECKSUMS), if altered { list + "\n" } else { list })?;
        for (file, damage) in &self.damages {
            let path = dir.join(file);
            inflict(damage, &path).map_err(|error| about(&path, &error))?;
        }
        Ok(dir)
    }

    fn list(&self, mut lines: Vec<(String, String)>) -> String {
        let (mut tag, mut padding, mut end) = (Some(self.tag.as_str()), 0, "\n");
        for flaw in &self.list_flaws {
            match flaw {
                ListFlaw::TagLine(other) => tag = Some(other),
                ListFlaw::NoTagLine => tag = None,
                ListFlaw::Duplicate(name) => lines.insert(0, (name.clone(), "0".repeat(64))),
                ListFlaw::Name(name) => lines.push((name.clone(), "0".repeat(64))),
                ListFlaw::Unlisted(name) => lines.retain(|(listed, _)| listed != name),
                ListFlaw::Hash(name, text) => {
                    lines.iter_mut().filter(|(listed, _)| listed == name).for_each(|(_, hash)| hash.clone_from(text));
                }
                ListFlaw::CrLf => end = "\r\n",
                ListFlaw::PaddedTo(bytes) => padding = *bytes,
            }
        }
        let mut text = tag.map(|tag| format!("# tag: {tag}{end}")).unwrap_or_default();
        for (name, hash) in lines {
            write!(text, "{hash}  {name}{end}").expect("a String takes everything");
        }
        while text.len() < padding {
            text.push_str("# ");
            text.push_str(&"x".repeat(76));
            text.push_str(end);
        }
        text
    }

    fn write_signatures(&self, dir: &Path, list: &str) -> io::Result<()> {
        if self.signature_flaws.iter().any(|flaw| matches!(flaw, SignatureFlaw::Unsigned)) {
            return Ok(());
        }
        for (index, key) in self.signers.iter().enumerate() {
            let name =
                if index == 0 { SIGNATURE.to_owned() } else { format!("{CHECKSUMS}.{}.minisig", key.key_id_hex()) };
            fs::write(dir.join(name), self.signature(key, list))?;
        }
        Ok(())
    }

    fn signature(&self, key: &SigningKey, list: &str) -> String {
        let (mut signer, mut form) = (key.clone(), Form::Prehashed);
        let (mut tag, mut altered, mut padding) = (Some(self.tag.as_str()), None, 0);
        for flaw in &self.signature_flaws {
            match flaw {
                SignatureFlaw::ByStranger => signer = key.stranger(),
                SignatureFlaw::ByImpostor => signer = key.impostor(),
                SignatureFlaw::LegacyForm => form = Form::Legacy,
                SignatureFlaw::TrustedTag(other) => tag = Some(other),
                SignatureFlaw::NoTrustedTag => tag = None,
                SignatureFlaw::AlteredTrustedTag(other) => altered = Some(other.as_str()),
                SignatureFlaw::PaddedTo(bytes) => padding = *bytes,
                SignatureFlaw::Unsigned | SignatureFlaw::AlteredList => {}
            }
        }
        let comment = trusted_comment(tag);
        let mut text = signer.sign(list.as_bytes(), &comment, form);
        if altered.is_some() {
            text = text.replace(&comment, &trusted_comment(altered));
        }
        let missing = padding.saturating_sub(text.len());
        text + &"\n".repeat(missing)
    }
}

/// The asset name of the agent for `amd64` or `arm64`.
#[must_use]
pub fn binary_name(arch: &str) -> String {
    format!("bamf-agent-linux-{arch}")
}

/// The 64 bytes of an ELF header of an executable for `amd64`, `arm64` or (any other word) no known machine: enough for
/// whoever reads `e_machine`, not enough to run.
#[must_use]
pub fn elf(arch: &str) -> Vec<u8> {
    let machine: u16 = match arch {
        "amd64" => 62,
        "arm64" => 183,
        _ => 0,
    };
    let mut header = vec![0; 64];
    // elf(5): magic, 64 bit, little-endian, version 1, System V ABI.
    header[..7].copy_from_slice(&[0x7F, b'E', b'L', b'F', 2, 1, 1]);
    // ET_EXEC, the machine, version 1.
    header[16..18].copy_from_slice(&2_u16.to_le_bytes());
    header[18..20].copy_from_slice(&machine.to_le_bytes());
    header[20..24].copy_from_slice(&1_u32.to_le_bytes());
    // Sizes of this header and of a program header.
    header[52..54].copy_from_slice(&64_u16.to_le_bytes());
    header[54..56].copy_from_slice(&56_u16.to_le_bytes());
    header
}

/// The SHA-256 of a file in lower-case hex, as `sha256sum` prints it.
///
/// # Errors
/// The file cannot be read.
pub fn sha256_hex(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let (mut hash, mut chunk) = (Sha256::new(), vec![0; 1 << 16]);
    loop {
        let read = file.read(&mut chunk)?;
        if read == 0 {
            break;
        }
        hash.update(&chunk[..read]);
    }
    Ok(hash.finalize().iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}")))
}

fn trusted_comment(tag: Option<&str>) -> String {
    let tag = tag.map(|tag| format!(" tag:{tag}")).unwrap_or_default();
    format!("timestamp:{SIGNED_AT} file:{CHECKSUMS}{tag}")
}

fn inflict(damage: &Damage, path: &Path) -> io::Result<()> {
    let length = path.metadata()?.len();
    match damage {
        Damage::FlippedBit => {
            let mut bytes = fs::read(path)?;
            let middle = bytes.len() / 2;
            *bytes.get_mut(middle).ok_or_else(|| io::Error::other("an empty file has no bit to flip"))? ^= 1;
            fs::write(path, bytes)
        }
        Damage::Truncated => File::options().write(true).open(path)?.set_len(length / 2),
        Damage::Emptied => File::options().write(true).open(path)?.set_len(0),
        Damage::Html => fs::write(path, HTML),
        Damage::GrownTo(bytes) => File::options().write(true).open(path)?.set_len(*bytes),
        Damage::Missing => fs::remove_file(path),
    }
}

fn about(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("release file {}: {error}", path.display()))
}

#[cfg(test)]
mod tests;
