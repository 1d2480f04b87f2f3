//! The status page in a real browser: what it shows, to whom, and how events change it. The server is the test's own, so that it
//! can say what no process would.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::TcpStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use spipe::status::page::{Order, Page as StatusPage, Sorting};
use spipe::status::report::{ConnectionList, Report, SortBy};

use crate::support::browser::{Browser, ColourScheme, Device, Page};
use crate::support::http::read_request;
use crate::support::socket::{Service, read_all};
use crate::support::{DEADLINE, poll_until};

const NOW: &str = "2026-03-01T09:00:00.5Z";

/// Text that would do something if it were taken for HTML, for a script, or for a part of an event.
const HOSTILE: &str =
    "</td></main><script>alert(1)</script><img src=x onerror=alert(1)>'\"`&amp;{{ 7*7 }}\r\ndata: x\r\n\r\n";

/// Words that programs may be told, in full, as counts that are `used` of the first ones.
fn counts(words: &[&str], used: &[u64]) -> BTreeMap<String, u64> {
    let counts = used.iter().copied().chain(std::iter::repeat(0));
    words.iter().map(ToString::to_string).zip(counts).collect()
}

/// A wave over the last 15 minutes.
fn wave(points: u32, middle: f64, swing: f64) -> Vec<f64> {
    (0..points)
        .map(f64::from)
        .map(|at| middle + swing * ((at / 14.0).sin() + 0.4 * (at / 3.1).sin() + 0.2 * (at * 1.7).cos()))
        .map(|value| value.max(0.0))
        .collect()
}

fn key(fingerprint: &str, name: Option<&str>, connections: u64) -> Value {
    json!({
        "fingerprint": fingerprint, "name": name, "file": format!("/etc/spipe/keys/{}.key", name.unwrap_or("shared")),
        "connections": connections, "established": { "aes-256-gcm": connections * 411 + 3, "chacha20-poly1305": 4 },
        "last_used": "2026-03-01T08:59:48Z", "expires": null,
    })
}

fn target(target: &str, state: &str, connections: u64) -> Value {
    json!({
        "target": target, "state": state, "since": "2026-02-26T05:12:00Z", "check": null, "last_error": null,
        "connections": connections,
        "dials": counts(&["connected", "local", "proxy", "refused", "timeout", "tls", "unresolved"], &[91_244, 0, 0, 12, 3]),
        "dial": { "count": 91_244, "p50": 0.000_84, "p99": 0.0121 }, "addresses": [],
    })
}

/// A pipe that has some of everything.
fn pipe(name: &str) -> Value {
    let connections = wave(180, 44.0, 14.0).into_iter().map(|number| format!("{number:.0}"));
    let connections: Vec<u64> = connections.map(|number| number.parse().expect("a number")).collect();
    json!({
        "name": name, "mode": "decrypt", "state": "listening", "sources": ["[0.0.0.0]:6380", "[::]:6380"],
        "since": "2026-02-26T04:55:12Z", "ciphers": ["aes-256-gcm", "chacha20-poly1305"],
        "connections": { "now": 47, "limit": 100, "max": 83, "accepted": 92_027, "established": 91_241 },
        "rate": { "connections": 3.4, "to_target": 1_263_104.0, "from_target": 23_871_488.0 },
        "bytes": { "to_target": 412_316_860_416_u64, "from_target": 7_215_545_057_280_u64 },
        "strangers": 2, "handshake": { "count": 91_241, "p50": 0.0013, "p99": 0.0187 },
        "duration": { "count": 91_194, "p50": 2.7, "p99": 11_040.0 },
        "keys": [key("7f3a-19c2", Some("web1"), 30), key("e04d-88b1", Some("web2"), 17)],
        "targets": [target("[127.0.0.1]:6379", "up", 47)],
        "failures": {
            "total": counts(&["wrong_key_or_label", "incomplete", "timeout", "busy", "target"], &[431, 288, 52, 0, 15]),
            "last_24_hours": counts(&["wrong_key_or_label", "incomplete", "timeout", "busy", "target"], &[12, 31, 4, 0, 0]),
            "last": [
                { "at": "2026-03-01T08:57:20Z", "cause": "incomplete",
                  "text": "[198.51.100.7]:40122: the handshake did not come whole before the connection ended" },
                { "at": "2026-03-01T06:11:02Z", "cause": "wrong_key_or_label",
                  "text": "[203.0.113.99]:51230: the keys differ, or the labels, or the peer is not spipe" },
            ],
        },
        "closed": counts(&["finished", "local_reset", "peer_reset", "idle", "other"], &[90_871, 205, 118]),
        "history": {
            "step_seconds": 5, "connections": connections,
            "new": wave(180, 3.0, 1.4), "to_target": wave(180, 1.2e6, 5e5), "from_target": wave(180, 2.2e7, 9e6),
        },
    })
}

