//! The attribute macros of greenhack.
#![forbid(unsafe_code)]

mod borrow;
mod entry;
mod function;
mod harness;
mod options;
mod receiver;

use proc_macro::TokenStream;

/// entry
#[proc_macro_attribute]
pub fn entry(args: TokenStream, item: TokenStream) -> TokenStream {
    print(entry::expand(args.into(), item.into()))
}

/// main
#[proc_macro_attribute]
pub fn main(args: TokenStream, item: TokenStream) -> TokenStream {
    print(harness::expand(
        options::Attribute::Main,
        args.into(),
        item.into(),
    ))
}

/// test
#[proc_macro_attribute]
pub fn test(args: TokenStream, item: TokenStream) -> TokenStream {
    print(harness::expand(
        options::Attribute::Test,
        args.into(),
        item.into(),
    ))
}

/// Prints an expansion if `GREENHACK_MACROS_DEBUG` asks for it.
fn print(expansion: proc_macro2::TokenStream) -> TokenStream {
    if std::env::var_os("GREENHACK_MACROS_DEBUG").is_some_and(|value| value == "1") {
        eprintln!("{expansion}");
    }
    expansion.into()
}
