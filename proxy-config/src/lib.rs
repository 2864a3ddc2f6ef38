//! Configuration: parses and lowers, never does I/O.
