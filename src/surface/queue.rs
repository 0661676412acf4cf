//! The queue of runs that no worker has started yet.
//!
//! Work is pulled: a job stays here until a worker has time for it, so a worker
//! that is stuck in a long computation holds up only what it has started.
//!
//! Jobs come in bursts, since a scheduler polls all tasks that are ready before it
//! looks for more. So a push wakes nobody: whoever pushes announces the jobs when he
//! has his next turn, after the others. That wakes a parked worker for each job. If
//! there are fewer, it wakes those whose loop waits for jobs too, and the first that
//! gets there takes the job; a worker that is about to park looks here once more.
//!
//! # Invariants
//!
//! - Q1 A worker that found the queue empty has left its waker here, under the
//!   same lock; the announcement that follows a push takes it, under that lock, or
//!   those of as many others as there are jobs. So a job and a sleeping worker never
//!   miss each other.
//! - Q2 After [`close`](Queue::close) nothing is accepted, and every worker is
//!   told once the queue is empty.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::task::{Context, Poll, Waker};

use crate::ground::sync::{Mutex, MutexGuard};

/// Jobs, and the workers that wait for them.
pub(crate) struct Queue<J> {
    state: Mutex<State<J>>,
}

struct State<J> {
    jobs: VecDeque<J>,
    workers: Vec<Worker>,
    closed: bool,
}

#[derive(Default)]
struct Worker {
    /// Set while its loop waits for jobs.
    waker: Option<Waker>,
    parked: bool,
}

/// What a worker gets.
pub(crate) enum Pulled<J> {
    /// Some jobs.
    Jobs(Vec<J>),
    /// There are jobs, but those that it has started come first.
    Later,
    /// The queue is closed and empty.
    Closed,
}

