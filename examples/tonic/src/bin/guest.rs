//! A guest of the kitchen, who tells what it got.
//!
//! - Run it: `cargo run -p tonic-kitchen --bin guest`, beside a server.
//! - Try it: without a server, or two at once.
//! - It prints the receipt, then a line for each spoon.
#![forbid(unsafe_code)]

use greenhack::await_sync;
use tonic::Status;

#[greenhack::main]
fn main() -> Result<(), Status> {
    let address = ([127, 0, 0, 1], 50051).into();
    for answer in await_sync(tonic_kitchen::dine(address, "soup"))? {
        println!("{answer}");
    }
    Ok(())
}
