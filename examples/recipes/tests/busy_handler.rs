//! One file, several connections, one thread.

mod support;

use std::cell::RefCell;
use std::env;
use std::ffi::{c_int, c_void};
use std::future::pending;
use std::path::Path;
use std::process::Command;
use std::ptr::null_mut;

use futures::future::join_all;
use greenhack::time::yield_now;
use greenhack::{await_sync, run_sync, run_sync_local, shield};
use recipes::busy_handler::{open, wait};
use rusqlite::{Connection, ErrorCode, Result, TransactionBehavior, ffi};
use support::{File, in_time, one_thread};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;

fn create(path: &Path) {
    let db = Connection::open(path).unwrap();
    db.execute_batch("CREATE TABLE orders (dish TEXT)").unwrap();
}

fn count(path: &Path) -> i64 {
    let db = Connection::open(path).unwrap();
    db.query_row("SELECT count(*) FROM orders", [], |row| row.get(0))
        .unwrap()
}

/// Takes the lock, calls `inside`, and commits.
fn order(db: &mut Connection, dish: &str, inside: impl FnOnce()) -> Result<()> {
    let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction.execute("INSERT INTO orders VALUES (?1)", [dish])?;
    inside();
    transaction.commit()
}

thread_local! {
    static WAITS: RefCell<Option<UnboundedSender<i32>>> = const { RefCell::new(None) };
}

/// The handler of the recipe, which also tells the test.
fn wait_and_tell(tries: i32) -> bool {
    // The test may have heard enough.
    let _ = WAITS.with_borrow(|waits| waits.as_ref().unwrap().send(tries));
    wait(tries)
}

fn busy(error: rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy)
}

#[test]
fn the_one_who_waits_lets_the_one_who_holds_the_lock_go_on() {
    let file = File::new("turns");
    create(file.path());
    one_thread().block_on(in_time(async {
        let (told, mut waits) = unbounded_channel();
        WAITS.set(Some(told));
        let (locked, is_locked) = oneshot::channel();

        let path = file.path().to_owned();
        let holder = run_sync_local(move || {
            order(&mut open(&path).unwrap(), "soup", || {
                locked.send(()).unwrap();
                // Until the other has met the lock. If that blocked the thread,
                // this would not go on.
                assert_eq!(await_sync(waits.recv()), Some(0));
            })
        });
        let path = file.path().to_owned();
        let waiter = run_sync_local(move || {
            await_sync(is_locked).unwrap();
            let mut db = open(&path).unwrap();
            db.busy_handler(Some(wait_and_tell)).unwrap();
            order(&mut db, "rice", || ())
        });
        let (holder, waiter) = tokio::join!(holder, waiter);
        holder.unwrap();
        waiter.unwrap();
    }));
    assert_eq!(count(file.path()), 2);
}

#[test]
fn many_writers_on_one_thread_all_get_their_turn() {
    const WRITERS: usize = 20;
    let file = File::new("writers");
    create(file.path());
    one_thread().block_on(in_time(async {
        let writers = (0..WRITERS).map(|_| {
            let path = file.path().to_owned();
            tokio::spawn(run_sync(move || {
                // Each is suspended while it holds the lock.
                order(&mut open(&path).unwrap(), "soup", yield_now)
            }))
        });
        for done in join_all(writers).await {
            done.unwrap().unwrap();
        }
    }));
    assert_eq!(count(file.path()), WRITERS as i64);
}

#[test]
fn a_plain_program_waits_in_the_same_way() {
    let file = File::new("plain");
    create(file.path());
    let mut holder = open(file.path()).unwrap();
    let (locked, is_locked) = std::sync::mpsc::channel();
    let (met, has_met) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            order(&mut holder, "soup", move || {
                locked.send(()).unwrap();
                has_met.recv().unwrap();
            })
        });
        is_locked.recv().unwrap();
        let (told, mut waits) = unbounded_channel();
        WAITS.set(Some(told));
        scope.spawn(move || {
            assert_eq!(waits.blocking_recv(), Some(0));
            met.send(()).unwrap();
        });
        let mut db = open(file.path()).unwrap();
        db.busy_handler(Some(wait_and_tell)).unwrap();
        order(&mut db, "rice", || ()).unwrap();
    });
    assert_eq!(count(file.path()), 2);
}

