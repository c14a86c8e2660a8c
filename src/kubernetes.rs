//! The cluster around the pod that the agent may run in (protocol chapter 13).
//!
//! ```text
//!   mount of the pod ─► account (token, authority, namespace) ─┬─► relay: requests on behalf of users
//!                                                              └─► api (get, create, replace) ─► the one Secret
//! ```

pub mod account;

pub use self::account::{MOUNT, ServiceAccount};
