//! Connections to and from every form of address.

use std::fs::File;
use std::io::{self, Read};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::symlink;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;

use nix::mount::{MsFlags, mount};
use rustix::io::Errno;
use spipe::names::Lookup;
use spipe::service::sandbox::Needs;
use spipe::stream::Keepalive;
use spipe::upstream::{Dialer, Route};
use tokio::time::{Duration, Instant};

use crate::isolated::{
    assert_denied, assert_no_such_call, enter_sandbox, enter_sandbox_and_then, isolated,
    isolated_in_namespaces, isolated_with,
};
use crate::resolver;

const LOOPBACK: Ipv4Addr = Ipv4Addr::LOCALHOST;

fn route(target: &str, from: Option<&str>) -> Route {
    Route::new(target.parse().unwrap(), from.map(|from| from.parse().unwrap())).unwrap()
}

/// The needs of a pipe with this target and outgoing address.
fn needs(target: &str, from: Option<&str>) -> Needs {
    let mut needs = Needs::new();
    needs.dial(&route(target, from));
    needs
}

/// Dials as a pipe does: with a runtime that is started after the sandbox is entered.
fn dial(target: &str, from: Option<&str>) -> io::Result<()> {
    let dialer = Dialer::new(route(target, from), Keepalive::default(), Lookup::default(), Arc::default());
    let deadline = Instant::now() + Duration::from_secs(60);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(dialer.dial(&[], deadline)).map(drop).map_err(|error| {
        let mut cause: &dyn std::error::Error = &error;
        while let Some(source) = cause.source() {
            cause = source;
        }
        let kind = cause.downcast_ref::<io::Error>().map_or(io::ErrorKind::Other, io::Error::kind);
        io::Error::new(kind, error)
    })
}

fn listen(address: &str) -> (TcpListener, u16) {
    let listener = TcpListener::bind(address).unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// Asserts that the target is reached, and that another address is not.
fn assert_only_the_target_is_reached(host: &'static str, listen_at: &'static str) {
    let ((_target, port), (_other, other)) = (listen(listen_at), listen(listen_at));
    let target = format!("{host}:{port}");
    enter_sandbox(&needs(&target, None));
    dial(&target, None).unwrap();
    assert_denied(dial(&format!("{host}:{other}"), None));
    // Nor are ports that an attacker's shell would use.
    for port in [22, 80, 443] {
        assert_denied(TcpStream::connect((LOOPBACK, port)));
    }
}

#[test]
fn only_an_ipv4_target_is_reached() {
    isolated(|_| assert_only_the_target_is_reached("127.0.0.1", "127.0.0.1:0"));
}

#[test]
fn only_an_ipv4_target_in_brackets_is_reached() {
    isolated(|_| assert_only_the_target_is_reached("[127.0.0.1]", "127.0.0.1:0"));
}

#[test]
fn only_an_ipv6_target_is_reached() {
    isolated(|_| assert_only_the_target_is_reached("[::1]", "[::1]:0"));
}

#[test]
fn only_a_target_with_a_host_name_is_reached() {
    isolated(|_| assert_only_the_target_is_reached("localhost", "127.0.0.1:0"));
}

#[test]
fn an_ipv6_address_with_a_scope_is_reached() {
    isolated_in_namespaces(|directory| {
        resolver::set_up(directory, resolver::Answers::InOneDatagram);
        let (_target, port) = listen("[::]:0");
        let target = format!("[fe80::1%lo]:{port}");
        enter_sandbox(&needs(&target, None));
        dial(&target, None).unwrap();
    });
}

#[test]
fn a_unix_socket_is_reached_but_no_port() {
    isolated(|directory| {
        let path = directory.join("service.sock");
        let _target = UnixListener::bind(&path).unwrap();
        let (_other, other) = listen("127.0.0.1:0");
        let target = path.to_str().unwrap();
        enter_sandbox(&needs(target, None));
        dial(target, None).unwrap();
        assert_denied(TcpStream::connect((LOOPBACK, other)));
    });
}

#[test]
fn a_unix_socket_that_was_replaced_is_reached() {
    isolated(|directory| {
        let path = directory.join("service.sock");
        let first = UnixListener::bind(&path).unwrap();
        let target = path.to_str().unwrap();
        // The target, which is not sandboxed.
        let (restart, restarted) = (std::sync::mpsc::channel(), std::sync::mpsc::channel());
        let service = {
            let path = path.clone();
            std::thread::spawn(move || {
                restart.1.recv().unwrap();
                drop(first);
                std::fs::remove_file(&path).unwrap();
                let second = UnixListener::bind(&path).unwrap();
                restarted.0.send(()).unwrap();
                drop(second.accept().unwrap());
            })
        };
        enter_sandbox(&needs(target, None));
        restart.0.send(()).unwrap();
        restarted.1.recv().unwrap();
        dial(target, None).unwrap();
        service.join().unwrap();
    });
}

fn abstract_name() -> String {
    format!("spipe-test-{}", std::process::id())
}

#[test]
fn an_abstract_socket_is_reached() {
    isolated(|_| {
        let name = abstract_name();
        let _target = UnixListener::bind_addr(&UnixAddr::from_abstract_name(&name).unwrap()).unwrap();
        let target = format!("@{name}");
        enter_sandbox(&needs(&target, None));
        dial(&target, None).unwrap();
    });
}

#[test]
fn an_abstract_socket_without_a_need_cannot_be_reached() {
    isolated(|directory| {
        let address = UnixAddr::from_abstract_name(abstract_name()).unwrap();
        let _other = UnixListener::bind_addr(&address).unwrap();
        enter_sandbox(&needs(directory.join("service.sock").to_str().unwrap(), None));
        // What landlock says of another scope.
        let refused = UnixStream::connect_addr(&address).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(Errno::PERM.raw_os_error()));
    });
}

