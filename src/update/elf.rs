//! Is this file a program for this machine? The ELF header says so before anything is executed.
//!
//! A signature only proves that the publisher made the file; a release whose assets were mixed up is signed too. The
//! offsets are those of elf(5).

/// How much of a file [`check`] wants to see: the whole header of a 64-bit file.
pub const HEADER_BYTES: usize = 64;

const MAGIC: &[u8] = b"\x7fELF";
const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
/// `ET_EXEC` and `ET_DYN`; a position-independent program is of the latter type.
const EXECUTABLE_TYPES: [u16; 2] = [2, 3];
/// `sizeof(Elf64_Phdr)`
const PROGRAM_HEADER_BYTES: u16 = 56;

/// A machine that releases are built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Machine {
    /// `linux/amd64`.
    Amd64,
    /// `linux/arm64`.
    Arm64,
}

/// Why a file is not run.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    /// Not ELF at all, e.g. a page of HTML.
    #[error("the file is not a Linux program")]
    NotElf,
    /// A 32-bit or big-endian program.
    #[error("the file is a program for a 32-bit or big-endian machine")]
    Layout,
    /// An object file or a core dump.
    #[error("the file is not an executable (ELF type {0})")]
    Type(u16),
    /// A header that leads to nothing. The kernel would not know how to run it, and execvp(3) would then hand it to a shell.
    #[error("the file has the header of a program and no program in it")]
    Hollow,
    /// A program for another processor.
    #[error("the file is a program for {}; this machine is {}", shown(*found), wanted.platform())]
    Machine {
        /// `e_machine` of the file.
        found: u16,
        /// What runs here.
        wanted: Machine,
    },
}

impl Machine {
    /// The machine that this program runs on; `None` where no release exists for it.
    #[must_use]
    pub fn current() -> Option<Self> {
        match std::env::consts::ARCH {
            "x86_64" => Some(Self::Amd64),
            "aarch64" => Some(Self::Arm64),
            _ => None,
        }
    }

    /// As in `--version` and in asset names: `linux/amd64`.
    #[must_use]
    pub const fn platform(self) -> &'static str {
        match self {
            Self::Amd64 => "linux/amd64",
            Self::Arm64 => "linux/arm64",
        }
    }

    /// `EM_X86_64` and `EM_AARCH64`.
    const fn elf_number(self) -> u16 {
        match self {
            Self::Amd64 => 62,
            Self::Arm64 => 183,
        }
    }
}

/// Checks the first [`HEADER_BYTES`] of a file: a 64-bit executable for `wanted`, with something to execute.
///
/// # Errors
/// What is wrong with it.
pub fn check(header: &[u8], wanted: Machine) -> Result<(), Wrong> {
    if header.len() < HEADER_BYTES || !header.starts_with(MAGIC) {
        return Err(Wrong::NotElf);
    }
    if header[4] != CLASS_64 || header[5] != LITTLE_ENDIAN {
        return Err(Wrong::Layout);
    }
    let half = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    if !EXECUTABLE_TYPES.contains(&half(16)) {
        return Err(Wrong::Type(half(16)));
    }
    if half(18) != wanted.elf_number() {
        return Err(Wrong::Machine { found: half(18), wanted });
    }
    // e_phentsize and e_phnum.
    if half(54) != PROGRAM_HEADER_BYTES || half(56) == 0 {
        return Err(Wrong::Hollow);
    }
    Ok(())
}

fn shown(number: u16) -> String {
    let known = [Machine::Amd64, Machine::Arm64].into_iter().find(|machine| machine.elf_number() == number);
    known.map_or_else(|| format!("ELF machine {number}"), |machine| machine.platform().to_owned())
}

/// The first bytes of this test program: what a program for this machine begins with.
#[cfg(test)]
pub(super) fn own_header() -> Vec<u8> {
    use std::io::Read;
    let mut bytes = vec![0; 64];
    std::fs::File::open("/proc/self/exe")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .expect("a program has a header");
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(class: u8, data: u8, kind: u16, machine: u16) -> Vec<u8> {
        let mut bytes = vec![0; 64];
        bytes[..4].copy_from_slice(MAGIC);
        (bytes[4], bytes[5], bytes[6]) = (class, data, 1);
        bytes[16..18].copy_from_slice(&kind.to_le_bytes());
        bytes[18..20].copy_from_slice(&machine.to_le_bytes());
        (bytes[54], bytes[56]) = (56, 1);
        bytes
    }

    fn with(at: usize, byte: u8) -> Vec<u8> {
        let mut bytes = header(2, 1, 3, 62);
        bytes[at] = byte;
        bytes
    }

    #[test]
    fn programs_for_the_machine_pass() {
        assert_eq!(check(&header(2, 1, 3, 62), Machine::Amd64), Ok(()));
        assert_eq!(check(&header(2, 1, 2, 183), Machine::Arm64), Ok(()));
    }

    #[test]
    fn everything_else_is_named() {
        let amd64 = Machine::Amd64;
        let cases = [
            (b"<!DOCTYPE html><html><body>".to_vec(), Wrong::NotElf),
            (b"#!/bin/sh\nexit 0\n# padding padding".to_vec(), Wrong::NotElf),
            (Vec::new(), Wrong::NotElf),
            (header(2, 1, 3, 62)[..HEADER_BYTES - 1].to_vec(), Wrong::NotElf),
            (header(1, 1, 3, 62), Wrong::Layout),
            (header(2, 2, 3, 62), Wrong::Layout),
            (header(2, 1, 1, 62), Wrong::Type(1)),
            (header(2, 1, 4, 62), Wrong::Type(4)),
            (header(2, 1, 3, 183), Wrong::Machine { found: 183, wanted: amd64 }),
            (with(56, 0), Wrong::Hollow),
            (with(54, 32), Wrong::Hollow),
        ];
        for (bytes, wrong) in cases {
            assert_eq!(check(&bytes, amd64), Err(wrong));
        }
    }

    #[test]
    fn another_processor_is_named_as_in_asset_names() {
        let said = |found| Wrong::Machine { found, wanted: Machine::Amd64 }.to_string();
        assert_eq!(said(183), "the file is a program for linux/arm64; this machine is linux/amd64");
        assert_eq!(said(8), "the file is a program for ELF machine 8; this machine is linux/amd64");
    }

    #[test]
    fn this_test_program_is_one() {
        assert_eq!(check(&own_header(), Machine::current().unwrap()), Ok(()));
    }
}
