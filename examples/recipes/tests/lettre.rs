//! Mails by a plain transport, against a server of this process.

mod support;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use futures::future::join_all;
use greenhack::{await_sync, run_sync};
use lettre::transport::smtp::response::Response;
use lettre::transport::smtp::{self};
use lettre::{AsyncSmtpTransport, AsyncTransport, Message, Tokio1Executor, Transport};
use recipes::lettre::Blocking;
use support::{in_time, many_threads, one_thread, smtp::serve};
use tokio::sync::{Barrier, Notify};

fn transport(address: SocketAddr) -> AsyncSmtpTransport<Tokio1Executor> {
    AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(address.ip().to_string())
        .port(address.port())
        .build()
}

fn message(dish: &str) -> Message {
    Message::builder()
        .from("kitchen@localhost".parse().unwrap())
        .to("ada@localhost".parse().unwrap())
        .subject(dish)
        .body("It is served.".to_owned())
        .unwrap()
}

/// Plain code, which knows of no runtime.
fn tell<M: Transport>(mailer: &M, dish: &str) -> Result<M::Ok, M::Error> {
    mailer.send(&message(dish))
}

const MAILS: usize = 10;

/// No mail is answered before all are there.
async fn mails_that_wait_for_each_other() {
    let together = Arc::new(Barrier::new(MAILS));
    let address = serve(move |_| {
        let together = together.clone();
        async move {
            together.wait().await;
            "250 queued"
        }
    })
    .await;
    let mailer = Blocking::new(transport(address));
    let mails = join_all((0..MAILS).map(|_| {
        let mailer = mailer.clone();
        tokio::spawn(run_sync(move || tell(&mailer, "soup")))
    }));
    for sent in in_time(mails).await {
        assert!(sent.unwrap().unwrap().is_positive());
    }
}

#[test]
fn mails_overlap_on_one_thread() {
    one_thread().block_on(mails_that_wait_for_each_other());
}

#[test]
fn mails_overlap_on_the_workers() {
    many_threads().block_on(mails_that_wait_for_each_other());
}

#[test]
fn plain_code_sends_without_a_run() {
    let runtime = many_threads();
    let (mailer, idle) = runtime.block_on(async {
        let address = serve(|_| async { "250 queued" }).await;
        [(); 2].map(|()| Blocking::new(transport(address))).into()
    });
    assert!(tell(&mailer, "soup").is_ok());
    // lettre's pool ends by a task, for which there would be no runtime here.
    drop(idle);
}

#[test]
fn a_refusal_is_an_error() {
    one_thread().block_on(in_time(async {
        let address = serve(|_| async { "550 no such guest" }).await;
        let mailer = Blocking::new(transport(address));
        let sent = run_sync(move || tell(&mailer, "soup")).await;
        let code = sent.unwrap_err().status().unwrap().to_string();
        assert_eq!(code, "550");
    }));
}

/// The await alone, as one might write it.
struct Naive(AsyncSmtpTransport<Tokio1Executor>);

impl Transport for Naive {
    type Ok = Response;
    type Error = smtp::Error;

    fn send_raw(
        &self,
        envelope: &lettre::address::Envelope,
        email: &[u8],
    ) -> Result<Response, smtp::Error> {
        await_sync(self.0.send_raw(envelope, email))
    }
}

/// Cancels the mail of a soup while the server makes up its mind, and sends
/// fugu, which the server refuses. Returns what came of the fugu.
async fn fugu_after_a_cancelled_soup<M>(
    mailer: impl FnOnce(SocketAddr) -> M,
) -> Result<Response, smtp::Error>
where
    M: Transport<Ok = Response, Error = smtp::Error> + Send + Sync + 'static,
{
    let [arrived, decided, refused] = std::array::from_fn(|_| Arc::new(Notify::new()));
    let seen = Arc::new(Mutex::new(Vec::new()));
    let policy = {
        let seen = seen.clone();
        let notes = [&arrived, &decided, &refused].map(Arc::clone);
        move |mail: String| {
            let [arrived, decided, refused] = notes.clone();
            let soup = mail.contains("Subject: soup");
            seen.lock().unwrap().push(soup);
            async move {
                if !soup {
                    refused.notify_one();
                    return "550 no licence for fugu";
                }
                arrived.notify_one();
                decided.notified().await;
                "250 queued"
            }
        }
    };
    let mailer = Arc::new(mailer(serve(policy).await));

    let soup = mailer.clone();
    let soup = tokio::spawn(run_sync(move || tell(&*soup, "soup").map(drop)));
    in_time(arrived.notified()).await;
    soup.abort();
    assert!(soup.await.unwrap_err().is_cancelled());
    decided.notify_one();

    // Behind whatever the end of the soup's has left to do.
    let fugu = tokio::spawn(run_sync(move || tell(&*mailer, "fugu")));
    let fugu = in_time(fugu).await.unwrap();
    in_time(refused.notified()).await;
    // Each has arrived once, and in full.
    assert_eq!(*seen.lock().unwrap(), [true, false]);
    fugu
}

#[test]
fn a_cancelled_mail_is_sent_and_spoils_no_other() {
    one_thread().block_on(async {
        let fugu = fugu_after_a_cancelled_soup(|address| Blocking::new(transport(address))).await;
        assert_eq!(fugu.unwrap_err().status().unwrap().to_string(), "550");
    });
}

/// Why the adapter gives a mail to a task: lettre's pool lends a connection again
/// whose conversation was cut off. If this fails, it no longer does, and the
/// adapter can be simpler.
#[test]
fn without_a_task_the_next_mail_gets_the_answers_to_the_cancelled_one() {
    one_thread().block_on(async {
        let fugu = fugu_after_a_cancelled_soup(|address| Naive(transport(address))).await;
        // It is the answer to its `DATA`, and the refusal goes unread.
        assert_eq!(fugu.unwrap().code().to_string(), "354");
    });
}