#[test]
fn a_service_manager_with_an_abstract_name_can_be_notified() {
    let name = format!("@{}", abstract_name());
    isolated_with(&[("NOTIFY_SOCKET", &name)], |_| {
        let name = std::env::var("NOTIFY_SOCKET").unwrap();
        let address = UnixAddr::from_abstract_name(name.trim_start_matches('@')).unwrap();
        let mailbox = UnixDatagram::bind_addr(&address).unwrap();
        let manager = spipe::service::notify::Manager::from_env();
        enter_sandbox(&Needs::new());
        manager.ready("sandboxed");
        let mut message = [0; 64];
        let length = mailbox.recv(&mut message).unwrap();
        assert_eq!(&message[..length], b"READY=1\nSTATUS=sandboxed");
    });
}

#[test]
fn a_service_manager_with_a_path_can_be_notified() {
    isolated(|directory| {
        let address = UnixAddr::from_pathname(directory.join("notify")).unwrap();
        let mailbox = UnixDatagram::bind_addr(&address).unwrap();
        let sender = UnixDatagram::unbound().unwrap();
        enter_sandbox(&Needs::new());
        sender.send_to_addr(b"READY=1", &address).unwrap();
        let mut message = [0; 64];
        assert_eq!(mailbox.recv(&mut message).unwrap(), 7);
    });
}

#[test]
fn connections_can_have_an_outgoing_address() {
    isolated(|_| {
        let (target, port) = listen("127.0.0.1:0");
        let target_name = format!("127.0.0.1:{port}");
        enter_sandbox(&needs(&target_name, Some("127.0.0.2")));
        dial(&target_name, Some("127.0.0.2")).unwrap();
        assert_eq!(target.accept().unwrap().1.ip(), Ipv4Addr::new(127, 0, 0, 2));
    });
}

