//! The command `rollcall`.

fn main() {}