/// A process with these pipes, in which nothing is wrong.
fn process(pipes: &[Value]) -> Value {
    json!({
        "schema": 1, "version": "0.2.0", "pid": 4242, "started": "2026-02-26T04:55:12Z", "now": NOW,
        "state": "serving", "ready": true, "not_ready": [], "sandbox": "landlock=6 seccomp=on no_new_privs=on capabilities=none",
        "process": {
            "descriptors": 153, "descriptors_limit": 1024, "resident_bytes": 12_849_152, "virtual_bytes": 90_177_536,
            "cpu_seconds": 9_322.4, "threads": 4,
        },
        "reload": { "succeeded": 2, "failed": 0, "last": { "at": "2026-02-28T16:20:00Z", "error": null } },
        "name_lookups": { "found": 5_731, "failed": 0 }, "log_lines_dropped": 0, "pipes": pipes,
    })
}

fn connection(number: u32) -> Value {
    let seconds = 3.0 + f64::from(number * number) * 7.3;
    json!({
        "id": format!("{:016x}", 0x3b62_06f9_8e5c_bfac_u64.wrapping_mul(u64::from(number) + 1)), "pipe": "redis",
        "client": format!("[192.0.2.{}]:{}", 20 + number % 7, 54_386 + number),
        "peer": format!("[198.51.100.{}]:{}", 4 + number % 3, 40_112 + number), "target": "[127.0.0.1]:6379",
        "configured": "[127.0.0.1]:6379", "key": "7f3a-19c2", "key_name": "web1", "cipher": "aes-256-gcm",
        "age_seconds": seconds, "idle_seconds": f64::from(number % 5) * 1.7,
        "to_target": number * 73_400 + 312, "from_target": number * number * 91_811 + 1_400,
    })
}

/// The first of `total` connections.
fn connections(shown: u32, total: u32) -> Value {
    json!({ "schema": 1, "total": total, "connections": (0..shown).map(connection).collect::<Vec<_>>() })
}

fn report_of(report: &Value) -> Report {
    serde_json::from_value(report.clone()).expect("it is a report")
}

fn list_of(list: &Value) -> ConnectionList {
    serde_json::from_value(list.clone()).expect("it is a list of connections")
}

fn content(report: &Value, list: &Value) -> String {
    let rendered = StatusPage::new().render_content(&report_of(report), &list_of(list), Sorting::default());
    rendered.expect("the template fits")
}

/// A server of the page that asks the test what to say.
struct Server {
    url: String,
    says: Arc<Mutex<(Value, Value)>>,
    streams: Receiver<(String, TcpStream)>,
    /// Whether events are refused.
    refuses: Arc<AtomicBool>,
}

impl Server {
    fn start(report: Value, list: Value) -> Self {
        let service = Service::start();
        let url = format!("http://{}/", service.address());
        let says = Arc::new(Mutex::new((report, list)));
        let (sender, streams) = mpsc::channel();
        let said = Arc::clone(&says);
        let refuses = Arc::new(AtomicBool::new(false));
        let refused = Arc::clone(&refuses);
        service.serve(move |mut stream| {
            let Some(request) = read_request(&stream) else { return };
            let path = request.split(' ').nth(1).expect("a request has a path").to_owned();
            if path.starts_with("/events") && refused.load(Ordering::SeqCst) {
                let _ = stream.write_all(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
                return;
            }
            if path.starts_with("/events") {
                let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-store\r\n\r\n";
                if stream.write_all(head.as_bytes()).is_ok() {
                    let _ = sender.send((path, stream));
                }
                return;
            }
            let page = StatusPage::new();
            let (report, list) = said.lock().expect("no test fails while it has it").clone();
            let body = page.render(&report_of(&report), &list_of(&list), sorting(&path)).expect("the template fits");
            let policy = page.content_security_policy();
            let _ = write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\nContent-Security-Policy: {policy}\r\n\
                 Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            );
        });
        Self { url, says, streams, refuses }
    }

    /// What documents say from now on.
    fn says(&self, report: Value, list: Value) {
        *self.says.lock().expect("no server fails while it has it") = (report, list);
    }

    /// The next stream of events that a page asks for.
    #[track_caller]
    fn stream(&self) -> Events {
        let (path, stream) = self.streams.recv_timeout(DEADLINE).expect("the page asks for events");
        Events { path, stream }
    }
}

fn sorting(path: &str) -> Sorting {
    let order = if path.contains("reverse=1") { Order::Reversed } else { Order::Usual };
    Sorting { by: if path.contains("sort=to_target") { SortBy::ToTarget } else { SortBy::Age }, order }
}

struct Events {
    path: String,
    stream: TcpStream,
}

impl Events {
    fn send(&mut self, report: &Value, list: &Value) {
        let content = content(report, list);
        write!(self.stream, "data: {content}\n\n").expect("the browser is there");
    }

