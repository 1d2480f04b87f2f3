//! The real client across both hops: PROXY headers from load balancers, and to services.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::thread;

use tempfile::TempDir;

use crate::support::peer::initiate;
use crate::support::pipe::{End, EndBuilder, Key, Pipe};
use crate::support::poll_until;
use crate::support::process::{Process, run, spipe};
use crate::support::proxy::Squid;
use crate::support::redis::{Redis, cli, free_port};
use crate::support::site::Site;
use crate::support::socket::{
    Service, assert_echoes, assert_ends, assert_reads, assert_reset, connect, echo, reset,
};

/// What a load balancer says of this client.
const V1: &[u8] = b"PROXY TCP4 192.0.2.7 192.0.2.1 12345 443\r\n";
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// Options for an end behind a load balancer on this host.
const BEHIND: [&str; 3] = ["--accept-proxy", "--trust-proxy", "127.0.0.0/8"];

/// Version 2 of the same, with fields.
fn v2(fields: &[u8]) -> Vec<u8> {
    let length = u16::try_from(12 + fields.len()).expect("a short header").to_be_bytes();
    let addresses = [192, 0, 2, 7, 192, 0, 2, 1, 0x30, 0x39, 1, 187];
    [SIGNATURE, &[0x21, 0x11], &length, &addresses, fields].concat()
}

/// `spipe echo`, which prints what a service sees.
struct Echo {
    process: Process,
    address: SocketAddr,
}

impl Echo {
    fn start(args: &[&str]) -> Self {
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let mut command = spipe();
        command.args(["echo", "-s", &address.to_string()]).args(args);
        let process = Process::start(&mut command);
        process.await_line(&["listening at"]);
        Self { process, address }
    }
}

/// A responder that tells its target of clients.
fn telling(key: &Key, target: SocketAddr, version: &str) -> EndBuilder {
    End::responder(key, target).args(&["--send-proxy", version])
}

/// A pipe whose service prints what it is told by this version.
fn pipe_to_echo(version: &str, initiator: &[&str]) -> (Echo, Pipe) {
    let echo = Echo::start(&["--accept-proxy"]);
    let pipe =
        Pipe::to(echo.address).responder_args(&["--send-proxy", version]).initiator_args(initiator).start();
    (echo, pipe)
}

#[test]
fn a_service_is_told_where_the_client_comes_from_and_what_it_connected_to() {
    for version in ["v1", "v2"] {
        let (echo, pipe) = pipe_to_echo(version, &[]);
        let mut client = pipe.connect();
        assert_echoes(&mut client, "hello");
        let address = |address: SocketAddr| format!("[{}]:{}", address.ip(), address.port());
        let from = address(client.local_addr().expect("it is connected"));
        let to = address(client.peer_addr().expect("it is connected"));
        echo.process.await_line(&[&format!("client {from}, which connected to {to}")]);
        client.shutdown(Shutdown::Write).expect("the stream is open");
        assert_ends(&mut client);
    }
}

#[test]
fn version_2_has_the_id_of_the_connection_that_both_logs_have_and_the_key() {
    let (echo, pipe) = pipe_to_echo("v2", &["--verbose"]);
    let mut client = pipe.connect();
    assert_echoes(&mut client, "hello");
    let line = pipe.initiator.await_line(&["established"]);
    let id = line.split(" id=").nth(1).and_then(|rest| rest.split(' ').next()).expect("it has an id");
    assert_eq!(id.len(), 16, "{line}");
    echo.process.await_line(&[&format!("unique id: {id}")]);
    echo.process.await_line(&["name of the key: test"]);
    let fingerprint = run(spipe().arg("fingerprint").arg(pipe.key.path())).succeeded().text();
    echo.process.await_line(&[&format!("fingerprint of the key: {fingerprint}")]);
    drop(client);
    pipe.responder.await_line(&["closed", id]);
}

