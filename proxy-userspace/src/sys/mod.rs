//! What needs `unsafe`: system calls that no safe wrapper covers. The only such place in the daemon.
#![expect(unsafe_code, reason = "this module is where it is allowed")]

pub mod sock;
