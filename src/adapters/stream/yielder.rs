//! The queue between a generator and its stream.
//!
//! ```text
//!   the stream                          the generator
//!   ──────────                          ─────────────
//!   poll_next
//!     ask: who yielded last may go on ─▶  yield_ returns
//!     poll the run                        ...
//!                                         yield_(item)
//!                          queue ◀────────  push, wake the stream, wait
//!     take the item
//! ```
//!
//! A generator can yield from several coroutines at once, where it has made some
//! below it. Each has one item in the queue at most, and goes on when that has
//! been taken and another is asked for.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread;

use crate::await_sync;

/// What a generator yields its items to, see [`generate`](super::generate).
///
/// It stays in the generator: it is lent, and not to other threads.
///
/// # Examples
///
/// ```
/// use futures::StreamExt;
/// use greenhack::stream::{Yielder, generate_local};
///
/// struct Tree(Vec<Tree>, u32);
///
/// /// It yields from as deep as it likes.
/// fn visit(tree: &Tree, yielder: &Yielder<u32>) {
///     tree.0.iter().for_each(|child| visit(child, yielder));
///     yielder.yield_(tree.1);
/// }
///
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let tree = Tree(vec![Tree(vec![], 1), Tree(vec![], 2)], 3);
/// let numbers = generate_local(move |yielder| visit(&tree, yielder));
/// assert_eq!(numbers.collect::<Vec<_>>().await, [1, 2, 3]);
/// # });
/// ```
pub struct Yielder<T> {
    shared: Arc<Shared<T>>,
    /// To yield from another thread would block that thread.
    _not_send: PhantomData<*const ()>,
}

impl<T> Yielder<T> {
    pub(super) fn new(shared: Arc<Shared<T>>) -> Self {
        Yielder {
            shared,
            _not_send: PhantomData,
        }
    }

    /// Suspends the generator until `item` has been taken and the next is asked
    /// for.
    ///
    /// # Cancel safety
    ///
    /// If the stream is dropped, so is `item`, unless it has been taken, and the
    /// generator is cancelled here. In a destructor, and in code that is
    /// [shielded](crate::shield), this returns instead, as if the item had been
    /// taken.
    ///
    /// # Panics
    ///
    /// As [`await_sync`].
    ///
    /// # Examples
    ///
    /// ```
    /// use std::cell::Cell;
    /// use std::rc::Rc;
    ///
    /// use futures::StreamExt;
    /// use greenhack::stream::generate_local;
    ///
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// let made = Rc::new(Cell::new(0));
    /// let mut numbers = generate_local({
    ///     let made = made.clone();
    ///     move |yielder| {
    ///         for number in 1.. {
    ///             made.set(number);
    ///             yielder.yield_(number);
    ///         }
    ///     }
    /// });
    /// assert_eq!(numbers.next().await, Some(1));
    /// // The second is not made before it is asked for.
    /// assert_eq!(made.get(), 1);
    /// assert_eq!(numbers.next().await, Some(2));
    /// # });
    /// ```
    #[track_caller]
    pub fn yield_(&self, item: T) {
        let unwinding = thread::panicking();
        if unwinding && self.shared.lock().closed {
            // Nobody wants it, and a destructor that need not wait should not.
            return;
        }
        await_sync(Yielding {
            shared: &self.shared,
            item: Some(item),
            ticket: None,
            unwinding,
            saw_end: false,
        });
    }
}

impl<T> fmt::Debug for Yielder<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Yielder").finish_non_exhaustive()
    }
}

/// The wait of one `yield_`.
struct Yielding<'a, T> {
    shared: &'a Shared<T>,
    /// Until it is in the queue.
    item: Option<T>,
    /// Since it is in the queue.
    ticket: Option<u64>,
    /// Whether this is in a destructor that runs because of an unwind.
    unwinding: bool,
    saw_end: bool,
}

impl<T> Unpin for Yielding<'_, T> {}

impl<T> Future for Yielding<'_, T> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let waker = cx.waker().clone();
        let mut queue = this.shared.lock();
        if queue.closed && (this.unwinding || queue.run_has_heard()) {
            drop(queue);
            if cfg!(panic = "abort") {
                // It can't be cancelled, and may be without an end.
                return Poll::Pending;
            }
            // A run that is cancelled hears of it when it is polled again. If it
            // comes back here, this wait can't be interrupted.
            if this.unwinding || this.saw_end {
                return Poll::Ready(());
            }
            this.saw_end = true;
            waker.wake();
            return Poll::Pending;
        }
        let mut consumer = None;
        let ticket = match this.ticket {
            Some(ticket) => ticket,
            None => {
                let item = this.item.take().expect("an item is pushed once");
                consumer = queue.consumer.take();
                *this.ticket.insert(queue.push(item))
            }
        };
        let released = queue.is_released(ticket);
        // Whatever the drop of a waker does, it does it outside of the lock.
        let stale = if released {
            Some(waker)
        } else {
            queue.wait(ticket, waker)
        };
        drop(queue);
        drop(stale);
        if let Some(consumer) = consumer {
            consumer.wake();
        }
        if released {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}

