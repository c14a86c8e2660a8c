//! In place of the Secret in builds without the cargo feature `kubernetes`: nothing that could exist.

use std::future::Ready;

use super::{Claim, Error, Kept, Look, Over};
use crate::config::Config;
use crate::identity::Identity;
use crate::kubernetes::Place;

/// There is none in this build.
#[derive(Clone, Debug)]
pub enum Shared {}

/// The same calls as in a build with the feature; nobody can make them.
impl Shared {
    /// Always `None`.
    #[must_use]
    pub const fn of(_config: &Config, _version: &str) -> Option<Self> {
        None
    }

    /// Never called.
    #[must_use]
    pub const fn place(&self) -> &Place {
        match *self {}
    }

    /// Never called.
    pub fn read(&self) -> Ready<Result<Option<Identity>, Error>> {
        match *self {}
    }

    /// Never called.
    pub fn rehearse(&self) -> Ready<Result<Option<Identity>, Error>> {
        match *self {}
    }

    /// Never called.
    pub fn look(&self, _ours: &Identity) -> Ready<Result<Look, Error>> {
        match *self {}
    }

    /// Never called.
    pub fn keep(&self, _ours: &Identity, _over: Over) -> Ready<Result<Kept, Error>> {
        match *self {}
    }

    /// Never called.
    pub fn claim(&self, _ours: &Identity) -> Ready<Result<Claim, Error>> {
        match *self {}
    }

    /// Never called.
    pub const fn refuse(&self, _sha256: &str) {
        match *self {}
    }
}
