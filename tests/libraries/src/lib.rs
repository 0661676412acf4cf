//! The pages of greenhack's cookbook whose code needs libraries, to be tested with them.
#![forbid(unsafe_code)]

#[doc = include_str!("../../../docs/cookbook/http.md")]
mod http {}

#[doc = include_str!("../../../docs/cookbook/io.md")]
mod io {}

#[doc = include_str!("../../../docs/cookbook/recipes.md")]
mod recipes {}

#[doc = include_str!("../../../docs/cookbook/websocket.md")]
mod websocket {}