impl<T> Drop for Yielding<'_, T> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            let retracted = self.shared.lock().retract(ticket);
            drop(retracted);
        }
    }
}

/// What the stream and its generator share. Items and wakers are neither made
/// nor dropped under the lock: that is other people's code.
pub(super) struct Shared<T>(Mutex<Queue<T>>);

impl<T> Default for Shared<T> {
    fn default() -> Self {
        Shared(Mutex::new(Queue {
            items: VecDeque::new(),
            tickets: 0,
            taken: None,
            asked: false,
            closed: false,
            closing: None,
            waiting: Vec::new(),
            consumer: None,
        }))
    }
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, Queue<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for an item, and returns who may go on.
    pub(super) fn ask(&self) -> Option<Waker> {
        let mut queue = self.lock();
        // In place, what is yielded in this poll need not wake the task.
        let (stale, released) = (queue.consumer.take(), queue.ask());
        drop(queue);
        drop(stale);
        released
    }

    /// Lets nobody wait for the stream from now on. The run is to be dropped next, on
    /// this thread.
    pub(super) fn close(&self) {
        let mut queue = self.lock();
        queue.closed = true;
        queue.closing = Some(this_thread());
    }

    /// Wakes who waits, to see that the stream is gone, and its run was told.
    pub(super) fn wake_all(&self) {
        let mut queue = self.lock();
        queue.closing = None;
        let waiting = std::mem::take(&mut queue.waiting);
        drop(queue);
        waiting.into_iter().for_each(|(_, waker)| waker.wake());
    }

    /// Takes an item, or leaves word with whoever yields the next.
    pub(super) fn poll_take(&self, cx: &mut Context<'_>) -> Poll<T> {
        let mut item = self.lock().take();
        if item.is_none() {
            let waker = cx.waker().clone();
            let mut queue = self.lock();
            item = queue.take();
            let stale = match item {
                Some(_) => Some(waker),
                None => queue.consumer.replace(waker),
            };
            drop(queue);
            drop(stale);
        }
        item.map_or(Poll::Pending, Poll::Ready)
    }
}

struct Queue<T> {
    /// What has been yielded and not taken, with the ticket of its `yield_`.
    items: VecDeque<(u64, T)>,
    tickets: u64,
    /// The ticket of the item that was taken last, until the next is asked for.
    taken: Option<u64>,
    /// An item is asked for.
    asked: bool,
    /// The stream is gone. Stays set.
    closed: bool,
    /// The thread that has closed it, and is about to drop the run.
    closing: Option<usize>,
    /// Who waits in a `yield_`: a few at most.
    waiting: Vec<(u64, Waker)>,
    /// Who waits for an item.
    consumer: Option<Waker>,
}

impl<T> Queue<T> {
    fn push(&mut self, item: T) -> u64 {
        let ticket = self.tickets;
        self.tickets += 1;
        self.items.push_back((ticket, item));
        ticket
    }

    /// Whether the generator, which is polled here, is cancelled already if it can be. On
    /// a worker it may not have heard yet that the stream is gone, and a `yield_` that
    /// returned would tell it that its item was taken.
    fn run_has_heard(&self) -> bool {
        self.closing.is_none_or(|thread| thread == this_thread())
    }

    fn is_released(&self, ticket: u64) -> bool {
        self.taken != Some(ticket) && self.items.iter().all(|(other, _)| *other != ticket)
    }

    /// Leaves word for when the ticket is released, and returns the former.
    fn wait(&mut self, ticket: u64, waker: Waker) -> Option<Waker> {
        let former = self.stop_waiting(ticket);
        self.waiting.push((ticket, waker));
        former
    }

    fn stop_waiting(&mut self, ticket: u64) -> Option<Waker> {
        let index = self
            .waiting
            .iter()
            .position(|(other, _)| *other == ticket)?;
        Some(self.waiting.swap_remove(index).1)
    }

    /// Takes an item back, and forgets who has yielded it.
    fn retract(&mut self, ticket: u64) -> (Option<(u64, T)>, Option<Waker>) {
        let index = self.items.iter().position(|(other, _)| *other == ticket);
        let item = index.and_then(|index| self.items.remove(index));
        (item, self.stop_waiting(ticket))
    }

