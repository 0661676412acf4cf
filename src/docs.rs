//! The pages of `docs/`.
//!
//! Those whose code needs libraries are tested with them, in `tests/libraries`.
#![forbid(unsafe_code)]
#![allow(missing_docs, reason = "the pages are the documentation")]

// Of two definitions of a link the first one counts: those of `links.md`, which lead to
// items, not those of the page, which lead to files. Tests go without, so that they
// report lines of the page.

#[doc = include_str!("../docs/comparison.md")]
pub mod comparison {}

/// Problems, and code that solves them.
pub mod cookbook {
    #[cfg_attr(not(doctest), doc = include_str!("links.md"))]
    #[doc = include_str!("../docs/cookbook/concurrency.md")]
    pub mod concurrency {}
    #[cfg_attr(not(doctest), doc = include_str!("links.md"))]
    #[doc = include_str!("../docs/cookbook/context.md")]
    pub mod context {}
    #[cfg(feature = "diesel")]
    #[doc = include_str!("../docs/cookbook/diesel.md")]
    pub mod diesel {}
    #[cfg_attr(not(doctest), doc = include_str!("links.md"))]
    #[doc = include_str!("../docs/cookbook/escapes.md")]
    pub mod escapes {}
    #[cfg_attr(not(doctest), doc = include_str!("links.md"))]
    #[doc = include_str!("../docs/cookbook/guards.md")]
    pub mod guards {}
    #[cfg(all(feature = "axum", feature = "macros", feature = "ureq"))]
    #[cfg_attr(not(doctest), doc = include_str!("links.md"))]
    #[doc = include_str!("../docs/cookbook/handlers.md")]
    pub mod handlers {}
    #[cfg(all(feature = "ureq", not(doctest)))]
    #[cfg_attr(not(doctest), doc = include_str!("links.md"))]
    #[doc = include_str!("../docs/cookbook/http.md")]
    pub mod http {}
    #[cfg(all(feature = "io", not(doctest)))]
    #[cfg_attr(not(doctest), doc = include_str!("links.md"))]
    #[doc = include_str!("../docs/cookbook/io.md")]
    pub mod io {}
    #[doc = include_str!("../docs/cookbook/iterators.md")]
    pub mod iterators {}
    #[cfg(feature = "macros")]
    #[cfg_attr(not(doctest), doc = include_str!("links.md"))]
    #[doc = include_str!("../docs/cookbook/observing.md")]
    pub mod observing {}
    #[cfg(not(doctest))]
    #[cfg_attr(not(doctest), doc = include_str!("links.md"))]
    #[doc = include_str!("../docs/cookbook/recipes.md")]
    pub mod recipes {}
    #[cfg(feature = "axum")]
    #[cfg_attr(not(doctest), doc = include_str!("links.md"))]
    #[doc = include_str!("../docs/cookbook/serving.md")]
    pub mod serving {}
    #[doc = include_str!("../docs/cookbook/time.md")]
    pub mod time {}
    #[cfg(feature = "tracing")]
    #[cfg_attr(not(doctest), doc = include_str!("links.md"))]
    #[doc = include_str!("../docs/cookbook/tracing.md")]
    pub mod tracing {}
    #[doc = include_str!("../docs/cookbook/two_colours.md")]
    pub mod two_colours {}
    #[cfg(all(feature = "io", not(doctest)))]
    #[cfg_attr(not(doctest), doc = include_str!("links.md"))]
    #[doc = include_str!("../docs/cookbook/websocket.md")]
    pub mod websocket {}
}

#[doc = include_str!("../docs/design.md")]
pub mod design {}

// Its pictures are no files in the documentation. What shows them where the page is read
// as a file is the last of the page, and hidden; they themselves follow.
#[doc = include_str!("../docs/performance.md")]
#[cfg_attr(
    not(doctest),
    doc = "\n\n<style>img[src='serve.svg'], img[src='peers.svg'] { display: none; }</style>\n\n"
)]
#[cfg_attr(not(doctest), doc = include_str!("../docs/serve.svg"))]
#[cfg_attr(not(doctest), doc = "\n\n")]
#[cfg_attr(not(doctest), doc = include_str!("../docs/peers.svg"))]
pub mod performance {}

#[cfg_attr(not(doctest), doc = include_str!("links.md"))]
#[doc = include_str!("../docs/pitfalls.md")]
pub mod pitfalls {}
