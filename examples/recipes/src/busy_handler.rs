//! A busy handler of SQLite that awaits its turn.

use std::path::Path;
use std::time::Duration;

use greenhack::await_or_cancelled;
use rusqlite::Connection;
use tokio::time::sleep;

/// How often one waits for a lock before the database is said to be busy. It is
/// about half a minute.
const TRIES: i32 = 500;

/// Opens a database where whoever needs a lock that others hold waits for it,
/// and the thread does not.
///
/// SQLite itself reads and writes its file on this thread.
///
/// # Errors
///
/// If the file can't be opened.
pub fn open(path: &Path) -> rusqlite::Result<Connection> {
    let db = Connection::open(path)?;
    db.busy_handler(Some(wait))?;
    Ok(db)
}

/// Waits a little, and says whether SQLite shall try again.
///
/// SQLite calls this from C, where nothing can unwind: so a cancellation is an
/// answer, and SQLite's call fails with `SQLITE_BUSY`. The run unwinds at its
/// next wait.
pub fn wait(tries: i32) -> bool {
    let pause = Duration::from_millis(1 << tries.clamp(0, 6));
    tries < TRIES && await_or_cancelled(async { sleep(pause).await }).is_ok()
}
