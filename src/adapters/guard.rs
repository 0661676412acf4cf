//! Scopes whose exit awaits.
//!
//! The twin of an async context manager. A resource says in [`Teardown`] what is
//! to be awaited when it is not used any more: a transaction is committed or
//! rolled back, a session logs out, a lock of a remote service is released. It is
//! used in one of two forms:
//!
//! - [`with`] calls a closure with it. The teardown knows exactly how that has
//!   ended, error included, and may fail itself.
//! - [`Guard`] is a value, for a scope without a closure. It can't tell a `return`
//!   from a `?`, so it says [`Exit::Dropped`], and has [`Guard::end`] for success.
//!
//! Either way the teardown is awaited once: at the end, on `return` and `?`, on a
//! panic, and on cancellation.
//!
//! # Examples
//!
//! A transaction, committed if the scope succeeds, and rolled back otherwise:
//!
//! ```
//! use std::cell::RefCell;
//! use std::rc::Rc;
//!
//! use greenhack::await_sync;
//! use greenhack::guard::{self, Exit, Teardown};
//!
//! # #[derive(Clone, Default)]
//! # struct Database(Rc<RefCell<Vec<&'static str>>>);
//! # #[derive(Debug)]
//! # struct DbError;
//! # impl Database {
//! #     async fn begin(&self) -> Result<Transaction, DbError> {
//! #         self.0.borrow_mut().push("begin");
//! #         Ok(Transaction(self.clone()))
//! #     }
//! # }
//! # struct Transaction(Database);
//! # impl Transaction {
//! #     async fn execute(&mut self, sql: &'static str) -> Result<(), DbError> {
//! #         self.0.0.borrow_mut().push(sql);
//! #         if sql.starts_with("drop") { Err(DbError) } else { Ok(()) }
//! #     }
//! #     async fn commit(self) -> Result<(), DbError> {
//! #         self.0.0.borrow_mut().push("commit");
//! #         Ok(())
//! #     }
//! #     async fn rollback(self) -> Result<(), DbError> {
//! #         self.0.0.borrow_mut().push("rollback");
//! #         Ok(())
//! #     }
//! # }
//! impl<E: From<DbError>> Teardown<E> for Transaction {
//!     async fn teardown(self, exit: Exit<'_, E>) -> Result<(), E> {
//!         match exit {
//!             Exit::Returned => self.commit().await?,
//!             _ => self.rollback().await?,
//!         }
//!         Ok(())
//!     }
//! }
//!
//! fn change(db: &Database, sql: &'static str) -> Result<(), DbError> {
//!     guard::with(await_sync(db.begin())?, |transaction| {
//!         await_sync(transaction.execute(sql))
//!     })
//! }
//!
//! let db = Database::default();
//! assert!(change(&db, "insert").is_ok());
//! assert!(change(&db, "drop table").is_err());
//! let log = db.0.take();
//! assert_eq!(log, ["begin", "insert", "commit", "begin", "drop table", "rollback"]);
//! ```
#![forbid(unsafe_code)]

use std::convert::Infallible;
use std::fmt;
use std::marker::PhantomData;
use std::mem::forget;
use std::ops::{Deref, DerefMut};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::thread;

use crate::{
    Cancelled, NotAwaited, await_in_drop, await_sync, in_context, is_cancelled, try_await_sync,
};

/// How a scope has ended, as its [`Teardown`] sees it.
///
/// `E` is the error of the code in the scope.
///
/// # Examples
///
/// ```
/// use greenhack::guard::Exit;
///
/// fn is_success<E>(exit: Exit<'_, E>) -> bool {
///     matches!(exit, Exit::Returned)
/// }
///
/// assert!(!is_success(Exit::Failed(&"no such table")));
/// ```
#[derive(Debug)]
pub enum Exit<'a, E = Infallible> {
    /// The closure of [`with`] has returned `Ok`, or [`Guard::end`] was called.
    Returned,
    /// The closure of [`with`] has returned this error.
    Failed(&'a E),
    /// A [`Guard`] was dropped, at the end of its scope, on `return` or on `?`.
    Dropped,
    /// A panic goes through the scope.
    Panicked,
    /// The run is cancelled.
    Cancelled,
}