impl<J> Queue<J> {
    /// Makes a queue for the workers `0..workers`.
    pub(crate) fn new(workers: usize) -> Queue<J> {
        Queue {
            state: Mutex::new(State {
                jobs: VecDeque::new(),
                workers: (0..workers).map(|_| Worker::default()).collect(),
                closed: false,
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<J>> {
        // Nothing in here panics while it holds the lock.
        self.state
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Adds a job, or gives it back if the queue is closed. It must be announced.
    pub(crate) fn push(&self, job: J) -> Result<(), J> {
        let mut state = self.lock();
        if state.closed {
            return Err(job);
        }
        state.jobs.push_back(job);
        Ok(())
    }

    /// Wakes workers for the jobs that are there.
    pub(crate) fn announce(&self) {
        let mut state = self.lock();
        let jobs = state.jobs.len();
        let parked = state.workers.iter_mut().filter(|worker| worker.parked);
        let parked = parked.filter_map(|worker| worker.waker.take());
        let mut wakers: Vec<Waker> = parked.take(jobs).collect();
        if wakers.len() < jobs {
            wakers.extend(state.take_wakers());
        }
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Takes a share of the jobs for `worker`, `most` at most, or leaves its
    /// waker.
    ///
    /// A worker that `has_started` jobs and has not run them yet gets none: the
    /// first of those may keep it for long.
    pub(crate) fn poll_pull(
        &self,
        worker: usize,
        most: usize,
        has_started: bool,
        cx: &mut Context<'_>,
    ) -> Poll<Pulled<J>> {
        let mut state = self.lock();
        if state.jobs.is_empty() {
            if state.closed {
                return Poll::Ready(Pulled::Closed);
            }
            state.workers[worker].waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        if has_started {
            return Poll::Ready(Pulled::Later);
        }
        // A fair share: the others have been woken too.
        let count = state.jobs.len().div_ceil(state.workers.len()).min(most);
        state.workers[worker].waker = None;
        Poll::Ready(Pulled::Jobs(state.jobs.drain(..count).collect()))
    }

    /// How many jobs wait.
    pub(crate) fn len(&self) -> usize {
        self.lock().jobs.len()
    }

    /// Notes that the thread of `worker` is about to park.
    pub(crate) fn park(&self, worker: usize) {
        let mut state = self.lock();
        if state.jobs.is_empty() && !state.closed {
            state.workers[worker].parked = true;
        } else {
            let waker = state.workers[worker].waker.take();
            drop(state);
            waker.into_iter().for_each(Waker::wake);
        }
    }

    /// Notes that the thread of `worker` runs again.
    pub(crate) fn unpark(&self, worker: usize) {
        self.lock().workers[worker].parked = false;
    }

    /// Accepts no more jobs, and tells the workers.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        let wakers = state.take_wakers();
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl<J> State<J> {
    fn take_wakers(&mut self) -> Vec<Waker> {
        self.workers
            .iter_mut()
            .filter_map(|worker| worker.waker.take())
            .collect()
    }
}

#[cfg(all(test, not(greenhack_loom)))]
mod tests {
    use super::*;
    use futures::task::{ArcWake, waker};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl ArcWake for Wakes {
        fn wake_by_ref(wakes: &Arc<Self>) {
            wakes.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    struct Fixture {
        queue: Queue<u32>,
        wakes: Vec<Arc<Wakes>>,
    }

    impl Fixture {
        fn new(workers: usize) -> Self {
            Fixture {
                queue: Queue::new(workers),
                wakes: (0..workers).map(|_| Arc::default()).collect(),
            }
        }

        fn pull(&self, worker: usize) -> Poll<Pulled<u32>> {
            let waker = waker(self.wakes[worker].clone());
            self.queue
                .poll_pull(worker, 4, false, &mut Context::from_waker(&waker))
        }

        fn add(&self, job: u32) {
            self.queue.push(job).unwrap();
            self.queue.announce();
        }

        fn wakes(&self) -> Vec<usize> {
            let count = |wakes: &Arc<Wakes>| wakes.0.load(Ordering::Relaxed);
            self.wakes.iter().map(count).collect()
        }
    }

    #[test]
    fn parked_workers_are_woken_first_one_for_each_job() {
        let f = Fixture::new(3);
        for worker in 0..3 {
            assert!(f.pull(worker).is_pending());
        }
        f.queue.park(1);
        f.queue.park(2);
        f.queue.push(1).unwrap();
        assert_eq!(f.wakes(), [0, 0, 0]);
        f.queue.announce();
        assert_eq!(f.wakes(), [0, 1, 0]);
        // That one has been woken already.
        f.queue.push(2).unwrap();
        f.queue.push(3).unwrap();
        f.queue.announce();
        assert_eq!(f.wakes(), [1, 1, 1]);
        f.queue.announce();
        assert_eq!(f.wakes(), [1, 1, 1]);
    }

    #[test]
    fn nobody_is_woken_for_nothing() {
        let f = Fixture::new(1);
        assert!(f.pull(0).is_pending());
        f.queue.park(0);
        f.queue.announce();
        assert_eq!(f.wakes(), [0]);
    }

    #[test]
    fn a_worker_looks_once_more_before_it_parks() {
        let f = Fixture::new(2);
        assert!(f.pull(0).is_pending());
        f.add(1);
        assert!(f.pull(1).is_ready());
        f.add(2);
        assert!(f.pull(0).is_ready());
        assert!(f.pull(0).is_pending());
        f.queue.park(0);
        f.queue.unpark(0);
        f.add(3);
        let before = f.wakes()[1];
        f.queue.park(1);
        assert_eq!(f.wakes()[1], before, "it waits for nothing");
    }

    #[test]
    fn a_worker_takes_a_bounded_number_at_once() {
        let f = Fixture::new(1);
        for job in 0..6 {
            f.queue.push(job).unwrap();
        }
        let Poll::Ready(Pulled::Jobs(jobs)) = f.pull(0) else {
            panic!("there are more jobs");
        };
        assert_eq!(jobs, [0, 1, 2, 3]);
    }

    #[test]
    fn a_worker_runs_what_it_has_started_before_it_takes_more() {
        let f = Fixture::new(1);
        let waker = waker(f.wakes[0].clone());
        let mut cx = Context::from_waker(&waker);
        assert!(f.queue.poll_pull(0, 4, true, &mut cx).is_pending());
        f.add(1);
        assert_eq!(f.wakes(), [1]);
        let pulled = f.queue.poll_pull(0, 4, true, &mut cx);
        assert!(matches!(pulled, Poll::Ready(Pulled::Later)));
        assert!(matches!(f.pull(0), Poll::Ready(Pulled::Jobs(jobs)) if jobs == [1]));
    }

    #[test]
    fn a_worker_leaves_their_share_to_the_others() {
        let f = Fixture::new(3);
        for job in 0..5 {
            f.queue.push(job).unwrap();
        }
        assert!(matches!(f.pull(0), Poll::Ready(Pulled::Jobs(jobs)) if jobs == [0, 1]));
        assert!(matches!(f.pull(1), Poll::Ready(Pulled::Jobs(jobs)) if jobs == [2]));
        assert!(matches!(f.pull(1), Poll::Ready(Pulled::Jobs(jobs)) if jobs == [3]));
        assert!(matches!(f.pull(2), Poll::Ready(Pulled::Jobs(jobs)) if jobs == [4]));
    }

    #[test]
    fn a_closed_queue_gives_out_what_it_has() {
        let f = Fixture::new(2);
        assert!(f.pull(1).is_pending());
        f.queue.push(1).unwrap();
        f.queue.close();
        assert_eq!(f.queue.push(2), Err(2));
        assert!(matches!(f.pull(0), Poll::Ready(Pulled::Jobs(jobs)) if jobs == [1]));
        assert!(matches!(f.pull(0), Poll::Ready(Pulled::Closed)));
        assert!(matches!(f.pull(1), Poll::Ready(Pulled::Closed)));
    }
}

#[cfg(all(test, greenhack_loom))]
mod loom_tests {
    use super::*;
    use loom::sync::Arc;
    use loom::thread;

    fn add(queue: &Queue<u32>, job: u32) {
        queue.push(job).unwrap();
        queue.announce();
    }

    /// Two threads push while a worker pulls: both jobs arrive.
    #[test]
    fn no_job_is_lost() {
        loom::model(|| {
            let queue = Arc::new(Queue::new(1));
            let pushers: Vec<_> = (0..2)
                .map(|job| {
                    let queue = queue.clone();
                    thread::spawn(move || add(&queue, job))
                })
                .collect();
            let mut got = Vec::new();
            while got.len() < 2 {
                got.extend(loom::future::block_on(std::future::poll_fn(|cx| {
                    queue.poll_pull(0, 1, false, cx).map(|pulled| match pulled {
                        Pulled::Jobs(jobs) => jobs,
                        _ => panic!("nobody closes it"),
                    })
                })));
            }
            got.sort_unstable();
            assert_eq!(got, [0, 1]);
            for pusher in pushers {
                pusher.join().unwrap();
            }
        });
    }

    /// A worker that parks while a job is pushed is woken by one of the two.
    #[test]
    fn parking_misses_no_job() {
        loom::model(|| {
            let queue = Arc::new(Queue::new(1));
            let pusher = {
                let queue = queue.clone();
                thread::spawn(move || add(&queue, 7))
            };
            let job = loom::future::block_on(std::future::poll_fn(|cx| {
                let pulled = queue.poll_pull(0, 1, false, cx);
                if pulled.is_pending() {
                    queue.park(0);
                }
                pulled
            }));
            assert!(matches!(job, Pulled::Jobs(jobs) if jobs == [7]));
            pusher.join().unwrap();
        });
    }

    /// A worker that is stuck while it waits for jobs holds none of them up.
    #[test]
    fn a_stuck_worker_holds_no_job_up() {
        loom::model(|| {
            let queue = Arc::new(Queue::new(2));
            let mut cx = Context::from_waker(Waker::noop());
            assert!(queue.poll_pull(1, 1, false, &mut cx).is_pending());
            let pusher = {
                let queue = queue.clone();
                thread::spawn(move || (0..2).for_each(|job| add(&queue, job)))
            };
            for job in 0..2 {
                let pulled = loom::future::block_on(std::future::poll_fn(|cx| {
                    queue.unpark(0);
                    let pulled = queue.poll_pull(0, 1, false, cx);
                    if pulled.is_pending() {
                        queue.park(0);
                    }
                    pulled
                }));
                assert!(matches!(pulled, Pulled::Jobs(jobs) if jobs == [job]));
            }
            pusher.join().unwrap();
        });
    }

    /// A close reaches a worker that waits.
    #[test]
    fn a_close_is_not_missed() {
        loom::model(|| {
            let queue = Arc::new(Queue::<u32>::new(1));
            let closer = {
                let queue = queue.clone();
                thread::spawn(move || queue.close())
            };
            let pulled =
                loom::future::block_on(std::future::poll_fn(|cx| queue.poll_pull(0, 1, false, cx)));
            assert!(matches!(pulled, Pulled::Closed));
            closer.join().unwrap();
        });
    }
}
