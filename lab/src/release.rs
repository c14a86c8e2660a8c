//! Releases as the project publishes them, and the servers that people fetch them from: right ones, and wrong in every way.
//!
//! A test first describes a release ([`Release`]), writes it into a directory (which is a source of its own kind), and
//! may put a [`ReleaseServer`] before that directory. What is wrong with a release lies in [`flaws`], what goes wrong on
//! the way lies in [`faults`]: the two are kept apart because the updater must refuse the first for good and may try
//! again after the second.

pub mod builder;
pub mod faults;
pub mod flaws;
pub mod key;
pub mod server;

pub use builder::{Content, Release, elf};
pub use faults::{ALWAYS, Fault, LATEST, LISTING};
pub use flaws::{Damage, ListFlaw, SignatureFlaw};
pub use key::{Form, SigningKey};
pub use server::{RateLimit, ReleaseServer, Request};
