//! A destructor that awaits, at the end of a run and when a timeout cancels it.
//!
//! - Run it: `cargo run --example cleanup`. It ends by itself.
//! - Try it: change the times; they are tokio's, paused, so nobody waits.
//! - It prints what happens: `worked, logging out, logged out, main goes on`,
//!   and with the timeout `logging out, main goes on, logged out`.

use std::time::Duration;

use futures::StreamExt;
use greenhack::{await_in_drop, await_sync};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::UnboundedReceiverStream;

#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() {
    let in_time = events(Duration::from_secs(1)).await;
    println!("{in_time}");
    assert_eq!(in_time, "worked, logging out, logged out, main goes on");

    let too_late = events(Duration::from_secs(60)).await;
    println!("{too_late}");
    assert_eq!(too_late, "logging out, main goes on, logged out");
}

async fn events(work: Duration) -> String {
    let (log, events) = unbounded_channel();
    let session = Session(log.clone());
    let run = greenhack::run_sync(move || session.work_for(work));
    let _ = timeout(Duration::from_secs(10), run).await;
    log.send("main goes on").unwrap();
    drop(log);
    // These end when the session has dropped the other sender.
    let events: Vec<_> = UnboundedReceiverStream::new(events).collect().await;
    events.join(", ")
}

struct Session(UnboundedSender<&'static str>);

impl Session {
    fn work_for(self, time: Duration) {
        await_sync(sleep(time));
        self.0.send("worked").unwrap();
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.0.send("logging out").unwrap();
        // If the run is cancelled, the runtime goes on with this.
        await_in_drop(sleep(Duration::from_secs(1)));
        self.0.send("logged out").unwrap();
    }
}

#[test]
fn runs() {
    main();
}
