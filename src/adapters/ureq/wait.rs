//! How a call of ureq waits.
#![forbid(unsafe_code)]

use std::future::Future;
use std::io;
use std::thread;

use ::ureq::Error;
use ::ureq::unversioned::transport::NextTimeout;
use tokio::time;

use crate::{await_in_drop, try_await_sync};

/// Waits for `future`, but no longer than `limit` says.
///
/// # Errors
///
/// Those of `future`, the timeout, and the refusal where this place can't wait.
pub(super) fn within<T>(
    limit: NextTimeout,
    future: impl Future<Output = io::Result<T>>,
) -> Result<T, Error> {
    if limit.after.is_zero() {
        return Err(Error::Timeout(limit.reason));
    }
    let limited = async {
        if limit.after.is_not_happening() {
            return Ok(future.await?);
        }
        match time::timeout(*limit.after, future).await {
            Ok(result) => Ok(result?),
            Err(_) => Err(Error::Timeout(limit.reason)),
        }
    };
    if thread::panicking() {
        // A destructor makes a request. Whatever happens, it must not unwind.
        return await_in_drop(limited).unwrap_or_else(|| Err(given_up()));
    }
    match try_await_sync(limited) {
        Ok(result) => result,
        Err(refused) if refused.is_async_code() => Err(async_code()),
        Err(refused) => Err(Error::Other(refused.to_string().into())),
    }
}

/// The caller has written no `await_sync`, and a request has no `.await`.
#[cold]
fn async_code() -> Error {
    let why = "a request of `greenhack::ureq` was made, or its response read, in async code, \
               which must not block; run the plain code that does it with \
               `greenhack::run_sync(|| ..).await`";
    Error::Other(why.into())
}

#[cold]
fn given_up() -> Error {
    let why = "a destructor had no time left to wait, or could not wait where it ran; \
               make the request before the value is dropped";
    Error::Other(why.into())
}
