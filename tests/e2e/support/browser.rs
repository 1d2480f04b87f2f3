//! A real Chromium without a window, driven over its DevTools protocol
//! (<https://chromedevtools.github.io/devtools-protocol/>).

use std::cell::{Cell, RefCell};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Instant;

use base64ct::{Base64, Encoding};
use rustix::process::{Signal, geteuid, kill_process_group};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::process::{Process, after, require};
use super::{DEADLINE, poll_until};

/// Chromium reads requests from descriptor 3 and writes answers and events to descriptor 4. Its standard output has
/// nothing for a test.
const DESCRIPTORS: &str = "exec 3<&0 4>&1 </dev/null >/dev/null;";

/// Nothing of this host's user, nothing that calls home, nothing that asks. Of its own log only what ends it, because it
/// has much to say about a host without a desktop.
const OPTIONS: [&str; 13] = [
    "--headless=new",
    "--remote-debugging-pipe",
    "--disable-gpu",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--no-default-browser-check",
    "--no-proxy-server",
    "--password-store=basic",
    "--lang=en-US",
    "--log-level=3",
];

/// A browser with an empty profile. It starts in about a quarter of a second, and serves any number of pages. All its
/// processes have ended when it has been dropped. Should the test be killed, they end by themselves, since the pipe
/// ends.
pub(crate) struct Browser {
    process: Process,
    requests: RefCell<ChildStdin>,
    last_request: Cell<u64>,
    messages: Receiver<Value>,
    /// Of all pages, in the order of their arrival.
    events: RefCell<Vec<Value>>,
    /// Its home directory, and its profile.
    home: TempDir,
}

impl Browser {
    pub(crate) fn start() -> Self {
        require("chromium");
        let home = tempfile::tempdir().expect("a temporary directory");
        let (answers, output) = io::pipe().expect("descriptors are left");
        let mut chromium = Command::new("chromium");
        chromium.args(OPTIONS).arg(format!("--user-data-dir={}", home.path().display()));
        if geteuid().is_root() {
            // Chromium's sandbox refuses to work for root.
            chromium.arg("--no-sandbox");
        }
        let mut command = after(DESCRIPTORS, &chromium);
        // Also places that it finds by itself, such as the one for crash reports, are in its home directory.
        command.env("HOME", home.path()).env_remove("XDG_CONFIG_HOME").env_remove("XDG_CACHE_HOME");
        command.process_group(0).stdin(Stdio::piped()).stdout(output).stderr(Stdio::piped());
        let mut process = Process::start_piped(&mut command);
        let requests = RefCell::new(process.take_input());
        // With it goes the test's own copy of the other end of `answers`, which would keep it open.
        drop(command);
        let messages = receive(answers);
        Self { process, requests, last_request: Cell::new(0), messages, events: RefCell::default(), home }
    }

    /// A directory that ends with it. The path is an argument of each of its processes.
    pub(crate) fn home(&self) -> &Path {
        self.home.path()
    }

