//! What cannot be an entry, and what to write instead.

use quote::ToTokens;
use syn::{Error, FnArg, Receiver, ReturnType, token};

use crate::borrow::{self, borrows};
use crate::function::Function;
use crate::receiver::shared;

const WHY: &str = "because its future can outlive the caller";

/// Reports everything in the signature that cannot be an entry.
pub(crate) fn check(function: &Function, errors: &mut Vec<Error>) {
    let sig = &function.sig;
    let mut error = |at: &dyn ToTokens, problem: &str| {
        errors.push(Error::new_spanned(at.to_token_stream(), problem));
    };
    if let Some(keyword) = &sig.constness {
        error(
            keyword,
            "an entry runs on a coroutine, which does not exist at compile time; remove `const`",
        );
    }
    if let Some(keyword) = &sig.asyncness {
        error(
            keyword,
            "`#[greenhack::entry]` makes the function async itself; \
             remove `async`, and write `await_sync(future)` instead of `future.await`",
        );
    }
    if let Some(keyword) = &sig.unsafety {
        error(
            keyword,
            "an entry runs after the call has returned, so its caller cannot promise anything; \
             remove `unsafe`, and write an `unsafe` block in the body",
        );
    }
    if let Some(abi) = &sig.abi {
        let abi_text = borrow::text(abi);
        error(
            abi,
            &format!(
                "an entry becomes an `async fn`, which has no foreign ABI; remove `{abi_text}`"
            ),
        );
    }
    if let Some(variadic) = &sig.variadic {
        error(
            variadic,
            "an entry becomes an `async fn`, which cannot be variadic; remove `...`",
        );
    }
    if sig.ident == "main" && sig.receiver().is_none() {
        error(
            &sig.ident,
            "`main` cannot be an entry, for nothing awaits it; write `#[greenhack::main]`",
        );
    }
    if function.body.is_none() {
        error(
            &sig.ident,
            &format!(
                "an entry needs a body; write `async fn {}` in the trait, \
                 and `#[greenhack::entry]` above each implementation",
                sig.ident
            ),
        );
    }
    for input in &sig.inputs {
        match input {
            FnArg::Receiver(receiver) => check_receiver(receiver, &mut error),
            FnArg::Typed(argument) => {
                for borrow in borrows(&argument.ty) {
                    let fix = borrow.fix;
                    error(
                        &borrow.tokens,
                        &format!("an entry cannot borrow its arguments, {WHY}; write {fix}"),
                    );
                }
            }
        }
    }
    if let ReturnType::Type(_, ty) = &sig.output {
        for borrow in borrows(ty) {
            let fix = borrow.fix;
            error(
                &borrow.tokens,
                &format!("an entry cannot return a borrow, {WHY}; write {fix}"),
            );
        }
    }
    function.refuse_test_attributes(
        "a test cannot be an entry, for nothing awaits it; write `#[greenhack::test]` alone",
        errors,
    );
}

fn check_receiver(receiver: &Receiver, error: &mut dyn FnMut(&dyn ToTokens, &str)) {
    if shared(receiver).is_some() {
        return;
    }
    for borrow in borrows(&receiver.ty) {
        // In `&self` there is no type to point at.
        let at = match receiver.colon_token {
            Some(_) => borrow.tokens,
            None => receiver.to_token_stream(),
        };
        error(
            &at,
            &format!(
                "an entry cannot borrow `self` to change it, {WHY}; \
                 write `self`, or `self: Arc<Self>` with a `Mutex` inside"
            ),
        );
    }
}

/// Writes a wrong entry so that what calls it still compiles: async, with the
/// body as it is.
pub(crate) fn as_async(mut function: Function) -> Function {
    let sig = &mut function.sig;
    let is_main = sig.ident == "main" && sig.receiver().is_none();
    sig.constness = None;
    sig.abi = None;
    sig.variadic = None;
    if !is_main {
        sig.asyncness.get_or_insert(token::Async(sig.fn_token.span));
    }
    function
}
