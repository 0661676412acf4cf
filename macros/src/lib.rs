//! The attribute macros of greenhack: [`macro@entry`], [`macro@exempt`],
//! [`macro@main`] and [`macro@test`].
//!
//! The crate `greenhack` exports them with its feature `macros`, which is on by
//! default; nobody has to depend on this one.
//!
//! With `GREENHACK_MACROS_DEBUG=1` in the environment of the compiler, each
//! attribute prints what it writes. Cargo does not know this variable, so touch
//! the file first:
//!
//! ```text
//! touch src/main.rs && GREENHACK_MACROS_DEBUG=1 cargo check
//! ```
//!
//! # Layout
//!
//! ```text
//! lib.rs           the attributes and their documentation
//!   entry.rs       #[entry]: the async function around the user's body
//!     check.rs     what cannot be an entry, and what to write instead
//!     receiver.rs  `self`: whose it is, and how `&self` becomes a clone
//!   exempt.rs      #[exempt]: the plain function beside an async one
//!     argument.rs    arguments: their names, their way, their bounds
//!     attributes.rs  which function an attribute below ours is for
//!   harness.rs     #[main] and #[test]: a runtime around a function
//!     borrow.rs    borrows and `impl Trait` in a signature
//!     function.rs  the function below an attribute
//!     options.rs   the options between the parentheses
//! ```
#![forbid(unsafe_code)]

mod argument;
mod attributes;
mod borrow;
mod check;
mod entry;
mod exempt;
mod function;
mod harness;
mod options;
mod receiver;

use proc_macro::TokenStream;

