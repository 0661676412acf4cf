//! What `#[greenhack::entry]` writes, by hand beside the attribute.
//!
//! - Run it: `cargo run --example entry_expanded`. It ends by itself.
//! - Try it: `touch` this file, and put `GREENHACK_MACROS_DEBUG=1` before the
//!   line above: the compiler prints what the attribute has written.
//! - It prints the answer of both.

use std::num::ParseIntError;

use greenhack::await_sync;
use tokio::task::yield_now;

#[tokio::main]
async fn main() {
    let (short, long) = (by_attribute("2".to_owned(), 3), by_hand("2".to_owned(), 3));
    let (short, long) = (short.await, long.await);
    println!("{short:?} {long:?}");
    assert_eq!(short, Ok(6));
    assert_eq!(short, long);
}

#[greenhack::entry]
fn by_attribute(text: String, times: u32) -> Result<u32, ParseIntError> {
    await_sync(yield_now());
    let number: u32 = text.parse()?;
    Ok(number * times)
}

#[expect(clippy::needless_return, reason = "it is right for any body")]
async fn by_hand(text: String, times: u32) -> Result<u32, ParseIntError> {
    // So that an error points at the argument, not at the closure.
    ::greenhack::__private::assert_static::<String>(&text);
    ::greenhack::__private::assert_send::<String>(&text);
    ::greenhack::__private::assert_static::<u32>(&times);
    ::greenhack::__private::assert_send::<u32>(&times);
    ::greenhack::builder()
        .name(concat!(module_path!(), "::", "by_hand"))
        .run_sync(move || -> Result<u32, ParseIntError> {
            // Locals, so that they are dropped in the order of arguments.
            let text = text;
            let times = times;
            // What the last expression borrows is given back before them.
            let __output: Result<u32, ParseIntError> = {
                await_sync(yield_now());
                let number: u32 = text.parse()?;
                Ok(number * times)
            };
            return __output;
        })
        .await
}

#[test]
fn runs() {
    main();
}