#[test]
fn what_a_load_balancer_tells_the_initiator_reaches_the_service() {
    // A host name (SNI), a unique id, and a field that concerns the load balancer only.
    let fields = [&[2, 0, 4][..], b"name", &[5, 0, 2], b"id", &[0x30, 0, 1, b'n']].concat();
    for (version, header) in
        [("v1", V1.to_vec()), ("v2", V1.to_vec()), ("v1", v2(&fields)), ("v2", v2(&fields))]
    {
        let (echo, pipe) = pipe_to_echo(version, &BEHIND);
        let mut client = pipe.connect();
        client.write_all(&[&header, &b"hello"[..]].concat()).expect("the pipe accepts the bytes");
        assert_reads(&mut client, "hello");
        echo.process.await_line(&["client [192.0.2.7]:12345, which connected to [192.0.2.1]:443"]);
        if (version, header.len()) == ("v2", v2(&fields).len()) {
            echo.process.await_line(&["host name that the client asked for: name"]);
            echo.process.await_line(&["unique id: id"]);
            assert!(!echo.process.log().contains("namespace"));
        }
        drop(client);
        pipe.responder.await_line(&["closed", "client=[192.0.2.7]:12345"]);
        pipe.initiator.await_line(&["closed", "client=[192.0.2.7]:12345"]);
    }
}

#[test]
fn a_header_may_come_byte_by_byte_and_what_is_behind_it_is_not_lost() {
    let (_echo, pipe) = pipe_to_echo("v2", &BEHIND);
    for header in [V1.to_vec(), v2(&[4, 0, 1, 0])] {
        let mut client = pipe.connect();
        client.set_nodelay(true).expect("the socket is open");
        for byte in [&header, &b"hello"[..]].concat() {
            client.write_all(&[byte]).expect("the pipe accepts the byte");
        }
        assert_reads(&mut client, "hello");
    }
}

#[test]
fn a_proxy_may_speak_for_itself() {
    let (echo, pipe) = pipe_to_echo("v2", &BEHIND);
    let local = [SIGNATURE, &[0x20, 0, 0, 3, 1, 2, 3]].concat();
    for header in [&local[..], b"PROXY UNKNOWN\r\n", b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n"] {
        let mut client = pipe.connect();
        client.write_all(&[header, &b"hello"[..]].concat()).expect("the pipe accepts the bytes");
        assert_reads(&mut client, "hello");
        // It counts as what it is: a client at the proxy's address.
        let from = client.local_addr().expect("it is connected");
        echo.process.await_line(&[&format!("client [{}]:{}", from.ip(), from.port())]);
    }
}

#[test]
fn a_malformed_or_missing_header_closes_the_connection_with_one_line() {
    let (_echo, pipe) = pipe_to_echo("v2", &BEHIND);
    let checksum = v2(&[3, 0, 4, 1, 2, 3, 4]);
    let mut count = 0;
    for (bytes, part) in [
        (&b"GET / HTTP/1.1\r\n"[..], "does not begin with a PROXY header"),
        (b"PROXY TCP4 nonsense\r\n", "malformed"),
        (&checksum, "the checksum"),
        (&[SIGNATURE, &[0x21, 0x11, 0xff, 0xff]].concat(), "too long"),
    ] {
        let mut client = pipe.connect();
        client.write_all(bytes).expect("the pipe accepts the bytes");
        assert_eq!(assert_reset(&mut client), b"");
        pipe.initiator.await_line(&["failed", part, "does the proxy send one?"]);
        count += 1;
    }
    let mut cut_short = pipe.connect();
    cut_short.write_all(b"PROXY TCP4").expect("the pipe accepts the bytes");
    cut_short.shutdown(Shutdown::Write).expect("the stream is open");
    assert_eq!(assert_reset(&mut cut_short), b"");
    pipe.initiator.await_line(&["failed", "stopped in the middle"]);
    assert_eq!(pipe.initiator.process.log().matches("WARN").count(), count + 1);
}

