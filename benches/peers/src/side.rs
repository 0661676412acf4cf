//! What is compared, and what it does.

use std::pin::Pin;

/// A way to run plain code as a task, and to wait for a future in it.
pub trait Side: 'static {
    /// What plain code needs in its hands to wait.
    type Handle: Copy;

    /// Waits in plain code.
    fn wait<F: Future>(handle: Self::Handle, future: F) -> F::Output;

    /// Starts work as a task, in a future that is driven; returns its end.
    fn spawn<W: Work>(work: W) -> impl Future<Output = W::Output> + Send + 'static;

    /// Drives a future to its end, on the side's own runtime.
    fn drive<F>(future: F) -> F::Output
    where
        F: Future<Output: Send> + Send + 'static;
}

/// What a side does.
pub trait Work: Clone + Send + 'static {
    /// What comes of it.
    type Output: Send + 'static;

    /// Does it in plain code.
    fn plain<S: Side>(self, handle: S::Handle) -> Self::Output;

    /// Does it in async code.
    fn native(self) -> impl Future<Output = Self::Output> + Send;

    /// Does it in async code that may recurse.
    fn boxed(self) -> Pin<Box<dyn Future<Output = Self::Output> + Send>> {
        Box::pin(self.native())
    }
}
