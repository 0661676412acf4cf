//! A transaction: a scope whose exit awaits, and sees how the scope was left.
//!
//! - Run it: `cargo run --example guard`. It ends by itself.
//! - Try it: change the times; they are tokio's, paused, so nobody waits.
//! - It prints what the database was told, with `commit` or `rollback` at the end.

use std::time::Duration;

use futures::StreamExt;
use greenhack::guard::{self, Exit, Teardown};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio_stream::wrappers::UnboundedReceiverStream;

#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() {
    for (dish, expected) in [
        ("soup", "insert soup, commit"),
        ("", "rollback (no dish)"),
        ("a roast", "insert a roast, rollback (cancelled)"),
    ] {
        let (sender, statements) = unbounded_channel();
        let run = greenhack::run_sync(move || order(dish, Transaction(sender)));
        let _ = tokio::time::timeout(Duration::from_secs(5), run).await;
        // These end when the transaction has dropped its sender.
        let told: Vec<_> = UnboundedReceiverStream::new(statements).collect().await;
        println!("{}", told.join(", "));
        assert_eq!(told.join(", "), expected);
    }
}

fn order(dish: &str, transaction: Transaction) -> Result<(), String> {
    guard::with(transaction, |transaction| {
        if dish.is_empty() {
            return Err("no dish".to_owned());
        }
        let _ = transaction.0.send(format!("insert {dish}"));
        greenhack::time::sleep(Duration::from_secs(dish.len() as u64));
        Ok(())
    })
}

struct Transaction(UnboundedSender<String>);

impl Teardown<String> for Transaction {
    async fn teardown(self, exit: Exit<'_, String>) -> Result<(), String> {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let statement = match exit {
            Exit::Returned => "commit".to_owned(),
            Exit::Failed(error) => format!("rollback ({error})"),
            Exit::Cancelled => "rollback (cancelled)".to_owned(),
            _ => "rollback".to_owned(),
        };
        self.0.send(statement).map_err(|error| error.to_string())
    }
}

#[test]
fn runs() {
    main();
}