#[test]
fn a_proxy_that_says_nothing_is_given_up_and_others_do_not_notice() {
    let (_echo, pipe) = pipe_to_echo("v2", &BEHIND);
    let mut silent: Vec<_> = (0..20).map(|_| pipe.connect()).collect();
    let mut client = pipe.connect();
    client.write_all(&[V1, b"hello"].concat()).expect("the pipe accepts the bytes");
    assert_reads(&mut client, "hello");
    pipe.initiator.await_line(&["failed", "has not come in 5 s"]);
    for client in &mut silent {
        assert_eq!(assert_reset(client), b"");
    }
    assert_echoes(&mut client, "still here");
}

#[test]
fn a_bare_health_check_is_no_warning() {
    let (_echo, pipe) = pipe_to_echo("v2", &[&BEHIND[..], &["--verbose"]].concat());
    drop(pipe.connect());
    pipe.initiator.await_line(&["closed without a byte, as a TCP health check does"]);
    // As HAProxy ends its checks.
    reset(pipe.connect());
    pipe.initiator.process.await_lines(2, "closed without a byte");
    assert!(!pipe.initiator.process.log().contains("WARN"), "{}", pipe.initiator.process.log());
}

#[test]
fn who_is_no_trusted_proxy_is_denied_whatever_it_says() {
    let (_echo, pipe) = pipe_to_echo("v2", &["--accept-proxy", "--trust-proxy", "192.0.2.0/24"]);
    if let Some(mut client) = pipe.initiator.connect_unless_reset() {
        let mut received = Vec::new();
        let _ = client.write_all(V1).and_then(|()| client.read_to_end(&mut received));
        assert_eq!(received, b"");
    }
    pipe.initiator.await_line(&["denied", "no proxy that may tell", "--trust-proxy"]);
}

#[test]
fn lists_and_limits_are_about_the_client_behind_the_proxy() {
    let options = ["--deny", "192.0.2.7", "--max-per-source", "1"];
    let (_echo, pipe) = pipe_to_echo("v2", &[&BEHIND[..], &options].concat());
    let mut denied = pipe.connect();
    denied.write_all(V1).expect("the pipe accepts the bytes");
    assert_eq!(assert_reset(&mut denied), b"");
    pipe.initiator.await_line(&["failed", "client=[192.0.2.7]:12345", "--deny"]);

    let begin = |host: u8| {
        let mut client = pipe.connect();
        let header = format!("PROXY TCP4 192.0.2.{host} 192.0.2.1 1 2\r\nhello");
        client.write_all(header.as_bytes()).expect("the pipe accepts the bytes");
        client
    };
    let (mut first, mut other) = (begin(8), begin(9));
    assert_reads(&mut first, "hello");
    assert_reads(&mut other, "hello");
    assert_eq!(assert_reset(&mut begin(8)), b"");
    pipe.initiator.await_line(&["failed", "client=[192.0.2.8]:1", "--max-per-source"]);
    drop(first);
    poll_until("the place is free again", || {
        let mut client = begin(8);
        client.read_exact(&mut [0; 5]).ok()
    });
}

#[test]
fn a_responder_may_be_behind_a_load_balancer_too() {
    let key = Key::new();
    let responder = End::responder(&key, echo()).args(&BEHIND).args(&["--deny", "192.0.2.99"]).start();
    let key_file = fs::read(key.path()).expect("the key can be read");
    let shake = |header: &[u8]| {
        let mut wire = connect(responder.address());
        wire.write_all(header).expect("the responder accepts the bytes");
        wire
    };
    let mut tunnel = initiate(shake(V1), &key_file, spipe::proto::cipher::Cipher::ChaCha20Poly1305);
    tunnel.send(1, &[]);
    tunnel.send(2, b"hello");
    tunnel.receive(2);
    tunnel.vanish();
    responder.await_line(&["closed", "peer=[192.0.2.7]:12345"]);

    let mut denied = shake(b"PROXY TCP4 192.0.2.99 192.0.2.1 1 2\r\n");
    let mut received = Vec::new();
    let _ = denied.read_to_end(&mut received);
    assert_eq!(received, b"", "a stranger hears nothing");
    responder.await_line(&["refused", "peer=[192.0.2.99]:1", "--deny"]);

    drop(connect(responder.address()));
    let mut stranger = shake(&[V1, &[0; 1264]].concat());
    let _ = stranger.read_to_end(&mut received);
    responder.await_line(&["refused", "peer=[192.0.2.7]:12345"]);
}

