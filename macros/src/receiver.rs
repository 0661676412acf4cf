//! Gives the name `self` in a body another meaning.
//!
//! A closure captures `self` of the method around it, so a method that takes
//! `self`, `Arc<Self>` or `Box<Self>` needs nothing. A method that takes
//! `&self` runs on a clone of its value, and no closure can call that `self`:
//! the word has to be replaced. This is done token by token, because inside
//! the arguments of a macro there is nothing but tokens.
//!
//! Left alone are
//!
//! - paths: `self::helper()`;
//! - nested items with a `self` of their own: `fn`, `impl`, `trait`, `use`;
//! - names: `self = ..`, which is how `tracing` writes a field.
//!
//! A format string can name `self` too: `println!("{self:?}")`. It is replaced
//! where a well-known macro takes its format string, and nowhere else, because
//! in other strings `{self}` is just text.

use proc_macro2::{Delimiter, Group, Ident, Literal, Span, TokenStream, TokenTree};

use syn::{Receiver, Type};

use crate::function::with_content;

/// The name that stands for `self`.
pub(crate) const NAME: &str = "__self";

/// The identifier that stands for a `self` written at `span`.
///
/// It resolves as that does, also where a macro has written the method: the names
/// in a format string resolve where the string was written, all of them.
pub(crate) fn name(span: Span) -> Ident {
    Ident::new(NAME, span)
}

/// If the receiver is `&self`, returns the type behind the reference.
pub(crate) fn shared(receiver: &Receiver) -> Option<&Type> {
    match &*receiver.ty {
        Type::Reference(ty) if ty.mutability.is_none() => match &ty.lifetime {
            Some(lifetime) if lifetime.ident == "static" => None,
            _ => Some(&ty.elem),
        },
        _ => None,
    }
}

/// Replaces `self` in the body of a method.
pub(crate) fn replace(body: &Group) -> Group {
    with_content(body, replace_in(body.stream(), None))
}

/// Replaces `self` in `tokens`. With `format`, they are the arguments of a
/// macro whose format string is at that position or, where the macro has
/// arguments before it that may be left out, behind it.
fn replace_in(tokens: TokenStream, format: Option<usize>) -> TokenStream {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let format = format.and_then(|first| format_string(&tokens, first));
    let mut out = Vec::with_capacity(tokens.len());
    let mut at = 0;
    while at < tokens.len() {
        let end = own_self(&tokens, at);
        if end > at {
            out.extend_from_slice(&tokens[at..end]);
            at = end;
            continue;
        }
        out.push(match &tokens[at] {
            TokenTree::Ident(ident) if ident == "self" && is_value(&tokens, at) => {
                TokenTree::Ident(name(ident.span()))
            }
            TokenTree::Literal(literal) if format == Some(at) => {
                TokenTree::Literal(replace_in_string(literal))
            }
            TokenTree::Group(group) => {
                let format = macro_before(&tokens, at);
                TokenTree::Group(with_content(group, replace_in(group.stream(), format)))
            }
            other => other.clone(),
        });
        at += 1;
    }
    out.into_iter().collect()
}

/// If a nested item with a `self` or `Self` of its own begins at `at`, returns
/// its end, else `at`.
pub(crate) fn own_self(tokens: &[TokenTree], at: usize) -> usize {
    let TokenTree::Ident(word) = &tokens[at] else {
        return at;
    };
    let begins_item = match word.to_string().as_str() {
        // `fn(u8)` without a name is a type.
        "fn" => matches!(tokens.get(at + 1), Some(TokenTree::Ident(_))),
        "impl" | "trait" | "use" | "struct" | "enum" => true,
        _ => false,
    };
    if !begins_item {
        return at;
    }
    let is_end = |token: &TokenTree| match token {
        TokenTree::Group(group) => group.delimiter() == Delimiter::Brace && word != "use",
        TokenTree::Punct(punct) => punct.as_char() == ';',
        _ => false,
    };
    let length = tokens[at..].iter().position(is_end);
    length.map_or(tokens.len(), |length| at + length + 1)
}

/// Tells whether the `self` at `at` is the value, and not a path or a name.
fn is_value(tokens: &[TokenTree], at: usize) -> bool {
    let is = |offset: usize, expected: char| match tokens.get(at + offset) {
        Some(TokenTree::Punct(punct)) => punct.as_char() == expected,
        _ => false,
    };
    let path = is(1, ':') && is(2, ':');
    let field_name = is(1, '=') && !is(2, '=');
    !path && !field_name
}

/// If the group at `at` holds the arguments of a macro that formats, returns
/// the first position at which its format string can be.
fn macro_before(tokens: &[TokenTree], at: usize) -> Option<usize> {
    let [
        ..,
        TokenTree::Ident(name),
        TokenTree::Punct(bang),
        TokenTree::Group(_),
    ] = &tokens[..=at]
    else {
        return None;
    };
    if bang.as_char() != '!' {
        return None;
    }
    match name.to_string().as_str() {
        "format" | "format_args" | "print" | "println" | "eprint" | "eprintln" | "panic"
        | "todo" | "unimplemented" | "unreachable" | "trace" | "debug" | "info" | "warn"
        | "error" | "event" | "log" | "anyhow" | "bail" | "eyre" => Some(0),
        "write" | "writeln" | "assert" | "debug_assert" | "ensure" => Some(1),
        "assert_eq" | "assert_ne" | "debug_assert_eq" | "debug_assert_ne" => Some(2),
        _ => None,
    }
}

/// Finds the first argument from position `first` on that is a lone literal.
fn format_string(tokens: &[TokenTree], first: usize) -> Option<usize> {
    let is_comma = |token: &TokenTree| match token {
        TokenTree::Punct(punct) => punct.as_char() == ',',
        _ => false,
    };
    let mut start = 0;
    for (position, argument) in tokens.split(is_comma).enumerate() {
        if position >= first && matches!(argument, [TokenTree::Literal(_)]) {
            return Some(start);
        }
        start += argument.len() + 1;
    }
    None
}

/// Replaces `{self}` and `{self:..}` in a format string.
fn replace_in_string(literal: &Literal) -> Literal {
    let text = literal.to_string();
    let mut out = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some(brace) = rest.find('{') {
        let (before, after) = rest.split_at(brace + 1);
        out.push_str(before);
        rest = after;
        if let Some(after) = rest.strip_prefix('{') {
            // An escaped brace.
            out.push('{');
            rest = after;
        } else if let Some(after) = rest.strip_prefix("self") {
            if after.trim_start().starts_with(['}', ':']) {
                out.push_str(NAME);
                rest = after;
            }
        }
    }
    out.push_str(rest);
    match out.parse::<Literal>() {
        Ok(mut new) if out != text => {
            new.set_span(literal.span());
            new
        }
        _ => literal.clone(),
    }
}
