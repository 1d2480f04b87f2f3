//! Configuration files: what is accepted, what is refused and at which line, and that each option has the same effect
//! as on the command line.

use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;

use rustix::process::Signal;

use crate::keepalive::timers;
use crate::support::pipe::{End, Key, field};
use crate::support::poll_until;
use crate::support::process::{Process, run, spipe};
use crate::support::site::{Site, fingerprint};
use crate::support::socket::{BlackHole, Service, assert_echoes, connect, echo, read_all};

/// A valid configuration; tests make one line of it invalid. No test connects to its target.
const VALID: &str = r#"[[pipe]]
mode = "encrypt"
source = "127.0.0.1:0"
target = "127.0.0.1:9"
key = "test.key"
"#;

/// [`VALID`] with one of its lines (from 1) replaced.
fn with_line(number: usize, line: &str) -> String {
    let mut lines: Vec<_> = VALID.lines().collect();
    lines[number - 1] = line;
    lines.join("\n")
}

/// Asserts that `check` and `run` refuse the configuration of `site` with one line that has `parts`, and exit code 1.
#[track_caller]
fn assert_refused_at(site: &Site, parts: &[&str]) {
    for command in ["check", "run"] {
        let ended = run(spipe().arg(command).arg(site.file()));
        ended.failed_with(1, parts);
        assert!(ended.stdout.is_empty(), "{ended:?}");
    }
}

/// Asserts that `text` is refused because of its line number `line`.
#[track_caller]
fn assert_refused(text: &str, line: usize, parts: &[&str]) {
    let site = Site::with_key();
    site.configure(text);
    assert_refused_at(&site, &[&[&*format!("spipe: {}:{line}: ", site.file().display())], parts].concat());
}

#[test]
fn check_lists_the_pipes_of_a_valid_file_with_fingerprints() {
    let site = Site::new();
    let (first, second) = (site.add_key("first.key"), site.add_key("second.key"));
    site.configure(
        r#"
            [[pipe]]
            name = "redis"
            mode = "decrypt"
            source = ["127.0.0.1:6380", "@redis"]
            target = "localhost:6379"
            key = ["first.key", "second.key"]

            [[pipe]]
            mode = "encrypt"
            source = "/run/smtp.sock"
            target = "[::1]:25"
            key = "second.key"
        "#,
    );
    let said = run(spipe().arg("check").arg(site.file())).succeeded();
    assert_eq!(
        said.text(),
        format!(
            "redis: decrypt [127.0.0.1]:6380 and @redis to [localhost]:6379, key {first}, {second}\n\
             encrypt /run/smtp.sock to [::1]:25, key {second}\n\
             {} is valid",
            site.file().display()
        )
    );
    assert_eq!(said.stderr, "");
}

#[test]
fn check_opens_no_socket() {
    let (site, taken) = (Site::with_key(), Service::start());
    let file = site.socket("file");
    site.configure(with_line(3, &format!("source = [\"{}\", \"{file}\", \"systemd\"]", taken.address())));
    run(spipe().arg("check").arg(site.file())).succeeded();
    taken.assert_no_connection();
    assert!(!Path::new(&file).exists());
}

#[test]
fn check_writes_no_pid_file_and_stays_in_the_foreground() {
    let site = Site::with_key();
    site.configure(format!("pid-file = \"{}\"\ndaemon = true\n{VALID}", site.name("pid")));
    run(spipe().arg("check").arg(site.file())).succeeded();
    assert!(!site.path("pid").exists());
}

#[test]
fn check_reports_an_unknown_user() {
    let site = Site::with_key();
    site.configure(format!("user = \"no-such-user\"\n{VALID}"));
    run(spipe().arg("check").arg(site.file())).failed_with(1, &["there is no user 'no-such-user'"]);
}

#[test]
fn an_unknown_option_above_all_pipes_is_refused_with_a_hint() {
    assert_refused(
        &format!("quiet = true\n\nport = 80\n{VALID}"),
        3,
        &["unknown field `port`", "`drain-timeout`", "what belongs to a pipe goes below a [[pipe]]"],
    );
}