#[test]
fn a_client_of_a_unix_socket_has_no_address_and_is_no_check() {
    let (echo, key, site) = (Echo::start(&["--accept-proxy"]), Key::new(), Site::new());
    let responder = telling(&key, echo.address, "v2").start();
    let socket = site.name("e.sock");
    let _initiator = End::initiator(&key, responder.address()).source(&socket).start();
    let mut client = UnixStream::connect(&socket).expect("the initiator listens");
    assert_echoes(&mut client, "hello");
    echo.process.await_line(&["no address"]);
    echo.process.await_line(&["unique id: "]);
}

#[test]
fn a_service_behind_a_unix_socket_is_told_too() {
    let (key, site) = (Key::new(), Site::new());
    let listener = std::os::unix::net::UnixListener::bind(site.path("service")).expect("a socket");
    let responder = End::responder(&key, site.name("service")).args(&["--send-proxy", "v1"]).start();
    let initiator = End::initiator(&key, responder.address()).start();
    let client = initiator.connect();
    let (service, _) = listener.accept().expect("a connection");
    let mut line = String::new();
    BufReader::new(service).read_line(&mut line).expect("a line");
    assert!(line.starts_with("PROXY TCP4 127.0.0.1 127.0.0.1 "), "{line}");
    drop(client);
}

#[test]
fn checks_of_a_service_that_wants_headers_have_one() {
    let echo = Echo::start(&["--accept-proxy"]);
    let key = Key::new();
    let responder = telling(&key, echo.address, "v2").args(&["--check", "1"]).start();
    echo.process.await_line(&["no address: the proxy speaks for itself"]);
    // The check of an initiator as well.
    let _initiator = End::initiator(&key, responder.address()).args(&["--check", "1"]).start();
    echo.process.await_lines(3, "no address: the proxy speaks for itself");
    assert!(!echo.process.log().contains("closed: "), "{}", echo.process.log());
}

#[test]
fn a_tls_service_gets_the_header_before_tls() {
    let authority = crate::support::tls::Authority::new();
    let certified = authority.certify("127.0.0.1");
    // nginx and HAProxy expect it there.
    let nginx = Nginx::start(&format!(
        "listen 127.0.0.1:PORT ssl proxy_protocol; ssl_certificate {}; ssl_certificate_key {};",
        certified.certificate_file, certified.key_file
    ));
    let key = Key::new();
    let responder = End::responder(&key, format!("tls://{}", nginx.address))
        .args(&["--tls-ca", &authority.file(), "--send-proxy", "v2"])
        .start();
    let initiator = End::initiator(&key, responder.address()).args(&BEHIND).start();
    get_through(&initiator, &v2(&[]));
    nginx.await_access("192.0.2.7 ");
}

/// A real nginx that answers each request, and logs the address that it is told.
struct Nginx {
    _process: Process,
    address: SocketAddr,
    directory: TempDir,
}

