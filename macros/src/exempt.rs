//! `#[greenhack::exempt]`: a plain function beside an async one.

use proc_macro2::{Group, Span, TokenStream, TokenTree};
use quote::{ToTokens, format_ident, quote};
use syn::ext::IdentExt;
use syn::{
    Error, FnArg, GenericArgument, GenericParam, Ident, PathArguments, ReturnType, Signature, Type,
    TypeParamBound, parse_quote, token,
};

use crate::argument::{call_argument, mentions};
use crate::attributes::{
    Kind, behind_instrument, document, for_original, for_plain, is_instrument,
};
use crate::borrow;
use crate::function::{self, Function, with_errors};
use crate::options::{self, Options};
use crate::receiver::own_self;

/// Expands `#[greenhack::exempt(args)] item`.
pub(crate) fn expand(args: TokenStream, item: TokenStream) -> TokenStream {
    let attribute = options::Attribute::Exempt;
    let mut errors = Vec::new();
    let mut options = options::parse(attribute, args.clone(), &mut errors);
    let mut function: Function = match syn::parse2(item.clone()) {
        Ok(function) => function,
        Err(error) => {
            let error = function::not_a_function(attribute.name(), item.clone(), error);
            errors.push(error);
            return with_errors(errors, item);
        }
    };
    check(&mut options, &mut function, &mut errors);
    if errors.is_empty() && function.attrs.iter().any(is_instrument) {
        return behind_instrument(attribute, &options, args, function);
    }
    with_errors(errors, twins(&options, function))
}

/// Reports everything that cannot be exempt, and mends it, so that what calls
/// the two functions still compiles.
fn check(options: &mut Options, function: &mut Function, errors: &mut Vec<Error>) {
    function.refuse_test_attributes(
        "a test has no callers, and so no need of a second name; remove `#[greenhack::exempt]`",
        errors,
    );
    let mut error = |at: &dyn ToTokens, problem: &str| {
        errors.push(Error::new_spanned(at.to_token_stream(), problem));
    };
    let sig = &mut function.sig;
    let plain = sig.ident.unraw().to_string();
    let original = original_name(sig, options);
    if let Some(keyword) = sig.constness.take() {
        error(
            &keyword,
            "an async function does not run at compile time, and neither does its plain twin; \
             remove `const`",
        );
    }
    if let Some(abi) = sig.abi.take() {
        let abi_text = borrow::text(&abi);
        error(
            &abi,
            &format!(
                "a cancellation unwinds out of the plain function, which a foreign caller cannot \
                 stand; remove `{abi_text}`, and write `await_or_cancelled({original}(..))` \
                 in a function that has it"
            ),
        );
    }
    if let Some(variadic) = sig.variadic.take() {
        error(
            &variadic,
            "an async function cannot be variadic; remove `...`",
        );
    }
    if is_main(sig, options) {
        error(
            &sig.ident,
            "`main` has one caller, and so one colour; write `#[tokio::main]`, \
             or `#[greenhack::main]` above a plain `fn main()`",
        );
    }
    if sig.asyncness.is_none() && future_output(&sig.output).is_none() {
        error(
            &sig.fn_token,
            "`#[greenhack::exempt]` makes a plain function of an async one; write `async fn`, \
             or give it the return type `impl Future<Output = T>`; \
             what is plain already needs no attribute",
        );
        sig.asyncness = Some(token::Async(sig.fn_token.span));
    }
    match &options.asynchronous {
        Some(name) if *name == sig.ident => {
            error(
                name,
                &format!(
                    "`{plain}` is the name of the plain function; write `async = {plain}_async`, \
                     or leave it out"
                ),
            );
            options.asynchronous = None;
        }
        Some(_) => {}
        None => {
            let short = plain.strip_suffix("_async").filter(|s| !s.is_empty());
            if let Some(short) = short {
                error(
                    &sig.ident,
                    &format!(
                        "the plain function would be called `{plain}`; write `async fn {short}`, \
                         and its async original is called `{plain}`; \
                         in an `impl` of a trait, remove `#[greenhack::exempt]` instead"
                    ),
                );
                if let Ok(mut short) = syn::parse_str::<Ident>(short) {
                    short.set_span(sig.ident.span());
                    options.asynchronous = Some(std::mem::replace(&mut sig.ident, short));
                }
            }
        }
    }
}

fn is_main(sig: &Signature, options: &Options) -> bool {
    sig.ident == "main" && sig.receiver().is_none() && !options.associated
}

fn original_name(sig: &Signature, options: &Options) -> Ident {
    match &options.asynchronous {
        Some(name) => name.clone(),
        None => format_ident!("{}_async", sig.ident),
    }
}