#[test]
fn connections_can_have_one_outgoing_port_only() {
    isolated(|_| {
        let (target, port) = listen("127.0.0.1:0");
        let target_name = format!("127.0.0.1:{port}");
        // Two ports that were free a moment ago.
        let (first, second) = (listen("127.0.0.1:0"), listen("127.0.0.1:0"));
        let (from, other) = (format!("127.0.0.1:{}", first.1), format!("127.0.0.1:{}", second.1));
        drop((first, second));
        enter_sandbox(&needs(&target_name, Some(&from)));
        assert_denied(dial(&target_name, Some(&other)));
        assert_denied(dial(&target_name, Some("127.0.0.1")));
        dial(&target_name, Some(&from)).unwrap();
        assert_eq!(target.accept().unwrap().1.to_string(), from);
    });
}

#[test]
fn an_outgoing_host_name_is_looked_up() {
    isolated(|_| {
        let (_target, port) = listen("127.0.0.1:0");
        let target = format!("127.0.0.1:{port}");
        enter_sandbox(&needs(&target, Some("localhost")));
        dial(&target, Some("localhost")).unwrap();
    });
}

#[test]
fn each_connection_to_a_unix_socket_gets_the_outgoing_name() {
    isolated(|directory| {
        let (path, from) = (directory.join("service.sock"), directory.join("names/client.sock"));
        std::fs::create_dir(directory.join("names")).unwrap();
        let target = UnixListener::bind(&path).unwrap();
        let (path, from) = (path.to_str().unwrap(), from.to_str().unwrap());
        enter_sandbox(&needs(path, Some(from)));
        for _ in 0..3 {
            dial(path, Some(from)).unwrap();
            assert_eq!(target.accept().unwrap().1.as_pathname(), Some(from.as_ref()));
        }
        let elsewhere = directory.join("client.sock");
        assert_denied(dial(path, Some(elsewhere.to_str().unwrap())));
    });
}

#[test]
fn without_a_host_name_nothing_can_be_looked_up() {
    isolated(|_| {
        enter_sandbox(&needs("192.0.2.1:80", None));
        assert!(("localhost", 80).to_socket_addrs().is_err());
        assert_denied(File::open("/etc/hosts"));
        assert_denied(TcpStream::connect((LOOPBACK, 53)));
        assert_no_such_call(UdpSocket::bind("127.0.0.1:0"));
    });
}

#[test]
fn host_names_are_looked_up_in_dns() {
    isolated_in_namespaces(|directory| {
        resolver::set_up(directory, resolver::Answers::InOneDatagram);
        let (_target, port) = listen("127.0.0.7:0");
        let target = format!("service.example:{port}");
        enter_sandbox(&needs(&target, None));
        dial(&target, None).unwrap();
    });
}

#[test]
fn libraries_of_the_resolver_can_be_loaded() {
    isolated_in_namespaces(|directory| {
        resolver::set_up(directory, resolver::Answers::InOneDatagram);
        // This module is used first, and is not part of the C library.
        std::fs::write("/etc/nsswitch.conf", "hosts: hesiod [NOTFOUND=continue] files dns\n").unwrap();
        let mut maps = File::open("/proc/self/maps").unwrap();
        let (_target, port) = listen("127.0.0.7:0");
        let target = format!("service.example:{port}");
        enter_sandbox(&needs(&target, None));
        dial(&target, None).unwrap();
        let mut loaded = String::new();
        maps.read_to_string(&mut loaded).unwrap();
        // Its code is mapped as well.
        let is_code = |line: &str| line.contains("r-xp") && line.contains("libnss_hesiod");
        assert!(loaded.lines().any(is_code), "{loaded}");
    });
}

#[test]
fn long_dns_answers_are_received_over_tcp() {
    isolated_in_namespaces(|directory| {
        resolver::set_up(directory, resolver::Answers::OverTcp);
        let (_target, port) = listen("127.0.0.7:0");
        let target = format!("service.example:{port}");
        enter_sandbox(&needs(&target, None));
        dial(&target, None).unwrap();
    });
}