    /// A new page at `url`, as soon as it has loaded.
    #[track_caller]
    pub(crate) fn open(&self, url: &str) -> Page<'_> {
        let page = self.page();
        page.open(url);
        page
    }

    /// A new, empty page, which shares no cookies and no cache with other pages.
    #[track_caller]
    pub(crate) fn page(&self) -> Page<'_> {
        let context = self.command(None, "Target.createBrowserContext", json!({}));
        let target = self.command(
            None,
            "Target.createTarget",
            json!({ "url": "about:blank", "browserContextId": context["browserContextId"] }),
        );
        let attached = self.command(
            None,
            "Target.attachToTarget",
            json!({ "targetId": target["targetId"], "flatten": true }),
        );
        let (context, session) = (text(&context["browserContextId"]), text(&attached["sessionId"]));
        let page = Page { browser: self, context, session };
        for domain in ["Page", "Runtime", "Log", "Audits", "Accessibility"] {
            page.command(&format!("{domain}.enable"), json!({}));
        }
        page.command("Page.setLifecycleEventsEnabled", json!({ "enabled": true }));
        page
    }

    /// What Chromium answers to a command, which has to succeed.
    #[track_caller]
    fn command(&self, session: Option<&str>, method: &str, parameters: Value) -> Value {
        self.try_command(session, method, parameters).unwrap_or_else(|error| panic!("{method}: {error}"))
    }

    /// What Chromium answers to a command, or why it refuses it.
    #[track_caller]
    fn try_command(&self, session: Option<&str>, method: &str, parameters: Value) -> Result<Value, Value> {
        let id = self.last_request.get() + 1;
        self.last_request.set(id);
        let mut request = json!({ "id": id, "method": method });
        request["params"] = parameters;
        if let Some(session) = session {
            request["sessionId"] = session.into();
        }
        let sent = self.requests.borrow_mut().write_all(format!("{request}\0").as_bytes());
        sent.unwrap_or_else(|error| panic!("{method}: Chromium has ended ({error})"));
        let start = Instant::now();
        loop {
            let mut message = self.next_message(method, start);
            if message["id"] != id {
                self.events.borrow_mut().push(message);
            } else if message["error"].is_null() {
                return Ok(message["result"].take());
            } else {
                return Err(message["error"].take());
            }
        }
    }

    /// Waits for the event of a session that `wanted` accepts by its name and parameters.
    #[track_caller]
    fn await_event(&self, what: &str, session: &str, wanted: impl Fn(&str, &Value) -> bool) {
        let matches = |event: &Value| {
            event["sessionId"] == session
                && event["method"].as_str().is_some_and(|method| wanted(method, &event["params"]))
        };
        if self.events.borrow().iter().any(matches) {
            return;
        }
        let start = Instant::now();
        loop {
            let event = self.next_message(what, start);
            let found = matches(&event);
            self.events.borrow_mut().push(event);
            if found {
                return;
            }
        }
    }

    /// The next answer or event. The deadline is that of the whole wait: a busy page sends events for ever.
    #[track_caller]
    fn next_message(&self, what: &str, start: Instant) -> Value {
        self.messages
            .recv_timeout(DEADLINE.saturating_sub(start.elapsed()))
            .unwrap_or_else(|error| panic!("{what}: no answer from Chromium ({error})"))
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The processes for crash reports are in groups of their own, and end when the browser has ended.
        let _ = kill_process_group(self.process.pid(), Signal::KILL);
        // All its processes have inherited its standard error. Only then is its profile removed.
        let ended = self.process.output_ends();
        assert!(ended || thread::panicking(), "a process of Chromium does not end");
    }
}

/// The messages that Chromium writes, each ended by a zero byte.
fn receive(answers: io::PipeReader) -> Receiver<Value> {
    let (sender, messages) = mpsc::channel();
    thread::spawn(move || {
        for message in BufReader::new(answers).split(0) {
            let Ok(message) = message else { return };
            let message = serde_json::from_slice(&message).expect("Chromium writes JSON");
            if sender.send(message).is_err() {
                return;
            }
        }
    });
    messages
}

/// What a page is shown on.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Device {
    Desktop,
    /// Lays out a page that has no `<meta name="viewport">` as for a desktop.
    Phone,
}

/// What the user prefers.
#[derive(Clone, Copy)]
pub(crate) enum ColourScheme {
    Light,
    Dark,
}

/// One page of a browser. What is set before [`Page::open`] is in force when the page loads.
pub(crate) struct Page<'browser> {
    browser: &'browser Browser,
    /// What separates it from other pages.
    context: String,
    session: String,
}

