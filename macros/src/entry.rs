//! `#[greenhack::entry]`: checks the function, then writes the async one.

use proc_macro2::{Delimiter, Group, Span, TokenStream, TokenTree};
use quote::{ToTokens, format_ident, quote, quote_spanned};
use syn::ext::IdentExt;
use syn::spanned::Spanned;
use syn::{Attribute, Error, FnArg, Generics, Ident, Meta, Pat, PatType, Receiver, ReturnType};
use syn::{Token, Type, parse_quote, token};

use crate::borrow::{self, borrows, is_opaque, without_opaque};
use crate::function::{self, Function, with_errors};
use crate::options::{self, Options};
use crate::receiver;

const WHY: &str = "because its future can outlive the caller";

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
        return behind_instrument(&options, args, function);
    }
    entry(&options, function)
}

/// Reports everything in the signature that cannot be an entry.
fn check(function: &Function, errors: &mut Vec<Error>) {
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
    if shared_receiver(receiver).is_some() {
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

/// If the receiver is `&self`, returns the type behind the reference.
fn shared_receiver(receiver: &Receiver) -> Option<&Type> {
    match &*receiver.ty {
        Type::Reference(ty) if ty.mutability.is_none() => match &ty.lifetime {
            Some(lifetime) if lifetime.ident == "static" => None,
            _ => Some(&ty.elem),
        },
        _ => None,
    }
}

/// Writes a wrong entry so that what calls it still compiles: async, with the
/// body as it is.
fn as_async(mut function: Function) -> Function {
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

/// `#[instrument]` is for the sync code: it has to see the plain function, with
/// its own patterns and its own `self`. So it changes places with this
/// attribute, and both orders mean the same.
fn behind_instrument(options: &Options, args: TokenStream, mut function: Function) -> TokenStream {
    let krate = options.krate(Span::call_site());
    let ours: Attribute = match args.is_empty() {
        true => parse_quote!(#[#krate::entry]),
        false => parse_quote!(#[#krate::entry(#args)]),
    };
    let last = function.attrs.iter().rposition(is_instrument);
    function.attrs.insert(last.map_or(0, |last| last + 1), ours);
    function.into_token_stream()
}

/// Recognises `#[instrument]`, `#[tracing::instrument(..)]` and
/// `#[cfg_attr(.., instrument)]`.
fn is_instrument(attr: &Attribute) -> bool {
    let named = |ident: &Ident| ident == "instrument";
    if let (true, Meta::List(list)) = (attr.path().is_ident("cfg_attr"), &attr.meta) {
        let mut tokens = list.tokens.clone().into_iter();
        return tokens.any(|token| matches!(token, TokenTree::Ident(i) if named(&i)));
    }
    let last = attr.path().segments.last();
    last.is_some_and(|segment| named(&segment.ident))
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
            FnArg::Receiver(receiver) => match shared_receiver(receiver) {
                Some(ty) => {
                    let span = receiver.self_token.span;
                    let clone = Ident::new("__clone", Span::mixed_site());
                    let name = receiver::name(span);
                    before.extend(quote_spanned!(span=>
                        let #clone = ::core::clone::Clone::clone(self);
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
    let (start, end) = span_of_run(&arguments, &function.sig.generics);
    let builder = builder(options, &function.sig.ident, start);
    // The bounds on the output are checked at these two words.
    let at = output.span();
    let run = match options.local {
        true => Ident::new("run_sync_local", at),
        false => Ident::new("run_sync", at),
    };
    let dot_await = quote_spanned!(at=> .await);
    let closure = in_parentheses(quote!(move || -> #annotation #block), end);

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

/// Where the run is said to be written.
///
/// A type parameter that lacks `'static` is an error of the assertion and of
/// the run. The compiler reports the two as one if they are at the same place,
/// so if there is one argument with such a type, it is the place.
fn span_of_run(arguments: &[Argument], generics: &Generics) -> (Span, Span) {
    let parameters: Vec<_> = generics.type_params().map(|param| &param.ident).collect();
    let generic: Vec<_> = arguments
        .iter()
        .filter(|argument| is_opaque(&argument.ty) || mentions(&argument.ty, &parameters))
        .collect();
    match generic[..] {
        [one] => (one.start, one.end),
        _ => (Span::call_site(), Span::call_site()),
    }
}

/// Tells whether one of the identifiers in `tokens` is one of `names`.
fn mentions(tokens: &impl ToTokens, names: &[&Ident]) -> bool {
    tokens
        .to_token_stream()
        .into_iter()
        .any(|token| match token {
            TokenTree::Ident(ident) => names.contains(&&ident),
            TokenTree::Group(group) => mentions(&group.stream(), names),
            _ => false,
        })
}

/// Writes `(tokens)` with the parentheses at `span`.
fn in_parentheses(tokens: TokenStream, span: Span) -> TokenTree {
    let mut group = Group::new(Delimiter::Parenthesis, tokens);
    group.set_span(span);
    TokenTree::Group(group)
}

/// An argument, as the async function sees it.
struct Argument {
    name: Ident,
    ty: Type,
    /// The first and the last token of the type, or of `&self`.
    start: Span,
    end: Span,
    /// The `#[cfg]` attributes on the argument.
    cfg: Vec<Attribute>,
}

impl Argument {
    fn receiver(receiver: &Receiver, name: Ident, ty: Type) -> Self {
        let (start, end) = match receiver.colon_token {
            Some(_) => ends(&receiver.ty),
            None => ends(receiver),
        };
        Argument {
            name,
            ty,
            start,
            end,
            cfg: Vec::new(),
        }
    }

    /// Checks the bounds on the argument where its type is written. Without
    /// this, the compiler would point at the whole run.
    fn assertions(&self, options: &Options) -> TokenStream {
        let Argument {
            name,
            ty,
            start,
            end,
            cfg,
        } = self;
        let krate = options.krate(*start);
        let and = Token![&](*start);
        let name = Ident::new(&name.to_string(), name.span().located_at(*end));
        let argument = in_parentheses(quote!(#and #name), *end);
        let generic = (!is_opaque(ty)).then(|| quote_spanned!(*start=> ::<#ty>));
        let mut checks = vec![Ident::new("assert_static", *start)];
        if !options.local {
            checks.push(Ident::new("assert_send", *start));
        }
        quote_spanned! {*start=>
            #(#(#cfg)* #krate::__private::#checks #generic #argument;)*
        }
    }
}

/// The spans of the first and the last token.
fn ends(tokens: &impl ToTokens) -> (Span, Span) {
    let mut spans = tokens.to_token_stream().into_iter().map(|t| t.span());
    let start = spans.next().unwrap_or_else(Span::call_site);
    (start, spans.last().unwrap_or(start))
}

/// Gives an argument with a pattern a name, and returns the statements that
/// bind the pattern in the closure.
///
/// In the closure the whole argument moves in first, then the pattern takes its
/// parts: as in a function, the argument ends after the variables, and what no
/// variable took (all of it, with `_`) ends with the argument.
fn rename(argument: &mut PatType, index: usize) -> (Argument, TokenStream) {
    let is_one_of =
        |attr: &Attribute, names: &[&str]| names.iter().any(|name| attr.path().is_ident(name));
    let cfg = ["cfg", "cfg_attr"];
    let lints = ["allow", "warn", "deny", "forbid", "expect"];
    let mut conditions = argument.attrs.clone();
    conditions.retain(|attr| is_one_of(attr, &cfg[..1]));
    let mut inner = argument.attrs.clone();
    inner.retain(|attr| is_one_of(attr, &cfg) || is_one_of(attr, &lints));
    // An expectation is fulfilled in one place, where the variable is.
    argument.attrs.retain(|attr| !is_one_of(attr, &["expect"]));

    let pat = (*argument.pat).clone();
    let (name, bind) = match &pat {
        Pat::Ident(plain) if plain.by_ref.is_none() && plain.subpat.is_none() => {
            let name = plain.ident.clone();
            let bind = quote!(#(#inner)* let #pat = #name;);
            (name, bind)
        }
        _ => {
            let name = format_ident!("__arg{index}", span = Span::mixed_site());
            let bind = quote! {
                #(#conditions)* let #name = #name;
                #(#inner)* let #pat = #name;
            };
            (name, bind)
        }
    };
    *argument.pat = parse_quote!(#name);
    let (start, end) = ends(&argument.ty);
    let renamed = Argument {
        name,
        ty: (*argument.ty).clone(),
        start,
        end,
        cfg: conditions,
    };
    (renamed, bind)
}
