//! The platform's API as the agent and the updater see it: requests out, answers and events in.

pub mod version;