impl<E> Clone for Exit<'_, E> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<E> Copy for Exit<'_, E> {}

/// What must be awaited at the end of a scope.
///
/// `E` is the error of the code in the scope, which the teardown sees in
/// [`Exit::Failed`], and fails with itself. A resource that serves all callers
/// is generic in it, see the [module](self).
///
/// # Examples
///
/// ```
/// use std::convert::Infallible;
///
/// use greenhack::guard::{Exit, Guard, Teardown};
/// use tokio::sync::mpsc;
///
/// struct Session(mpsc::Sender<&'static str>);
///
/// impl Teardown for Session {
///     async fn teardown(self, _: Exit<'_>) -> Result<(), Infallible> {
///         let _ = self.0.send("bye").await;
///         Ok(())
///     }
/// }
///
/// let (sender, mut receiver) = mpsc::channel(1);
/// drop(Guard::new(Session(sender)));
/// assert_eq!(receiver.try_recv(), Ok("bye"));
/// ```
pub trait Teardown<E = Infallible>: Sized {
    /// Ends the use of the resource.
    ///
    /// It is async code: write `.await` in it. In a run that is cancelled, it goes
    /// on within the [`cleanup_budget`](crate::Builder::cleanup_budget), and is
    /// dropped where it waits when that is over.
    ///
    /// # Errors
    ///
    /// Passed on by [`with`] and [`Guard::end`] if the scope has succeeded.
    /// Otherwise nobody sees it.
    fn teardown(self, exit: Exit<'_, E>) -> impl Future<Output = Result<(), E>>;
}

/// Calls `body` with `resource`, and suspends the calling plain function for the
/// teardown.
///
/// An async setup is awaited before it: `with(await_sync(db.begin())?, |tx| ..)`.
/// The teardown sees how `body` has ended: [`Exit::Returned`], [`Exit::Failed`]
/// with its error, [`Exit::Panicked`] or [`Exit::Cancelled`]. A panic or a
/// cancellation goes on after it. For a scope without a closure, use [`Guard`].
///
/// # Cancel safety
///
/// If the run is cancelled in `body`, the stack unwinds up to here, and then the
/// teardown is awaited, within the
/// [`cleanup_budget`](crate::Builder::cleanup_budget). If it is cancelled in the
/// teardown, that goes on in the same way, and the code after this call meets the
/// cancellation at its next wait.
///
/// # Panics
///
/// As [`await_sync`], in async code before `body` is called; with the panic of
/// `body`, or of the teardown. If both panic, the panic of `body` goes on.
///
/// # Errors
///
/// With the error of `body`, or else of the teardown.
///
/// # Examples
///
/// ```
/// use greenhack::guard::{self, Exit, Teardown};
///
/// struct Door(Vec<String>);
///
/// impl Teardown<String> for Door {
///     async fn teardown(mut self, exit: Exit<'_, String>) -> Result<(), String> {
///         match exit {
///             Exit::Failed(error) => self.0.push(format!("{error}, so it is shut")),
///             _ => return Err("it does not shut".to_owned()),
///         }
///         assert_eq!(self.0, ["open", "a draught, so it is shut"]);
///         Ok(())
///     }
/// }
///
/// fn pass(weather: Result<(), String>) -> Result<(), String> {
///     guard::with(Door(vec![]), |door| {
///         door.0.push("open".to_owned());
///         weather
///     })
/// }
///
/// assert_eq!(pass(Err("a draught".to_owned())), Err("a draught".to_owned()));
/// assert_eq!(pass(Ok(())), Err("it does not shut".to_owned()));
/// ```
#[track_caller]
pub fn with<R, B, T, E>(resource: R, body: B) -> Result<T, E>
where
    R: Teardown<E>,
    B: FnOnce(&mut R) -> Result<T, E>,
{
    if !in_context() {
        // Async code could not wait for the teardown.
        let refused = try_await_sync(async {}).err();
        assert!(
            !refused.as_ref().is_some_and(NotAwaited::is_async_code),
            "`greenhack::guard::with` called in async code, which must not block; run the plain \
             code that calls it with `greenhack::run_sync(|| ..).await`"
        );
        if refused.is_some() {
            await_sync(async {});
        }
    }
    let mut guard = Guard::new(resource);
    let outcome = catch_unwind(AssertUnwindSafe(|| body(&mut guard))).unwrap_or_else(|payload| {
        // A wait here would be interrupted. In the drop of the guard, while the
        // stack unwinds from here, it is not.
        guard.cancelled = Some(payload.is::<Cancelled>());
        resume_unwind(payload)
    });
    let exit = match &outcome {
        Ok(_) => Exit::Returned,
        Err(error) => Exit::Failed(error),
    };
    let ended = guard.tear_down(exit);
    let output = outcome?;
    ended?;
    Ok(output)
}

/// A resource in a scope whose exit awaits.
///
/// It derefs to the resource. When it is dropped, the
/// [teardown](Teardown::teardown) is awaited: with [`Exit::Dropped`] at the end of
/// the scope, on `return` and on `?`, which it can't tell apart; with
/// [`Exit::Panicked`] on a panic; with [`Exit::Cancelled`] where the stack unwinds
/// and the run is [cancelled](is_cancelled). An error of the teardown is dropped
/// then. For success there is [`Guard::end`]. To see the error of the scope, use
/// [`with`].
///
/// Dropped in async code, it can't wait: it drops the resource without a teardown,
/// and reports a warning, see [`await_in_drop`].
///
/// # Cancel safety
///
/// As [`await_in_drop`].
///
/// # Panics
///
/// Its drop panics with the panic of the teardown, unless it is part of an unwind
/// already.
///
/// # Examples
///
/// ```
/// use greenhack::guard::{Exit, Guard, Teardown};
/// use std::sync::Mutex;
///
/// static LOG: Mutex<Vec<&str>> = Mutex::new(Vec::new());
///
/// struct Transaction;
///
/// impl Teardown<String> for Transaction {
///     async fn teardown(self, exit: Exit<'_, String>) -> Result<(), String> {
///         LOG.lock().unwrap().push(match exit {
///             Exit::Returned => "commit",
///             _ => "rollback",
///         });
///         Ok(())
///     }
/// }
///
/// fn order(dish: &str) -> Result<(), String> {
///     let transaction = Guard::new(Transaction);
///     if dish.is_empty() {
///         return Err("what shall we cook?".to_owned());
///     }
///     Guard::end(transaction)
/// }
///
/// assert!(order("soup").is_ok());
/// assert!(order("").is_err());
/// assert_eq!(*LOG.lock().unwrap(), ["commit", "rollback"]);
/// ```
#[must_use = "the scope ends when the guard is dropped"]
pub struct Guard<R: Teardown<E>, E = Infallible> {
    /// `None` only in its drop, and after `end` and `into_inner`.
    resource: Option<R>,
    /// What the unwind is that drops this, where that is known.
    cancelled: Option<bool>,
    /// Whether this was made in a destructor that runs because of an unwind.
    made_in_unwind: bool,
    _error: PhantomData<fn(E)>,
}

impl<R: Teardown<E>, E> Guard<R, E> {
    /// Begins a scope with `resource`.
    ///
    /// As for [`with`], an async setup is awaited before it.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::cell::Cell;
    /// use std::convert::Infallible;
    ///
    /// use greenhack::guard::{Exit, Guard, Teardown};
    ///
    /// struct Door<'a>(&'a Cell<bool>);
    ///
    /// impl Teardown for Door<'_> {
    ///     async fn teardown(self, _: Exit<'_>) -> Result<(), Infallible> {
    ///         self.0.set(false);
    ///         Ok(())
    ///     }
    /// }
    ///
    /// let is_open = Cell::new(true);
    /// {
    ///     let door = Guard::new(Door(&is_open));
    ///     // It derefs to the resource.
    ///     assert!(door.0.get());
    /// }
    /// assert!(!is_open.get());
    /// ```
    pub fn new(resource: R) -> Self {
        Guard {
            resource: Some(resource),
            cancelled: None,
            made_in_unwind: thread::panicking(),
            _error: PhantomData,
        }
    }

