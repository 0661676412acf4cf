//! Scripts that call HTTP services.

use greenhack::time::consume_budget;
use rhai::{Engine, EvalAltResult};
use ureq::Agent;

/// The stack of a run that evaluates scripts.
///
/// A call of a script function is many calls of the interpreter. The deepest
/// scripts that the engine allows take up to 1.9 MiB in a debug build, as the test
/// of this recipe prints; the default of a run is 1 MiB.
pub const STACK: usize = 4 << 20;

/// An engine whose scripts can say `get(url)` and `post(url, body)`.
///
/// Share it among all runs. `agent` is one of `greenhack::ureq::agent()`.
pub fn engine(agent: &Agent) -> Engine {
    let mut engine = Engine::new();
    // What the stack is enough for.
    engine.set_max_call_levels(32).set_max_expr_depths(32, 16);

    let shared = agent.clone();
    engine.register_fn("get", move |url: &str| {
        text(shared.get(url).call()).map_err(thrown)
    });
    let shared = agent.clone();
    engine.register_fn("post", move |url: &str, body: &str| {
        text(shared.post(url).send(body)).map_err(thrown)
    });

    // A script that only computes lets others have their turn, and can be
    // cancelled there.
    engine.on_progress(|_| {
        consume_budget();
        None
    });
    engine
}

fn text(
    answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
) -> Result<String, ureq::Error> {
    answer?.body_mut().read_to_string()
}

/// Scripts can `try` a call and `catch` its error.
fn thrown(error: ureq::Error) -> Box<EvalAltResult> {
    error.to_string().into()
}
