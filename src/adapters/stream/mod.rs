//! Streams for plain code: to iterate over, and to write.
//!
//! [`blocking_iter`] makes an iterator of a [`Stream`](futures::Stream), for
//! plain code to use. [`generate`] makes a stream of a plain function, for async
//! code to use.
//!
//! # Examples
//!
//! Both ways at once, a plain function in the middle of async code:
//!
//! ```
//! use futures::{Stream, StreamExt, stream};
//! use greenhack::stream::{blocking_iter, generate};
//!
//! /// Joins lines that end in a backslash.
//! fn logical_lines(
//!     lines: impl Stream<Item = String> + Send + 'static,
//! ) -> impl Stream<Item = String> {
//!     generate(move |yielder| {
//!         let mut lines = blocking_iter(lines);
//!         while let Some(mut line) = lines.next() {
//!             while line.ends_with('\\') {
//!                 line.pop();
//!                 line += &lines.next().unwrap_or_default();
//!             }
//!             yielder.yield_(line);
//!         }
//!     })
//! }
//!
//! # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
//! let lines = stream::iter(["one \\", "and a half", "two"]).map(str::to_owned);
//! let joined: Vec<String> = logical_lines(lines).collect().await;
//! assert_eq!(joined, ["one and a half", "two"]);
//! # });
//! ```
#![forbid(unsafe_code)]

mod blocking;
mod generate;
mod yielder;

pub use blocking::{BlockingStream, blocking_iter};
pub use generate::{generate, generate_local, try_generate, try_generate_local};
pub use yielder::Yielder;