#[test]
fn an_option_of_a_pipe_above_all_pipes_is_refused_with_its_right_position() {
    assert_refused(
        &format!("key = \"test.key\"\n{VALID}"),
        1,
        &["a rule for a key is a table of a list, [[key]]", "what belongs to a pipe goes below a [[pipe]]"],
    );
}

#[test]
fn an_unknown_option_in_a_pipe_is_refused_with_the_known_ones() {
    assert_refused(&format!("{VALID}lable = \"x\""), 6, &["unknown field `lable`", "`label`"]);
}

#[test]
fn an_option_of_the_process_in_a_pipe_is_refused_with_its_right_position() {
    assert_refused(
        &format!("{VALID}drain-timeout = 5"),
        6,
        &["unknown field `drain-timeout`", "what concerns the whole process goes above all pipes"],
    );
}

#[test]
fn options_of_the_command_line_only_are_unknown_in_a_file() {
    for option in ["encrypt = true", "decrypt = true", "foreground = true"] {
        let name = option.split(' ').next().expect("the option has a name");
        assert_refused(&format!("{VALID}{option}"), 6, &[&format!("unknown field `{name}`")]);
    }
}

#[test]
fn an_underscore_instead_of_a_hyphen_is_refused() {
    assert_refused(&format!("{VALID}max_connections = 5"), 6, &["unknown field", "`max-connections`"]);
}

#[test]
fn an_unknown_mode_is_refused_with_the_known_ones() {
    assert_refused(&with_line(2, "mode = \"forward\""), 2, &["'forward' is no mode", "encrypt or decrypt"]);
}

#[test]
fn a_missing_mode_is_refused_at_its_pipe() {
    assert_refused(&with_line(2, ""), 1, &["the mode is missing", "mode = \"encrypt\""]);
}

#[test]
fn a_missing_source_is_refused_at_its_pipe() {
    assert_refused(&with_line(3, ""), 1, &["the source is missing"]);
}

#[test]
fn an_empty_list_of_sources_is_refused_at_its_line() {
    assert_refused(&with_line(3, "source = []"), 3, &["the source is missing"]);
}

#[test]
fn a_missing_target_is_refused_at_its_pipe() {
    assert_refused(&with_line(4, ""), 1, &["missing field `target`"]);
}

#[test]
fn a_missing_key_is_refused_at_its_pipe() {
    assert_refused(&with_line(5, ""), 1, &["missing field `key`"]);
}

#[test]
fn an_empty_list_of_keys_is_refused_at_its_line() {
    assert_refused(&with_line(5, "key = []"), 5, &["the key is missing"]);
}

#[test]
fn an_option_that_the_second_pipe_lacks_is_refused_at_that_pipe() {
    let second = VALID.replace("target = \"127.0.0.1:9\"\n", "").replace("127.0.0.1:0", "127.0.0.2:0");
    assert_refused(&format!("{VALID}\n{second}"), 7, &["missing field `target`"]);
}

#[test]
fn an_invalid_address_is_refused_with_the_same_reason_as_on_the_command_line() {
    for (address, reason) in [
        ("localhost", "the port is missing"),
        ("127.0.0.1:no-such-service", "write the number of its port"),
        ("::1:80", "goes in brackets"),
        ("*:80", "a place to listen on"),
        ("", "cannot be empty"),
    ] {
        assert_refused(&with_line(4, &format!("target = \"{address}\"")), 4, &[reason]);
    }
}

#[test]
fn an_invalid_address_in_a_list_is_refused_at_its_line() {
    let list = "source = [\n    \"127.0.0.1:0\",\n    \"127.0.0.1\",\n    \"127.0.0.2:0\",\n]";
    assert_refused(&with_line(3, list), 5, &["the port is missing"]);
}

#[test]
fn an_invalid_outgoing_address_is_refused() {
    assert_refused(&format!("{VALID}bind = \"*:80\""), 6, &["a place to listen on"]);
}