/// Writes the plain function and the async original.
fn twins(options: &Options, function: Function) -> TokenStream {
    let is_associated = options.associated || is_associated(&function);
    let Function {
        attrs,
        vis,
        sig,
        body,
    } = function;
    let kind = Kind {
        is_async: sig.asyncness.is_some(),
        has_body: body.is_some(),
    };
    let mut original = sig.clone();
    original.ident = original_name(&sig, options);

    let path = |name: &Ident| match is_associated {
        true => quote!(Self::#name),
        false => name.to_token_stream(),
    };
    let link = |name: &Ident| {
        let path = path(name).to_string().replace(' ', "");
        format!("[`{name}`]({path})")
    };
    let mut plain_attrs = for_plain(&attrs, kind);
    if is_main(&sig, options) {
        plain_attrs.retain(|attr| !attr.path().is_ident("track_caller"));
    }
    let mut original_attrs = for_original(&attrs, kind);
    document(
        &mut plain_attrs,
        &format!(
            "Suspends the calling plain function (outside a run it blocks); async code awaits {}.",
            link(&original.ident)
        ),
    );
    document(
        &mut original_attrs,
        &format!(
            "This is the async original of {}, which is for plain code.",
            link(&sig.ident)
        ),
    );

    let (plain, arguments) = plain_signature(&sig);
    // If there is no such function, it is the attribute that lacks an option.
    let mut callee = original.ident.clone();
    callee.set_span(Span::call_site());
    let callee = path(&callee);
    let turbofish = turbofish(&sig);
    let mut call = quote!(#callee #turbofish (#(#arguments),*));
    if sig.unsafety.is_some() {
        // The caller's promise covers the whole call, and the future ends
        // before it does.
        call = quote!(unsafe { #call });
    }
    let krate = options.krate(Span::call_site());
    let body = match body {
        Some(body) => body.into_token_stream(),
        None => quote!(;),
    };
    // What the message of a call in async code names.
    let plain_name = sig.ident.unraw().to_string();
    let awaited = format!("{}(..).await", original.ident.unraw());
    quote! {
        #(#plain_attrs)*
        #vis #plain {
            #krate::__private::await_called(#plain_name, #awaited, #call)
        }

        #(#original_attrs)*
        #vis #original #body
    }
}

/// The signature of the plain function, and the arguments to pass on.
fn plain_signature(sig: &Signature) -> (Signature, Vec<TokenStream>) {
    let mut plain = sig.clone();
    if plain.asyncness.take().is_none() {
        let output = future_output(&sig.output).expect("`check` refuses it");
        plain.output = parse_quote!(-> #output);
    }
    let mut arguments = Vec::new();
    for (index, input) in plain.inputs.iter_mut().enumerate() {
        arguments.push(match input {
            FnArg::Receiver(receiver) => {
                if receiver.reference.is_none() {
                    receiver.mutability = None;
                }
                receiver.self_token.to_token_stream()
            }
            FnArg::Typed(typed) => call_argument(typed, index),
        });
    }
    (plain, arguments)
}

/// Hands all type and const parameters on, since not all can be inferred.
/// Lifetimes are always.
fn turbofish(sig: &Signature) -> Option<TokenStream> {
    let params = sig.generics.params.iter().filter_map(|param| match param {
        GenericParam::Type(param) => Some(&param.ident),
        GenericParam::Const(param) => Some(&param.ident),
        GenericParam::Lifetime(_) => None,
    });
    let params: Vec<_> = params.collect();
    (!params.is_empty()).then(|| quote!(::<#(#params),*>))
}

/// Finds `T` in `-> impl Future<Output = T>`, and in the
/// `-> Pin<Box<dyn Future<Output = T>>>` that `#[async_trait]` writes.
fn future_output(output: &ReturnType) -> Option<Type> {
    match output {
        ReturnType::Default => None,
        ReturnType::Type(_, ty) => output_of(ty),
    }
}

fn output_of(ty: &Type) -> Option<Type> {
    match ty {
        Type::Group(group) => output_of(&group.elem),
        Type::Paren(paren) => output_of(&paren.elem),
        Type::ImplTrait(opaque) => opaque.bounds.iter().find_map(output_of_bound),
        Type::TraitObject(object) => object.bounds.iter().find_map(output_of_bound),
        Type::Path(path) => {
            let last = path.path.segments.last()?;
            let PathArguments::AngleBracketed(list) = &last.arguments else {
                return None;
            };
            match list.args.first()? {
                GenericArgument::Type(ty) if last.ident == "Pin" || last.ident == "Box" => {
                    output_of(ty)
                }
                _ => None,
            }
        }
        _ => None,
    }
}

fn output_of_bound(bound: &TypeParamBound) -> Option<Type> {
    let TypeParamBound::Trait(bound) = bound else {
        return None;
    };
    let last = bound.path.segments.last()?;
    let PathArguments::AngleBracketed(list) = &last.arguments else {
        return None;
    };
    list.args.iter().find_map(|argument| match argument {
        GenericArgument::AssocType(pair) if last.ident == "Future" && pair.ident == "Output" => {
            Some(pair.ty.clone())
        }
        _ => None,
    })
}

/// Tells whether the function surely belongs to a type or a trait: by its
/// receiver, by a `Self`, or because it has no body.
fn is_associated(function: &Function) -> bool {
    let sig = &function.sig;
    let this = Ident::new("Self", Span::call_site());
    let names = [&this];
    sig.receiver().is_some()
        || mentions(&sig.inputs, &names)
        || mentions(&sig.output, &names)
        || mentions(&sig.generics, &names)
        || mentions(&sig.generics.where_clause, &names)
        || function.body.as_ref().is_none_or(names_self)
}

/// Tells whether a body says `Self`. What is in nested items means another one,
/// and what is in the arguments of a macro may mean anything.
fn names_self(body: &Group) -> bool {
    let tokens: Vec<TokenTree> = body.stream().into_iter().collect();
    let is_bang = |token: &TokenTree| matches!(token, TokenTree::Punct(p) if p.as_char() == '!');
    let mut at = 0;
    while at < tokens.len() {
        let end = own_self(&tokens, at);
        if end > at {
            at = end;
            continue;
        }
        let after_bang = match tokens[..at] {
            [.., TokenTree::Ident(_), ref last] => is_bang(last),
            _ => false,
        };
        let found = match &tokens[at] {
            TokenTree::Ident(ident) => ident == "Self",
            TokenTree::Group(group) => !after_bang && names_self(group),
            _ => false,
        };
        if found {
            return true;
        }
        at += 1;
    }
    false
}
