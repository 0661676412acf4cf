//! A person with a browser, by WebDriver: <https://www.w3.org/TR/webdriver2>.

use std::env;
use std::fs;
use std::io::{Write, stderr};
use std::path::PathBuf;
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use ureq::Agent;

/// Where the driver is. `ci/browser.sh` sets it.
const VARIABLE: &str = "GREENHACK_TEST_WEBDRIVER";

/// How long the page may take for whatever it does.
const LONG: Duration = Duration::from_secs(60);

/// A browser with windows of its own. It blocks its thread, as people do.
pub(crate) struct Browser {
    agent: Agent,
    session: String,
    profile: PathBuf,
}

impl Browser {
    /// Starts a browser. `None` where there is no driver, which in CI is a failure.
    pub(crate) fn start() -> Option<Browser> {
        static SAID: Once = Once::new();
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let Ok(driver) = env::var(VARIABLE) else {
            assert!(
                env::var_os("CI").is_none(),
                "CI must set {VARIABLE}; write `ci/browser.sh cargo test ..`"
            );
            // The harness holds back what `eprintln` says in a test that passes.
            SAID.call_once(|| {
                let _ = writeln!(
                    stderr(),
                    "\nNOT TESTED: the page, since {VARIABLE} is not set; \
                     try `ci/browser.sh cargo test -p kitchen --test page`"
                );
            });
            return None;
        };
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(2 * LONG))
            .build();
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let profile = env::temp_dir().join(format!("kitchen-{}-{count}", std::process::id()));
        let mut browser = Browser {
            agent: config.into(),
            session: format!("{driver}/session"),
            profile,
        };
        let mut arguments: Vec<String> = [
            "headless",
            "no-sandbox",
            "disable-gpu",
            "disable-quic",
            "no-first-run",
            "disable-background-networking",
            "disable-component-update",
            "disable-sync",
        ]
        .map(|name| format!("--{name}"))
        .into();
        arguments.push(format!("--user-data-dir={}", browser.profile.display()));
        let session = browser.post(
            "",
            json!({"capabilities": {"alwaysMatch": {
                "goog:chromeOptions": {"args": arguments},
                "timeouts": {"script": LONG.as_millis()},
            }}}),
        );
        let id = session["sessionId"].as_str().expect("a session has an id");
        browser.session = format!("{driver}/session/{id}");
        Some(browser)
    }

    pub(crate) fn open(&self, url: &str) {
        self.post("/url", json!({ "url": url }));
    }

    /// Opens another window, and goes on there.
    pub(crate) fn new_window(&self) {
        let window = self.post("/window/new", json!({"type": "window"}));
        self.post("/window", json!({"handle": window["handle"]}));
    }

    pub(crate) fn type_into(&self, selector: &str, text: &str) {
        let element = self.find(selector);
        self.post(&format!("{element}/value"), json!({ "text": text }));
    }

    /// Types over what is there.
    pub(crate) fn type_over(&self, selector: &str, text: &str) {
        const CONTROL: char = '\u{e009}';
        const RELEASE: char = '\u{e000}';
        self.type_into(selector, &format!("{CONTROL}a{RELEASE}{text}"));
    }

    pub(crate) fn click(&self, selector: &str) {
        let element = self.find(selector);
        self.post(&format!("{element}/click"), json!({}));
    }

    /// The text of each row of the table, cell by cell, without when it was placed.
    pub(crate) fn orders(&self) -> Value {
        self.run(
            "return [...document.querySelectorAll('#orders tr')]
                .map((row) => [0, 1, 3].map((cell) => row.cells[cell].innerText))",
        )
    }

    /// Waits until the page shows something: until an expression of the page is true.
    ///
    /// The page says so itself: nobody asks again and again.
    pub(crate) fn wait_for(&self, expression: &str) {
        let script = format!(
            "const done = arguments[0];
             const look = () => ({expression}) && (observer.disconnect(), done(true));
             const observer = new MutationObserver(look);
             observer.observe(document, {{subtree: true, childList: true, attributes: true, characterData: true}});
             look();"
        );
        let body = json!({"script": script, "args": []});
        if let Err(error) = self.try_post("/execute/async", &body) {
            let shown = self.run("return document.body.innerText");
            panic!(
                "{expression}: {error}\nthe page shows: {}",
                shown.as_str().unwrap_or_default()
            );
        }
    }

    /// Waits until an element has the text.
    pub(crate) fn wait_for_text(&self, selector: &str, text: &str) {
        let (selector, text) = (json!(selector), json!(text));
        self.wait_for(&format!(
            "document.querySelector({selector})?.innerText === {text}"
        ));
    }

    fn run(&self, script: &str) -> Value {
        self.post("/execute/sync", json!({"script": script, "args": []}))
    }

    fn find(&self, selector: &str) -> String {
        let by = json!({"using": "css selector", "value": selector});
        let found = self.post("/element", by);
        let id = found
            .as_object()
            .and_then(|found| found.values().next())
            .and_then(Value::as_str)
            .expect("an element has an id");
        format!("/element/{id}")
    }

    fn post(&self, command: &str, body: Value) -> Value {
        self.try_post(command, &body)
            .unwrap_or_else(|error| panic!("{command} {body}: {error}"))
    }

    fn try_post(&self, command: &str, body: &Value) -> Result<Value, Value> {
        let mut response = self
            .agent
            .post(format!("{}{command}", self.session))
            .send_json(body)
            .expect("the driver answers");
        let mut answer: Value = response
            .body_mut()
            .read_json()
            .expect("the driver speaks JSON");
        let value = answer["value"].take();
        if response.status().is_success() {
            Ok(value)
        } else {
            Err(value["message"].clone())
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.agent.delete(&self.session).call();
        let _ = fs::remove_dir_all(&self.profile);
    }
}