#[test]
fn addresses_of_different_kinds_are_refused_at_the_outgoing_address() {
    assert_refused(
        &format!("{VALID}name = \"x\"\nbind = \"/a.sock\""),
        7,
        &["cannot be reached from /a.sock"],
    );
}

#[test]
fn a_value_of_the_wrong_type_is_refused() {
    for (number, line, parts) in [
        (3, "source = 80", ["invalid type: integer `80`", "a string or a list of strings"]),
        (3, "source = [80]", ["invalid type: integer `80`", "a string"]),
        (4, "target = [\"127.0.0.1:9\", 9]", ["invalid type: integer `9`", "a string"]),
        (4, "target = []", ["the target is missing", "write where to connect to"]),
        (5, "key = true", ["invalid type: boolean `true`", "a string or a list of strings"]),
        (2, "mode = 1", ["invalid type: integer `1`", "a string"]),
    ] {
        assert_refused(&with_line(number, line), number, &parts);
    }
}

#[test]
fn an_invalid_timeout_is_refused_with_the_valid_range() {
    for option in ["timeout", "resolve-interval"] {
        for seconds in ["0", "0.0", "0.05", "1e-9", "-1", "-0.5", "86401", "inf", "nan"] {
            let range = "a number of seconds from 0.1 to 86400";
            assert_refused(&format!("{VALID}{option} = {seconds}"), 6, &[range]);
        }
        assert_refused(&format!("{VALID}{option} = \"5\""), 6, &["invalid type", "a number of seconds"]);
    }
    assert_refused(&format!("{VALID}check = 0.5"), 6, &["invalid type"]);
}

#[test]
fn invalid_values_of_the_other_options_of_a_pipe_are_refused() {
    let long = format!("label = \"{}\"", "x".repeat(256));
    for (line, part) in [
        ("max-connections = -1", "invalid value"),
        ("max-connections = \"many\"", "invalid type"),
        ("dead-after = 4", "from 5 to 3600"),
        ("dead-after = 3601", "from 5 to 3600"),
        ("dead-after = \"long\"", "invalid type"),
        ("no-keepalive = \"yes\"", "invalid type"),
        ("keepalive = 0", "from 1 to 32767"),
        ("keepalive = 32768", "from 1 to 32767"),
        ("idle-timeout = 0", "from 1 to 31536000"),
        ("half-close-timeout = 31536001", "from 1 to 31536000"),
        ("max-lifetime = \"long\"", "invalid type"),
        ("cipher = \"rot13\"", "`chacha20poly1305`"),
        ("name = 5", "invalid type"),
        (&*long, "a label is at most 255 bytes"),
    ] {
        assert_refused(&format!("{VALID}{line}"), 6, &[part]);
    }
}

#[test]
fn to_probe_idle_connections_at_a_time_and_never_is_refused() {
    let text = format!("{VALID}keepalive = 60\nno-keepalive = true");
    assert_refused(&text, 7, &["--keepalive", "--no-keepalive", "leave one of them out"]);
}

#[test]
fn invalid_values_of_the_options_of_the_process_are_refused() {
    for (line, part) in [
        ("drain-timeout = -1", "invalid value"),
        ("drain-timeout = \"long\"", "invalid type"),
        ("log-format = \"xml\"", "write text or json"),
        ("user = \"a:b:c\"", "names no user"),
        ("quiet = 1", "invalid type"),
        ("pid-file = 7", "invalid type"),
    ] {
        assert_refused(&format!("\n{line}\n{VALID}"), 2, &[part]);
    }
}

#[test]
fn an_option_that_occurs_twice_in_a_table_is_refused() {
    assert_refused(&format!("{VALID}key = \"test.key\""), 6, &["duplicate key"]);
}

#[test]
fn two_pipes_with_the_same_source_are_refused_at_the_second() {
    let second = VALID.replace("\"127.0.0.1:0\"", "\"[127.0.0.1]:0\"");
    assert_refused(
        &format!("{VALID}{second}"),
        8,
        &["[127.0.0.1]:0 is the source of two pipes", "give each its own"],
    );
}

