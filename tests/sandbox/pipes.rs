//! Both ends of a pipe in a sandboxed process, between a client and a target that are not sandboxed.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use spipe::addr::{Endpoint, Target};
use spipe::listen::Passed;
use spipe::pipe::{self, Spec, Specs};
use spipe::proto::cipher::{Cipher, Ciphers};
use spipe::proto::key::Key;
use spipe::service::sandbox::Needs;
use vec1::vec1;

use crate::isolated::{enter_sandbox, isolated};

/// Enough for several full frames at a time.
const LENGTH: usize = 1 << 20;

/// Both take as long as a machine under load needs.
fn patient(mut spec: Spec) -> Specs {
    spec.common.timeout = Duration::from_secs(60);
    Specs::new(vec![spec]).expect("its target is elsewhere")
}

fn key() -> Arc<Key> {
    Arc::new(Key::from_bytes(&[42; 32]).unwrap())
}

fn responder(source: &str, target: Target) -> Specs {
    let ciphers = Ciphers::only(Cipher::Aes256Gcm);
    patient(Spec::responder(source.parse().unwrap(), target, vec1![key()], ciphers))
}

fn initiator(source: &str, target: Target) -> Specs {
    let ciphers = Ciphers::only(Cipher::Aes256Gcm);
    patient(Spec::initiator(source.parse().unwrap(), target, key(), ciphers))
}

/// Sends back all bytes that arrive.
fn echo(mut stream: impl Read + Write + Send + 'static) {
    thread::spawn(move || {
        let mut piece = vec![0; 65536];
        while let Ok(length @ 1..) = stream.read(&mut piece) {
            stream.write_all(&piece[..length]).unwrap();
        }
    });
}

trait Client: Read + Write + Send {
    fn finish(&self);
    fn another(&self) -> Box<dyn Client>;
}

impl Client for TcpStream {
    fn finish(&self) {
        self.shutdown(Shutdown::Write).unwrap();
    }

    fn another(&self) -> Box<dyn Client> {
        Box::new(self.try_clone().unwrap())
    }
}

impl Client for UnixStream {
    fn finish(&self) {
        self.shutdown(Shutdown::Write).unwrap();
    }

    fn another(&self) -> Box<dyn Client> {
        Box::new(self.try_clone().unwrap())
    }
}

/// Sends [`LENGTH`] bytes, and asserts that they come back.
fn talk(mut client: Box<dyn Client>) {
    let mut writer = client.another();
    let sent: Vec<u8> = (0..=250).cycle().take(LENGTH).collect();
    let bytes = sent.clone();
    let writing = thread::spawn(move || {
        writer.write_all(&bytes).unwrap();
        writer.finish();
    });
    let mut received = Vec::new();
    client.read_to_end(&mut received).unwrap();
    writing.join().unwrap();
    assert!(
        received == sent,
        "{} bytes came back, which differ from the {LENGTH} bytes sent",
        received.len()
    );
}

/// Asserts that bytes cross between clients at `source` and the target at `target`, with `wire` between the two ends.
fn assert_carries(
    source: &str,
    wire: &str,
    target: &str,
    client: impl Fn(&Endpoint) -> Box<dyn Client> + Send + 'static,
) {
    let target: Target = target.parse().unwrap();
    let listen = |specs| pipe::listen(specs, &mut Passed::default()).unwrap();
    let far = listen(responder(wire, target.clone()));
    let far_address: Target = far.places().next().unwrap().to_string().parse().unwrap();
    let near = listen(initiator(source, far_address.clone()));
    let mut needs = Needs::new();
    for source in [source, wire] {
        needs.listen_at(&source.parse().unwrap());
    }
    needs.dial(&far_address.into());
    needs.dial(&target.into());
    // The clients connect before the ends accept, from a thread that is not sandboxed.
    let (start, started) = channel();
    let clients: Vec<_> = (0..3).map(|_| client(near.places().next().unwrap())).collect();
    let talking = thread::spawn(move || {
        started.recv().unwrap();
        clients.into_iter().for_each(talk);
    });
    enter_sandbox(&needs);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let ends = [far, near].map(|pipes| pipes.register().unwrap().start(Arc::default()));
        start.send(()).unwrap();
        tokio::task::spawn_blocking(|| talking.join().unwrap()).await.unwrap();
        for end in ends {
            let draining = end.stop_accepting(&HashSet::new()).await;
            assert_eq!(draining.finish(std::future::pending()).await, 0, "connections were cut");
        }
    });
}

fn tcp_client(place: &Endpoint) -> Box<dyn Client> {
    let Endpoint::Ip(address) = place else { panic!("it listens on {place}") };
    Box::new(TcpStream::connect(address).unwrap())
}

fn tcp_target(address: &str) -> u16 {
    let service = TcpListener::bind(address).unwrap();
    let port = service.local_addr().unwrap().port();
    thread::spawn(move || service.incoming().for_each(|stream| echo(stream.unwrap())));
    port
}

fn unix_target(service: UnixListener) {
    thread::spawn(move || service.incoming().for_each(|stream| echo(stream.unwrap())));
}

#[test]
fn bytes_cross_over_tcp() {
    isolated(|_| {
        let port = tcp_target("127.0.0.1:0");
        assert_carries("127.0.0.1:0", "[127.0.0.1]:0", &format!("127.0.0.1:{port}"), tcp_client);
    });
}

#[test]
fn bytes_cross_over_tcp_with_ipv6() {
    isolated(|_| {
        let port = tcp_target("[::1]:0");
        assert_carries("[::1]:0", "[::1]:0", &format!("[::1]:{port}"), tcp_client);
    });
}

#[test]
fn bytes_cross_to_a_target_with_a_host_name() {
    isolated(|_| {
        let port = tcp_target("127.0.0.1:0");
        assert_carries("127.0.0.1:0", "127.0.0.1:0", &format!("localhost:{port}"), tcp_client);
    });
}

#[test]
fn bytes_cross_over_unix_sockets() {
    isolated(|directory| {
        for name in ["near", "far", "service"] {
            std::fs::create_dir(directory.join(name)).unwrap();
        }
        let path = |name: &str| directory.join(name).to_str().unwrap().to_owned();
        unix_target(UnixListener::bind(path("service/s")).unwrap());
        let near = path("near/s");
        assert_carries(&near.clone(), &path("far/s"), &path("service/s"), move |_| {
            Box::new(UnixStream::connect(&near).unwrap())
        });
        assert!(!directory.join("near/s").exists() && !directory.join("far/s").exists());
    });
}

#[test]
fn bytes_cross_over_abstract_sockets() {
    isolated(|_| {
        let name = |end: &str| format!("spipe-test-{}-{end}", std::process::id());
        let address = |end: &str| UnixAddr::from_abstract_name(name(end)).unwrap();
        unix_target(UnixListener::bind_addr(&address("service")).unwrap());
        let near = address("near");
        let at = |end: &str| format!("@{}", name(end));
        assert_carries(&at("near"), &at("far"), &at("service"), move |_| {
            Box::new(UnixStream::connect_addr(&near).unwrap())
        });
    });
}