    /// Suspends the calling plain function for the teardown, with
    /// [`Exit::Returned`].
    ///
    /// An associated function, so that it does not hide a method of the resource.
    ///
    /// # Cancel safety
    ///
    /// If the run is cancelled meanwhile, the teardown goes on, and the code after
    /// this call meets the cancellation at its next wait.
    ///
    /// # Panics
    ///
    /// As [`await_sync`], when the resource has been dropped.
    ///
    /// # Errors
    ///
    /// With the error of the teardown.
    ///
    /// # Examples
    ///
    /// ```
    /// use greenhack::guard::{Exit, Guard, Teardown};
    ///
    /// struct Door;
    ///
    /// impl Teardown<&'static str> for Door {
    ///     async fn teardown(self, exit: Exit<'_, &'static str>) -> Result<(), &'static str> {
    ///         assert!(matches!(exit, Exit::Returned));
    ///         Err("it does not shut")
    ///     }
    /// }
    ///
    /// assert_eq!(Guard::end(Guard::new(Door)), Err("it does not shut"));
    /// ```
    #[track_caller]
    pub fn end(guard: Self) -> Result<(), E> {
        guard.tear_down(Exit::Returned)
    }

    /// Gives the resource back, without a teardown.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::convert::Infallible;
    ///
    /// use greenhack::guard::{Exit, Guard, Teardown};
    ///
    /// #[derive(Debug, PartialEq)]
    /// struct Door;
    ///
    /// impl Teardown for Door {
    ///     async fn teardown(self, _: Exit<'_>) -> Result<(), Infallible> {
    ///         unreachable!("it stays open")
    ///     }
    /// }
    ///
    /// let guard: Guard<Door> = Guard::new(Door);
    /// assert_eq!(Guard::into_inner(guard), Door);
    /// ```
    pub fn into_inner(mut guard: Self) -> R {
        guard.take()
    }

