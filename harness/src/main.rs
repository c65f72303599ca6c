//! The `aqlm` command.
fn main() {}
