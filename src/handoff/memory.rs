//! Memory for secrets on their way: a file without a name, and a buffer that no core dump shows.

use std::fs::File;
use std::io;

use memmap2::{Advice, MmapMut};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, memfd_create};
use zeroize::Zeroize as _;

/// Shown in `/proc/PID/fd` and nowhere else.
const NAME: &str = "bamf-handoff";

/// What makes a finished file unchangeable, by anybody who holds it.
const SEALS: SealFlags = SealFlags::SEAL.union(SealFlags::SHRINK).union(SealFlags::GROW).union(SealFlags::WRITE);

/// A file that exists in memory only, and is gone with its last descriptor.
pub(super) fn create() -> io::Result<File> {
    Ok(memfd_create(NAME, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?.into())
}

/// Nobody can change it from here on.
pub(super) fn seal(file: &File) -> io::Result<()> {
    Ok(fcntl_add_seals(file, SEALS)?)
}

/// Whether it is such a file; anything else cannot be trusted to stay as it is while it is read.
pub(super) fn is_sealed(file: &File) -> bool {
    fcntl_get_seals(file).is_ok_and(|seals| seals.contains(SEALS))
}

/// A buffer that is left out of core dumps, and wiped when it is dropped.
pub(super) struct Buffer(MmapMut);

impl Buffer {
    pub(super) fn new(len: usize) -> io::Result<Self> {
        let map = MmapMut::map_anon(len.max(1))?;
        // A kernel that cannot leave it out keeps it in; the unit forbids core dumps altogether.
        let _advised = map.advise(Advice::DontDump);
        Ok(Self(map))
    }
}

impl std::ops::Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl std::ops::DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}