/// Has a run wait for a lock that is never let go, and drops it there.
async fn cancelled_while_it_waits(file: &File, plain: impl FnOnce(&mut Connection) + 'static) {
    let mut holder = Connection::open(file.path()).unwrap();
    let lock = holder
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .unwrap();
    let (told, mut waits) = unbounded_channel();
    WAITS.set(Some(told));
    let path = file.path().to_owned();
    let run = run_sync_local(move || {
        let mut db = open(&path).unwrap();
        db.busy_handler(Some(wait_and_tell)).unwrap();
        plain(&mut db);
    });
    tokio::select! {
        () = run => panic!("it can't get the lock"),
        tries = waits.recv() => assert_eq!(tries, Some(0)),
    }
    lock.rollback().unwrap();
}

#[test]
fn a_cancellation_is_an_error_of_sqlite_and_then_unwinds() {
    let file = File::new("cancelled");
    create(file.path());
    one_thread().block_on(in_time(async {
        let (said, mut heard) = unbounded_channel();
        cancelled_while_it_waits(&file, move |db| {
            let error = order(db, "soup", || ()).unwrap_err();
            said.send(busy(error)).unwrap();
            yield_now();
            unreachable!("the cancellation stays");
        })
        .await;
        assert_eq!(heard.recv().await, Some(true));
        assert_eq!(heard.recv().await, None);
    }));
    assert_eq!(count(file.path()), 0);
}

#[test]
fn in_a_shield_it_goes_on_to_wait() {
    let file = File::new("shielded");
    create(file.path());
    one_thread().block_on(in_time(async {
        let (said, mut heard) = unbounded_channel();
        cancelled_while_it_waits(&file, move |db| {
            shield(|| {
                order(db, "soup", || ()).unwrap();
                said.send(()).unwrap();
            });
            unreachable!("the cancellation arrives at the end of the shield");
        })
        .await;
        // The rest of the run is a task of this thread by now.
        assert_eq!(heard.recv().await, Some(()));
        assert_eq!(heard.recv().await, None);
    }));
    assert_eq!(count(file.path()), 1);
}

/// A handler that waits with `await_sync`, as a C library would call it.
#[cfg(unix)]
extern "C" fn unwinding(_: *mut c_void, tries: c_int) -> c_int {
    let _ = WAITS.with_borrow(|waits| waits.as_ref().unwrap().send(tries));
    await_sync(pending::<()>());
    1
}

#[cfg(unix)]
fn cancel_it_under_c() {
    let file = File::new("aborted");
    create(file.path());
    one_thread().block_on(in_time(cancelled_while_it_waits(&file, |db| {
        // SAFETY: the handle goes no further than the next line.
        let handle = unsafe { db.handle() };
        // SAFETY: the connection is open, and the handler takes no argument.
        unsafe { ffi::sqlite3_busy_handler(handle, Some(unwinding), null_mut()) };
        let _ = order(db, "soup", || ());
    })));
}

/// Why the handler takes a cancellation as an answer. rusqlite catches what
/// unwinds out of a handler; others do not.
#[cfg(unix)]
#[test]
fn a_cancellation_that_unwinds_through_c_ends_the_process() {
    const CHILD: &str = "GREENHACK_UNWIND_THROUGH_C";
    if env::var_os(CHILD).is_some() {
        return cancel_it_under_c();
    }
    let output = Command::new(env::current_exe().unwrap())
        .arg("a_cancellation_that_unwinds_through_c_ends_the_process")
        .arg("--nocapture")
        .env(CHILD, "yes")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("cannot unwind"), "{said}");
    // By a signal.
    assert_eq!(output.status.code(), None);
}
