//! Unix-domain sockets as source, target and wire, and the files that they leave or remove.

use std::io::Write;
use std::net::Shutdown;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;

use rustix::process::{Signal, geteuid};
use tempfile::TempDir;

use crate::support::DEADLINE;
use crate::support::pipe::{End, Key};
use crate::support::process::{Process, after, run, spipe};
use crate::support::site::Site;
use crate::support::socket::{assert_echoes, assert_ends, assert_reads, connect_unix, echo, guard_unix};

/// A directory for sockets, and names in it.
struct Directory(TempDir);

impl Directory {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary directory"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn name(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// A unique name in the abstract namespace, which all tests share.
    fn abstract_name(&self, name: &str) -> String {
        let unique =
            self.0.path().file_name().expect("the path has a file name").to_string_lossy().into_owned();
        format!("{unique}.{name}")
    }
}

/// Sends back all bytes that arrive on connections of `listener`.
fn serve_echo(listener: UnixListener) {
    thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            thread::spawn(move || {
                let mut reader = stream.try_clone().expect("descriptors are left");
                let _ = std::io::copy(&mut reader, &mut stream);
                let _ = stream.shutdown(Shutdown::Write);
            });
        }
    });
}

fn connect(path: &Path) -> UnixStream {
    connect_unix(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Asserts that bytes and the half-closes of both directions cross.
fn assert_carries(mut client: UnixStream) {
    assert_echoes(&mut client, "through files");
    client.shutdown(Shutdown::Write).expect("the socket is connected");
    assert_ends(&mut client);
}

#[test]
fn a_unix_socket_is_a_source() {
    let (key, directory) = (Key::new(), Directory::new());
    let responder = End::responder(&key, echo()).start();
    let initiator = End::initiator(&key, responder.address()).source(directory.name("plain")).start();
    assert_eq!(initiator.source(), directory.name("plain"));
    assert_carries(connect(&directory.path("plain")));
    let client = format!("client=local(uid={},pid={})", geteuid().as_raw(), std::process::id());
    assert!(initiator.await_line(&[" closed "]).contains(&client));
}

#[test]
fn a_unix_socket_is_a_target() {
    let (key, directory) = (Key::new(), Directory::new());
    serve_echo(UnixListener::bind(directory.path("service")).expect("the name is free"));
    let responder = End::responder(&key, directory.name("service")).start();
    let initiator = End::initiator(&key, responder.address()).start();
    let mut client = initiator.connect();
    assert_echoes(&mut client, "through files");
    client.shutdown(Shutdown::Write).expect("the socket is connected");
    assert_ends(&mut client);
}

#[test]
fn a_unix_socket_is_the_wire() {
    let (key, directory) = (Key::new(), Directory::new());
    let _responder = End::responder(&key, echo()).source(directory.name("sealed")).start();
    let initiator = End::initiator(&key, directory.name("sealed")).start();
    assert_echoes(&mut initiator.connect(), "through files");
}

#[test]
fn source_wire_and_target_can_all_be_unix_sockets() {
    let (key, directory) = (Key::new(), Directory::new());
    serve_echo(UnixListener::bind(directory.path("service")).expect("the name is free"));
    let _responder = End::responder(&key, directory.name("service")).source(directory.name("sealed")).start();
    let _initiator = End::initiator(&key, directory.name("sealed")).source(directory.name("plain")).start();
    assert_carries(connect(&directory.path("plain")));
}

#[test]
fn source_wire_and_target_can_all_have_abstract_names() {
    let (key, directory) = (Key::new(), Directory::new());
    let address = |name| SocketAddr::from_abstract_name(directory.abstract_name(name)).expect("a name");
    let name = |name| format!("@{}", directory.abstract_name(name));
    serve_echo(UnixListener::bind_addr(&address("service")).expect("the name is free"));
    let _responder = End::responder(&key, name("service")).source(name("sealed")).start();
    let initiator = End::initiator(&key, name("sealed")).source(name("plain")).start();
    assert_eq!(initiator.source(), name("plain"));
    let client = UnixStream::connect_addr(&address("plain")).expect("the socket listens");
    guard_unix(&client);
    assert_carries(client);
}

#[test]
fn the_target_sees_the_outgoing_name() {
    let (key, directory) = (Key::new(), Directory::new());
    let listener = UnixListener::bind(directory.path("service")).expect("the name is free");
    // On Linux the receive timeout also applies to accept(2).
    socket2::SockRef::from(&listener).set_read_timeout(Some(DEADLINE)).expect("the socket is open");
    let from = directory.name("from");
    let responder = End::responder(&key, directory.name("service")).args(&["-b", &from]).start();
    let initiator = End::initiator(&key, responder.address()).start();
    // Twice: the name of the first connection must be free for the second.
    for _ in 0..2 {
        let mut client = initiator.connect();
        let (mut served, peer) = listener.accept().expect("a client connects in time");
        guard_unix(&served);
        assert_eq!(peer.as_pathname(), Some(directory.path("from").as_path()));
        client.write_all(b"hello").expect("the pipe accepts the bytes");
        assert_reads(&mut served, "hello");
    }
    assert!(!directory.path("from").exists(), "the socket file is removed");
}

#[test]
fn an_outgoing_name_of_a_killed_process_is_replaced() {
    let (key, directory) = (Key::new(), Directory::new());
    serve_echo(UnixListener::bind(directory.path("service")).expect("the name is free"));
    // A bound socket whose owner ended before it removed the file.
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).expect("a socket");
    let from = directory.path("from");
    socket.bind(&socket2::SockAddr::unix(&from).expect("a short path")).expect("the name is free");
    drop(socket);
    let responder =
        End::responder(&key, directory.name("service")).args(&["-b", &directory.name("from")]).start();
    let initiator = End::initiator(&key, responder.address()).start();
    assert_echoes(&mut initiator.connect(), "through files");
    assert!(!from.exists(), "the socket file is removed");
}

#[test]
fn an_outgoing_name_is_free_again_when_the_target_cannot_be_reached() {
    let (key, directory) = (Key::new(), Directory::new());
    let args = ["-b", &directory.name("from")];
    let responder = End::responder(&key, directory.name("service")).args(&args).start();
    let initiator = End::initiator(&key, responder.address()).start();
    initiator.assert_resets_a_client();
    responder.await_line(&["refused", "cannot connect to"]);
    assert!(!directory.path("from").exists(), "the socket file is removed");
}

#[test]
fn an_outgoing_name_in_use_is_named_in_the_error() {
    let (key, directory) = (Key::new(), Directory::new());
    serve_echo(UnixListener::bind(directory.path("service")).expect("the name is free"));
    let _other = UnixListener::bind(directory.path("from")).expect("the name is free");
    let from = directory.name("from");
    let responder = End::responder(&key, directory.name("service")).args(&["-b", &from]).start();
    let initiator = End::initiator(&key, responder.address()).start();
    initiator.assert_resets_a_client();
    let cause = format!("cannot connect from {from} (-b): another process is listening there");
    responder.await_line(&["refused", &cause]);
}

#[test]
fn a_socket_of_a_killed_process_is_replaced() {
    let (key, directory) = (Key::new(), Directory::new());
    let responder = End::responder(&key, echo()).start();
    let start = || End::initiator(&key, responder.address()).source(directory.name("plain")).start();
    start().process.kill();
    assert!(directory.path("plain").exists(), "a killed process cannot remove it");
    let _initiator = start();
    assert_carries(connect(&directory.path("plain")));
}

#[test]
fn a_socket_in_use_is_an_error() {
    let (key, directory) = (Key::new(), Directory::new());
    let responder = End::responder(&key, echo()).start();
    let _first = End::initiator(&key, responder.address()).source(directory.name("plain")).start();
    let second = End::initiator(&key, responder.address()).source(directory.name("plain"));
    run(&mut second.command()).failed_with(1, &["cannot listen on", "another process is listening there"]);
    // The first still serves.
    assert_carries(connect(&directory.path("plain")));
}

#[test]
fn an_abstract_name_in_use_is_an_error() {
    let (key, directory) = (Key::new(), Directory::new());
    let name = format!("@{}", directory.abstract_name("plain"));
    let _first = End::initiator(&key, "127.0.0.1:9").source(&name).start();
    let second = End::initiator(&key, "127.0.0.1:9").source(&name);
    run(&mut second.command()).failed_with(1, &["another process is listening there"]);
}

#[test]
fn a_file_that_is_not_a_socket_is_an_error_and_is_not_changed() {
    let (key, directory) = (Key::new(), Directory::new());
    std::fs::write(directory.path("plain"), "precious").expect("the file can be written");
    let end = End::initiator(&key, "127.0.0.1:9").source(directory.name("plain"));
    run(&mut end.command()).failed_with(1, &["a file that is not a socket"]);
    assert_eq!(std::fs::read_to_string(directory.path("plain")).expect("the file exists"), "precious");
}

#[test]
fn a_missing_directory_is_an_error() {
    let (key, directory) = (Key::new(), Directory::new());
    let end = End::initiator(&key, "127.0.0.1:9").source(directory.name("no/such/plain"));
    run(&mut end.command()).failed_with(1, &["cannot listen on", "No such file or directory"]);
}

#[test]
fn the_socket_is_removed_at_exit() {
    let (key, directory) = (Key::new(), Directory::new());
    let mut end = End::initiator(&key, "127.0.0.1:9").source(directory.name("plain")).start();
    assert!(directory.path("plain").exists());
    end.process.signal(Signal::TERM);
    assert_eq!(end.process.wait().code(), Some(0));
    assert!(!directory.path("plain").exists());
}

#[test]
fn a_socket_that_replaced_it_is_not_removed() {
    let (key, directory) = (Key::new(), Directory::new());
    let mut end = End::initiator(&key, "127.0.0.1:9").source(directory.name("plain")).start();
    // The new file is created while the old one exists, so that it cannot get the same inode.
    let _other = UnixListener::bind(directory.path("other")).expect("the name is free");
    std::fs::rename(directory.path("other"), directory.path("plain")).expect("the file can be renamed");
    end.process.signal(Signal::TERM);
    assert_eq!(end.process.wait().code(), Some(0));
    assert!(directory.path("plain").exists());
}

fn mode(path: impl AsRef<Path>) -> u32 {
    std::fs::metadata(path).expect("the socket has a file").mode() & 0o7777
}

#[test]
fn the_files_of_all_sources_have_the_mode_that_was_asked_for_whatever_the_umask() {
    for (umask, asked_for, expected) in [("077", "666", 0o666), ("000", "0600", 0o600)] {
        let (key, directory) = (Key::new(), Directory::new());
        let sources = [directory.name("first"), directory.name("second")];
        let end = End::initiator(&key, "127.0.0.1:9").source(&sources[0]);
        let end = end.args(&["-s", &sources[1], "-s", "127.0.0.1:0", "--socket-mode", asked_for]);
        let _end = End::started_by(&mut after(&format!("umask {umask};"), &end.command()));
        assert_eq!(sources.map(mode), [expected; 2]);
    }
}

#[test]
fn nobody_can_connect_before_the_file_has_its_mode() {
    for _ in 0..10 {
        let (key, directory) = (Key::new(), Directory::new());
        let path = directory.path("plain");
        let first = thread::spawn({
            let path = path.clone();
            move || {
                // As fast as it can: the subject of this test is a moment.
                let start = std::time::Instant::now();
                while UnixStream::connect(&path).is_err() {
                    assert!(start.elapsed() < DEADLINE, "it listens");
                }
                mode(path)
            }
        });
        let _end = End::initiator(&key, "127.0.0.1:9")
            .source(path.display())
            .args(&["--socket-mode", "600"])
            .start();
        assert_eq!(first.join().expect("it connects"), 0o600);
    }
}

/// A configuration whose socket `NAME.sock` has `options`.
fn with_options(site: &Site, name: &str, options: &str) -> String {
    site.encrypt(name, "127.0.0.1:9") + options + "\n"
}

#[test]
fn a_reload_keeps_the_mode_of_a_socket_and_gives_new_ones_theirs() {
    let site = Site::with_key();
    let first = with_options(&site, "a", "socket-mode = \"640\"");
    let process = site.serve(&first);
    site.configure(first + &with_options(&site, "b", "socket-mode = \"606\""));
    process.reload_successfully();
    assert_eq!([mode(site.socket("a")), mode(site.socket("b"))], [0o640, 0o606]);
}

#[test]
fn a_reload_that_changes_the_mode_of_a_socket_that_stays_says_that_it_takes_a_restart() {
    let site = Site::with_key();
    let process = site.serve(with_options(&site, "a", "socket-mode = \"640\""));
    site.configure(with_options(&site, "a", "socket-mode = \"600\""));
    process.reload_successfully();
    process.await_line(&["WARN", "keeps its mode and owner", "pipe=\"a\"", "restart"]);
    assert_eq!(mode(site.socket("a")), 0o640);
}

#[test]
fn a_reload_that_brings_the_first_mode_of_all_is_refused_and_says_that_it_takes_a_restart() {
    let site = Site::with_key();
    let first = with_options(&site, "a", "");
    let process = site.serve(&first);
    site.configure(first + &with_options(&site, "b", "socket-mode = \"600\""));
    process.fail_to_reload(&["b.sock", "--socket-mode", "restart"]);
    assert!(!Path::new(&site.socket("b")).exists(), "a socket that is not used is removed");
    assert!(site.try_connect("a").is_ok());
}

#[test]
fn the_file_of_a_socket_belongs_to_the_owner_that_was_asked_for() {
    let site = Site::with_key();
    let text = with_options(&site, "a", "socket-owner = \"54321:54322\"\nsocket-mode = \"660\"");
    site.configure(&text);
    if !geteuid().is_root() {
        let parts = ["a.sock", "give its file to 54321:54322 (--socket-owner)", "only root gives files away"];
        run(&mut site.command()).failed_with_last_line(1, &parts);
        assert!(!Path::new(&site.socket("a")).exists());
        return;
    }
    let process: Process = site.serve(&text);
    let owner = |name: &str| {
        let file = std::fs::metadata(site.socket(name)).expect("the socket has a file");
        (file.uid(), file.gid())
    };
    assert_eq!((owner("a"), mode(site.socket("a"))), ((54321, 54322), 0o660));
    // A name that was not known before, and rights that are kept for this.
    site.configure(text + &with_options(&site, "b", "socket-owner = \":daemon\""));
    process.reload_successfully();
    let group = run(std::process::Command::new("getent").args(["group", "daemon"])).succeeded().text();
    assert_eq!(owner("b").1.to_string(), group.split(':').nth(2).expect("a number"));
    assert_eq!(owner("b").0, 0, "a group alone does not change the user");
}

#[test]
fn an_owner_that_does_not_exist_is_refused() {
    let site = Site::with_key();
    for (owner, part) in
        [("no-such-user", "no user 'no-such-user'"), (":no-such-group", "no group 'no-such-group'")]
    {
        site.configure(with_options(&site, "a", &format!("socket-owner = \"{owner}\"")));
        run(spipe().arg("check").arg(site.file())).failed_with(1, &["pipes.toml:7: --socket-owner", part]);
    }
}

#[test]
fn permissions_without_a_file_to_give_them_to_are_refused() {
    let key = Key::new();
    for source in ["127.0.0.1:0", "@abstract", "systemd"] {
        for (option, value) in [("--socket-mode", "600"), ("--socket-owner", "root")] {
            let mut end = End::initiator(&key, "127.0.0.1:9").source(source).args(&[option, value]).command();
            run(&mut end).failed_with(2, &[option, "for the file of a Unix-domain source", "add -s /PATH"]);
        }
    }
}

#[test]
fn a_mode_that_is_none_is_refused() {
    let site = Site::with_key();
    for text in ["\"u=rw\"", "\"4755\"", "\"66\"", "\"690\""] {
        site.configure(with_options(&site, "a", &format!("socket-mode = {text}")));
        run(spipe().arg("check").arg(site.file())).failed_with(1, &["pipes.toml:7: ", "such as 660"]);
    }
}
