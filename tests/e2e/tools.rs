//! The tools of the tests that read HTTP and metrics: what is not as the standards have it fails a test.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixListener;
use std::thread;

use crate::support::http::{Event, Server};
use crate::support::metrics::{Prometheus, Sample, check_as_openmetrics, check_with_promtool, samples};
use crate::support::socket::{Service, assert_reads};

/// Reads a request without a body, and gives this answer, whatever the request is.
fn answer(mut stream: impl Read + Write, answer: &str) {
    let request = BufReader::new(&mut stream).lines().map_while(Result::ok);
    request.take_while(|line| !line.is_empty()).for_each(drop);
    let _ = stream.write_all(answer.as_bytes());
}

fn serve(response: String) -> SocketAddr {
    Service::start().serve(move |stream| answer(stream, &response))
}

fn server(response: impl Into<String>) -> Server {
    Server::Tcp(serve(response.into()))
}

#[test]
fn a_body_of_a_length_in_chunks_and_up_to_the_end_is_the_same() {
    for head_and_body in [
        "Content-Length: 5\r\n\r\nhello",
        "Transfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n",
        "Connection: close\r\n\r\nhello",
    ] {
        let response = server(format!("HTTP/1.1 200 OK\r\nA: b\r\n{head_and_body}")).get("/");
        assert_eq!((response.status, &*response.body), (200, "hello"), "{head_and_body}");
        assert_eq!((response.header("a"), response.header("B")), (Some("b"), None));
    }
}

#[test]
fn a_response_that_is_not_complete_fails_the_test() {
    for response in [
        "",
        "HTTP/1.1 200 OK\r\nA: b\r\n",
        "HTTP/1.1 OK\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhello\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nhello",
        "HTTP/1.1 304 Not Modified\r\n\r\nhello",
    ] {
        let server = server(response);
        let received = thread::spawn(move || server.get("/")).join();
        assert!(received.is_err(), "{response:?} was taken for {received:?}");
    }
}

#[test]
fn a_request_arrives_as_it_is_meant() {
    let service = Service::start();
    let server = Server::Tcp(service.address());
    let client = thread::spawn(move || server.request("POST", "/reload", &[("Origin", "null")], "now"));
    let mut stream = service.accept();
    let expected = "POST /reload HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nOrigin: null\r\n\
                    Content-Length: 3\r\n\r\nnow";
    assert_reads(&mut stream, expected);
    stream.write_all(b"HTTP/1.1 405 Method Not Allowed\r\n\r\n").expect("the client is there");
    drop(stream);
    assert_eq!(client.join().expect("the response is whole").status, 405);
}

#[test]
fn a_response_to_head_has_the_length_of_a_body_that_is_not_there() {
    let response = server("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n").request("HEAD", "/", &[], "");
    assert_eq!((response.header("Content-Length"), &*response.body), (Some("5"), ""));
}

#[test]
fn a_server_at_a_path_is_asked_the_same_way() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("status.sock");
    let listener = UnixListener::bind(&path).expect("the name is free");
    thread::spawn(move || {
        let (stream, _) = listener.accept().expect("the client connects");
        answer(stream, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello");
    });
    assert_eq!(Server::Unix(path).get("/").body, "hello");
}

#[test]
fn what_is_not_http_is_sent_as_it_is_and_its_answer_returned_as_it_is() {
    let echo = Server::Tcp(Service::start().serve(|mut stream| {
        let mut received = [0; 4];
        let _ = stream.read_exact(&mut received);
        let _ = stream.write_all(&received);
    }));
    assert_eq!(echo.send_raw(b"\x16\x03\x01\xff"), b"\x16\x03\x01\xff");
    // The rest has not been read, so that the connection is reset.
    assert_eq!(echo.send_raw(&vec![7; 100_000])[..4], [7; 4]);
}

#[test]
fn events_are_read_one_by_one_across_chunks_until_the_stream_ends() {
    let mut events = server(
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n\
         e\r\n: hello\n\ndata:\r\n8\r\n one\n\nev\r\n28\r\nent: state\nid: 7\ndata: two\ndata: three\n\n\r\n0\r\n\r\n",
    )
    .events("/events");
    assert_eq!(events.next_line().as_deref(), Some(": hello"));
    let one = Event { data: "one".into(), ..Event::default() };
    assert_eq!(events.next_event(), Some(one));
    let two = Event { kind: "state".into(), data: "two\nthree".into(), id: "7".into() };
    assert_eq!(events.next_event(), Some(two));
    assert_eq!(events.next_event(), None);
    assert_eq!(events.next_line(), None);
}