#[test]
fn a_source_that_occurs_twice_in_one_pipe_is_refused() {
    assert_refused(
        &with_line(3, "source = [\"@x\", \"@x\"]"),
        3,
        &["@x is a source twice", "once is enough"],
    );
}

#[test]
fn two_pipes_with_the_same_name_are_refused_at_the_second() {
    let second = VALID.replace("127.0.0.1:0", "127.0.0.2:0");
    assert_refused(
        &format!("{VALID}name = \"redis\"\n{second}name = \"redis\""),
        12,
        &["'redis' is the name of two pipes", "give each its own"],
    );
}

#[test]
fn a_missing_key_file_is_refused_at_the_line_that_names_it() {
    let site = Site::new();
    site.configure(VALID);
    let (place, path) = (format!("{}:5: ", site.file().display()), site.name("test.key"));
    assert_refused_at(&site, &[&place, "cannot read the key", &path, "spipe keygen"]);
}

#[test]
fn a_short_key_file_is_refused_at_the_line_that_names_it() {
    let site = Site::with_key();
    std::fs::write(site.path("test.key"), [7; 31]).expect("the file can be written");
    site.configure(VALID);
    assert_refused_at(
        &site,
        &[&format!("{}:5: ", site.file().display()), "at least 32 bytes", "this one is 31"],
    );
}

fn set_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("the mode can be changed");
}

#[test]
fn a_key_file_that_others_can_read_is_refused_at_the_line_that_names_it_with_the_chmod_command() {
    let site = Site::with_key();
    set_mode(&site.path("test.key"), 0o644);
    site.configure(VALID);
    let chmod = format!("(mode 0644); type: chmod 600 {}  ", site.name("test.key"));
    assert_refused_at(&site, &[&format!("{}:5: ", site.file().display()), &chmod]);
}

#[test]
fn a_directory_without_keys_is_refused_at_the_line_that_names_it() {
    let site = Site::new();
    std::fs::create_dir(site.path("keys")).expect("the directory can be created");
    site.configure(with_line(5, "key = \"keys\""));
    assert_refused_at(&site, &[&format!("{}:5: ", site.file().display()), "has no key"]);
}

#[test]
fn a_file_without_pipes_is_refused_with_an_example_of_what_to_add() {
    let site = Site::new();
    for text in ["", "# nothing yet\n", "quiet = true\n", "pipe = []\n"] {
        site.configure(text);
        assert_refused_at(&site, &["has no pipe", "add a [[pipe]] table with mode, source, target and key"]);
    }
}

#[test]
fn a_pipe_in_single_brackets_is_refused_with_the_right_notation() {
    assert_refused(&with_line(1, "[pipe]"), 1, &["write [[pipe]]"]);
}

#[test]
fn pipes_in_the_plural_are_refused() {
    assert_refused(&with_line(1, "[[pipes]]"), 1, &["unknown field `pipes`"]);
}

#[test]
fn a_list_of_pipes_that_are_not_tables_is_refused() {
    assert_refused("pipe = [\n\"redis\",\n]\n", 2, &["invalid type: string \"redis\""]);
}

#[test]
fn text_that_is_not_toml_is_refused_at_its_line() {
    for (text, line) in [
        ("[[pipe]]\nmode = encrypt\n", 2),
        ("[[pipe]]\nmode \"encrypt\"\n", 2),
        ("[[pipe]\n", 1),
        ("\n\nkey = \"test.key\n", 3),
    ] {
        assert_refused(text, line, &[]);
    }
}

#[test]
fn a_file_that_is_not_utf_8_is_refused() {
    let site = Site::new();
    site.configure(b"name = \"caf\xe9\"\n");
    assert_refused_at(&site, &["cannot read the configuration", &site.name("pipes.toml"), "UTF-8"]);
}

#[test]
fn a_missing_file_is_refused() {
    let site = Site::new();
    assert_refused_at(&site, &["cannot read the configuration", &site.name("pipes.toml"), "No such file"]);
}