    /// Sends it, and waits until `page` shows it.
    #[track_caller]
    fn show(&mut self, page: &Page, report: &Value, list: &Value) {
        self.send(report, list);
        let at = &report["now"].as_str().expect("a time")[11..19];
        page.wait_until(&format!("document.querySelector('#now').textContent.includes('{at}')"));
    }
}

/// The same report a little later.
fn later(report: &Value, seconds: u32) -> Value {
    let mut report = report.clone();
    report["now"] = format!("2026-03-01T09:00:{seconds:02}Z").into();
    report
}

fn one_pipe() -> (Value, Value) {
    (process(&[pipe("redis")]), connections(12, 12))
}

/// A process in which much is wrong, as an administrator sees it on a bad day.
fn trouble() -> (Value, Value) {
    let mut redis = pipe("redis");
    redis["connections"]["limit"] = 47.into();
    let mut down = target("[10.0.4.12]:6379", "down", 0);
    down["last_error"] = "connection refused (os error 111)".into();
    down["check"] = json!({ "contradictions": 1, "needed": 2 });
    let mut drained = target("redis-3.example.net:6379", "drained", 2);
    drained["addresses"] = json!(["10.0.4.13", "2001:db8:17:4::13"]);
    redis["targets"] = json!([target("[10.0.4.11]:6379", "up", 45), down, drained]);
    let mut expiring = key("55aa-0b7e", Some("backup"), 0);
    expiring["expires"] = "2026-03-04T00:00:00Z".into();
    expiring["last_used"] = Value::Null;
    redis["keys"].as_array_mut().expect("a list").push(expiring);
    let mut postgres = pipe("postgres");
    postgres["mode"] = "encrypt".into();
    postgres["connections"] =
        json!({ "now": 9, "limit": null, "max": 21, "accepted": 1_311, "established": 1_302 });
    postgres["targets"] = json!([target("db.example.net:5433", "avoided", 9)]);
    postgres["targets"][0]["last_error"] = "no answer within 5 s".into();
    postgres["rate"] = json!({ "connections": 0.2, "to_target": 18_324.0, "from_target": 412_022.0 });
    postgres["history"]["to_target"] = json!(wave(180, 17e3, 8e3));
    postgres["history"]["from_target"] = json!(wave(180, 4e5, 3e5));
    let mut new = pipe("mail");
    new["state"] = "waiting_for_name".into();
    new["connections"] = json!({ "now": 0, "limit": 100, "max": 0, "accepted": 0, "established": 0 });
    new["rate"] = json!({ "connections": 0.0, "to_target": 0.0, "from_target": 0.0 });
    new["strangers"] = 0.into();
    new["failures"] = json!({ "total": {}, "last_24_hours": {}, "last": [] });
    new["history"] =
        json!({ "step_seconds": 5, "connections": [], "new": [], "to_target": [], "from_target": [] });
    new["handshake"] = json!({ "count": 0, "p50": null, "p99": null });
    let mut report = process(&[redis, postgres, new]);
    report["ready"] = false.into();
    report["not_ready"] = json!(["the pipe mail does not listen yet"]);
    report["reload"] = json!({ "succeeded": 2, "failed": 1,
        "last": { "at": "2026-03-01T08:12:00Z", "error": "/etc/spipe/spipe.toml, line 12: unknown option 'tagret'" } });
    (report, connections(40, 56))
}

/// A page of the trouble, in the colours and on the device, that follows events.
fn open<'browser>(
    browser: &'browser Browser,
    server: &Server,
    scheme: ColourScheme,
    width: u32,
    device: Device,
) -> Page<'browser> {
    let page = browser.page();
    page.set_size(width, 844, device);
    page.set_colour_scheme(scheme);
    page.open(&server.url);
    page
}

#[test]
fn the_page_runs_under_its_policy_without_a_complaint() {
    let (report, list) = trouble();
    let server = Server::start(report.clone(), list.clone());
    let browser = Browser::start();
    for (scheme, background) in
        [(ColourScheme::Light, "rgb(244, 246, 248)"), (ColourScheme::Dark, "rgb(16, 21, 27)")]
    {
        let page = open(&browser, &server, scheme, 1280, Device::Desktop);
        let mut stream = server.stream();
        stream.show(&page, &later(&report, 1), &list);
        assert_eq!(page.evaluate("document.querySelector('#stream').textContent"), "Live");
        assert_eq!(page.evaluate("document.title"), "spipe: not ready");
        assert_eq!(page.evaluate("getComputedStyle(document.documentElement).backgroundColor"), background);
        assert_eq!(page.complaints(), [""; 0]);
    }
}