#[test]
#[should_panic(expected = "text/event-stream")]
fn a_page_is_no_stream_of_events() {
    server("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n").events("/");
}

const TEXT: &str = "# HELP spipe_build_info The version.\n# TYPE spipe_build_info gauge\n\
                    spipe_build_info{version=\"1\"} 1\n\
                    # HELP spipe_connections_total Accepted.\n# TYPE spipe_connections_total counter\n\
                    spipe_connections_total{pipe=\"a\"} 3\n";

const OPENMETRICS: &str = "# TYPE spipe_build info\n# HELP spipe_build The version.\nspipe_build_info{version=\"1\"} 1\n\
                           # TYPE spipe_sent_bytes counter\n# UNIT spipe_sent_bytes bytes\n\
                           # HELP spipe_sent_bytes Sent.\nspipe_sent_bytes_total{pipe=\"a\"} 3\n# EOF\n";

#[test]
fn each_format_is_approved_of_as_itself_and_not_as_the_other() {
    check_with_promtool(TEXT);
    check_as_openmetrics(OPENMETRICS);
    assert!(thread::spawn(|| check_with_promtool(OPENMETRICS)).join().is_err());
    assert!(thread::spawn(|| check_as_openmetrics(TEXT)).join().is_err());
}

#[test]
fn metrics_with_a_fault_are_not_approved_of() {
    for (good, bad) in [("_total", ""), ("# HELP", "# Help"), ("} 3", "} three"), ("\"1\"}", "\"1}")] {
        let text = TEXT.replace(good, bad);
        assert!(thread::spawn(move || check_with_promtool(&text)).join().is_err(), "{bad}");
    }
    for (good, bad) in
        [("# EOF\n", ""), ("UNIT spipe_sent_bytes bytes", "UNIT spipe_sent_bytes seconds"), ("} 3", "}")]
    {
        let text = OPENMETRICS.replace(good, bad);
        assert!(thread::spawn(move || check_as_openmetrics(&text)).join().is_err(), "{bad}");
    }
}

#[test]
fn samples_have_a_name_labels_and_a_value() {
    let text = "# HELP a A {b=\"c\"} 1\na 1\na{} -2.5e3\nb{c=\"d\",e=\"\"} +Inf\nc{d=\"a \\\"b\\\\n\\n}, \",} 0\n# EOF\n";
    let sample = |name: &str, labels: &[(&str, &str)], value| Sample {
        name: name.into(),
        labels: labels
            .iter()
            .map(|(name, value)| ((*name).into(), (*value).into()))
            .collect::<BTreeMap<_, _>>(),
        value,
    };
    let expected = [
        sample("a", &[], 1.0),
        sample("a", &[], -2500.0),
        sample("b", &[("c", "d"), ("e", "")], f64::INFINITY),
        sample("c", &[("d", "a \"b\\n\n}, ")], 0.0),
    ];
    assert_eq!(samples(text), expected);
}

#[test]
fn what_is_not_a_sample_fails_the_test() {
    for text in ["a", "a{", "a one", "a{b} 1", "a{b=\"c} 1", "a{b=\"c\",b=\"d\"} 1", "a{b=\"c\"}1", "a 1 2"] {
        let read = thread::spawn(move || samples(text)).join();
        assert!(read.is_err(), "{text} was taken for {read:?}");
    }
}

/// Serves `metrics` as OpenMetrics.
fn serve_metrics(metrics: &str) -> SocketAddr {
    serve(format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n\r\n{metrics}"
    ))
}

#[test]
fn prometheus_has_what_it_has_scraped() {
    let prometheus = Prometheus::scrape(serve_metrics(OPENMETRICS));
    assert_eq!(prometheus.await_scrape(), Ok(()));
    let found = prometheus.query("spipe_sent_bytes_total{pipe=\"a\"} + 1");
    assert_eq!(found.len(), 1);
    assert_eq!(found[0]["value"][1], "4");
    assert_eq!(prometheus.query("spipe_sent_bytes_total{pipe=\"b\"}").len(), 0);
}

#[test]
fn prometheus_says_why_it_cannot_scrape() {
    let prometheus = Prometheus::scrape(serve_metrics(&OPENMETRICS.replace("# EOF\n", "")));
    assert_eq!(prometheus.await_scrape(), Err("data does not end with # EOF".to_owned()));
}