impl Nginx {
    /// `server` has PORT in the place of a free one.
    fn start(server: &str) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = |name: &str| directory.path().join(name).display().to_string();
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let server = server.replace("PORT", &address.port().to_string());
        let context = format!(
            "http {{ {} server {{ {server} location / {{ return 200 page; }} }} }}",
            Self::log(&path)
        );
        Self::start_in(directory, address, &context)
    }

    /// The same in front of another service, which need not speak HTTP.
    fn start_before(service: SocketAddr) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = |name: &str| directory.path().join(name).display().to_string();
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let context = format!(
            "stream {{ {} server {{ listen {address} proxy_protocol; proxy_pass {service}; }} }}",
            Self::log(&path)
        );
        Self::start_in(directory, address, &context)
    }

    fn log(path: &impl Fn(&str) -> String) -> String {
        format!(
            "log_format told '$proxy_protocol_addr $proxy_protocol_port $proxy_protocol_server_addr \
             $proxy_protocol_server_port'; access_log {} told;",
            path("access.log")
        )
    }

    fn start_in(directory: TempDir, address: SocketAddr, context: &str) -> Self {
        let path = |name: &str| directory.path().join(name).display().to_string();
        let configuration = format!(
            "load_module /usr/lib/nginx/modules/ngx_stream_module.so; daemon off; pid {}; error_log {}; user root;\n\
             events {{}}\n{context}\n",
            path("pid"),
            path("error.log"),
        );
        fs::write(path("nginx.conf"), configuration).expect("the file can be written");
        let mut command = Command::new("/usr/sbin/nginx");
        command.args(["-c", &path("nginx.conf")]);
        let process = Process::start(&mut command);
        poll_until("nginx listens", || TcpStream::connect(address).ok());
        Self { _process: process, address, directory }
    }

    fn await_access(&self, part: &str) {
        poll_until("nginx has logged the request", || {
            let log = fs::read_to_string(self.directory.path().join("access.log")).ok()?;
            log.contains(part).then_some(())
        });
    }
}

/// Makes one request through `initiator` behind this header.
fn get_through(initiator: &End, header: &[u8]) {
    let mut client = initiator.connect();
    let request = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    client.write_all(&[header, request].concat()).expect("the pipe accepts the bytes");
    let mut answer = String::new();
    client.read_to_string(&mut answer).expect("a clean end");
    assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("page"), "{answer}");
}

/// A real HAProxy with this section, in which PORT is a free port.
fn haproxy(section: &str) -> (Process, SocketAddr, TempDir) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("haproxy.cfg");
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let defaults = "defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n";
    let section = section.replace("PORT", &address.port().to_string());
    fs::write(&file, format!("{defaults}{section}")).expect("the file can be written");
    let mut command = Command::new("/usr/sbin/haproxy");
    command.arg("-db").arg("-f").arg(&file);
    let process = Process::start(&mut command);
    poll_until("HAProxy listens", || TcpStream::connect(address).ok());
    (process, address, directory)
}

#[test]
fn from_haproxy_through_both_ends_nginx_logs_the_true_client() {
    for (option, version) in [("send-proxy", "v1"), ("send-proxy-v2", "v2"), ("send-proxy-v2-ssl", "v2")] {
        let nginx = Nginx::start("listen 127.0.0.1:PORT proxy_protocol;");
        let key = Key::new();
        let responder = telling(&key, nginx.address, version).start();
        let initiator = End::initiator(&key, responder.address()).args(&BEHIND).args(&["--verbose"]).start();
        let (_haproxy, proxy, _directory) = haproxy(&format!(
            "listen proxy\n  bind 127.0.0.1:PORT\n  server spipe {} {option} check inter 100ms check-send-proxy\n",
            initiator.address()
        ));
        let mut client = connect(proxy);
        let (from, to) = (client.local_addr().expect("an address"), client.peer_addr().expect("an address"));
        client
            .write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            .expect("the pipe accepts the bytes");
        let mut answer = String::new();
        client.read_to_string(&mut answer).expect("a clean end");
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
        nginx.await_access(&format!("127.0.0.1 {} 127.0.0.1 {}", from.port(), to.port()));
        // HAProxy's checks are no errors. (The client that has waited for HAProxy to listen is one that went away.)
        let log = initiator.process.log();
        let mut warnings = log.lines().filter(|line| line.contains("WARN"));
        assert!(warnings.all(|line| line.contains("the other side went away")), "{log}");
    }
}

