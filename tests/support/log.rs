//! What happened, in order.

use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;

/// A list of events that is shared by all who write to it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Log(Rc<RefCell<Vec<String>>>);

impl Log {
    pub(crate) fn add(&self, event: &str) {
        self.0.borrow_mut().push(event.to_owned());
    }

    /// Makes a value whose drop is an event that tells where it happens.
    pub(crate) fn mark(&self, name: &'static str) -> Mark {
        Mark {
            name,
            log: self.clone(),
        }
    }

    /// Asserts that this is what happened so far.
    #[track_caller]
    pub(crate) fn is(&self, expected: &[&str]) {
        assert_eq!(*self.0.borrow(), expected);
    }
}

/// Adds to its log when it is dropped.
#[derive(Debug)]
pub(crate) struct Mark {
    name: &'static str,
    log: Log,
}

impl Mark {
    pub(crate) fn log(&self) -> &Log {
        &self.log
    }

    /// A future that owns the mark.
    pub(crate) async fn then<F: Future>(self, future: F) -> F::Output {
        let _mark = self;
        future.await
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        let place = if greenhack::in_context() {
            "in a run"
        } else {
            "outside"
        };
        self.log.add(&format!("{} {place}", self.name));
    }
}
