//! `#[greenhack::entry]`: writes the async function around the user's body.

use proc_macro2::{Span, TokenStream};
use quote::{ToTokens, quote, quote_spanned};
use syn::ext::IdentExt;
use syn::spanned::Spanned;
use syn::{FnArg, Ident, Type, token};

use crate::argument::{Argument, in_parentheses, rename, span_of_run};
use crate::attributes::{behind_instrument, is_instrument};
use crate::borrow::without_opaque;
use crate::check::{as_async, check};
use crate::function::{self, Function, with_errors};
use crate::options::{self, Options};
use crate::receiver::{self, shared};

/// Expands `#[greenhack::entry(args)] item`.
pub(crate) fn expand(args: TokenStream, item: TokenStream) -> TokenStream {
    let attribute = options::Attribute::Entry;
    let mut errors = Vec::new();
    let options = options::parse(attribute, args.clone(), &mut errors);
    let function: Function = match syn::parse2(item.clone()) {
        Ok(function) => function,
        Err(error) => {
            let error = function::not_a_function(attribute.name(), item.clone(), error);
            errors.push(error);
            return with_errors(errors, item);
        }
    };
    check(&function, &mut errors);
    if !errors.is_empty() {
        return with_errors(errors, as_async(function).into_token_stream());
    }
    if function.attrs.iter().any(is_instrument) {
        return behind_instrument(attribute, &options, args, function);
    }
    entry(&options, function)
}

/// Writes the async function.
fn entry(options: &Options, mut function: Function) -> TokenStream {
    let output = function.output();
    let mut body = function.body.take().expect("`check` refuses it");

    // What stands before the run, and what opens the closure.
    let mut before = TokenStream::new();
    let mut inside = TokenStream::new();
    let mut arguments = Vec::new();
    for (index, input) in function.sig.inputs.iter_mut().enumerate() {
        let argument = match input {
            FnArg::Receiver(receiver) => match shared(receiver) {
                Some(ty) => {
                    let span = receiver.self_token.span;
                    let clone = Ident::new("__clone", Span::mixed_site());
                    let name = receiver::name(span);
                    let krate = options.krate(span);
                    before.extend(quote_spanned!(span=>
                        let #clone = #krate::__private::clone_self(self);
                    ));
                    inside.extend(quote!(let #name = &#clone;));
                    body = receiver::replace(&body);
                    Argument::receiver(receiver, clone, ty.clone())
                }
                None => {
                    // The mention makes the closure capture all of `self`, not
                    // only the fields that the body names.
                    inside.extend(quote!(let _ = &self;));
                    let this = Ident::from(receiver.self_token);
                    Argument::receiver(receiver, this, (*receiver.ty).clone())
                }
            },
            FnArg::Typed(typed) => {
                let (argument, bind) = rename(typed, index);
                inside.extend(bind);
                argument
            }
        };
        before.extend(argument.assertions(options));
        arguments.push(argument);
    }

    let annotation = without_opaque(&output);
    let result = Ident::new("__output", Span::mixed_site());
    let block = match &output {
        // There is no variable of this type.
        Type::Never(_) => quote!({ #inside #body }),
        // Through a variable, so that what the last expression borrows ends
        // before the arguments do, in every edition. A body that ends with
        // `return` does not come to the last line.
        _ => quote!({
            #inside
            #[allow(clippy::diverging_sub_expression)]
            let #result: #annotation = #body;
            #[allow(unreachable_code)]
            return #result;
        }),
    };
    // The bounds on the output are checked at `run_sync` and at `.await`.
    let output_span = output.span();
    let run_span = span_of_run(&arguments, &function.sig);
    let run = match options.local {
        true => Ident::new("run_sync_local", output_span),
        false => Ident::new("run_sync", output_span),
    };
    let dot_await = quote_spanned!(run_span.unwrap_or(output_span)=> .await);
    let run_span = run_span.unwrap_or_else(Span::call_site);
    let builder = builder(options, &function.sig.ident, run_span);
    let closure = in_parentheses(quote!(move || -> #annotation #block), run_span);

    function.sig.asyncness = Some(token::Async(function.sig.fn_token.span));
    let Function {
        attrs, vis, sig, ..
    } = function;
    quote! {
        #(#attrs)* #vis #sig {
            #before
            #builder.#run #closure #dot_await
        }
    }
}

/// Writes `builder()`, as if it were written at `span`, with what the options
/// say.
fn builder(options: &Options, ident: &Ident, span: Span) -> TokenStream {
    let krate = options.krate(span);
    let name = match &options.name {
        Some(name) => name.to_token_stream(),
        None => {
            let ident = ident.unraw().to_string();
            quote!(::core::concat!(::core::module_path!(), "::", #ident))
        }
    };
    let stack_size = options.stack_size.iter();
    let carry = options.carry.iter().map(|key| {
        let key = quote_spanned!(key.span()=> &#key);
        quote!(.carry(#key))
    });
    quote! {
        #krate::builder()
            .name(#name)
            #(.stack_size(#stack_size))*
            #(#carry)*
    }
}