    fn take(&mut self) -> R {
        self.resource.take().expect("it is taken once")
    }

    /// Awaits the teardown where that may fail, and panic.
    #[track_caller]
    fn tear_down(mut self, exit: Exit<'_, E>) -> Result<(), E> {
        let resource = self.take();
        // Not interrupted by a cancellation, only by the end of the budget.
        match await_in_drop(async { resource.teardown(exit).await }) {
            Some(ended) => ended,
            None => {
                // The cancellation, or the panic of a wait in the wrong place.
                await_sync(async {});
                panic!(
                    "the teardown of a scope could not suspend here; let the scope end outside \
                     of `greenhack::no_suspend`, and of the guard of `Handle::enter()`"
                );
            }
        }
    }
}

impl<R: Teardown<E>, E> Drop for Guard<R, E> {
    fn drop(&mut self) {
        let Some(resource) = self.resource.take() else {
            return;
        };
        let unwinding = thread::panicking();
        let exit = match self.cancelled {
            Some(true) => Exit::Cancelled,
            Some(false) => Exit::Panicked,
            None if !unwinding || self.made_in_unwind => Exit::Dropped,
            None if is_cancelled() => Exit::Cancelled,
            None => Exit::Panicked,
        };
        let teardown = || await_in_drop(async { resource.teardown(exit).await });
        if !unwinding {
            teardown();
        } else if let Err(payload) = catch_unwind(AssertUnwindSafe(teardown)) {
            // A panic that leaves a destructor in an unwind aborts. The first one
            // goes on.
            discard(payload);
        }
    }
}

/// Drops what a panic carries that nobody hears of, whatever its destructor does.
pub(crate) fn discard(payload: Box<dyn std::any::Any + Send>) {
    if let Err(another) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        forget(another);
    }
}

impl<R: Teardown<E>, E> Deref for Guard<R, E> {
    type Target = R;

    fn deref(&self) -> &R {
        self.resource.as_ref().expect("it is there until the drop")
    }
}

impl<R: Teardown<E>, E> DerefMut for Guard<R, E> {
    fn deref_mut(&mut self) -> &mut R {
        self.resource.as_mut().expect("it is there until the drop")
    }
}

impl<R: Teardown<E> + fmt::Debug, E> fmt::Debug for Guard<R, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Guard").field(&self.resource).finish()
    }
}
