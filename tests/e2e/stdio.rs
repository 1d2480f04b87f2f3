//! Standard input and output in place of a client: under ssh, and in a pipeline.

use std::fs::Permissions;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::support::pipe::{End, Key, stdio};
use crate::support::process::{Process, run, run_with_input, spipe};
use crate::support::random::Random;
use crate::support::redis::{Redis, free_port};
use crate::support::relay::{Plan, Relay, Rule};
use crate::support::socket::{Service, assert_ends, assert_reads, assert_reset, echo, guard_unix};

#[test]
fn a_ping_on_standard_input_gets_a_pong() {
    let (redis, key) = (Redis::start(), Key::new());
    let responder = End::responder(&key, redis.address()).start();
    let mut command = stdio(responder.address().to_string(), &key.path());
    // Redis answers the requests that it has read before it sees the end.
    let ended = run_with_input(&mut command, b"PING\r\nQUIT\r\n".to_vec()).succeeded();
    assert_eq!(ended.text(), "+PONG\r\n+OK");
    assert_eq!(ended.stderr, "", "nothing on standard error when it succeeds");
}

#[test]
fn megabytes_come_back_unchanged() {
    let key = Key::new();
    let responder = End::responder(&key, echo()).start();
    let bytes = Random::bytes(3, 5_000_001);
    let ended = run_with_input(&mut stdio(responder.address().to_string(), &key.path()), bytes.clone());
    assert!(ended.succeeded().stdout == bytes, "altered on the way");
}

#[test]
fn output_ends_with_the_target_while_input_stays_open() {
    let (service, key) = (Service::start(), Key::new());
    let responder = End::responder(&key, service.address()).start();
    let mut command = stdio(responder.address().to_string(), &key.path());
    // Standard error is not piped, so only standard output is recorded.
    let mut process = Process::start_piped(command.stdin(Stdio::piped()).stdout(Stdio::piped()));
    let mut input = process.take_input();

    let mut served = service.accept();
    served.write_all(b"goodbye").expect("the pipe accepts the bytes");
    served.shutdown(std::net::Shutdown::Write).expect("the socket is connected");
    process.await_end_of_output();
    assert_eq!(process.log(), "goodbye");

    // The other direction continues.
    input.write_all(b"not so fast").expect("the process reads its input");
    assert_reads(&mut served, "not so fast");
    drop(input);
    assert_ends(&mut served);
    assert_eq!(process.wait().code(), Some(0));
}

#[test]
fn the_end_of_the_output_arrives_where_one_socket_is_input_and_output() {
    let (service, key) = (Service::start(), Key::new());
    let responder = End::responder(&key, service.address()).start();
    // As inetd, and socat's EXEC:, start a program.
    let (ours, theirs) = UnixStream::pair().expect("descriptors are left");
    let mut client = ours;
    guard_unix(&client);
    let mut command = stdio(responder.address().to_string(), &key.path());
    let output = theirs.try_clone().expect("descriptors are left");
    let mut process =
        Process::start_piped(command.stdin(OwnedFd::from(theirs)).stdout(OwnedFd::from(output)));
    drop(command);
    let mut served = service.accept();
    served.write_all(b"goodbye").expect("the pipe accepts the bytes");
    served.shutdown(std::net::Shutdown::Write).expect("the socket is connected");
    assert_reads(&mut client, "goodbye");
    assert_ends(&mut client);
    client.write_all(b"not so fast").expect("the other direction continues");
    client.shutdown(std::net::Shutdown::Write).expect("the socket is connected");
    assert_reads(&mut served, "not so fast");
    assert_ends(&mut served);
    assert_eq!(process.wait().code(), Some(0));
}

#[test]
fn a_reset_by_the_target_is_a_failure() {
    let (service, key) = (Service::start(), Key::new());
    let responder = End::responder(&key, service.address()).start();
    let mut command = stdio(responder.address().to_string(), &key.path());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut process = Process::start_piped(&mut command);
    let mut served = service.accept();
    // After these bytes have arrived, the responder is connected, so it sees a reset and not a failure to connect.
    let mut input = process.take_input();
    input.write_all(b"hello").expect("the process reads its input");
    assert_reads(&mut served, "hello");
    crate::support::socket::reset(served);
    assert_eq!(process.wait().code(), Some(1));
    process.await_line(&["spipe: the connection at the other end was reset"]);
}

#[test]
fn a_cut_wire_is_a_failure_and_not_an_end() {
    let key = Key::new();
    let responder = End::responder(&key, echo()).start();
    // Message 2, and the first bytes of the echo.
    let relay = Relay::start(responder.address(), Plan::back(Rule::CutAfter(1168 + 30)));
    let mut command = stdio(relay.address().to_string(), &key.path());
    run_with_input(&mut command, vec![7; 100_000]).failed_with(1, &["cut short"]);
}

#[test]
fn when_the_reader_of_its_output_ends_it_fails_silently() {
    let key = Key::new();
    let service = Service::start();
    let responder = End::responder(&key, service.address()).start();
    let mut command = stdio(responder.address().to_string(), &key.path());
    let (reader, writer) = std::io::pipe().expect("a pipe");
    command.stdin(Stdio::piped()).stdout(writer).stderr(Stdio::piped());
    let mut process = Process::start_piped(&mut command);
    // The command holds a copy of the writing end.
    drop(command);
    drop(reader);
    let mut served = service.accept();
    served.write_all(b"is anybody there?").expect("the pipe accepts the bytes");
    assert_eq!(process.wait().code(), Some(1));
    assert_reset(&mut served);
    process.await_end_of_output();
    assert_eq!(process.log(), "");
}