#[test]
fn an_unreadable_file_is_refused() {
    let site = Site::with_key();
    site.configure(VALID);
    set_mode(&site.file(), 0);
    // Without the capabilities that let root read everything.
    let mut command = Command::new("setpriv");
    if rustix::process::geteuid().is_root() {
        command.arg("--bounding-set=-dac_override,-dac_read_search");
    }
    command.arg(spipe().get_program()).arg("check").arg(site.file());
    run(&mut command).failed_with(1, &["cannot read the configuration", "pipes.toml", "Permission denied"]);
}

#[test]
fn a_directory_is_refused_as_a_configuration() {
    let site = Site::new();
    std::fs::create_dir(site.file()).expect("the directory can be created");
    assert_refused_at(&site, &["cannot read the configuration", &site.name("pipes.toml"), "directory"]);
}

#[test]
fn line_numbers_are_right_in_a_file_with_dos_newlines() {
    assert_refused(&with_line(4, "target = \"nowhere\"").replace('\n', "\r\n"), 4, &["the port is missing"]);
}

#[test]
fn run_and_check_need_a_file() {
    for command in ["run", "check"] {
        run(spipe().arg(command)).failed_with(2, &["<FILE>", "see 'spipe --help'"]);
    }
}

#[test]
fn run_takes_no_options_of_a_pipe() {
    let site = Site::with_key();
    site.configure(VALID);
    for option in [&["-k", "test.key"][..], &["-s", "127.0.0.1:0"], &["-e"], &["--name", "x"]] {
        run(site.command().args(option)).failed_with(2, &[option[0]]);
    }
}

#[test]
fn check_takes_no_options_of_the_process() {
    let site = Site::with_key();
    site.configure(VALID);
    run(spipe().arg("check").arg(site.file()).arg("--daemon")).failed_with(2, &["--daemon"]);
}

#[test]
fn a_source_in_use_is_one_line_and_exit_code_1() {
    let (site, taken) = (Site::with_key(), Service::start());
    site.configure(with_line(3, &format!("source = \"{}\"", taken.address())));
    run(&mut site.command()).failed_with(1, &["cannot listen on", "in use"]);
}

#[test]
fn relative_paths_of_keys_are_relative_to_the_file() {
    let site = Site::new();
    let expected = site.add_key("keys/mine.key");
    std::fs::create_dir(site.path("elsewhere")).expect("the directory can be created");
    site.configure(with_line(5, "key = \"keys/mine.key\""));
    for (directory, file) in [("elsewhere", "../pipes.toml"), ("", "pipes.toml"), ("keys", "./../pipes.toml")]
    {
        let said = run(spipe().args(["check", file]).current_dir(site.path(directory))).succeeded();
        assert!(said.text().contains(&expected), "{}", said.text());
    }
}

#[test]
fn a_key_with_an_absolute_path_is_found() {
    let (site, elsewhere) = (Site::new(), Site::new());
    let expected = elsewhere.add_key("mine.key");
    site.configure(with_line(5, &format!("key = \"{}\"", elsewhere.name("mine.key"))));
    assert!(run(spipe().arg("check").arg(site.file())).succeeded().text().contains(&expected));
}

// ── each option of a pipe has the same effect as on the command line ──

/// A process with one pipe from a configuration file; the other end comes from the command line.
struct Configured {
    process: Process,
    /// Kept for as long as the process runs.
    _site: Site,
}

impl Configured {
    /// A pipe on a port that the system chooses, with the additional `lines`. The key is a copy of `key`.
    fn start(mode: &str, key: &Key, target: SocketAddr, lines: &str) -> Self {
        let site = Site::new();
        std::fs::copy(key.path(), site.path("test.key")).expect("the file can be copied");
        let pipe = format!(
            "mode = \"{mode}\"\nsource = \"127.0.0.1:0\"\ntarget = \"{target}\"\nkey = \"test.key\"\n"
        );
        let process = site.serve(format!("[[pipe]]\n{pipe}{lines}\n"));
        Self { process, _site: site }
    }

    fn address(&self) -> SocketAddr {
        address(&self.process.await_line(&["listening"]))
    }

