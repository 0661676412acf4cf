//! The function below an attribute.
//!
//! Its signature is parsed; its body stays tokens, so that a body may use
//! syntax that the parser does not know.

use proc_macro2::{Delimiter, Group, Span, TokenStream, TokenTree};
use quote::{ToTokens, quote};
use syn::parse::{Parse, ParseStream, Parser};
use syn::{AttrStyle, Attribute, Error, Item, Result, ReturnType, Signature, Token, Type};
use syn::{Visibility, parse_quote};

/// A function or a method as the user wrote it.
pub(crate) struct Function {
    /// The attributes below ours. Those inside the body are among them.
    pub(crate) attrs: Vec<Attribute>,
    pub(crate) vis: Visibility,
    pub(crate) sig: Signature,
    /// The braces and what is in them; `None` for a method without a body.
    pub(crate) body: Option<Group>,
}

impl Parse for Function {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        let mut attrs = input.call(Attribute::parse_outer)?;
        let vis = input.parse()?;
        let sig = input.parse()?;
        if input.parse::<Option<Token![;]>>()?.is_some() {
            return Ok(Function {
                attrs,
                vis,
                sig,
                body: None,
            });
        }
        let braces = braces(input.parse()?)?;
        let split = |input: ParseStream<'_>| {
            let inner = input.call(Attribute::parse_inner)?;
            let statements: TokenStream = input.parse()?;
            Ok((inner, statements))
        };
        let (inner, statements) = split.parse2(braces.stream())?;
        attrs.extend(inner.into_iter().map(|attr| Attribute {
            style: AttrStyle::Outer,
            ..attr
        }));
        Ok(Function {
            attrs,
            vis,
            sig,
            body: Some(with_content(&braces, statements)),
        })
    }
}

/// Takes the braces out of the invisible group that stands around a `$body` of
/// `macro_rules!`.
fn braces(token: TokenTree) -> Result<Group> {
    match token {
        TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => Ok(group),
        TokenTree::Group(group) if group.delimiter() == Delimiter::None => {
            braces(syn::parse2(group.stream())?)
        }
        other => Err(Error::new(other.span(), "a function body needs braces")),
    }
}

impl ToTokens for Function {
    fn to_tokens(&self, tokens: &mut TokenStream) {
        let Function {
            attrs, vis, sig, ..
        } = self;
        let body = match &self.body {
            Some(body) => body.to_token_stream(),
            None => quote!(;),
        };
        tokens.extend(quote!(#(#attrs)* #vis #sig #body));
    }
}

impl Function {
    /// The return type, `()` where none is written.
    pub(crate) fn output(&self) -> Type {
        match &self.sig.output {
            ReturnType::Default => parse_quote!(()),
            ReturnType::Type(_, ty) => (**ty).clone(),
        }
    }

    /// Reports the attributes that make the function a test.
    pub(crate) fn refuse_test_attributes(&self, problem: &str, errors: &mut Vec<Error>) {
        for attr in &self.attrs {
            let last = attr.path().segments.last();
            if last.is_some_and(|segment| segment.ident == "test") {
                errors.push(Error::new_spanned(attr.path(), problem));
            }
        }
    }
}

/// Makes a group with the braces of `group` and another content.
pub(crate) fn with_content(group: &Group, content: TokenStream) -> Group {
    let mut new = Group::new(group.delimiter(), content);
    new.set_span(group.span());
    new
}

/// Says why the thing below `attribute` is not a function.
pub(crate) fn not_a_function(attribute: &str, item: TokenStream, error: Error) -> Error {
    let at = |span: Span, what: &str| {
        Error::new(
            span,
            format!(
                "`{attribute}` goes on a function, and this is {what}; \
                 remove it here, and write it above the `fn`"
            ),
        )
    };
    let methods = |span: Span, what: &str| {
        Error::new(
            span,
            format!(
                "`{attribute}` goes on a function, and this is {what}; \
                 write it above each method that it is meant for"
            ),
        )
    };
    match syn::parse2(item) {
        Ok(Item::Impl(item)) => methods(item.impl_token.span, "an `impl` block"),
        Ok(Item::Trait(item)) => methods(item.trait_token.span, "a trait"),
        Ok(Item::Struct(item)) => at(item.struct_token.span, "a struct"),
        Ok(Item::Enum(item)) => at(item.enum_token.span, "an enum"),
        Ok(Item::Mod(item)) => at(item.mod_token.span, "a module"),
        Ok(Item::Const(item)) => at(item.const_token.span, "a constant"),
        Ok(Item::Static(item)) => at(item.static_token.span, "a static"),
        Ok(Item::Type(item)) => at(item.type_token.span, "a type alias"),
        Ok(Item::Fn(_) | Item::Verbatim(_)) | Err(_) => error,
        Ok(item) => Error::new_spanned(item, at(Span::call_site(), "something else")),
    }
}

/// Puts `errors` and what is left of the user's function together.
pub(crate) fn with_errors(errors: Vec<Error>, function: TokenStream) -> TokenStream {
    let errors = errors.iter().map(Error::to_compile_error);
    quote!(#function #(#errors)*)
}