/// Makes a plain function async: its body runs on a coroutine, where
/// `await_sync` suspends.
///
/// The function keeps its name, visibility, generics, arguments and return
/// type, and becomes an `async fn`. The body stays a plain body: it has no
/// `.await`, and neither have the functions that it calls.
///
/// ```
/// use greenhack::await_sync;
/// use tokio::sync::oneshot;
///
/// struct Order(&'static str);
///
/// #[greenhack::entry]
/// fn checkout(Order(dish): Order, paid: oneshot::Receiver<u32>) -> Result<String, String> {
///     let price = charge(paid)?; // A plain function, which may suspend.
///     Ok(format!("{dish} for {price}"))
/// }
///
/// fn charge(paid: oneshot::Receiver<u32>) -> Result<u32, String> {
///     await_sync(paid).map_err(|_| "the bank has hung up".to_owned())
/// }
///
/// # #[tokio::main]
/// # async fn main() {
/// let (pay, paid) = oneshot::channel();
/// let receipt = tokio::spawn(checkout(Order("soup"), paid));
/// pay.send(5).unwrap();
/// assert_eq!(receipt.await.unwrap().unwrap(), "soup for 5");
/// # }
/// ```
///
/// writes, with its checks left out,
///
/// ```ignore
/// async fn checkout(__arg0: Order, paid: oneshot::Receiver<u32>) -> Result<String, String> {
///     greenhack::builder()
///         .name("shop::checkout")
///         .run_sync(move || {
///             let Order(dish) = __arg0;
///             // The body.
///         })
///         .await
/// }
/// ```
///
/// For one call in a function that is async already, use `run_sync`. For the
/// function where the program begins, use [`macro@main`].
///
/// To plain code an entry is an async function as any: `await_sync(checkout(..))`.
/// Where that happens often, let both call a plain function, which needs neither a
/// future nor a second stack.
///
/// # Options
///
/// | option | meaning | default |
/// |---|---|---|
/// | `local` | runs in the task itself; arguments, result and future need not be `Send`, and the future is not (`run_sync_local`) | `run_sync` |
/// | `stack_size = EXPR` | the size of the stack in bytes | that of the builder |
/// | `name = "text"` | what panics and events call the run | the path of the function |
/// | `carry(KEY, path::KEY)` | the `tokio::task_local!` keys whose values go along to the worker; not needed with `local` | none |
/// | `crate = path` | where the crate greenhack is | `::greenhack` |
///
/// What is not among them, such as the budget for cleanup, is set with `builder()`, in
/// an `async fn` that is written as above.
///
/// # Arguments
///
/// Arguments may be patterns, `mut` or `_`. They and the variables of the body
/// are dropped on the coroutine, in the order of a plain function. In the async
/// function, and in its documentation, an argument that is a pattern is called
/// `__arg0`, by its position.
///
/// Arguments and result are `'static`, and without `local` they are `Send`. A
/// borrowed argument is an error, because a future can be forgotten while its
/// stack goes on using what it borrows: take `String` rather than `&str`, or an
/// `Arc`.
///
/// # Methods
///
/// | receiver | what the body sees |
/// |---|---|
/// | `self`, `mut self`, `self: Box<Self>`, `self: Arc<Self>`, `&'static self` | the receiver itself |
/// | `&self`, `self: &Arc<Self>` | a reference to a clone, made at the first poll |
/// | `&mut self` | an error |
///
/// The future of a `&self` method borrows the original too, as that of any
/// async method does: it is `Send` if `Self` is `Sync`. The clone is dropped on
/// the coroutine.
///
/// A method of a trait can be implemented by an entry if the trait has it as
/// `async fn` or as `-> impl Future`. So can one with a default body; there
/// `Self` has to be `Clone + Send + 'static`. Traits that `#[async_trait]`
/// rewrites are rewritten too early for this, and a method that borrows more than
/// `self` can't be one: there, write `async fn`, take out what the plain code needs,
/// and end with `run_sync(move || ..).await`.
///
/// In a `&self` method, a macro that takes a format string and isn't of std,
/// tracing, log, anyhow or eyre does not find `self` in it:
///
/// ```ignore
/// shout!("{self}");     // Does not compile.
/// shout!("{}", self);
/// ```
///
/// # Other attributes
///
/// - `#[instrument]` of tracing makes its span on the coroutine, around the
///   body. Above and below `#[entry]` mean the same.
/// - Any other attribute above `#[entry]` sees the plain function, which is
///   mostly not what it is for: `#[axum::debug_handler]` says there that a
///   `String` is not a future.
/// - Any other attribute below `#[entry]` sees the async function: documentation,
///   `#[cfg]`, `#[must_use]`, lints, and those of frameworks, such as
///   `#[axum::debug_handler]`. Lints apply to the body too.
/// - Those on an argument go along with it.
#[proc_macro_attribute]
pub fn entry(args: TokenStream, item: TokenStream) -> TokenStream {
    print(entry::expand(args.into(), item.into()))
}