    fn connect(&self) -> TcpStream {
        connect(self.address())
    }
}

/// The source address in a log line.
fn address(line: &str) -> SocketAddr {
    field(line, "source").replace(['[', ']'], "").parse().expect("an IPv4 address")
}

#[test]
fn a_pipe_of_a_file_and_one_of_the_command_line_work_together() {
    let key = Key::new();
    let responder = Configured::start("decrypt", &key, echo(), "");
    let initiator = End::initiator(&key, responder.address()).start();
    assert_echoes(&mut initiator.connect(), "from the command line");
    let responder = End::responder(&key, echo()).start();
    let initiator = Configured::start("encrypt", &key, responder.address(), "");
    assert_echoes(&mut initiator.connect(), "from a file");
}

#[test]
fn a_file_can_set_the_label() {
    let key = Key::new();
    let responder = Configured::start("decrypt", &key, echo(), "label = \"a label\"");
    let initiator = End::initiator(&key, responder.address()).args(&["--label", "a label"]).start();
    assert_echoes(&mut initiator.connect(), "hello");
    End::initiator(&key, responder.address()).start().assert_resets_a_client();
    responder.process.await_line(&["refused", "the keys differ", "or the labels"]);
}

#[test]
fn a_file_can_set_the_cipher() {
    let key = Key::new();
    for cipher in ["aegis256x4", "aes256gcm", "chacha20poly1305"] {
        let responder = Configured::start("decrypt", &key, echo(), &format!("cipher = \"{cipher}\""));
        let initiator = End::initiator(&key, responder.address()).start();
        assert_echoes(&mut initiator.connect(), "hello");
        assert_eq!(field(&responder.process.await_line(&[" closed "]), "cipher"), cipher);
    }
}

#[test]
fn a_file_can_set_the_limit_on_connections() {
    let key = Key::new();
    let responder = End::responder(&key, echo()).start();
    let initiator = Configured::start("encrypt", &key, responder.address(), "max-connections = 1");
    let mut only = initiator.connect();
    assert_echoes(&mut only, "the only one");
    initiator.process.await_line(&["as many connections as -n allows"]);
}

#[test]
fn a_file_can_remove_the_limit_on_connections() {
    let key = Key::new();
    let responder = End::responder(&key, echo()).args(&["-n", "0"]).start();
    let initiator = Configured::start("encrypt", &key, responder.address(), "max-connections = 0");
    // More than the default of 100.
    let mut clients: Vec<_> = (0..120).map(|_| initiator.connect()).collect();
    for client in &mut clients {
        assert_echoes(client, "all at once");
    }
}

#[test]
fn a_file_can_set_the_timeout() {
    let hole = BlackHole::start();
    let initiator = Configured::start("encrypt", &Key::new(), hole.address(), "timeout = 1");
    assert_eq!(read_all(&mut initiator.connect()), b"");
    let line = initiator.process.await_line(&["failed", "no answer in time (-o)"]);
    assert!(line.contains("cannot connect to"), "{line}");
}

#[test]
fn a_file_can_set_the_outgoing_address() {
    let (key, service) = (Key::new(), Service::start());
    let responder = Configured::start("decrypt", &key, service.address(), "bind = \"127.0.0.9\"");
    let initiator = End::initiator(&key, responder.address()).start();
    let _client = initiator.connect();
    assert_eq!(service.accept().peer_addr().expect("the socket is connected").ip().to_string(), "127.0.0.9");
}

#[test]
fn a_file_can_turn_keepalive_off() {
    let key = Key::new();
    for (line, timer) in [("no-keepalive = true", "00"), ("no-keepalive = false", "02")] {
        let responder = Configured::start("decrypt", &key, echo(), line);
        let initiator = End::initiator(&key, responder.address()).start();
        let mut client = initiator.connect();
        assert_echoes(&mut client, "hello");
        poll_until(&format!("the connection has timer {timer}"), || {
            (timers(responder.address()) == [timer]).then_some(())
        });
    }
}

