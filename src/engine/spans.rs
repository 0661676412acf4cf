//! Keeps tracing spans with the coroutine that entered them.
//!
//! Plain code may hold a span open while it waits. A subscriber keeps its open
//! spans per thread, so when the task's poll returns they are exited, innermost
//! first, down to the span that was current when the poll began (the floor);
//! the next poll enters them again. Polls of the awaited future lie in between
//! and see the spans of the code that awaits it.
//!
//! The thread's default subscriber is treated likewise: if plain code has set
//! one for a scope that waits, it is set aside when the poll returns, and back
//! at the next. Spans are looked for in the subscribers that were the default
//! at the begin and at the end of a poll, and in those that had some before.
//!
//! All of this is complete for subscribers with a registry of
//! `tracing_subscriber`. Others may not tell what their current span is, and
//! then nothing is exited. Two of them can't be told apart, and are taken for
//! the same.
//!
//! A registry does not show a span as current that was entered before on the
//! same thread. So a span that is open around the run and entered again in it
//! is invisible; such spans are uncovered in the registry itself, below its
//! layers.
//!
//! A subscriber is called while tracing lends the thread's default. A wait in
//! there would keep it for ever, and is refused.
//!
//! # Invariants
//!
//! - S1 What [`Spans::unmount`] exits, the next [`Spans::mount`] enters, in
//!   the reverse order and with the same subscriber. The guards on the
//!   suspended stack keep the spans alive meanwhile.
//! - S2 The default subscriber of the thread is the same before and after a
//!   poll.
#![forbid(unsafe_code)]

#[cfg(feature = "tracing")]
pub(crate) use enabled::{Base, Spans, Unnamed, scoped_default};

#[cfg(not(feature = "tracing"))]
pub(crate) use disabled::{Base, Spans, Unnamed};

