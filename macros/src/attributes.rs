//! The attributes that stand below ours: which function they are for.

use std::mem;

use proc_macro2::{Ident, Span, TokenStream, TokenTree};
use quote::ToTokens;
use syn::parse::Parser;
use syn::punctuated::Punctuated;
use syn::{AttrStyle, Attribute, Expr, Lit, Meta, Path, Token, parse_quote, token};

use crate::argument::mentions;
use crate::function::Function;
use crate::options::{self, Options};

/// Recognises `#[instrument]`, `#[tracing::instrument(..)]` and
/// `#[cfg_attr(.., instrument)]`.
pub(crate) fn is_instrument(attr: &Attribute) -> bool {
    let named = |ident: &Ident| ident == "instrument";
    if let (true, Meta::List(list)) = (attr.path().is_ident("cfg_attr"), &attr.meta) {
        let mut tokens = list.tokens.clone().into_iter();
        return tokens.any(|token| matches!(token, TokenTree::Ident(i) if named(&i)));
    }
    let last = attr.path().segments.last();
    last.is_some_and(|segment| named(&segment.ident))
}

/// `#[instrument]` has to see the function as the user wrote it, with its name,
/// its patterns and its own `self`. So it comes before our attribute, and both
/// orders mean the same. Whatever else stands below ours stays below, wherever
/// `#[instrument]` was.
pub(crate) fn behind_instrument(
    attribute: options::Attribute,
    options: &Options,
    args: TokenStream,
    mut function: Function,
) -> TokenStream {
    let krate = options.krate(Span::call_site());
    let name = Ident::new(attribute.ident(), Span::call_site());
    let ours: Attribute = match args.is_empty() {
        true => parse_quote!(#[#krate::#name]),
        false => parse_quote!(#[#krate::#name(#args)]),
    };
    let attrs = mem::take(&mut function.attrs).into_iter();
    let (instruments, others): (Vec<_>, Vec<_>) = attrs.partition(is_instrument);
    function.attrs = instruments;
    function.attrs.push(ours);
    function.attrs.extend(others);
    function.into_token_stream()
}

/// What the rules about attributes depend on.
#[derive(Clone, Copy)]
pub(crate) struct Kind {
    /// The function is an `async fn`, and not one that returns a future.
    pub(crate) is_async: bool,
    pub(crate) has_body: bool,
}

/// Picks the attributes of an exempt function that its plain twin gets too:
/// those that say something of the result, of the documentation, of lints, and
/// of whether the function is there. What frameworks have is for the async
/// original.
pub(crate) fn for_plain(attrs: &[Attribute], kind: Kind) -> Vec<Attribute> {
    let picked = attrs.iter().filter_map(|attr| {
        let meta = meta_for_plain(&attr.meta, kind)?;
        Some(with_meta(attr, meta))
    });
    let mut picked: Vec<_> = picked.collect();
    // The plain function calls the original, which is as old as it is.
    let deprecated = Ident::new("deprecated", Span::call_site());
    if picked.iter().any(|attr| mentions(attr, &[&deprecated])) {
        picked.push(parse_quote!(#[allow(deprecated)]));
    }
    if !picked.iter().any(|attr| attr.path().is_ident("inline")) {
        picked.push(parse_quote!(#[inline]));
    }
    picked.push(parse_quote!(#[track_caller]));
    picked
}

fn meta_for_plain(meta: &Meta, kind: Kind) -> Option<Meta> {
    match meta.path().get_ident()?.to_string().as_str() {
        "doc" | "cfg" | "deprecated" | "allow" | "warn" | "deny" | "forbid" | "inline" | "cold" => {
            Some(meta.clone())
        }
        // On a function that returns a future, it speaks of the future.
        "must_use" => kind.is_async.then(|| meta.clone()),
        // An expectation is fulfilled in one place, where the body is.
        "expect" => {
            let mut meta = meta.clone();
            let path = Path::from(Ident::new("allow", Span::call_site()));
            match &mut meta {
                Meta::Path(old) => *old = path,
                Meta::List(list) => list.path = path,
                Meta::NameValue(pair) => pair.path = path,
            }
            Some(meta)
        }
        "cfg_attr" => {
            let list = meta.require_list().ok()?;
            let parser = Punctuated::<Meta, Token![,]>::parse_terminated;
            let mut parts = parser.parse2(list.tokens.clone()).ok()?.into_iter();
            let condition = parts.next()?;
            let picked: Vec<_> = parts.filter_map(|m| meta_for_plain(&m, kind)).collect();
            (!picked.is_empty()).then(|| parse_quote!(cfg_attr(#condition, #(#picked),*)))
        }
        _ => None,
    }
}

/// Picks the attributes that the async original keeps: all that mean something
/// there.
pub(crate) fn for_original(attrs: &[Attribute], kind: Kind) -> Vec<Attribute> {
    let means_nothing = |attr: &&Attribute| {
        let is = |name| attr.path().is_ident(name);
        (is("track_caller") && kind.is_async) || ((is("inline") || is("cold")) && !kind.has_body)
    };
    let kept = attrs.iter().filter(|attr| !means_nothing(attr));
    kept.cloned().collect()
}

fn with_meta(attr: &Attribute, meta: Meta) -> Attribute {
    Attribute {
        meta,
        style: AttrStyle::Outer,
        pound_token: attr.pound_token,
        bracket_token: token::Bracket(attr.bracket_token.span),
    }
}

/// Adds a paragraph to the documentation, behind the first one.
///
/// A function without documentation stays without: the lint `missing_docs` is
/// to see that.
pub(crate) fn document(attrs: &mut Vec<Attribute>, paragraph: &str) {
    let Some(last) = attrs.iter().rposition(|attr| doc_text(attr).is_some()) else {
        return;
    };
    let is_blank = |attr: &Attribute| doc_text(attr).is_some_and(|text| text.trim().is_empty());
    let at = attrs.iter().position(is_blank).unwrap_or(last + 1);
    let paragraph = format!(" {paragraph}");
    let added: [Attribute; 2] = [parse_quote!(#[doc = ""]), parse_quote!(#[doc = #paragraph])];
    attrs.splice(at..at, added);
}

/// The text of a `#[doc = ..]`, as a literal or as it is written.
fn doc_text(attr: &Attribute) -> Option<String> {
    let Meta::NameValue(pair) = &attr.meta else {
        return None;
    };
    match &pair.value {
        _ if !pair.path.is_ident("doc") => None,
        Expr::Lit(literal) => match &literal.lit {
            Lit::Str(text) => Some(text.value()),
            _ => None,
        },
        other => Some(other.to_token_stream().to_string()),
    }
}

#[cfg(test)]
mod tests {
    use quote::quote;

    use super::*;

    const ASYNC: Kind = Kind {
        is_async: true,
        has_body: true,
    };

    fn text(attrs: &[Attribute]) -> String {
        quote!(#(#attrs)*).to_string()
    }

    #[test]
    fn the_paragraph_comes_behind_the_first() {
        let mut attrs: Vec<Attribute> = vec![
            parse_quote!(#[doc = " First,"]),
            parse_quote!(#[doc = " and on."]),
            parse_quote!(#[must_use]),
            parse_quote!(#[doc = ""]),
            parse_quote!(#[doc = " # Examples"]),
        ];
        document(&mut attrs, "Twin.");
        let texts: Vec<_> = attrs.iter().filter_map(doc_text).collect();
        assert_eq!(
            texts,
            [" First,", " and on.", "", " Twin.", "", " # Examples"]
        );

        let mut short: Vec<Attribute> = vec![parse_quote!(#[doc = " First."])];
        document(&mut short, "Twin.");
        let texts: Vec<_> = short.iter().filter_map(doc_text).collect();
        assert_eq!(texts, [" First.", "", " Twin."]);
    }

    #[test]
    fn what_has_no_documentation_gets_none() {
        let mut attrs: Vec<Attribute> = vec![parse_quote!(#[doc(hidden)])];
        document(&mut attrs, "Twin.");
        assert_eq!(attrs.len(), 1);
    }

    #[test]
    fn attributes_of_frameworks_are_for_the_original() {
        let attrs: Vec<Attribute> = vec![
            parse_quote!(#[must_use]),
            parse_quote!(#[some::framework]),
            parse_quote!(#[cfg_attr(all(), framework, doc = "text")]),
            parse_quote!(#[expect(unused, reason = "why")]),
            parse_quote!(#[inline(never)]),
            parse_quote!(#[track_caller]),
        ];
        assert_eq!(
            text(&for_plain(&attrs, ASYNC)),
            text(&[
                parse_quote!(#[must_use]),
                parse_quote!(#[cfg_attr(all(), doc = "text")]),
                parse_quote!(#[allow(unused, reason = "why")]),
                parse_quote!(#[inline(never)]),
                parse_quote!(#[track_caller]),
            ])
        );
        assert_eq!(text(&for_original(&attrs, ASYNC)), text(&attrs[..5]));
    }

    #[test]
    fn must_use_of_a_future_is_not_for_its_output() {
        let attrs: Vec<Attribute> = vec![parse_quote!(#[must_use])];
        let kind = Kind {
            is_async: false,
            ..ASYNC
        };
        assert_eq!(
            text(&for_plain(&attrs, kind)),
            text(&[parse_quote!(#[inline]), parse_quote!(#[track_caller])])
        );
        assert_eq!(text(&for_original(&attrs, kind)), text(&attrs));
    }
}
