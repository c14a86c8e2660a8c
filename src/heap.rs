//! Gives memory back to the kernel that the C library's allocator keeps.
//!
//! glibc returns only what lies free at the end of its heap. After a thousand sessions something small always lies behind
//! the rest, and twelve MiB stay resident that nobody uses. `malloc_trim(3)` returns whole free pages wherever they lie.

/// Returns free pages. Takes about a millisecond for ten MiB; callers do it when much was freed, not for every piece.
pub fn trim() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[expect(unsafe_code, reason = "the C library offers no other way, and no crate wraps it")]
    // SAFETY: malloc_trim(3) takes a number by value, touches only the allocator's own free memory, and may be called at
    // any time from any thread (it is MT-Safe).
    let _returned = unsafe { libc::malloc_trim(0) };
}

#[cfg(test)]
mod tests {
    fn resident() -> usize {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
    }

    #[test]
    fn what_lies_free_in_the_middle_goes_back() {
        let pieces: Vec<Vec<u8>> = (0..8192).map(|_| vec![1; 4096]).collect();
        let (mut kept, full) = (Vec::new(), resident());
        for (index, piece) in pieces.into_iter().enumerate() {
            if index % 64 == 63 {
                kept.push(piece);
            }
        }
        super::trim();
        let left = resident();
        assert!(left + (16 << 20) < full, "{full} bytes before, {left} after, {} pieces kept", kept.len());
    }
}