#[test]
fn a_file_can_accept_a_key_that_others_can_read() {
    let key = Key::new();
    key.set_mode(0o644);
    let responder = Configured::start("decrypt", &key, echo(), "insecure-key-permissions = true");
    let initiator = End::initiator(&key, responder.address()).args(&["--insecure-key-permissions"]).start();
    assert_echoes(&mut initiator.connect(), "hello");
}

#[test]
fn accepting_a_key_that_others_can_read_applies_to_one_pipe_only() {
    let site = Site::with_key();
    set_mode(&site.path("test.key"), 0o644);
    let second = VALID.replace("127.0.0.1:0", "127.0.0.2:0");
    site.configure(format!("{VALID}insecure-key-permissions = true\n{second}"));
    assert_refused_at(&site, &[":11: ", "can be read by others"]);
}

#[test]
fn the_name_of_a_pipe_is_in_each_of_its_log_lines() {
    let key = Key::new();
    let responder = Configured::start("decrypt", &key, echo(), "name = \"front door\"");
    let initiator = End::initiator(&key, responder.address()).args(&["--name", "back door"]).start();
    assert_echoes(&mut initiator.connect(), "hello");
    let stranger = End::initiator(&Key::new(), responder.address()).start();
    stranger.assert_resets_a_client();
    for event in ["listening", " closed ", "refused"] {
        assert_eq!(field(&responder.process.await_line(&[event]), "pipe"), "front door");
    }
    for event in ["listening", " closed "] {
        assert_eq!(field(&initiator.await_line(&[event]), "pipe"), "back door");
    }
}

#[test]
fn a_pipe_listens_at_each_source_of_a_list() {
    let site = Site::with_key();
    let sources = format!("source = [\"{}\", \"127.0.0.1:0\"]", site.socket("a"));
    let replaced = format!("source = \"{}\"", site.socket("a"));
    let text = site.both_ends("a", echo()).replace(&replaced, &sources);
    let process = site.serve(text);
    assert_echoes(&mut site.connect("a"), "at the path");
    let line = process.await_line(&["listening", "pipe=\"a\"", "source=[127.0.0.1]"]);
    assert_echoes(&mut connect(address(&line)), "at the port");
}

#[test]
fn a_list_of_keys_works_like_several_key_options() {
    let site = Site::with_key();
    site.add_key("other.key");
    let keys = "key = [\"other.key\", \"test.key\"]";
    let sealed = site.decrypt("a-sealed", echo()).replace("key = \"test.key\"", keys);
    let _process = site.serve(site.encrypt("a", site.socket("a-sealed")) + &sealed);
    assert_echoes(&mut site.connect("a"), "with the second key");
}

#[test]
fn a_key_is_read_from_standard_input_once_for_all_pipes_of_a_file() {
    let site = Site::with_key();
    site.configure(site.both_ends("a", echo()).replace("\"test.key\"", "\"-\""));
    let mut command = site.command();
    command.stdin(std::fs::File::open(site.path("test.key")).expect("the file can be read"));
    let process = Process::start_piped(
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()),
    );
    process.await_line(&["listening"]);
    assert_echoes(&mut site.connect("a"), "hello");
    let expected = fingerprint(&site.path("test.key"));
    assert_eq!(field(&process.await_line(&["listening"]), "key"), expected);
}

// ── options of the whole process ──

/// Serves a configuration with `top` above a pipe, with `flags` on the command line. Returns all output of a process
/// that has carried one connection and stopped.
fn log_of(top: &str, flags: &[&str]) -> String {
    let site = Site::with_key();
    site.configure(format!("{top}\n{}", site.both_ends("a", echo())));
    let mut process = Process::start(site.command().args(flags));
    let mut client = poll_until("it listens", || site.try_connect("a").ok());
    assert_echoes(&mut client, "hello");
    drop(client);
    process.signal(Signal::TERM);
    assert_eq!(process.wait().code(), Some(0));
    process.log()
}

#[test]
fn quiet_in_a_file_omits_info_lines() {
    assert_eq!(log_of("quiet = true", &[]), "");
}

