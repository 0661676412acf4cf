//! What takes the place of `sys` where the system isn't Linux.
#![forbid(unsafe_code)]

use std::io;

/// The cores that threads can be kept on: none.
pub(crate) fn allowed_cores() -> io::Result<Vec<usize>> {
    Ok(Vec::new())
}

/// Does nothing.
pub(crate) fn stay_on(_core: usize) -> io::Result<()> {
    Ok(())
}

/// Does nothing.
pub(crate) fn leave_core() -> io::Result<()> {
    Ok(())
}
