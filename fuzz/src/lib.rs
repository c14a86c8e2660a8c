//! What several fuzz targets need: cut inputs, a desk for relay conversations, and a second opinion on HTTP.

pub mod cuts;
pub mod desk;
pub mod message;