#[cfg(feature = "tracing")]
mod enabled {
    use std::cell::{Cell, RefCell};
    use std::mem::forget;
    use std::ptr;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Mutex, PoisonError};

    use tracing::Subscriber;
    use tracing::dispatcher::{DefaultGuard, Dispatch, get_default, set_default};
    use tracing::span::Id;
    use tracing::subscriber::NoSubscriber;
    use tracing_subscriber::Registry;
    use tracing_subscriber::registry::{LookupSpan, SpanData};

    use crate::engine::mounts::FirstPanic;

    /// The most spans that are exited at the end of a poll. More means that
    /// the subscriber does not exit them.
    const MOST: usize = 1 << 12;

    /// The spans of a coroutine, and its default subscriber.
    pub(crate) struct Spans {
        /// Whether there is anything in `held`, to be looked at first.
        is_holding: Cell<bool>,
        held: RefCell<Held>,
        /// The scoped default around the last poll, if it was one. Kept, since it
        /// is mostly that of the next.
        around: RefCell<Option<Dispatch>>,
    }

    /// What the coroutine holds open.
    #[derive(Default)]
    struct Held {
        open: Vec<Open>,
        /// Set while the coroutine's own default is set aside. Its drop sets it
        /// again.
        aside: Option<DefaultGuard>,
        /// Whether a span was ever uncovered.
        looks_below: bool,
    }

    /// The spans of one subscriber.
    struct Open {
        owner: Owner,
        /// The span that was current when the poll began.
        floor: Option<Id>,
        /// The spans that were covered then.
        covered: Vec<Id>,
        /// The exited spans, innermost first. Empty during the poll.
        ids: Vec<Id>,
    }

    /// Spans that were exited, innermost first, each with its subscriber.
    #[derive(Clone, Debug, Default)]
    pub(crate) struct Unnamed(Vec<(Dispatch, Vec<Id>)>);

    impl Unnamed {
        /// Their names, outermost first, where the subscriber has a registry. Calls code
        /// of others, in their subscribers and where the last reference to a span goes.
        pub(crate) fn into_names(self) -> Vec<&'static str> {
            let names = self.0.iter().flat_map(|(dispatch, ids)| {
                let registry = registry(dispatch);
                ids.iter().rev().filter_map(move |id| {
                    let span = registry?.span_data(id)?;
                    Some(span.metadata().name())
                })
            });
            names.collect()
        }
    }

    /// What was current when the poll began.
    pub(crate) struct Base {
        /// Where tracing has the default `Dispatch`.
        address: usize,
        /// Whether it is not the one of the process, but in `Spans::around`.
        is_scoped: bool,
        /// Where the registry of a scoped default is.
        place: Option<usize>,
        floor: Option<Id>,
        /// Whether it was found to be the same when the coroutine suspended.
        is_checked: Cell<bool>,
    }

    impl Spans {
        pub(crate) fn new() -> Spans {
            Spans {
                is_holding: Cell::new(false),
                held: RefCell::default(),
                around: RefCell::default(),
            }
        }

        /// Enters the coroutine's spans.
        #[inline]
        pub(crate) fn mount(&self, base: &mut Base, panics: &mut FirstPanic) {
            let mut last = None;
            panics.catch(|| {
                get_default(|dispatch| {
                    last = base.take(dispatch, &self.around);
                    // It may panic, and the rest is needed then as well.
                    base.floor = current(dispatch);
                });
            });
            panics.catch(|| drop(last));
            if base.is_scoped && base.address != SCOPED.get() {
                note_scoped(base.address);
            }
            if self.is_holding.get() {
                self.enter(base, panics);
            }
        }

        #[cold]
        fn enter(&self, base: &Base, panics: &mut FirstPanic) {
            let mut held = self.held.borrow_mut();
            let Held {
                open,
                aside,
                looks_below,
            } = &mut *held;
            if *looks_below {
                know(open, &self.owner_around(base), None);
            }
            // The floors come first, before anything lies on them.
            for open in &mut *open {
                open.floor = panics.catch(|| current(&open.owner.dispatch)).flatten();
                if *looks_below {
                    open.look_below(panics);
                }
            }
            let aside = aside.take();
            panics.catch(|| drop(aside));
            for open in open {
                open.enter(panics);
            }
        }

        /// Those that were exited. Calls no code of others.
        pub(crate) fn exited(&self) -> Unnamed {
            let Ok(held) = self.held.try_borrow() else {
                return Unnamed::default();
            };
            let open = held.open.iter();
            Unnamed(
                open.map(|open| (open.owner.dispatch.clone(), open.ids.clone()))
                    .collect(),
            )
        }

        /// Exits the coroutine's spans.
        #[inline]
        pub(crate) fn unmount(&self, base: &Base, panics: &mut FirstPanic) {
            let nothing = !self.is_holding.get()
                && (base.is_checked.get()
                    || panics.catch(|| base.is_unchanged()).unwrap_or_default());
            if !nothing {
                self.exit(base, panics);
            }
        }

        #[cold]
        fn exit(&self, base: &Base, panics: &mut FirstPanic) {
            let outside = self.owner_around(base);
            let inside = get_default(Owner::of_default);
            let is_own = !inside.may_be(&outside);
            let mut held = self.held.borrow_mut();
            let Held {
                open,
                aside,
                looks_below,
            } = &mut *held;
            if is_own {
                know(open, &outside, base.floor.clone());
                know(open, &inside, None);
            } else {
                know(open, &inside, base.floor.clone());
            }
            for open in &mut *open {
                *looks_below |= open.exit(panics);
            }
            open.retain(|open| !open.ids.is_empty());
            if is_own {
                *aside = panics.catch(|| set_default(&outside.dispatch));
            }
            self.is_holding
                .set(!open.is_empty() || aside.is_some() || *looks_below);
        }
    }

    impl Spans {
        /// The subscriber that was the default when the poll began.
        fn owner_around(&self, base: &Base) -> Owner {
            let scoped = self.around.borrow().clone().filter(|_| base.is_scoped);
            Owner {
                dispatch: scoped.unwrap_or_else(|| GLOBAL.get()),
                is_global: !base.is_scoped,
            }
        }

        /// Whether the coroutine has just suspended in a subscriber, which is
        /// called while the thread's default is lent.
        #[inline]
        pub(crate) fn is_dispatching(&self, base: &Base, panics: &mut FirstPanic) -> bool {
            let unchanged = panics.catch(|| base.is_unchanged()).unwrap_or_default();
            base.is_checked.set(unchanged);
            !unchanged && self.looks_lent(base)
        }

        /// Whether it is as if there were no default, though there was one.
        #[cold]
        fn looks_lent(&self, base: &Base) -> bool {
            if get_default(address) == base.address {
                return false;
            }
            let inside = get_default(Owner::of_default);
            inside.is_global && inside.is_none() && !self.owner_around(base).is_none()
        }
    }

    /// Adds a subscriber if it isn't there.
    fn know(open: &mut Vec<Open>, owner: &Owner, floor: Option<Id>) {
        if !open.iter().any(|open| open.owner.may_be(owner)) {
            open.push(Open {
                owner: owner.clone(),
                floor,
                covered: Vec::new(),
                ids: Vec::new(),
            });
        }
    }

    impl Base {
        pub(crate) fn new() -> Base {
            Base {
                address: 0,
                is_scoped: false,
                place: None,
                floor: None,
                is_checked: Cell::new(false),
            }
        }

        /// Takes what `get_default` lends. Returns what is no longer `around`, to be
        /// dropped where it is not lent.
        #[inline]
        fn take(
            &mut self,
            dispatch: &Dispatch,
            around: &RefCell<Option<Dispatch>>,
        ) -> Option<Dispatch> {
            self.address = address(dispatch);
            if is_global(dispatch) {
                return around.take();
            }
            self.is_scoped = true;
            self.place = place(dispatch);
            // While a registry is kept, no other can be in its place.
            let is_known = (around.borrow().as_ref())
                .is_some_and(|known| self.place.is_some() && place(known) == self.place);
            if is_known {
                None
            } else {
                around.replace(Some(dispatch.clone()))
            }
        }

        /// Whether all is as when the poll began.
        #[inline]
        fn is_unchanged(&self) -> bool {
            get_default(|dispatch| {
                address(dispatch) == self.address
                    && (!self.is_scoped || place(dispatch) == self.place)
                    && current(dispatch) == self.floor
                    && (self.floor.as_ref()).is_none_or(|floor| covered(dispatch, floor).is_empty())
            })
        }
    }

    impl Drop for Held {
        fn drop(&mut self) {
            // The coroutine has forgotten its guard. It has ended, so that its
            // default is nobody's.
            forget(self.aside.take());
        }
    }

    impl Open {
        /// Sees what is covered outside of the coroutine. When a span is
        /// uncovered for the first time, nobody knows who has entered it; if it
        /// is here again, it was somebody else.
        fn look_below(&mut self, panics: &mut FirstPanic) {
            self.covered.clear();
            let dispatch = &self.owner.dispatch;
            let (Some(floor), Some(registry)) = (&self.floor, registry(dispatch)) else {
                return;
            };
            self.covered = covered(dispatch, floor);
            for id in &self.covered {
                if take_one(&mut self.ids, id) {
                    // The layers have heard of an exit.
                    panics.catch(|| dispatch.enter(id));
                    registry.exit(id);
                }
            }
        }

        fn enter(&mut self, panics: &mut FirstPanic) {
            let registry = registry(&self.owner.dispatch);
            while let Some(id) = self.ids.pop() {
                // It may have closed, if its guard was forgotten.
                if registry.is_none_or(|registry| registry.span_data(&id).is_some()) {
                    panics.catch(|| self.owner.dispatch.enter(&id));
                }
            }
        }

        /// Returns whether a span was uncovered.
        fn exit(&mut self, panics: &mut FirstPanic) -> bool {
            let mut reached = None;
            for _ in 0..MOST {
                reached = panics.catch(|| current(&self.owner.dispatch)).flatten();
                match reached.take_if(|id| Some(&*id) != self.floor.as_ref()) {
                    Some(id) => self.leave(id, panics),
                    None => break,
                }
            }
            let Some(floor) = reached else {
                return false;
            };
            let mut covered = covered(&self.owner.dispatch, &floor);
            for id in &self.covered {
                take_one(&mut covered, id);
            }
            let uncovered = !covered.is_empty();
            covered.into_iter().for_each(|id| self.leave(id, panics));
            uncovered
        }

        fn leave(&mut self, id: Id, panics: &mut FirstPanic) {
            panics.catch(|| self.owner.dispatch.exit(&id));
            self.ids.push(id);
        }
    }

    /// Returns whether it was there.
    fn take_one(ids: &mut Vec<Id>, id: &Id) -> bool {
        let index = ids.iter().position(|other| other == id);
        index.map(|index| ids.remove(index)).is_some()
    }

    /// A subscriber that was the default of a thread.
    #[derive(Clone)]
    struct Owner {
        dispatch: Dispatch,
        /// Whether it was the default because no other was set for the thread.
        is_global: bool,
    }

    impl Owner {
        /// Takes what `get_default` lends.
        fn of_default(dispatch: &Dispatch) -> Owner {
            Owner {
                dispatch: dispatch.clone(),
                is_global: is_global(dispatch),
            }
        }

        /// Whether it is the same subscriber, as far as can be told.
        fn may_be(&self, other: &Owner) -> bool {
            (self.is_global && other.is_global) || may_be_same(&self.dispatch, &other.dispatch)
        }

        fn is_none(&self) -> bool {
            self.dispatch.is::<NoSubscriber>()
        }
    }

    /// Where the registry is that the subscriber is made of. A `Dispatch` does
    /// not tell where the subscriber is.
    fn place(dispatch: &Dispatch) -> Option<usize> {
        match registry(dispatch) {
            Some(registry) => Some(ptr::from_ref(registry).addr()),
            None => dispatch.is::<NoSubscriber>().then_some(0),
        }
    }

    fn may_be_same(one: &Dispatch, other: &Dispatch) -> bool {
        place(one) == place(other)
    }

    fn registry(dispatch: &Dispatch) -> Option<&Registry> {
        dispatch.downcast_ref()
    }

    /// Returns the spans that are entered once more than it seems. `current` is
    /// the innermost that seems so.
    fn covered(dispatch: &Dispatch, current: &Id) -> Vec<Id> {
        let mut covered = Vec::new();
        if let Some(registry) = registry(dispatch) {
            uncover(registry, current, &mut covered);
            for id in &covered {
                registry.enter(id);
            }
        }
        covered
    }

    /// Exits all spans from `id` on, and enters each again once. The others are
    /// added to `covered`. The layers don't hear of it.
    fn uncover(registry: &Registry, id: &Id, covered: &mut Vec<Id>) {
        registry.exit(id);
        loop {
            match registry.current_span().id() {
                Some(same) if same == id => {
                    registry.exit(id);
                    covered.push(id.clone());
                }
                Some(next) => break uncover(registry, next, covered),
                None => break,
            }
        }
        registry.enter(id);
    }

    #[inline]
    fn current(dispatch: &Dispatch) -> Option<Id> {
        dispatch.current_span().into_inner().map(|(id, _)| id)
    }

    #[inline]
    fn address(dispatch: &Dispatch) -> usize {
        ptr::from_ref(dispatch).addr()
    }

    /// Returns the default subscriber if it is one of this thread, and not that
    /// of the process.
    pub(crate) fn scoped_default() -> Option<Dispatch> {
        let owner = get_default(Owner::of_default);
        (!owner.is_global).then_some(owner.dispatch)
    }

    /// Whether `dispatch`, which `get_default` lends, is the default because no
    /// other was set for this thread. May be wrong in saying no.
    #[inline]
    fn is_global(dispatch: &Dispatch) -> bool {
        let address = address(dispatch);
        address == GLOBAL.address.load(Ordering::Relaxed)
            || (address != SCOPED.get() && GLOBAL.find(dispatch))
    }

    /// Notes where this thread has a default of its own, if `address` is there: it
    /// may also be the global one, of which is not known yet that it is.
    #[cold]
    fn note_scoped(address: usize) {
        // There is a scoped default somewhere, so that tracing is not switched on
        // by this.
        let _none = set_default(&Dispatch::none());
        if get_default(self::address) == address {
            SCOPED.set(address);
        }
    }

    thread_local! {
        /// Where this thread has a default of its own, once that was seen.
        static SCOPED: Cell<usize> = const { Cell::new(0) };
    }

    /// The default subscriber of the process.
    static GLOBAL: Global = Global {
        address: AtomicUsize::new(0),
        dispatch: Mutex::new(None),
    };

    struct Global {
        address: AtomicUsize,
        dispatch: Mutex<Option<Dispatch>>,
    }

    impl Global {
        /// Where no thread has a default of its own, a nested `get_default` lends
        /// the same `Dispatch`; otherwise it lends an empty one. The global one
        /// has an address of its own, which is remembered from the first case.
        #[cold]
        fn find(&self, dispatch: &Dispatch) -> bool {
            let address = address(dispatch);
            let is_global = address == get_default(self::address);
            if is_global {
                let mut known = self.dispatch.lock().unwrap_or_else(PoisonError::into_inner);
                // Once there is one, it stays.
                if !dispatch.is::<NoSubscriber>() || known.is_none() {
                    *known = Some(dispatch.clone());
                    self.address.store(address, Ordering::Relaxed);
                }
            }
            is_global
        }

        fn get(&self) -> Dispatch {
            let known = self.dispatch.lock().unwrap_or_else(PoisonError::into_inner);
            known.clone().unwrap_or_else(Dispatch::none)
        }
    }
}

#[cfg(not(feature = "tracing"))]
mod disabled {
    use crate::engine::mounts::FirstPanic;

    pub(crate) struct Spans;

    pub(crate) struct Base;

    /// Nothing.
    #[derive(Clone, Debug, Default)]
    pub(crate) struct Unnamed;

    impl Unnamed {
        pub(crate) fn into_names(self) -> Vec<&'static str> {
            Vec::new()
        }
    }

    impl Base {
        pub(crate) fn new() -> Base {
            Base
        }
    }

    impl Spans {
        pub(crate) fn new() -> Spans {
            Spans
        }

        pub(crate) fn exited(&self) -> Unnamed {
            Unnamed
        }

        #[inline(always)]
        pub(crate) fn is_dispatching(&self, Base: &Base, _: &mut FirstPanic) -> bool {
            false
        }

        #[inline(always)]
        pub(crate) fn mount(&self, Base: &mut Base, _: &mut FirstPanic) {}

        #[inline(always)]
        pub(crate) fn unmount(&self, Base: &Base, _: &mut FirstPanic) {}
    }
}
