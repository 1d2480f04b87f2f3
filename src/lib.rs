#![doc = "placeholder"]
pub mod proto;
