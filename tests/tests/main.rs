//! The tests that cross a process or a network.
