//! lettre's plain `Transport` over its async one.

use std::panic::resume_unwind;

use greenhack::await_sync;
use lettre::address::Envelope;
use lettre::transport::smtp::{self, response::Response};
use lettre::{AsyncSmtpTransport, AsyncTransport, Tokio1Executor, Transport};
use tokio::runtime::Handle;

/// An async transport that looks like a plain one.
///
/// A mail that has begun is sent: if the run is cancelled, it stops waiting for
/// the mail, and no more. lettre puts a connection back into its pool when the
/// future of a mail is dropped, even in the middle of a conversation; the next
/// mail would then take the answers to this one for its own.
#[derive(Clone, Debug)]
pub struct Blocking {
    /// `None` in the end.
    transport: Option<AsyncSmtpTransport<Tokio1Executor>>,
    runtime: Handle,
}

impl Blocking {
    /// Sends by tasks of the current runtime, which has all the connections.
    ///
    /// # Panics
    ///
    /// If there is no runtime. To build the transport needs one, too.
    pub fn new(transport: AsyncSmtpTransport<Tokio1Executor>) -> Self {
        Blocking {
            transport: Some(transport),
            runtime: Handle::current(),
        }
    }
}

impl Transport for Blocking {
    type Ok = Response;
    type Error = smtp::Error;

    fn send_raw(&self, envelope: &Envelope, email: &[u8]) -> Result<Response, smtp::Error> {
        let transport = self.transport.clone().expect("it is there until the end");
        let (envelope, email) = (envelope.clone(), email.to_vec());
        let task = async move { transport.send_raw(&envelope, &email).await };
        await_sync(self.runtime.spawn(task)).unwrap_or_else(|error| match error.try_into_panic() {
            Ok(payload) => resume_unwind(payload),
            Err(_) => panic!("the runtime that sends mails has been shut down"),
        })
    }
}

impl Drop for Blocking {
    fn drop(&mut self) {
        // The last clone of a transport starts a task, and panics if there is no
        // runtime to do so.
        let _entered = self.runtime.enter();
        self.transport = None;
    }
}
