//! The options between the parentheses of the attributes.
//!
//! Parsing does not stop at a mistake: every option is read, every mistake is
//! reported at its own token, and what was right is still used.

use proc_macro2::{Group, Span, TokenStream, TokenTree};
use quote::{ToTokens, quote_spanned};
use syn::ext::IdentExt;
use syn::parse::{Parse, ParseStream, Parser};
use syn::spanned::Spanned;
use syn::{Error, Expr, Ident, Lit, LitBool, LitStr, Path, Result, Token, token};

/// The attribute whose options are read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Attribute {
    Entry,
    Exempt,
    Main,
    Test,
}

impl Attribute {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Attribute::Entry => "#[greenhack::entry]",
            Attribute::Exempt => "#[greenhack::exempt]",
            Attribute::Main => "#[greenhack::main]",
            Attribute::Test => "#[greenhack::test]",
        }
    }

    /// The name in the crate greenhack.
    pub(crate) fn ident(self) -> &'static str {
        match self {
            Attribute::Entry => "entry",
            Attribute::Exempt => "exempt",
            Attribute::Main => "main",
            Attribute::Test => "test",
        }
    }

    fn options(self) -> &'static [&'static str] {
        match self {
            Attribute::Entry => &["local", "stack_size", "name", "carry", "crate"],
            Attribute::Exempt => &["async", "associated", "crate"],
            Attribute::Main => &["flavor", "worker_threads", "stack_size", "crate"],
            Attribute::Test => &[
                "flavor",
                "worker_threads",
                "start_paused",
                "stack_size",
                "crate",
            ],
        }
    }

    fn list_options(self) -> String {
        let names: Vec<_> = self.options().iter().map(|o| format!("`{o}`")).collect();
        format!("the options of `{}` are {}", self.name(), names.join(", "))
    }
}

/// A value, and the key it was given with.
pub(crate) struct Keyed<T> {
    pub(crate) key: Ident,
    pub(crate) value: T,
}

/// The value of `flavor`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flavor {
    CurrentThread,
    MultiThread,
}

/// Everything that can be given to one of the attributes.
pub(crate) struct Options {
    /// The path of the crate greenhack, if it is given.
    krate: Option<Path>,
    pub(crate) local: bool,
    pub(crate) stack_size: Option<Expr>,
    pub(crate) name: Option<LitStr>,
    pub(crate) carry: Vec<Path>,
    /// The name of the async original.
    pub(crate) asynchronous: Option<Ident>,
    pub(crate) associated: bool,
    pub(crate) flavor: Flavor,
    /// Where the flavour is written.
    pub(crate) flavor_span: Span,
    pub(crate) worker_threads: Option<Keyed<Expr>>,
    pub(crate) start_paused: Option<Keyed<LitBool>>,
}

/// Reads the options of `attribute`, and adds each mistake to `errors`.
pub(crate) fn parse(attribute: Attribute, tokens: TokenStream, errors: &mut Vec<Error>) -> Options {
    let mut options = Options {
        krate: None,
        local: false,
        stack_size: None,
        name: None,
        carry: Vec::new(),
        asynchronous: None,
        associated: false,
        flavor: Flavor::CurrentThread,
        flavor_span: Span::call_site(),
        worker_threads: None,
        start_paused: None,
    };
    let list = |input: ParseStream<'_>| {
        let mut seen = Vec::new();
        while !input.is_empty() {
            if let Err(error) = options.parse_one(attribute, &mut seen, input) {
                errors.push(error);
                skip_to_comma(input);
            } else if !input.is_empty() && !input.peek(Token![,]) {
                errors.push(input.error("two options need a comma between them; write `,`"));
                skip_to_comma(input);
            }
            if !input.is_empty() {
                input.parse::<Token![,]>()?;
            }
        }
        Ok(())
    };
    let outcome = list.parse2(tokens);
    errors.extend(outcome.err());
    options
}

