//! The browser of the tests: it reports what is wrong with a page, and shows pages as different users see them.

use std::io::Write;
use std::net::TcpStream;
use std::sync::mpsc;

use crate::support::browser::{Browser, ColourScheme, Device, Page};
use crate::support::http::read_request;
use crate::support::socket::{Service, read_all};
use crate::support::{DEADLINE, poll_until};

/// The start of each page: without a document type it would have a fault of its own, and without an icon the browser
/// asks for `/favicon.ico`.
const HEAD: &str = "<!DOCTYPE html><html lang=\"en\"><title>Test</title><link rel=\"icon\" href=\"data:,\">";

/// A server that answers `/` with a page of this Content-Security-Policy and `body`, and nothing else. Returns its URL.
fn serve(policy: &'static str, body: &'static str) -> String {
    let address = Service::start().serve(move |stream| {
        if let Some(request) = read_request(&stream) {
            answer(&request, stream, policy, body);
        }
    });
    format!("http://{address}/")
}

fn answer(request: &str, mut stream: TcpStream, policy: &str, body: &str) {
    let (status, body) = if request.starts_with("GET / ") {
        ("200 OK", format!("{HEAD}{body}"))
    } else {
        ("404 Not Found", String::new())
    };
    let _ = write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: text/html; charset=utf-8\r\nContent-Security-Policy: {policy}\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
}

/// A page without a policy.
fn page_of(body: &'static str) -> String {
    serve("", body)
}

/// Waits for a complaint with all of `parts` in it: those about forms come a moment after the page has loaded.
#[track_caller]
fn await_complaint(page: &Page, parts: &[&str]) {
    let matches = |complaint: &String| parts.iter().all(|part| complaint.contains(part));
    poll_until(&format!("a complaint with {parts:?}"), || page.complaints().into_iter().find(matches));
}

#[test]
fn what_is_wrong_with_a_page_is_complained_about() {
    let browser = Browser::start();
    let inline = serve("script-src 'self'", "<script>document.title = 'ran'</script>");
    let page = browser.open(&inline);
    await_complaint(&page, &["Content Security Policy", "script-src 'self'"]);
    assert_eq!(page.evaluate("document.title"), "Test");

    let page = browser.open(&page_of("<script>console.error('three', 3)</script>"));
    await_complaint(&page, &["console error", "three", "3"]);

    let page = browser.open(&page_of("<script>console.warn('beware')</script>"));
    await_complaint(&page, &["console warning", "beware"]);

    let page = browser.open(&page_of("<script>setTimeout(() => { missing() })</script>"));
    page.evaluate("new Promise(resolve => setTimeout(resolve))");
    await_complaint(&page, &["exception", "missing is not defined"]);

    let page = browser.open(&page_of("<img src=\"nowhere.png\" alt=\"Nothing\">"));
    await_complaint(&page, &["Failed to load", "404", "/nowhere.png"]);

    let page = browser.open(&page_of("<label>Name</label><input name=\"name\">"));
    await_complaint(&page, &["issue", "FormLabelHasNeitherForNorNestedInput"]);
}

#[test]
fn a_page_without_faults_is_not_complained_about() {
    let browser = Browser::start();
    let faulty = browser.open(&page_of("<script>console.error('of another page')</script>"));
    let page = browser.open(&serve(
        "default-src 'none'; img-src data:",
        "<h1>Fine</h1><p>Nothing is wrong here.<p><a href=\"/\">Again</a>",
    ));
    assert_eq!(page.complaints(), [""; 0]);
    assert_eq!(page.text(), "Fine\n\nNothing is wrong here.\n\nAgain");
    await_complaint(&faulty, &["of another page"]);
}

#[test]
fn without_scripts_a_page_shows_what_is_for_noscript() {
    let page = "<p id=\"state\">static</p><noscript>no script</noscript>\
                <script>document.querySelector('#state').textContent = 'scripted'</script>";
    let url = page_of(page);
    let browser = Browser::start();
    let without = browser.page();
    without.disable_scripts();
    without.open(&url);
    assert_eq!(without.text(), "static\n\nno script");
    assert_eq!(browser.open(&url).text(), "scripted");
}

#[test]
fn a_page_is_told_the_preferred_colour_scheme() {
    let url = page_of("<script>dark = matchMedia('(prefers-color-scheme: dark)').matches</script>");
    let browser = Browser::start();
    for (scheme, dark) in [(ColourScheme::Dark, true), (ColourScheme::Light, false)] {
        let page = browser.page();
        page.set_colour_scheme(scheme);
        page.open(&url);
        assert_eq!(page.evaluate("dark"), dark);
    }
}