#[test]
fn the_policy_lets_nothing_run_or_load_that_is_not_the_pages_own() {
    let (report, list) = one_pipe();
    let server = Server::start(report, list);
    let browser = Browser::start();
    let page = browser.open(&server.url);
    page.evaluate(
        "for (const [tag, text] of [['script', 'ran = true'], ['style', 'h1 { color: red }']]) {
            const added = document.createElement(tag);
            added.textContent = text;
            document.head.append(added);
        }
        document.querySelector('h2').setAttribute('style', 'color: red');
        document.body.append(Object.assign(new Image(), { src: location.origin + '/image.png' }))",
    );
    for refused in ["executing inline script", "applying inline style", "loading the image"] {
        poll_until(refused, || {
            let complaints = page.complaints().join("\n").to_lowercase();
            (complaints.contains("content security policy") && complaints.contains(refused)).then_some(())
        });
    }
    assert_eq!(page.evaluate("typeof ran"), "undefined");
    assert_eq!(
        page.evaluate("getComputedStyle(document.querySelector('h1')).color === 'rgb(255, 0, 0)'"),
        false
    );
    assert_eq!(
        page.evaluate("getComputedStyle(document.querySelector('h2')).color === 'rgb(255, 0, 0)'"),
        false
    );
}

/// The texts whose contrast with what is behind them is below 4.5:1, as WCAG 2.2 computes it (1.4.3).
const LOW_CONTRAST: &str = "(() => {
    const parse = colour => colour.match(/[\\d.]+/g).map(Number);
    const luminance = ([red, green, blue]) => {
        const linear = value => value / 255 <= 0.04045 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4;
        return 0.2126 * linear(red) + 0.7152 * linear(green) + 0.0722 * linear(blue);
    };
    const ground = element => {
        for (let at = element; at; at = at.parentElement) {
            const [red, green, blue, alpha = 1] = parse(getComputedStyle(at).backgroundColor);
            if (alpha === 1) return [red, green, blue];
        }
        throw new Error('nothing is behind it');
    };
    const found = [];
    let looked = 0;
    for (const element of document.body.querySelectorAll('*')) {
        const texts = [...element.childNodes].filter(node => node.nodeType === 3 && node.data.trim());
        if (!texts.length || !element.checkVisibility() || element.closest('script, svg, noscript')) continue;
        looked++;
        const [front, back] = [luminance(parse(getComputedStyle(element).color)), luminance(ground(element))];
        const contrast = (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05);
        if (contrast < 4.5) found.push(`${contrast.toFixed(2)}: ${texts[0].data.trim()}`);
    }
    if (looked < 100) throw new Error(`only ${looked} texts`);
    return found;
})()";

#[test]
fn texts_have_the_contrast_of_wcag_aa_in_light_and_in_dark() {
    let (report, list) = trouble();
    let server = Server::start(report.clone(), list.clone());
    let browser = Browser::start();
    for scheme in [ColourScheme::Light, ColourScheme::Dark] {
        let page = open(&browser, &server, scheme, 1280, Device::Desktop);
        server.stream().show(&page, &later(&report, 1), &list);
        // Its stream has ended, so that the warning is there as well.
        page.wait_until("document.querySelector('#stream.old') !== null");
        assert_eq!(page.evaluate(LOW_CONTRAST), json!([]));
    }
}

#[test]
fn a_phone_shows_all_without_scrolling_the_page_sideways() {
    let long = "a-pipe-with-a-name-that-somebody-thought-about-for-a-long-time-and-without-a-single-space";
    let address = "[2001:db8:1234:5678:9abc:def0:1234:5678]:65535";
    let mut named = pipe(long);
    named["sources"] = json!([address]);
    named["targets"] = json!([target(address, "down", 1)]);
    named["targets"][0]["last_error"] = long.repeat(3).into();
    named["targets"][0]["addresses"] = json!([address]);
    named["keys"] = json!([key(&long[..20], Some(long), 1)]);
    named["failures"]["last"][0]["text"] = long.repeat(3).into();
    let mut report = process(&[named, pipe("redis")]);
    report["sandbox"] = long.repeat(2).into();
    report["not_ready"] = json!([long.repeat(2)]);
    let mut list = connections(3, 3);
    for field in ["client", "peer", "target"] {
        list["connections"][0][field] = address.into();
    }
    list["connections"][0]["pipe"] = long.into();
    list["connections"][0]["key_name"] = long.into();
    let server = Server::start(report, list);
    let browser = Browser::start();
    for (width, device) in
        [(390, Device::Phone), (390, Device::Desktop), (320, Device::Phone), (768, Device::Desktop)]
    {
        let page = open(&browser, &server, ColourScheme::Light, width, device);
        page.evaluate("for (const details of document.querySelectorAll('details')) details.open = true");
        assert_eq!(page.evaluate("innerWidth"), width, "a page that is too wide is zoomed out");
        assert_eq!(
            page.evaluate("document.scrollingElement.scrollWidth <= document.scrollingElement.clientWidth"),
            true,
            "at {width} px"
        );
    }
}