impl Options {
    /// The path of the crate greenhack, as if it were written at `span`.
    pub(crate) fn krate(&self, span: Span) -> TokenStream {
        match &self.krate {
            None => quote_spanned!(span=> ::greenhack),
            Some(path) => located_at(path.to_token_stream(), span),
        }
    }

    /// Reads the option at the head of `input`, without the comma behind it.
    fn parse_one(
        &mut self,
        attribute: Attribute,
        seen: &mut Vec<Ident>,
        input: ParseStream<'_>,
    ) -> Result<()> {
        if !input.peek(Ident::peek_any) {
            return Err(input.error(format!(
                "an option begins with its name; {}",
                attribute.list_options()
            )));
        }
        let key = input.call(Ident::parse_any)?;
        let text = key.to_string();
        if !attribute.options().contains(&text.as_str()) {
            let problem = format!("unknown option `{text}`; {}", attribute.list_options());
            return Err(Error::new(key.span(), problem));
        }
        if seen.contains(&key) {
            let problem = format!("`{text}` is given twice; keep one of the two");
            return Err(Error::new(key.span(), problem));
        }
        seen.push(key.clone());

        match text.as_str() {
            "local" => self.local = flag(&text, input)?,
            "associated" => self.associated = flag(&text, input)?,
            "async" => self.asynchronous = Some(name(&key, input)?),
            "stack_size" => {
                let size = value(&key, "stack_size = 256 * 1024", input)?;
                let fix = "write `stack_size = 256 * 1024`";
                self.stack_size = Some(number(size, "`stack_size` takes a number of bytes", fix)?);
            }
            "name" => {
                let name = string(&key, "name = \"checkout\"", input)?;
                if name.value().is_empty() {
                    let problem = "`name` is empty; write `name = \"checkout\"`, \
                        or leave it out for the path of the function";
                    return Err(Error::new(name.span(), problem));
                }
                self.name = Some(name);
            }
            "carry" => self.carry = keys(&key, input)?,
            "crate" => {
                let example = "crate = some::path::greenhack";
                if value_is_literal(input) {
                    let problem = format!("`crate` takes a path; write `{example}`");
                    return Err(Error::new(
                        value::<Lit>(&key, example, input)?.span(),
                        problem,
                    ));
                }
                let PathValue(path) = value(&key, example, input)?;
                self.krate = Some(path);
            }
            "flavor" => {
                let flavor = string(&key, "flavor = \"multi_thread\"", input)?;
                self.flavor_span = flavor.span();
                self.flavor = match flavor.value().as_str() {
                    "current_thread" => Flavor::CurrentThread,
                    "multi_thread" => Flavor::MultiThread,
                    other => {
                        let problem = format!(
                            "unknown flavor `{other}`; write `flavor = \"current_thread\"` \
                             or `flavor = \"multi_thread\"`"
                        );
                        return Err(Error::new(flavor.span(), problem));
                    }
                };
            }
            "worker_threads" => {
                let count = value(&key, "worker_threads = 2", input)?;
                let fix = "write `worker_threads = 2`";
                let value = number(count, "`worker_threads` takes a number of threads", fix)?;
                self.worker_threads = Some(Keyed { key, value });
            }
            "start_paused" => {
                let example = "start_paused = true";
                let given: Expr = value(&key, example, input)?;
                let Expr::Lit(syn::ExprLit {
                    lit: Lit::Bool(value),
                    ..
                }) = given
                else {
                    let problem = "`start_paused` takes `true` or `false`; \
                        write `start_paused = true`";
                    return Err(Error::new_spanned(given, problem));
                };
                self.start_paused = Some(Keyed { key, value });
            }
            other => unreachable!("option `{other}` is listed but not read"),
        }
        Ok(())
    }
}

/// Reads an option that is there or not.
fn flag(key: &str, input: ParseStream<'_>) -> Result<bool> {
    if input.peek(Token![=]) || input.peek(token::Paren) {
        let problem = format!("`{key}` takes no value; write `{key}`, or leave it out");
        return Err(input.error(problem));
    }
    Ok(true)
}

