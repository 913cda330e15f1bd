//! The kernels of this crate as a caller sees them.

mod common;
mod oracle;
mod paths;
mod properties;
