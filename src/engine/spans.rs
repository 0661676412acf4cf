//! Keeps tracing spans with the coroutine that entered them.
//!
//! Plain code may hold a span open while it waits. A subscriber keeps its open
//! spans per thread, so when the task's poll returns they are exited, innermost
//! first, down to the span that was current when the poll began; the next poll
//! enters them again. Polls of the awaited future lie in between and see the
//! spans of the code that awaits it.
//!
//! # Invariants
//!
//! - S1 What [`Spans::unmount`] exits, the next [`Spans::mount`] enters, in
//!   the reverse order and with the same dispatcher. The guards on the
//!   suspended stack keep the spans alive meanwhile.
#![forbid(unsafe_code)]

#[cfg(feature = "tracing")]
pub(crate) use enabled::{Base, Spans};

#[cfg(not(feature = "tracing"))]
pub(crate) use disabled::{Base, Spans};

#[cfg(feature = "tracing")]
mod enabled {
    use std::cell::RefCell;

    use tracing::dispatcher::{self, Dispatch};
    use tracing::span::Id;

    /// The spans that a suspended coroutine holds open.
    pub(crate) struct Spans {
        left: RefCell<Left>,
    }

    #[derive(Default)]
    struct Left {
        dispatch: Option<Dispatch>,
        /// Innermost first.
        ids: Vec<Id>,
    }

    /// The span that was current before the coroutine's own.
    pub(crate) struct Base(Option<Id>);

    fn current(dispatch: &Dispatch) -> Option<Id> {
        dispatch.current_span().into_inner().map(|(id, _)| id)
    }

    impl Spans {
        pub(crate) fn new() -> Spans {
            Spans {
                left: RefCell::default(),
            }
        }

        /// Enters the coroutine's spans.
        pub(crate) fn mount(&self) -> Base {
            let base = Base(dispatcher::get_default(current));
            let left = self.left.take();
            if let Some(dispatch) = left.dispatch {
                for id in left.ids.iter().rev() {
                    dispatch.enter(id);
                }
            }
            base
        }

        /// Exits the coroutine's spans.
        pub(crate) fn unmount(&self, base: &Base) {
            dispatcher::get_default(|dispatch| {
                let mut ids = Vec::new();
                loop {
                    let innermost = current(dispatch);
                    match innermost {
                        Some(id) if Some(&id) != base.0.as_ref() => {
                            dispatch.exit(&id);
                            // A subscriber that does not exit it would keep
                            // us here for ever.
                            let stays =
                                current(dispatch).as_ref() == Some(&id) && ids.last() == Some(&id);
                            ids.push(id);
                            if stays {
                                break;
                            }
                        }
                        _ => break,
                    }
                }
                if !ids.is_empty() {
                    self.left.replace(Left {
                        dispatch: Some(dispatch.clone()),
                        ids,
                    });
                }
            });
        }
    }
}

#[cfg(not(feature = "tracing"))]
mod disabled {
    pub(crate) struct Spans;

    pub(crate) struct Base;

    impl Spans {
        pub(crate) fn new() -> Spans {
            Spans
        }

        #[inline(always)]
        pub(crate) fn mount(&self) -> Base {
            Base
        }

        #[inline(always)]
        pub(crate) fn unmount(&self, Base: &Base) {}
    }
}
