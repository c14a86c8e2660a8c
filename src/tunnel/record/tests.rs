//! The record layer against itself.