/// Reads `= name` behind `key`.
fn name(key: &Ident, input: ParseStream<'_>) -> Result<Ident> {
    let example = "async = fetch_async";
    let given: Expr = value(key, example, input)?;
    match &given {
        Expr::Path(path) if path.path.get_ident().is_some() => {}
        _ => {
            let problem = format!("`{key}` takes a name, as in a `fn` line; write `{example}`");
            return Err(Error::new_spanned(given, problem));
        }
    }
    syn::parse2(given.into_token_stream())
}

/// A path, read as it is written in a `use` line.
struct PathValue(Path);

impl Parse for PathValue {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        input.call(Path::parse_mod_style).map(PathValue)
    }
}

/// Reads `= value` behind `key`.
fn value<T: Parse>(key: &Ident, example: &str, input: ParseStream<'_>) -> Result<T> {
    let Ok(equals) = input.parse::<Token![=]>() else {
        let problem = format!("`{key}` needs a value; write `{example}`");
        return Err(Error::new(key.span(), problem));
    };
    if input.is_empty() || input.peek(Token![,]) {
        let problem = format!("`{key}` needs a value; write `{example}`");
        return Err(Error::new(equals.span, problem));
    }
    input.parse()
}

/// Tells whether `= literal` comes next.
fn value_is_literal(input: ParseStream<'_>) -> bool {
    input.peek(Token![=]) && input.peek2(Lit)
}

/// Reads `= "text"` behind `key`.
fn string(key: &Ident, example: &str, input: ParseStream<'_>) -> Result<LitStr> {
    match value(key, example, input)? {
        Expr::Lit(syn::ExprLit {
            lit: Lit::Str(text),
            ..
        }) => Ok(text),
        other => {
            let problem = format!("`{key}` takes a string literal; write `{example}`");
            Err(Error::new_spanned(other, problem))
        }
    }
}

/// Refuses literals that cannot be a positive number. Any other expression is
/// for the compiler to judge.
fn number(value: Expr, fact: &str, fix: &str) -> Result<Expr> {
    if let Expr::Lit(literal) = &value {
        let Lit::Int(number) = &literal.lit else {
            return Err(Error::new(value.span(), format!("{fact}; {fix}")));
        };
        if number.base10_digits() == "0" {
            let problem = format!("{fact}, more than zero; {fix}");
            return Err(Error::new(value.span(), problem));
        }
    }
    Ok(value)
}

/// Reads `(KEY, path::KEY)` behind `carry`.
fn keys(key: &Ident, input: ParseStream<'_>) -> Result<Vec<Path>> {
    let fix = "write `carry(KEY)` with the name of a `tokio::task_local!`";
    if !input.peek(token::Paren) {
        let problem = format!("`carry` takes a list in parentheses; {fix}");
        return Err(Error::new(key.span(), problem));
    }
    let list: Group = input.parse()?;
    if list.stream().is_empty() {
        let problem = format!("`carry` is empty; {fix}");
        return Err(Error::new(list.span(), problem));
    }
    let keys = |content: ParseStream<'_>| {
        let mut keys = Vec::new();
        while !content.is_empty() {
            let path = content.call(Path::parse_mod_style).map_err(|error| {
                Error::new(error.span(), format!("`carry` takes paths of keys; {fix}"))
            })?;
            keys.push(path);
            if !content.is_empty() && content.parse::<Token![,]>().is_err() {
                return Err(content.error("two keys need a comma between them; write `,`"));
            }
        }
        Ok(keys)
    };
    keys.parse2(list.stream())
}

/// Goes on behind a mistake, at the next comma or at the end.
fn skip_to_comma(input: ParseStream<'_>) {
    while !input.is_empty() && !input.peek(Token![,]) {
        let _ = input.parse::<TokenTree>();
    }
}

/// Moves `tokens` to `span`; what they resolve to stays the same.
pub(crate) fn located_at(tokens: TokenStream, span: Span) -> TokenStream {
    let moved = tokens.into_iter().map(|mut token| {
        token.set_span(token.span().located_at(span));
        token
    });
    moved.collect()
}