#[test]
fn without_scripts_all_is_shown_and_a_reload_shows_new_numbers() {
    let (report, list) = trouble();
    let server = Server::start(report.clone(), list.clone());
    let browser = Browser::start();
    let page = browser.page();
    page.disable_scripts();
    page.open(&server.url);
    let text = page.text();
    for part in [
        "JavaScript is off: reload the page for new numbers.",
        "2026-03-01 09:00:00 UTC",
        "3 d 4 h ago",
        "not ready: the pipe mail does not listen yet",
        "line 12: unknown option 'tagret'",
        "153 of 1,024",
        "12.3 MiB of 86.0 MiB address space",
        "landlock=6 seccomp=on",
        "redis: all 47 connections are in use: further clients wait",
        "redis: the target [10.0.4.12]:6379 has been down for 3 d 3 h: connection refused (os error 111)",
        "redis: the key backup expires in 2 d 14 h",
        "waiting for name",
        "1 of 3 up",
        "47 of 47, 83 at most so far",
        "1.3 ms / 19 ms",
        "23 to 65 in 15 min",
        "1 of 2 good",
        "12 refused",
        "2001:db8:17:4::13",
        "/etc/spipe/keys/backup.key",
        "wrong key or label",
        "local reset",
        "The last 2 failures",
        "The first 40 of 56",
        "[198.51.100.4]:40112",
    ] {
        assert!(text.contains(part), "{part} is missing in: {text}");
    }
    assert!(!text.contains("Pause"), "a button that does nothing");

    server.says(later(&report, 7), connections(3, 3));
    page.open(&server.url);
    let text = page.text();
    assert!(text.contains("2026-03-01 09:00:07 UTC") && text.contains("3, all of them"), "{text}");
    assert_eq!(page.complaints(), [""; 0]);
}

/// The head of the column by which the connections are sorted.
fn sorted_by(page: &Page) -> Value {
    page.evaluate(
        "[...document.querySelectorAll('th[aria-sort]')].map(th => th.textContent + ' ' + th.getAttribute('aria-sort')).join()",
    )
}

#[test]
fn without_scripts_connections_are_sorted_by_links() {
    let (report, list) = one_pipe();
    let server = Server::start(report, list);
    let browser = Browser::start();
    let page = browser.page();
    page.disable_scripts();
    page.open(&server.url);
    assert_eq!(sorted_by(&page), "Age ascending");
    for (query, sorted) in [
        ("?sort=to_target", "To target descending"),
        ("?sort=to_target&reverse=1", "To target ascending"),
        ("?sort=to_target", "To target descending"),
        ("?sort=age", "Age ascending"),
        ("?sort=age&reverse=1", "Age descending"),
    ] {
        page.evaluate(&format!("document.querySelector('th a[href=\"{query}#connections\"]').click()"));
        page.wait_until(&format!("location.search === '{query}' && location.hash === '#connections'"));
        assert_eq!(sorted_by(&page), sorted);
    }
}

#[test]
fn events_are_asked_for_in_the_order_of_the_page() {
    let (report, list) = one_pipe();
    let server = Server::start(report, list);
    let browser = Browser::start();
    browser.open(&format!("{}?sort=to_target&reverse=1", server.url));
    assert_eq!(server.stream().path, "/events?sort=to_target&reverse=1");
}

#[test]
fn an_event_shows_new_numbers_and_leaves_the_reader_alone() {
    let (report, list) = trouble();
    let server = Server::start(report.clone(), list.clone());
    let browser = Browser::start();
    let page = open(&browser, &server, ColourScheme::Light, 390, Device::Phone);
    let mut stream = server.stream();
    stream.show(&page, &later(&report, 1), &list);
    // What the reader does: unfolds, folds, scrolls the page and a table, selects text, and has the focus on a link.
    page.evaluate(
        "(() => {
            const [first, second] = document.querySelectorAll('.pipe');
            first.querySelector('.last details').open = true;
            second.open = false;
            document.querySelector('#all-connections').scrollLeft = 120;
            document.querySelector('th a[href^=\"?sort=client\"]').focus({ preventScroll: true });
            document.querySelector('.notes').scrollIntoView({ behavior: 'instant' });
            const text = document.querySelector('.notes a[href=\"#pipe-redis\"]').nextSibling;
            getSelection().setBaseAndExtent(text, 2, text, 12);
        })()",
    );
    let look = "JSON.stringify([
        [...document.querySelectorAll('details')].map(details => details.open),
        document.querySelector('#all-connections').scrollLeft,
        document.activeElement.textContent,
        Math.round(scrollY),
        getSelection().toString(),
    ])";
    let before = page.evaluate(look);
    assert_eq!(before.as_str().map(|text| text.contains("true,false")), Some(true), "{before}");

    let mut next = later(&report, 2);
    next["pipes"][0]["connections"]["now"] = 46.into();
    next["pipes"][0]["history"]["connections"][179] = 99.into();
    next["pipes"][0]["failures"]["last"][0]["text"] = "another failure".into();
    next["pipes"][0]["targets"][1]["state"] = "avoided".into();
    let mut newer = connections(60, 59);
    let rows = newer["connections"].as_array_mut().expect("a list");
    rows.remove(3);
    rows.rotate_right(20);
    stream.show(&page, &next, &newer);
    assert_eq!(page.evaluate(look), before);
    let text = page.text();
    for part in ["46 of 47", "another failure", "23 to 99 in 15 min", "59, all of them"] {
        assert!(text.contains(part), "{part} is missing in: {text}");
    }
    // It is as if the page had been loaded anew, but for what the reader has unfolded and folded.
    server.says(next, newer);
    let anew = browser.open(&server.url);
    let html = "(() => {
        const main = document.querySelector('main').cloneNode(true);
        for (const details of main.querySelectorAll('details')) details.open = false;
        return main.innerHTML.replace(/\\s+/g, ' ');
    })()";
    assert_eq!(page.evaluate(html), anew.evaluate(html));
    assert_eq!(page.complaints(), [""; 0]);
}

