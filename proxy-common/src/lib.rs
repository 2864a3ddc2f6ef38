//! The kernel ABI and the verdict functions shared by the kernel programs and the daemon.