#[test]
fn a_change_of_the_dns_server_takes_effect() {
    isolated_in_namespaces(|directory| {
        let replace = resolver::set_up(directory, resolver::Answers::InOneDatagram);
        resolver::serve("127.0.0.9:53", resolver::Answers::InOneDatagram, Ipv4Addr::new(127, 0, 0, 8));
        let (_first, port) = listen("127.0.0.7:0");
        let second = TcpListener::bind(SocketAddr::from(([127, 0, 0, 8], port))).unwrap();
        let target = format!("service.example:{port}");
        enter_sandbox(&needs(&target, None));
        dial(&target, None).unwrap();
        replace.with("nameserver 127.0.0.9\n");
        dial(&target, None).unwrap();
        second.accept().unwrap();
    });
}

/// Makes `/etc/resolv.conf` a link to the given file, calls `before` and enters the sandbox, then has `after` put a file there,
/// and asserts that names are resolved.
fn assert_resolves_by_a_link(
    directory: &Path,
    link: &Path,
    before: impl FnOnce(),
    after: impl FnOnce() + Send + 'static,
) {
    resolver::set_up(directory, resolver::Answers::InOneDatagram);
    // Not the server at 127.0.0.1, which the C library asks when it has no file.
    resolver::serve("127.0.0.9:53", resolver::Answers::InOneDatagram, Ipv4Addr::new(127, 0, 0, 8));
    mount(None::<&str>, "/run", Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    std::fs::remove_file("/etc/resolv.conf").unwrap();
    symlink(link, "/etc/resolv.conf").unwrap();
    before();
    let (_target, port) = listen("127.0.0.8:0");
    let target = format!("service.example:{port}");
    enter_sandbox_and_then(&needs(&target, None), after);
    dial(&target, None).unwrap();
}

/// Makes a file at `path` that names the server of the test.
fn make_resolv_conf(path: &Path) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, "nameserver 127.0.0.9\n").unwrap();
}

#[test]
fn a_resolver_whose_directory_is_made_later_is_used() {
    isolated_in_namespaces(|directory| {
        let file = Path::new("/run/resolvconf/resolv.conf");
        assert_resolves_by_a_link(directory, file, || (), || make_resolv_conf(file));
    });
}

#[test]
fn a_resolver_behind_a_link_to_a_directory_that_is_made_later_is_used() {
    isolated_in_namespaces(|directory| {
        // As Debian's resolvconf has it.
        let before = || symlink("../run/resolvconf", "/etc/interface").unwrap();
        let after = || make_resolv_conf(Path::new("/run/resolvconf/resolv.conf"));
        assert_resolves_by_a_link(directory, Path::new("interface/resolv.conf"), before, after);
    });
}

#[test]
fn a_resolver_whose_directory_is_made_anew_is_used() {
    isolated_in_namespaces(|directory| {
        let file = Path::new("/run/systemd/resolve/stub-resolv.conf");
        let again = || {
            std::fs::remove_dir_all("/run/systemd/resolve").unwrap();
            make_resolv_conf(file);
        };
        assert_resolves_by_a_link(directory, file, || make_resolv_conf(file), again);
    });
}

#[test]
fn with_a_host_name_no_directory_can_be_listed_and_no_other_file_of_run_read() {
    isolated_in_namespaces(|directory| {
        let secret = Path::new("/run/secrets/password");
        let file = Path::new("/run/NetworkManager/resolv.conf");
        let before = || {
            make_resolv_conf(file);
            make_resolv_conf(secret);
        };
        assert_resolves_by_a_link(directory, file, before, || ());
        assert_denied(File::open(secret));
        for listed in ["/etc", "/usr/lib", "/run", "/run/NetworkManager"] {
            assert_denied(std::fs::read_dir(listed));
        }
    });
}