#[test]
fn a_row_that_moves_keeps_the_focus_and_the_selection_in_it() {
    let (report, list) = one_pipe();
    let server = Server::start(report.clone(), list.clone());
    let browser = Browser::start();
    let page = browser.open(&server.url);
    let mut stream = server.stream();
    let id = list["connections"][5]["id"].as_str().expect("a text").to_owned();
    page.evaluate(&format!(
        "(() => {{
            const row = document.getElementById('connection-{id}');
            row.querySelector('a').focus();
            getSelection().selectAllChildren(row.querySelector('th'));
        }})()"
    ));
    let look = "[document.activeElement.closest('tr').id, getSelection().toString()].join()";
    let before = page.evaluate(look);
    let mut reversed = list.clone();
    reversed["connections"].as_array_mut().expect("a list").reverse();
    stream.show(&page, &later(&report, 1), &reversed);
    assert_eq!(page.evaluate(look), before);
    assert_eq!(before.as_str().map(|text| text.starts_with(&format!("connection-{id},[192"))), Some(true));
    assert_eq!(
        page.evaluate("document.querySelectorAll('#all-connections tbody tr')[6].id"),
        format!("connection-{id}")
    );
}

#[test]
fn a_selection_whose_text_changes_stays_where_it_is() {
    let (report, list) = one_pipe();
    let server = Server::start(report.clone(), list.clone());
    let browser = Browser::start();
    let page = browser.open(&server.url);
    let mut stream = server.stream();
    page.evaluate(
        "(() => {
            const text = document.querySelector('#now').firstChild;
            getSelection().setBaseAndExtent(text, 11, text, 19);
        })()",
    );
    stream.show(&page, &later(&report, 7), &list);
    assert_eq!(page.evaluate("getSelection().toString()"), "09:00:07");
}

const IS_OLD: &str = "document.querySelector('#stream.old')?.textContent.startsWith('Old numbers, of 2026-03-01 09:00:01 UTC')";
const IS_LIVE: &str = "document.querySelector('#stream:not(.old)')?.textContent === 'Live'";

#[test]
fn a_stream_that_breaks_is_told_until_there_are_numbers_again() {
    let (report, list) = one_pipe();
    let server = Server::start(report.clone(), list.clone());
    let browser = Browser::start();
    let page = browser.open(&server.url);
    let mut stream = server.stream();
    stream.show(&page, &later(&report, 1), &list);
    page.wait_until(IS_LIVE);
    drop(stream);
    page.wait_until(IS_OLD);
    for place in ["0", "document.body.scrollHeight"] {
        page.evaluate(&format!("scrollTo({{ top: {place}, behavior: 'instant' }})"));
        let shown = "document.querySelector('#stream').getBoundingClientRect()";
        let is_seen = format!("{shown}.top >= 0 && {shown}.bottom <= innerHeight");
        assert_eq!(page.evaluate(&is_seen), true, "wherever the reader is");
    }
    let mut stream = server.stream();
    assert_eq!(page.evaluate(IS_OLD), true, "a connection alone has no new numbers");
    stream.show(&page, &later(&report, 2), &list);
    page.wait_until(IS_LIVE);
    assert_eq!(page.complaints(), [""; 0]);
}

#[test]
fn a_stream_that_falls_silent_is_told() {
    let (report, list) = one_pipe();
    let server = Server::start(report.clone(), list.clone());
    let browser = Browser::start();
    let page = browser.open(&server.url);
    let mut stream = server.stream();
    stream.show(&page, &later(&report, 1), &list);
    page.wait_until(IS_OLD);
    stream.show(&page, &later(&report, 2), &list);
    page.wait_until(IS_LIVE);
}

#[test]
fn a_page_whose_events_were_refused_asks_again() {
    let (report, list) = one_pipe();
    let server = Server::start(report.clone(), list.clone());
    let browser = Browser::start();
    server.refuses.store(true, Ordering::SeqCst);
    let page = browser.open(&server.url);
    page.wait_until("document.querySelector('#stream.old') !== null");
    server.refuses.store(false, Ordering::SeqCst);
    server.stream().show(&page, &later(&report, 1), &list);
}