#[test]
fn a_page_is_as_wide_as_its_device_lets_it_be() {
    const VIEWPORT: &str = "<meta name=\"viewport\" content=\"width=device-width\"><p>Text";
    let browser = Browser::start();
    let width = |body, device| {
        let page = browser.page();
        page.set_size(390, 844, device);
        page.open(&page_of(body));
        page.evaluate("innerWidth")
    };
    assert_eq!(width(VIEWPORT, Device::Phone), 390);
    assert_eq!(width("<p>Text", Device::Desktop), 390);
    assert_eq!(width("<p>Text", Device::Phone), 980, "as for a desktop");
}

#[test]
fn the_accessibility_tree_has_names_and_roles_and_nothing_hidden() {
    let browser = Browser::start();
    let page = browser.open(&page_of(
        "<h1>Pipes</h1><button aria-label=\"Close the list\">×</button><button hidden>Secret</button>",
    ));
    let tree = page.accessibility_tree();
    let has = |role: &str, name: &str| tree.iter().any(|node| node.0 == role && node.1 == name);
    assert!(has("heading", "Pipes"), "{tree:?}");
    assert!(has("button", "Close the list"), "{tree:?}");
    assert_eq!(tree.iter().filter(|(role, _)| role == "button").count(), 1, "{tree:?}");
}

#[test]
fn a_change_of_a_page_that_reloads_itself_is_awaited() {
    let browser = Browser::start();
    let page = browser.open(&page_of(
        "<p><script>
            const loads = Number(sessionStorage.loads ?? 0) + 1;
            sessionStorage.loads = loads;
            document.querySelector('p').textContent = `load ${loads}`;
            if (loads < 5) addEventListener('load', () => setTimeout(() => location.reload()));
        </script>",
    ));
    page.wait_until("document.body.innerText === 'load 5'");
}

#[test]
fn a_stream_of_events_reaches_a_page_until_it_is_closed() {
    let service = Service::start();
    let url = format!("http://{}/", service.address());
    let (sender, streams) = mpsc::channel();
    service.serve(move |mut stream| {
        let Some(request) = read_request(&stream) else { return };
        if !request.starts_with("GET /events ") {
            let script = "<p><script>
                new EventSource('events').onmessage = event => document.querySelector('p').append(event.data);
            </script>";
            return answer(&request, stream, "connect-src 'self'", script);
        }
        let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n";
        stream.write_all(head.as_bytes()).expect("the browser is there");
        sender.send(stream).expect("the test waits for it");
    });
    let browser = Browser::start();
    let page = browser.open(&url);
    let mut stream = streams.recv_timeout(DEADLINE).expect("the page asks for events");
    for text in ["one", "two"] {
        write!(stream, "data: {text}\n\n").expect("the browser is there");
        page.wait_until(&format!("document.body.innerText.endsWith('{text}')"));
    }
    assert_eq!((page.text().as_str(), page.complaints()), ("onetwo", vec![]));
    page.close();
    read_all(&mut stream);
}

#[test]
#[should_panic(expected = "missing is not defined")]
fn an_exception_fails_the_test_that_waits_for_its_expression() {
    Browser::start().page().wait_until("missing === true");
}

#[test]
#[should_panic(expected = "net::ERR_CONNECTION_REFUSED")]
fn a_server_that_refuses_connections_fails_the_test() {
    let port = crate::support::socket::Port::reserve();
    Browser::start().open(&format!("http://{}/", port.address()));
}

#[test]
fn a_screenshot_has_all_of_a_long_page() {
    let browser = Browser::start();
    let page = browser.page();
    page.set_size(390, 844, Device::Phone);
    page.open(&page_of(
        "<meta name=\"viewport\" content=\"width=device-width\"><body style=\"margin: 0\"><div style=\"height: 3000px\">",
    ));
    let file = browser.home().join("page.png");
    page.screenshot(&file);
    let image = std::fs::read(file).expect("the screenshot is there");
    assert_eq!(image[..8], *b"\x89PNG\r\n\x1a\n");
    // The header chunk is the first, and begins with the size.
    let number = |at: usize| u32::from_be_bytes(image[at..at + 4].try_into().expect("four bytes"));
    assert_eq!((number(16), number(20)), (390, 3000));
}

/// The processes that have `text` in their arguments.
fn processes_with(text: &str) -> Vec<String> {
    let directories = std::fs::read_dir("/proc").expect("Linux has it").map_while(Result::ok);
    let arguments = directories.filter_map(|process| std::fs::read(process.path().join("cmdline")).ok());
    let arguments = arguments.map(|bytes| String::from_utf8_lossy(&bytes).replace('\0', " "));
    arguments.filter(|arguments| arguments.contains(text)).collect()
}

#[test]
fn no_process_and_no_file_of_a_browser_is_left_when_it_has_been_dropped() {
    let browser = Browser::start();
    browser.open(&page_of("<p>Text"));
    let home = browser.home().to_owned();
    let name = home.display().to_string();
    poll_until("the processes of a page run", || (processes_with(&name).len() > 3).then_some(()));
    drop(browser);
    assert_eq!(processes_with(&name), [""; 0]);
    assert!(!home.exists());
}