impl Page<'_> {
    /// Goes to `url`, and waits until it has loaded with all that belongs to it.
    #[track_caller]
    pub(crate) fn open(&self, url: &str) {
        let navigation = self.command("Page.navigate", json!({ "url": url }));
        assert!(navigation["errorText"].is_null(), "{url}: {}", navigation["errorText"]);
        self.browser.await_event(&format!("{url} loads"), &self.session, |method, parameters| {
            method == "Page.lifecycleEvent"
                && parameters["name"] == "load"
                && parameters["loaderId"] == navigation["loaderId"]
        });
    }

    /// The size of the window, in CSS pixels.
    #[track_caller]
    pub(crate) fn set_size(&self, width: u32, height: u32, device: Device) {
        self.command(
            "Emulation.setDeviceMetricsOverride",
            json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": device == Device::Phone }),
        );
    }

    #[track_caller]
    pub(crate) fn set_colour_scheme(&self, scheme: ColourScheme) {
        let value = match scheme {
            ColourScheme::Light => "light",
            ColourScheme::Dark => "dark",
        };
        let features = json!([{ "name": "prefers-color-scheme", "value": value }]);
        self.command("Emulation.setEmulatedMedia", json!({ "features": features }));
    }

    /// The page as it is printed, in place of [`Page::set_colour_scheme`].
    #[track_caller]
    pub(crate) fn set_print(&self) {
        self.command("Emulation.setEmulatedMedia", json!({ "media": "print" }));
    }

    /// From now on, pages run no scripts. [`Page::evaluate`] still works.
    #[track_caller]
    pub(crate) fn disable_scripts(&self) {
        self.command("Emulation.setScriptExecutionDisabled", json!({ "value": true }));
    }

    /// The value of an expression of JavaScript, or what it promises. An exception fails the test.
    #[track_caller]
    pub(crate) fn evaluate(&self, expression: &str) -> Value {
        self.try_evaluate(expression).unwrap_or_else(|error| panic!("{expression}: {error}"))
    }

    /// The same, but Chromium may refuse it: a page that is being left evaluates nothing.
    #[track_caller]
    fn try_evaluate(&self, expression: &str) -> Result<Value, Value> {
        let parameters = json!({ "expression": expression, "awaitPromise": true, "returnByValue": true });
        let mut evaluated = self.browser.try_command(Some(&self.session), "Runtime.evaluate", parameters)?;
        let exception = &evaluated["exceptionDetails"];
        assert!(exception.is_null(), "{expression}: {}", describe_exception(exception));
        Ok(evaluated["result"]["value"].take())
    }

    /// Waits until an expression is true. The page may be replaced meanwhile, for instance because it reloads itself.
    #[track_caller]
    pub(crate) fn wait_until(&self, expression: &str) {
        // A document that has only just begun has no body yet.
        let parsed = format!("document.readyState !== 'loading' && ({expression})");
        poll_until(expression, || (self.try_evaluate(&parsed) == Ok(true.into())).then_some(()));
    }

    /// The text that a user can read.
    #[track_caller]
    pub(crate) fn text(&self) -> String {
        text(&self.evaluate("document.body.innerText"))
    }

    /// All that Chromium has had to say against this page, and all that the page has written to the console as a
    /// warning or an error: violations of its Content-Security-Policy, failed loads, exceptions, forms without labels.
    #[track_caller]
    pub(crate) fn complaints(&self) -> Vec<String> {
        // What the page has written, and what it was refused, arrives before the answer.
        self.evaluate("null");
        let events = self.browser.events.borrow();
        events.iter().filter(|event| event["sessionId"] == *self.session).filter_map(complaint).collect()
    }

    /// What assistive technology is told about the page: the role and the name of each element that is not hidden
    /// from it.
    #[track_caller]
    pub(crate) fn accessibility_tree(&self) -> Vec<(String, String)> {
        let tree = self.command("Accessibility.getFullAXTree", json!({}));
        let nodes = tree["nodes"].as_array().expect("the tree has nodes");
        let exposed = nodes.iter().filter(|node| node["ignored"] == false);
        exposed.map(|node| (text(&node["role"]["value"]), text(&node["name"]["value"]))).collect()
    }

    /// Writes a PNG of the whole page.
    #[track_caller]
    pub(crate) fn screenshot(&self, path: &Path) {
        let size = &self.command("Page.getLayoutMetrics", json!({}))["cssContentSize"];
        let clip = json!({ "x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1 });
        let parameters = json!({ "format": "png", "captureBeyondViewport": true, "clip": clip });
        let image = self.command("Page.captureScreenshot", parameters);
        let image = Base64::decode_vec(&text(&image["data"])).expect("Chromium sends Base64");
        std::fs::write(path, image).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }

    /// Closes the page, and with it its connections.
    #[track_caller]
    pub(crate) fn close(self) {
        self.browser.command(
            None,
            "Target.disposeBrowserContext",
            json!({ "browserContextId": self.context }),
        );
    }

    #[track_caller]
    fn command(&self, method: &str, parameters: Value) -> Value {
        self.browser.command(Some(&self.session), method, parameters)
    }
}

/// What an event says against its page, if it does.
fn complaint(event: &Value) -> Option<String> {
    let parameters = &event["params"];
    match event["method"].as_str()? {
        "Log.entryAdded" => {
            let entry = &parameters["entry"];
            let [source, level, said, url] =
                ["source", "level", "text", "url"].map(|field| text(&entry[field]));
            Some(format!("{source} {level}: {said} {url}"))
        }
        "Runtime.consoleAPICalled" if parameters["type"] == "error" || parameters["type"] == "warning" => {
            Some(format!("console {}: {}", text(&parameters["type"]), parameters["args"]))
        }
        "Runtime.exceptionThrown" => Some(describe_exception(&parameters["exceptionDetails"])),
        "Audits.issueAdded" => Some(format!("issue: {}", parameters["issue"])),
        "Inspector.targetCrashed" => Some("the page has crashed".to_owned()),
        _ => None,
    }
}

fn describe_exception(details: &Value) -> String {
    format!("exception: {} {}", text(&details["text"]), text(&details["exception"]["description"]))
}

/// A string without its quotes; nothing if there is none.
fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