#[test]
fn a_reader_can_pause_the_numbers() {
    let (report, list) = one_pipe();
    let server = Server::start(report.clone(), list.clone());
    let browser = Browser::start();
    let page = browser.open(&server.url);
    let mut stream = server.stream();
    stream.show(&page, &later(&report, 1), &list);
    page.evaluate("document.querySelector('#pause').click()");
    read_all(&mut stream.stream);
    assert_eq!(page.evaluate("document.querySelector('#stream').textContent"), "Paused");
    assert_eq!(page.evaluate("document.querySelector('#pause').textContent"), "Resume");
    page.evaluate("document.querySelector('#pause').click()");
    server.stream().show(&page, &later(&report, 2), &list);
}

#[test]
fn assistive_technology_is_told_what_each_part_is() {
    let (report, list) = trouble();
    let server = Server::start(report.clone(), list.clone());
    let browser = Browser::start();
    let page = browser.open(&server.url);
    let mut stream = server.stream();
    stream.show(&page, &later(&report, 1), &list);
    let tree = page.accessibility_tree();
    for (role, name) in [
        ("banner", ""),
        ("navigation", "On this page"),
        ("main", ""),
        ("contentinfo", ""),
        ("status", ""),
        ("button", "Pause"),
        ("heading", "spipe"),
        ("heading", "Process"),
        ("region", "Process"),
        ("heading", "Pipes"),
        ("region", "Pipes"),
        ("heading", "postgres"),
        ("heading", "Connections"),
        ("region", "Connections"),
        ("list", "What needs attention"),
        ("table", "All pipes"),
        ("table", "Targets of redis"),
        ("table", "Keys of redis"),
        ("table", "Failures: connections that never carried anything (redis)"),
        ("table", "Ended: connections that carried (redis)"),
        ("DisclosureTriangle", "redis listening decrypt 47 connections"),
        ("table", "The first 40 of 56"),
        ("columnheader", "To target"),
        ("rowheader", "[10.0.4.12]:6379"),
        ("rowheader", "wrong key or label"),
        ("StaticText", "serving"),
        ("StaticText", "not ready"),
        ("StaticText", "listening"),
        ("StaticText", "waiting for name"),
        ("StaticText", "up"),
        ("StaticText", "down"),
        ("StaticText", "avoided"),
        ("StaticText", "drained"),
        ("image", "Connections: 47 now, 23 to 65 in 15 min"),
        ("image", "From target: 0 B/s now, nothing known yet"),
    ] {
        let names: Vec<_> = tree.iter().filter(|node| node.0 == role).map(|node| node.1.as_str()).collect();
        assert!(names.contains(&name), "no {role} {name} in {names:?}");
    }
}

/// Puts [`HOSTILE`] into each text that is one of nobody's choice, and behind each name of a kind.
fn poison(value: &mut Value) {
    const CHOSEN: [&str; 11] = [
        "mode",
        "state",
        "now",
        "started",
        "since",
        "at",
        "last_used",
        "expires",
        "last",
        "schema",
        "version",
    ];
    match value {
        Value::String(text) => text.push_str(HOSTILE),
        Value::Array(values) => values.iter_mut().for_each(poison),
        Value::Object(fields) => {
            for (name, field) in fields.iter_mut() {
                if !(CHOSEN.contains(&name.as_str()) && field.is_string()) {
                    poison(field);
                }
            }
        }
        _ => {}
    }
}

#[test]
fn hostile_text_is_shown_and_does_nothing() {
    let (mut report, mut list) = trouble();
    let failures = report["pipes"][0]["failures"]["total"].as_object_mut().expect("an object");
    failures.insert(HOSTILE.to_owned(), 1.into());
    poison(&mut report);
    poison(&mut list);
    let server = Server::start(report.clone(), list.clone());
    let browser = Browser::start();
    let page = browser.open(&server.url);
    let inert = "[
        document.querySelectorAll('script').length, document.querySelectorAll('main').length,
        document.querySelectorAll('main script, main img, main [onerror]').length,
        document.querySelectorAll('#all-connections tbody tr').length,
        document.querySelector('main').textContent.split('<script>alert(1)</script>').length > 200,
        document.querySelector('main').textContent.includes('&amp;{{ 7*7 }}'),
    ].join()";
    assert_eq!(page.evaluate(inert), "1,1,0,40,true,true");
    server.stream().show(&page, &later(&report, 1), &list);
    assert_eq!(page.evaluate(inert), "1,1,0,40,true,true");
    assert_eq!(page.complaints(), [""; 0]);
}

#[test]
fn content_is_one_line_whatever_names_have_in_them() {
    let (mut report, list) = trouble();
    poison(&mut report);
    assert_eq!(content(&report, &list).find(['\n', '\r']), None);
}