#[test]
fn nginx_before_redis_takes_what_a_responder_sends() {
    let redis = Redis::start();
    for version in ["v1", "v2"] {
        let nginx = Nginx::start_before(redis.address().parse().expect("an address"));
        let key = Key::new();
        let responder = telling(&key, nginx.address, version).start();
        let initiator = End::initiator(&key, responder.address()).args(&BEHIND).start();
        let mut client = initiator.connect();
        client.write_all(&[V1, b"PING\r\n"].concat()).expect("the pipe accepts the bytes");
        assert_reads(&mut client, "+PONG\r\n");
        drop(client);
        nginx.await_access("192.0.2.7 12345 192.0.2.1 443");
    }
}

#[test]
fn a_client_of_ipv6_is_told_as_one() {
    for version in ["v1", "v2"] {
        let (echo, key) = (Echo::start(&["--accept-proxy"]), Key::new());
        let responder = telling(&key, echo.address, version).start();
        let initiator = End::initiator(&key, responder.address()).source("[::1]:0").start();
        let port = initiator.source().rsplit_once(':').expect("it has a port").1;
        let mut client = connect(format!("[::1]:{port}").parse().expect("an address"));
        assert_echoes(&mut client, "hello");
        let from = client.local_addr().expect("it is connected").port();
        echo.process.await_line(&[&format!("client [::1]:{from}, which connected to [::1]:{port}")]);
    }
}

#[test]
fn haproxy_and_squid_take_what_a_responder_sends() {
    for version in ["v1", "v2"] {
        // HAProxy as the service, in front of Redis.
        let redis = Redis::start();
        let (_haproxy, proxy, _directory) = haproxy(&format!(
            "listen proxy\n  bind 127.0.0.1:PORT accept-proxy\n  tcp-request session reject unless {{ src 192.0.2.7 }}\n  \
             server redis {}\n",
            redis.address()
        ));
        let key = Key::new();
        let responder = telling(&key, proxy, version).start();
        let initiator = End::initiator(&key, responder.address()).args(&BEHIND).start();
        let mut client = initiator.connect();
        client.write_all(&[V1, b"PING\r\n"].concat()).expect("the pipe accepts the bytes");
        assert_reads(&mut client, "+PONG\r\n");

        let port = free_port();
        let squid = Squid::start_on(
            free_port(),
            &format!(
                "http_port 127.0.0.1:{port} require-proxy-header\nproxy_protocol_access allow all\n\
                 acl told src 192.0.2.7\nhttp_access allow told\nhttp_access deny all"
            ),
        );
        let responder = telling(&key, SocketAddr::from(([127, 0, 0, 1], port)), version).start();
        let initiator = End::initiator(&key, responder.address()).args(&BEHIND).start();
        let page = Service::start().serve(|mut client| {
            let _ = client.read(&mut [0; 1024]);
            let _ =
                client.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\npage");
        });
        let mut client = initiator.connect();
        let request = format!("GET http://{page}/ HTTP/1.1\r\nHost: {page}\r\nConnection: close\r\n\r\n");
        client.write_all(&[V1, request.as_bytes()].concat()).expect("the pipe accepts the bytes");
        let mut answer = String::new();
        client.read_to_string(&mut answer).expect("a clean end");
        assert!(answer.ends_with("page"), "{answer}");
        drop(squid);
    }
}