#[test]
fn a_target_that_refuses_is_one_line_and_exit_code_1() {
    let key = Key::new();
    let responder = End::responder(&key, format!("127.0.0.1:{}", free_port())).start();
    let mut command = stdio(responder.address().to_string(), &key.path());
    run(&mut command).failed_with(1, &["the other end cannot reach its target"]);
}

#[test]
fn a_wrong_key_is_one_line_and_exit_code_1() {
    let (key, other) = (Key::new(), Key::new());
    let responder = End::responder(&key, echo()).start();
    let mut command = stdio(responder.address().to_string(), &other.path());
    run(&mut command).failed_with(1, &["key or label differs"]);
}

#[test]
fn a_responder_that_is_down_is_one_line_and_exit_code_1() {
    let key = Key::new();
    let mut command = stdio(format!("127.0.0.1:{}", free_port()), &key.path());
    run(&mut command).failed_with(1, &["cannot connect to", "Connection refused"]);
}

/// An SSH server on the loopback, behind a responder. The client reaches it only through the pipe.
struct Ssh {
    directory: TempDir,
    key: Key,
    responder: End,
    _server: Process,
}

impl Ssh {
    fn start() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = |name: &str| directory.path().join(name);
        for name in ["host", "user"] {
            let mut keygen = Command::new("ssh-keygen");
            run(keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(path(name))).succeeded();
        }
        std::fs::copy(path("user.pub"), path("authorized_keys")).expect("the file can be copied");
        std::fs::set_permissions(path("authorized_keys"), Permissions::from_mode(0o600))
            .expect("the mode can be changed");
        // Debian's sshd needs this directory for privilege separation. Its service makes it, but no service runs
        // here.
        let _ = std::fs::create_dir_all("/run/sshd");

        let key = Key::new();
        for _ in 0..10 {
            // Like Redis, sshd cannot listen on port 0 and report the port that it got.
            let port = free_port().to_string();
            let mut sshd = Command::new("/usr/sbin/sshd");
            sshd.args(["-D", "-e", "-f", "/dev/null", "-p", &port, "-o", "ListenAddress=127.0.0.1"])
                .args(["-o", "StrictModes=no", "-o", "UsePAM=no", "-o", "PidFile=none"])
                .args(["-o", "PermitRootLogin=yes", "-o", "PasswordAuthentication=no"])
                .args(["-o", &format!("AuthorizedKeysFile={}", path("authorized_keys").display())])
                .arg("-h")
                .arg(path("host"));
            let server = Process::start(&mut sshd);
            if server.has_line_before_exit("Server listening on") {
                let responder = End::responder(&key, format!("127.0.0.1:{port}")).start();
                return Self { directory, key, responder, _server: server };
            }
        }
        panic!("sshd finds no free port in ten attempts");
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// `ssh … COMMAND`. The host name does not exist, so only the pipe can reach the server.
    fn command(&self, command: &str) -> Command {
        let proxy = format!(
            "ProxyCommand={} -t {} -k {}",
            spipe().get_program().to_string_lossy(),
            self.responder.address(),
            self.key.path().display()
        );
        let user = run(Command::new("id").arg("-un")).succeeded().text();
        let mut ssh = Command::new("ssh");
        ssh.args([
            "-F",
            "none",
            "-o",
            "BatchMode=yes",
            "-o",
            "StrictHostKeyChecking=accept-new",
            "-o",
            &proxy,
        ])
        .args(["-o", &format!("UserKnownHostsFile={}", self.path("known_hosts").display())])
        .args(["-o", "LogLevel=ERROR", "-l", &user, "-i"])
        .arg(self.path("user"))
        .args(["behind.the.pipe.invalid", command]);
        ssh
    }
}

#[test]
fn ssh_runs_a_command_through_the_pipe() {
    let ssh = Ssh::start();
    let ended = run(&mut ssh.command("echo hi")).succeeded();
    assert_eq!((ended.text().as_str(), ended.stderr.as_str()), ("hi", ""));
}

#[test]
fn ssh_copies_a_file_in() {
    let ssh = Ssh::start();
    let bytes = Random::bytes(4, 8 << 20);
    let copy = ssh.path("copy");
    run_with_input(&mut ssh.command(&format!("cat > {}", copy.display())), bytes.clone()).succeeded();
    assert!(std::fs::read(copy).expect("the file exists") == bytes, "altered on the way");
}

#[test]
fn ssh_copies_a_file_out() {
    let ssh = Ssh::start();
    let bytes = Random::bytes(5, 8 << 20);
    let original = ssh.path("original");
    std::fs::write(&original, &bytes).expect("the file can be written");
    let ended = run(&mut ssh.command(&format!("cat {}", original.display()))).succeeded();
    assert!(ended.stdout == bytes, "altered on the way");
}

#[test]
fn ssh_gets_the_remote_commands_exit_code() {
    assert_eq!(run(&mut Ssh::start().command("exit 7")).code, Some(7));
}