/// Makes an async function plain: it awaits itself. The async original stays,
/// under a second name.
///
/// So a library has one implementation and two colours: `get` for plain code,
/// `get_async` for async code. The plain function suspends in a run, blocks on a
/// thread that may block, and panics in async code, just as `await_sync` does,
/// for that is all that it calls.
///
/// ```
/// # use std::io;
/// use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, DuplexStream};
///
/// pub struct Client {
///     stream: BufReader<DuplexStream>,
/// }
///
/// impl Client {
///     /// Fetches a page.
///     #[greenhack::exempt]
///     pub async fn get(&mut self, path: &str) -> io::Result<String> {
///         self.stream.write_all(path.as_bytes()).await?; // Here it is async code.
///         let mut page = String::new();
///         self.stream.read_line(&mut page).await?;
///         Ok(page)
///     }
/// }
///
/// # async fn connect() -> Client {
/// #     let (near, mut far) = tokio::io::duplex(64);
/// #     far.write_all(b"first\nsecond\nthird\n").await.unwrap();
/// #     std::mem::forget(far);
/// #     Client { stream: BufReader::new(near) }
/// # }
/// # let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
/// # let mut client = runtime.block_on(connect());
/// // On a plain thread it blocks:
/// assert_eq!(client.get("/").unwrap(), "first\n");
///
/// # runtime.block_on(async {
/// // In async code:
/// assert_eq!(client.get_async("/").await.unwrap(), "second\n");
///
/// // In a run it suspends:
/// let page = greenhack::run_sync(move || client.get("/")).await;
/// assert_eq!(page.unwrap(), "third\n");
/// # });
/// ```
///
/// writes, with its message for async code left out,
///
/// ```ignore
/// impl Client {
///     /// Fetches a page.
///     #[inline]
///     #[track_caller]
///     pub fn get(&mut self, path: &str) -> io::Result<String> {
///         greenhack::await_sync(Self::get_async(self, path))
///     }
///
///     /// Fetches a page.
///     pub async fn get_async(&mut self, path: &str) -> io::Result<String> {
///         // The body.
///     }
/// }
/// ```
///
/// In the body, other exempt functions have their async names too. For one call
/// of an async function, write `await_sync(function(..))`. To make an async
/// function of a plain one, use [`macro@entry`].
///
/// # Options
///
/// | option | meaning | default |
/// |---|---|---|
/// | `async = NAME` | what the async original is called | the function's name with `_async` |
/// | `associated` | the function belongs to a type, though neither a receiver nor a `Self` says so | |
/// | `crate = path` | where the crate greenhack is | `::greenhack` |
///
/// An attribute cannot see what is around its function. It knows an associated
/// function by a receiver, by having no body, and by a `Self` in the signature or
/// in the body, other than in the arguments of a macro. Where none of these is,
/// write `associated`; the compiler does not find `new_async` otherwise.
///
/// # Signatures
///
/// The plain function has the same generics, arguments and bounds. References,
/// elided lifetimes, `impl Trait` on both sides and every receiver go along.
/// Nothing has to be `'static` or `Send`. Arguments that are patterns are called
/// `__arg0` there, by their position. An `unsafe` function makes two, with the
/// same promise.
///
/// In place of `async fn`, a function can return `impl Future<Output = T>`, or
/// what `#[async_trait]` makes of it, `Pin<Box<dyn Future<Output = T>>>`.
///
/// # Traits
///
/// In a trait, the async method is the required one, and the plain method is
/// provided. An implementation has the async method, without any attribute:
///
/// ```
/// trait Store {
///     #[greenhack::exempt]
///     async fn load(&self, key: &str) -> Option<String>;
/// }
///
/// struct Memory;
///
/// impl Store for Memory {
///     async fn load_async(&self, key: &str) -> Option<String> {
///         (key == "greeting").then(|| "hello".to_owned())
///     }
/// }
///
/// assert_eq!(Memory.load("greeting").unwrap(), "hello"); // Provided by the trait.
/// ```
///
/// If the trait's method has a default body, both are provided. The attribute on
/// `async fn load` in the implementation means the same, unless the type has a
/// `load_async` of its own, which the plain method would then call.
///
/// As with every `async fn` in a trait, generic code cannot know whether the
/// future is `Send`; plain code need not know. To promise it, declare the method
/// as `fn load(&self, key: &str) -> impl Future<Output = Option<String>> + Send`.
///
/// # Other attributes
///
/// - For both: documentation, with a line that names the other one; `#[cfg]`,
///   `#[must_use]`, `#[deprecated]`, `#[inline]`, lints.
/// - For the async original: all others. `#[instrument]` of tracing makes its
///   span around the original, with the name of the plain function; above and
///   below `#[exempt]` mean the same.
/// - For the plain function: `#[track_caller]`, which it has anyway.
///
/// # Cancel safety
///
/// If the run is cancelled, the future of the async original is dropped, then
/// the plain function unwinds. What has happened by then is what the original
/// says of being dropped.
///
/// # Panics
///
/// The plain function panics in async code, at the caller's line; the message
/// names the async original, to be awaited there. The panics of the async original resume in
/// it.
#[proc_macro_attribute]
pub fn exempt(args: TokenStream, item: TokenStream) -> TokenStream {
    print(exempt::expand(args.into(), item.into()))
}