#[test]
fn verbose_in_a_file_logs_more() {
    assert!(log_of("verbose = true", &[]).contains("DEBUG established"));
}

#[test]
fn a_file_can_set_the_log_format() {
    let log = log_of("log-format = \"json\"", &[]);
    assert!(log.lines().count() > 3, "{log}");
    for line in log.lines() {
        serde_json::from_str::<serde_json::Value>(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    }
}

#[test]
fn the_log_options_of_the_command_line_override_the_file() {
    assert_eq!(log_of("verbose = true", &["-q"]), "");
    assert!(log_of("quiet = true", &["--verbose"]).contains("DEBUG established"));
    assert!(log_of("log-format = \"json\"", &["--log-format", "text"]).contains(" INFO listening"));
}

#[test]
fn the_pid_file_of_the_command_line_overrides_the_file() {
    let site = Site::with_key();
    site.configure(format!("pid-file = \"{}\"\n{}", site.name("in-file"), site.both_ends("a", echo())));
    let process = Process::start(site.command().args(["-p", &site.name("by-flag")]));
    process.await_line(&["listening"]);
    assert!(site.path("by-flag").exists());
    assert!(!site.path("in-file").exists());
}

#[test]
fn a_file_can_set_the_pid_file() {
    let site = Site::with_key();
    let process = site.serve(format!("pid-file = \"{}\"\n{}", site.name("pid"), site.both_ends("a", echo())));
    let written = std::fs::read_to_string(site.path("pid")).expect("the file exists");
    assert_eq!(written, format!("{}\n", process.pid()));
}

#[test]
fn a_file_can_set_the_drain_timeout() {
    let site = Site::with_key();
    let mut process = site.serve(format!("drain-timeout = 0\n{}", site.both_ends("a", echo())));
    let mut client = site.connect("a");
    assert_echoes(&mut client, "hello");
    process.signal(Signal::TERM);
    assert_eq!(process.wait().code(), Some(0));
    process.await_line(&["WARN stopped", "connections=2"]);
}

#[test]
fn the_drain_timeout_of_the_command_line_overrides_the_file() {
    let site = Site::with_key();
    site.configure(format!("drain-timeout = 3600\n{}", site.both_ends("a", echo())));
    let mut process = Process::start(site.command().args(["--drain-timeout", "0"]));
    process.await_line(&["listening"]);
    let mut client = site.connect("a");
    assert_echoes(&mut client, "hello");
    process.signal(Signal::TERM);
    assert_eq!(process.wait().code(), Some(0));
    process.await_line(&["WARN stopped", "connections=2"]);
}

#[test]
fn service_options_need_a_pipe_that_listens() {
    let key = Key::new();
    for option in [&["--daemon"][..], &["-p", "/nowhere/pid"], &["-u", "root"], &["--drain-timeout", "5"]] {
        let mut command: Command = crate::support::pipe::stdio("127.0.0.1:9", &key.path());
        run(command.args(option))
            .failed_with(2, &[option[0], "is for a pipe that listens", "see 'spipe --help'"]);
    }
}

#[test]
fn invalid_values_of_the_options_of_the_process_are_usage_errors() {
    let site = Site::with_key();
    site.configure(VALID);
    for (option, part) in [
        ("--drain-timeout=-1", "--drain-timeout"),
        ("--drain-timeout=soon", "--drain-timeout"),
        ("--log-format=xml", "write text or json"),
        ("-ua:b:c", "names no user"),
        ("-qq", "cannot be used multiple times"),
    ] {
        run(site.command().arg(option)).failed_with(2, &[part, "see 'spipe --help'"]);
    }
}

#[test]
fn quiet_and_verbose_exclude_each_other_with_a_file() {
    let site = Site::with_key();
    site.configure(VALID);
    run(site.command().args(["-q", "--verbose"])).failed_with(2, &["cannot be used with"]);
}

#[test]
fn verbose_overrides_quiet_in_one_file() {
    // Verbose prevails, since it hides nothing.
    assert!(log_of("quiet = true\nverbose = true", &[]).contains("DEBUG established"));
}