    /// Asks for an item, and returns who may go on.
    fn ask(&mut self) -> Option<Waker> {
        if self.asked {
            return None;
        }
        self.asked = true;
        let taken = self.taken.take()?;
        self.stop_waiting(taken)
    }

    /// Takes an item that was asked for.
    fn take(&mut self) -> Option<T> {
        let (ticket, item) = self.items.pop_front()?;
        self.taken = Some(ticket);
        self.asked = false;
        Some(item)
    }
}

/// What no other thread has, also while the thread's locals are destroyed.
fn this_thread() -> usize {
    thread_local! {
        static MARK: u8 = const { 0 };
    }
    MARK.with(|mark| std::ptr::from_ref(mark).addr())
}

#[cfg(test)]
mod tests {
    use std::task::Wake;

    use futures::FutureExt;

    use super::*;

    struct Counter(Mutex<u32>);

    impl Wake for Counter {
        fn wake(self: Arc<Self>) {
            *self.0.lock().unwrap() += 1;
        }
    }

    fn yielding<T>(shared: &Shared<T>, item: T) -> Yielding<'_, T> {
        Yielding {
            shared,
            item: Some(item),
            ticket: None,
            unwinding: false,
            saw_end: false,
        }
    }

    #[test]
    fn several_yielders_take_turns_and_go_on_one_by_one() {
        let shared = Shared::default();
        let counter = Arc::new(Counter(Mutex::new(0)));
        let waker = Waker::from(counter.clone());
        let mut cx = Context::from_waker(&waker);
        let (mut first, mut second) = (yielding(&shared, 1), yielding(&shared, 2));

        assert!(shared.ask().is_none());
        assert!(shared.poll_take(&mut cx).is_pending());
        assert!(first.poll_unpin(&mut cx).is_pending());
        assert_eq!(*counter.0.lock().unwrap(), 1);
        assert!(second.poll_unpin(&mut cx).is_pending());
        // Nobody waits for the second.
        assert_eq!(*counter.0.lock().unwrap(), 1);
        assert_eq!(shared.poll_take(&mut cx), Poll::Ready(1));
        // Taken, but the next is not asked for.
        assert!(first.poll_unpin(&mut cx).is_pending());
        assert!(shared.ask().is_some());
        assert!(first.poll_unpin(&mut cx).is_ready());
        assert!(second.poll_unpin(&mut cx).is_pending());
        assert_eq!(shared.poll_take(&mut cx), Poll::Ready(2));
        assert!(shared.ask().is_some());
        assert!(second.poll_unpin(&mut cx).is_ready());
        assert!(shared.lock().waiting.is_empty());
    }

    #[test]
    fn a_yield_waits_until_its_run_was_told_that_the_stream_is_gone() {
        let shared = Shared::default();
        let counter = Arc::new(Counter(Mutex::new(0)));
        let waker = Waker::from(counter.clone());
        let mut cx = Context::from_waker(&waker);
        let mut waits = yielding(&shared, 1);
        assert!(waits.poll_unpin(&mut cx).is_pending());
        // On another thread, which drops the run next.
        thread::scope(|s| s.spawn(|| shared.close()).join().unwrap());
        let mut comes = yielding(&shared, 2);
        for _ in 0..3 {
            assert!(waits.poll_unpin(&mut cx).is_pending());
            assert!(comes.poll_unpin(&mut cx).is_pending());
        }
        assert_eq!(*counter.0.lock().unwrap(), 0);
        // It has. A run that can't be cancelled goes on.
        shared.wake_all();
        assert_eq!(*counter.0.lock().unwrap(), 2);
        for yielding in [&mut waits, &mut comes] {
            assert!(yielding.poll_unpin(&mut cx).is_pending());
            assert!(yielding.poll_unpin(&mut cx).is_ready());
        }
    }

    #[test]
    fn a_yield_that_is_dropped_takes_its_item_back() {
        let shared = Shared::default();
        let mut cx = Context::from_waker(Waker::noop());
        let mut first = yielding(&shared, 1);
        assert!(first.poll_unpin(&mut cx).is_pending());
        drop(first);
        assert!(shared.lock().waiting.is_empty());
        assert!(shared.poll_take(&mut cx).is_pending());
        // Taken already: there is nothing to take back.
        let mut second = yielding(&shared, 2);
        assert!(second.poll_unpin(&mut cx).is_pending());
        assert_eq!(shared.poll_take(&mut cx), Poll::Ready(2));
        drop(second);
        assert!(shared.ask().is_none());
        assert!(shared.poll_take(&mut cx).is_pending());
    }
}
