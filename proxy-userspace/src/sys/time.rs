//! The local time zone.

/// Seconds east of UTC at that moment.
pub(crate) fn local_offset(unix: u64) -> i32 {
    let Ok(seconds) = libc::time_t::try_from(unix) else { return 0 };
    // SAFETY: `tm` is plain data for which zeroes are valid, and the call writes nothing else.
    unsafe {
        let mut tm: libc::tm = std::mem::zeroed();
        if libc::localtime_r(&seconds, &mut tm).is_null() {
            0
        } else {
            i32::try_from(tm.tm_gmtoff).unwrap_or(0)
        }
    }
}