#[test]
fn plain_redis_works_behind_haproxy_and_a_pipe() {
    let redis = Redis::start();
    let key = Key::new();
    let responder = End::responder(&key, redis.address()).start();
    let initiator = End::initiator(&key, responder.address()).args(&BEHIND).start();
    let (_haproxy, proxy, _directory) = haproxy(&format!(
        "listen proxy\n  bind 127.0.0.1:PORT\n  server spipe {} send-proxy-v2\n",
        initiator.address()
    ));
    assert_eq!(cli(&proxy.port().to_string(), &["SET", "key", "value"]).succeeded().text(), "OK");
    assert_eq!(cli(&proxy.port().to_string(), &["GET", "key"]).succeeded().text(), "value");
}

#[test]
fn many_clients_behind_a_load_balancer_are_told_apart() {
    let (echo, pipe) = pipe_to_echo("v2", &[&BEHIND[..], &["--max-connections", "200"]].concat());
    let address = pipe.initiator.address();
    let clients: Vec<_> = (0..100_u8)
        .map(|host| {
            thread::spawn(move || {
                let mut client = connect(address);
                let header =
                    format!("PROXY TCP4 198.51.100.{host} 192.0.2.1 {} 2\r\n", u16::from(host) + 1000);
                client.write_all(header.as_bytes()).expect("the pipe accepts the bytes");
                assert_echoes(&mut client, &format!("client {host}"));
            })
        })
        .collect();
    for client in clients {
        client.join().expect("each client is served");
    }
    for host in 0..100_u16 {
        echo.process.await_line(&[&format!("client [198.51.100.{host}]:{}", host + 1000)]);
    }
}

#[test]
fn trusted_proxies_may_come_from_a_file_that_a_reload_reads_again() {
    let (site, service) = (Site::with_key(), echo());
    let key = Key::of(&fs::read(site.path("test.key")).expect("the key can be read"));
    let responder = End::responder(&key, service).start();
    let port = free_port();
    fs::write(site.path("proxies"), "192.0.2.0/24\n").expect("the file can be written");
    let process = site.serve(format!(
        "[[pipe]]\nmode = 'encrypt'\nsource = '127.0.0.1:{port}'\ntarget = '{}'\nkey = 'test.key'\naccept-proxy = true\n\
         trust-proxy = 'file:proxies'\n",
        responder.address()
    ));
    let served = || {
        let mut client = connect(SocketAddr::from(([127, 0, 0, 1], port)));
        client.write_all(&[V1, b"hello"].concat()).ok()?;
        client.read_exact(&mut [0; 5]).ok()
    };
    assert_eq!(served(), None);
    fs::write(site.path("proxies"), "127.0.0.1\n").expect("the file can be written");
    process.reload_successfully();
    assert_eq!(served(), Some(()));
}

#[test]
fn contradictions_are_named_with_both_options() {
    let site = Site::with_key();
    for (mode, options, parts) in [
        ("encrypt", "accept-proxy = true", &["--accept-proxy", "--trust-proxy"]),
        ("encrypt", "trust-proxy = '192.0.2.1'", &["--trust-proxy", "--accept-proxy"]),
        ("encrypt", "send-proxy = 'v2'", &["--send-proxy", "-d"]),
        ("decrypt", "send-proxy = 'v3'", &["v3", "write v1 or v2"]),
    ] {
        site.configure(format!(
            "[[pipe]]\nmode = '{mode}'\nsource = '127.0.0.1:1'\ntarget = '127.0.0.1:2'\nkey = 'test.key'\n{options}\n"
        ));
        let mut check = spipe();
        check.arg("check").arg(site.file());
        run(&mut check).failed_with(1, &[&["pipes.toml:6"], &parts[..]].concat());
    }
}

#[test]
fn echo_ends_when_nobody_reads_its_output() {
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let script = format!("{} echo -s {address} | head -n 1; echo done", spipe().get_program().display());
    let process = Process::start(Command::new("sh").args(["-c", &script]));
    process.await_line(&["listening at"]);
    // The next line finds the pipe closed.
    poll_until("it has gone", || TcpStream::connect(address).is_err().then_some(()));
}
