//! `#[greenhack::main]` and `#[greenhack::test]`: a runtime around a function.

use proc_macro2::{Span, TokenStream};
use quote::{ToTokens, quote, quote_spanned};
use syn::ext::IdentExt;
use syn::spanned::Spanned;
use syn::{Error, Ident, ReturnType};

use crate::borrow;
use crate::function::{self, Function, with_errors};
use crate::options::{self, Attribute, Flavor, Options};

/// Expands `attribute(args) item`.
pub(crate) fn expand(attribute: Attribute, args: TokenStream, item: TokenStream) -> TokenStream {
    let mut errors = Vec::new();
    let options = options::parse(attribute, args, &mut errors);
    check_options(&options, &mut errors);
    let function: Function = match syn::parse2(item.clone()) {
        Ok(function) => function,
        Err(error) => {
            let error = function::not_a_function(attribute.name(), item.clone(), error);
            errors.push(error);
            return with_errors(errors, item);
        }
    };
    check(attribute, &function, &mut errors);
    if errors.is_empty() {
        harness(attribute, &options, function)
    } else {
        with_errors(errors, without_harness(function))
    }
}

/// Reports options that contradict each other.
fn check_options(options: &Options, errors: &mut Vec<Error>) {
    match (
        options.flavor,
        &options.worker_threads,
        &options.start_paused,
    ) {
        (Flavor::CurrentThread, Some(given), _) => errors.push(Error::new(
            given.key.span(),
            "`worker_threads` is for a runtime with several threads; \
             add `flavor = \"multi_thread\"`, or remove it",
        )),
        (Flavor::MultiThread, _, Some(given)) => errors.push(Error::new(
            given.key.span(),
            "`start_paused` is for a runtime with one thread; \
             remove `flavor = \"multi_thread\"`",
        )),
        _ => {}
    }
}

/// Reports everything in the signature that `main` or a test cannot have.
fn check(attribute: Attribute, function: &Function, errors: &mut Vec<Error>) {
    let sig = &function.sig;
    let what = match attribute {
        Attribute::Test => "a test",
        _ => "`main`",
    };
    let mut error = |at: &dyn ToTokens, problem: String| {
        errors.push(Error::new_spanned(at.to_token_stream(), problem));
    };
    if let Some(keyword) = &sig.asyncness {
        let name = attribute.name();
        error(
            keyword,
            format!(
                "`{name}` runs a plain function; \
                 remove `async`, and write `await_sync(future)` instead of `future.await`"
            ),
        );
    }
    if let Some(keyword) = &sig.constness {
        error(keyword, format!("{what} cannot be `const`; remove `const`"));
    }
    if let Some(keyword) = &sig.unsafety {
        error(
            keyword,
            format!("{what} cannot be `unsafe`; write an `unsafe` block in the body"),
        );
    }
    if let Some(abi) = &sig.abi {
        let abi_text = borrow::text(abi);
        error(
            abi,
            format!("{what} cannot have a foreign ABI; remove `{abi_text}`"),
        );
    }
    if let Some(receiver) = sig.receiver() {
        error(
            receiver,
            format!("{what} cannot be a method; move it out of the `impl` and remove the receiver"),
        );
    } else if !sig.inputs.is_empty() {
        error(
            &sig.inputs,
            match attribute {
                Attribute::Test => "a test cannot have arguments; remove them".to_owned(),
                _ => "`main` cannot have arguments; remove them, \
                      and read `std::env::args()` in the body"
                    .to_owned(),
            },
        );
    }
    if !sig.generics.params.is_empty() {
        error(
            &sig.generics,
            format!("{what} cannot be generic; remove the parameters"),
        );
    }
    if let Some(clause) = &sig.generics.where_clause {
        error(
            clause,
            format!("{what} cannot have a `where` clause; remove it"),
        );
    }
    if function.body.is_none() {
        error(&sig.ident, format!("{what} needs a body; write `{{ .. }}`"));
    }
    let name = attribute.name();
    function.refuse_test_attributes(
        &match attribute {
            Attribute::Test => format!("`{name}` makes the function a test already; remove this"),
            _ => format!("`{name}` is for the program; write `#[greenhack::test]` alone"),
        },
        errors,
    );
}

/// Writes the user's function so that the compiler finds nothing more wrong
/// with it than what is reported already.
fn without_harness(function: Function) -> TokenStream {
    let Function { vis, sig, .. } = &function;
    if sig.ident != "main" || sig.receiver().is_some() || function.body.is_none() {
        let in_test = match sig.receiver() {
            Some(_) => None,
            None => Some(quote!(#[allow(dead_code)])),
        };
        return quote!(#in_test #function);
    }
    // A program without `main`, or with a strange one, has more errors.
    quote! {
        #vis fn main() {
            #[allow(dead_code)]
            #function
        }
    }
}

/// Writes the function that builds a runtime and runs the body in it.
fn harness(attribute: Attribute, options: &Options, function: Function) -> TokenStream {
    let krate = options.krate(Span::call_site());
    let output = match &function.sig.output {
        ReturnType::Default => quote!(()),
        ReturnType::Type(_, ty) => borrow::without_opaque(ty).into_token_stream(),
    };
    let test = (attribute == Attribute::Test).then(|| quote!(#[::core::prelude::v1::test]));
    let name = function.sig.ident.unraw().to_string();
    let stack_size = options.stack_size.iter();
    let runtime = Ident::new("__runtime", Span::mixed_site());
    let build = runtime_builder(options);
    let Function {
        attrs,
        vis,
        sig,
        body,
    } = function;
    quote! {
        #test
        #(#attrs)*
        #vis #sig {
            let #runtime = #build.expect("cannot build the tokio runtime");
            #runtime.block_on(
                #krate::builder()
                    .name(#name)
                    #(.stack_size(#stack_size))*
                    .run_sync_local(move || -> #output #body)
            )
        }
    }
}

/// Writes the expression that builds the runtime.
fn runtime_builder(options: &Options) -> TokenStream {
    let krate = options.krate(Span::call_site());
    match options.flavor {
        Flavor::CurrentThread => {
            let tokio = quote!(#krate::__private::tokio);
            let given = options.start_paused.as_ref();
            // If tokio lacks `test-util`, the compiler points at the option and names
            // the feature, as it does not for a method.
            let check = given.map(|given| {
                let function = Ident::new("pause", given.key.span());
                quote!(const _: fn() = #tokio::time::#function;)
            });
            let start_paused = given.map(|given| {
                let method = Ident::new("start_paused", given.key.span());
                let value = &given.value;
                quote!(.#method(#value))
            });
            let runtime = quote! {
                #tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    #start_paused
                    .build_local(::core::default::Default::default())
            };
            match check {
                Some(check) => quote!({ #check #runtime }),
                None => runtime,
            }
        }
        Flavor::MultiThread => {
            // If greenhack lacks `rt-multi-thread`, the compiler points at the
            // option.
            let span = options.flavor_span;
            let builder = Ident::new("multi_thread_builder", span);
            let worker_threads = options.worker_threads.as_ref().map(|given| {
                let count = &given.value;
                quote_spanned!(count.span()=> .worker_threads(#count))
            });
            quote! {
                #krate::__private::#builder()
                    .enable_all()
                    #worker_threads
                    .build()
            }
        }
    }
}