#[test]
fn no_report_is_too_strange_to_be_shown() {
    let (report, list) = trouble();
    let (mut report, mut list) = (report_of(&report), list_of(&list));
    let (far, long_ago) = ("9999-12-30T22:00:00Z", "-009999-01-02T01:59:59Z");
    report.started = far.parse().expect("a time");
    report.now = long_ago.parse().expect("a time");
    report.process.descriptors = Some(u64::MAX);
    report.process.descriptors_limit = Some(0);
    report.process.cpu_seconds = Some(f64::NAN);
    report.log_lines_dropped = u64::MAX;
    for pipe in &mut report.pipes {
        pipe.connections.now = usize::MAX;
        pipe.connections.limit = Some(0);
        pipe.strangers = usize::MAX;
        pipe.bytes.to_target = u64::MAX;
        pipe.rate.to_target = f64::INFINITY;
        pipe.handshake.p50 = Some(f64::NAN);
        pipe.handshake.p99 = None;
        pipe.history.step_seconds = u64::MAX;
        pipe.history.connections = vec![usize::MAX; 1000];
        pipe.history.new = vec![f64::NAN, f64::INFINITY, -1.0];
        pipe.failures.last_24_hours.values_mut().for_each(|count| *count = u64::MAX);
        pipe.keys.iter_mut().for_each(|key| key.expires = Some(report.now));
        pipe.name = String::new();
    }
    report.pipes[1].targets.clear();
    report.pipes[1].sources.clear();
    report.pipes[1].keys.clear();
    report.pipes[1].ciphers.clear();
    list.total = 0;
    for connection in &mut list.connections {
        connection.to_target = u64::MAX;
        connection.from_target = u64::MAX;
        connection.age_seconds = f64::NEG_INFINITY;
    }
    let page = StatusPage::new();
    for report in [report.clone(), Report { pipes: Vec::new(), ..report }] {
        let rendered = page.render(&report, &list, Sorting::default()).expect("the template fits");
        assert!(rendered.ends_with("</html>\n"));
    }
}

#[test]
fn a_hundred_pipes_are_a_table_and_are_unfolded_by_its_links() {
    let pipes: Vec<_> = (0..100).map(|number| pipe(&format!("customer {number}"))).collect();
    let (report, list) = (process(&pipes), connections(200, 12_000));
    let length = content(&report, &list).len();
    assert!(length < 1_300_000, "{length} bytes, once a second");
    let server = Server::start(report.clone(), list.clone());
    let browser = Browser::start();
    let page = browser.open(&server.url);
    assert_eq!(page.evaluate("document.querySelectorAll('#all-pipes tbody tr').length"), 100);
    assert_eq!(page.evaluate("document.querySelectorAll('.pipe[open]').length"), 0);
    assert_eq!(page.complaints(), [""; 0]);
    // Chromium has something to say against a click that nobody made.
    page.evaluate("document.querySelector('#all-pipes tr:nth-child(43) a').click()");
    let unfolded = "[...document.querySelectorAll('.pipe[open] h3')].map(name => name.textContent).join()";
    page.wait_until(&format!("{unfolded} === 'customer 42'"));
    server.stream().show(&page, &later(&report, 1), &list);
    assert_eq!(page.evaluate(unfolded), "customer 42");
    assert!(page.text().contains("The first 200 of 12,000"));
}

#[test]
fn paper_has_all_that_is_folded_up_in_dark_ink() {
    let pipes: Vec<_> = (0..5).map(|number| pipe(&format!("customer {number}"))).collect();
    let server = Server::start(process(&pipes), connections(3, 3));
    let browser = Browser::start();
    let page = browser.page();
    page.set_colour_scheme(ColourScheme::Dark);
    page.open(&server.url);
    let seen = "[...document.querySelectorAll('.pipe li')].every(line => line.checkVisibility({ contentVisibilityAuto: true }))";
    assert_eq!(page.evaluate(seen), false);
    page.set_print();
    page.wait_until(seen);
    assert_eq!(page.evaluate("getComputedStyle(document.body).color"), "rgb(23, 32, 43)");
}

/// The pictures of the documents.
#[test]
#[ignore = "writes docs/status; run it when the page looks different"]
fn screenshots() {
    let pictures = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/status");
    let (browser, (report, list)) = (Browser::start(), trouble());
    let server = Server::start(report.clone(), list.clone());
    for (name, width, height, scheme) in [
        ("light.png", 1280, 1040, ColourScheme::Light),
        ("dark.png", 1280, 1040, ColourScheme::Dark),
        ("phone.png", 390, 1270, ColourScheme::Light),
    ] {
        let page = open(&browser, &server, scheme, width, Device::Phone);
        let mut stream = server.stream();
        stream.show(&page, &report, &list);
        page.wait_until(IS_LIVE);
        // The upper part is enough.
        page.evaluate(&format!(
            "Object.assign(document.querySelector('main').style, {{ height: '{height}px', overflow: 'hidden' }});
             document.querySelector('footer').hidden = true;
             document.body.style.paddingBottom = 0;"
        ));
        page.screenshot(&pictures.join(name));
    }
}
