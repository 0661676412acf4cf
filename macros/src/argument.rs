//! Arguments: their way into the closure of an entry and their bounds there,
//! and their way from a plain function to its async twin.

use proc_macro2::{Delimiter, Group, Span, TokenStream, TokenTree};
use quote::{ToTokens, format_ident, quote, quote_spanned};
use syn::{Attribute, Ident, Pat, PatType, Receiver, Signature, Token, Type, parse_quote};

use crate::borrow::is_opaque;
use crate::options::Options;

/// An argument, as the async function sees it.
pub(crate) struct Argument {
    name: Ident,
    ty: Type,
    /// The first and the last token of the type, or of `&self`.
    start: Span,
    end: Span,
    /// The `#[cfg]` attributes on the argument.
    cfg: Vec<Attribute>,
}

impl Argument {
    pub(crate) fn receiver(receiver: &Receiver, name: Ident, ty: Type) -> Self {
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
    pub(crate) fn assertions(&self, options: &Options) -> TokenStream {
        let Argument {
            name,
            ty,
            start,
            end,
            cfg,
        } = self;
        let krate = options.krate(*start);
        let and = Token![&](*start);
        let mut name = name.clone();
        name.set_span(name.span().located_at(*end));
        let argument = in_parentheses(quote!(#and #name), *start);
        let generic = (!is_opaque(ty)).then(|| quote_spanned!(*start=> ::<#ty>));
        let mut checks = vec![Ident::new("assert_static", *start)];
        if !options.local {
            checks.push(Ident::new("assert_send", *start));
        }
        let cfg = quote!(#(#cfg)*);
        quote_spanned! {*start=>
            #(#cfg #krate::__private::#checks #generic #argument;)*
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
pub(crate) fn rename(argument: &mut PatType, index: usize) -> (Argument, TokenStream) {
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
    let name = name(argument, index);
    let bind = match own_name(&pat) {
        Some(_) => quote!(#(#inner)* let #pat = #name;),
        None => quote! {
            #(#conditions)* let #name = #name;
            #(#inner)* let #pat = #name;
        },
    };
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

/// Gives an argument with a pattern a name, and leaves it only the attributes
/// that say whether it is there. Returns what to write in a call that passes it
/// on.
pub(crate) fn call_argument(argument: &mut PatType, index: usize) -> TokenStream {
    argument.attrs.retain(|attr| attr.path().is_ident("cfg"));
    let name = name(argument, index);
    let cfg = &argument.attrs;
    quote!(#(#cfg)* #name)
}

/// Puts a name in the place of the pattern, and returns it.
fn name(argument: &mut PatType, index: usize) -> Ident {
    let name = match own_name(&argument.pat) {
        Some(name) => name.clone(),
        None => format_ident!("__arg{index}", span = Span::mixed_site()),
    };
    *argument.pat = parse_quote!(#name);
    name
}

/// The name that a pattern is, but for a `mut`.
fn own_name(pat: &Pat) -> Option<&Ident> {
    match pat {
        Pat::Ident(plain) if plain.by_ref.is_none() && plain.subpat.is_none() => Some(&plain.ident),
        _ => None,
    }
}

/// Where the run is said to be written, if it is not at the attribute.
///
/// A type parameter that lacks `'static` is an error of the assertion, of the
/// run and of its `.await`. If one argument has such a type, all three are said
/// to be there: the compiler takes the first two for one, and the third then
/// points at the right place too. If several have, the run is said to be at all of
/// the arguments.
pub(crate) fn span_of_run(arguments: &[Argument], sig: &Signature) -> Option<Span> {
    let parameters: Vec<_> = sig
        .generics
        .type_params()
        .map(|param| &param.ident)
        .collect();
    let generic: Vec<_> = arguments
        .iter()
        .filter(|argument| is_opaque(&argument.ty) || mentions(&argument.ty, &parameters))
        .collect();
    match generic[..] {
        [] => None,
        [one] => Some(one.start),
        _ => Some(sig.paren_token.span.join()),
    }
}

/// Tells whether one of the identifiers in `tokens` is one of `names`.
pub(crate) fn mentions(tokens: &impl ToTokens, names: &[&Ident]) -> bool {
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
pub(crate) fn in_parentheses(tokens: TokenStream, span: Span) -> TokenTree {
    let mut group = Group::new(Delimiter::Parenthesis, tokens);
    group.set_span(span);
    TokenTree::Group(group)
}