/// Runs a plain `main` on a coroutine in a tokio runtime of its own.
///
/// Everything below `main` can call `await_sync`. The runtime ends when `main`
/// returns; `main` may return whatever it may without the attribute.
///
/// ```
/// use greenhack::await_sync;
/// use tokio::net::{TcpListener, TcpStream};
///
/// #[greenhack::main]
/// fn main() -> std::io::Result<()> {
///     let listener = await_sync(TcpListener::bind("127.0.0.1:0"))?;
///     let near = await_sync(TcpStream::connect(listener.local_addr()?))?;
///     let (_far, address) = await_sync(listener.accept())?;
///     assert_eq!(address, near.local_addr()?);
///     Ok(())
/// }
/// ```
///
/// writes
///
/// ```ignore
/// fn main() -> std::io::Result<()> {
///     let runtime = tokio::runtime::Builder::new_current_thread()
///         .enable_all()
///         .build_local(Default::default())
///         .expect("cannot build the tokio runtime");
///     runtime.block_on(greenhack::builder().name("main").run_sync_local(move || {
///         // The body.
///     }))
/// }
/// ```
///
/// In a program that waits for one thing after another, `await_sync` needs no
/// attribute: it blocks the thread on a runtime that it starts itself.
///
/// # Options
///
/// | option | meaning | default |
/// |---|---|---|
/// | `flavor = "current_thread"` | a runtime with one thread, on which `tokio::task::spawn_local` works | this one |
/// | `flavor = "multi_thread"` | a runtime with worker threads, while `main` stays on its own; needs the feature `rt-multi-thread` | |
/// | `worker_threads = EXPR` | how many; only with `multi_thread` | as many as cores |
/// | `stack_size = EXPR` | the size of the stack of `main` in bytes | that of the builder |
/// | `crate = path` | where the crate greenhack is | `::greenhack` |
///
/// The function has no arguments, no generics and no `async`. It need not be
/// called `main`.
///
/// # Panics
///
/// The function panics if the runtime cannot be built, or if it is called in
/// another runtime.
#[proc_macro_attribute]
pub fn main(args: TokenStream, item: TokenStream) -> TokenStream {
    let attribute = options::Attribute::Main;
    print(harness::expand(attribute, args.into(), item.into()))
}

/// Runs a plain function as a test, on a coroutine in a tokio runtime of its
/// own.
///
/// This is `#[test]`: leave that out. `#[should_panic]`, `#[ignore]` and tests
/// that return a `Result` work as ever.
///
/// ```test_harness
/// use std::time::Duration;
///
/// use greenhack::await_sync;
///
/// #[greenhack::test(start_paused = true)]
/// fn a_minute_passes_at_once() {
///     let start = tokio::time::Instant::now();
///     await_sync(tokio::time::sleep(Duration::from_secs(60)));
///     assert_eq!(start.elapsed().as_secs(), 60);
/// }
/// ```
///
/// # Options
///
/// | option | meaning | default |
/// |---|---|---|
/// | `flavor = "current_thread"` | a runtime with one thread, on which `tokio::task::spawn_local` works | this one |
/// | `flavor = "multi_thread"` | a runtime with worker threads, while the test stays on its own; needs the feature `rt-multi-thread` | |
/// | `worker_threads = EXPR` | how many; only with `multi_thread` | as many as cores |
/// | `start_paused = true` | the clock of tokio stands still, and jumps to the next timer when all tasks wait; only with one thread, needs tokio's feature `test-util` | `false` |
/// | `stack_size = EXPR` | the size of the stack of the test in bytes | that of the builder |
/// | `crate = path` | where the crate greenhack is | `::greenhack` |
///
/// The function has no arguments, no generics and no `async`.
#[proc_macro_attribute]
pub fn test(args: TokenStream, item: TokenStream) -> TokenStream {
    let attribute = options::Attribute::Test;
    print(harness::expand(attribute, args.into(), item.into()))
}

/// Prints an expansion if `GREENHACK_MACROS_DEBUG` asks for it.
fn print(expansion: proc_macro2::TokenStream) -> TokenStream {
    if std::env::var_os("GREENHACK_MACROS_DEBUG").is_some_and(|value| value == "1") {
        eprintln!("{expansion}");
    }
    expansion.into()
}
