//! The command line: which options are accepted, which are refused, and with which message.

use crate::support::pipe::{End, Key, field};
use crate::support::process::{Process, after, run, spipe};
use crate::support::socket::{Service, assert_echoes, connect, echo};

/// Runs `spipe ARGS`, with KEY replaced by a key file, and asserts that it is refused as a usage error.
#[track_caller]
fn assert_usage_error(args: &[&str], parts: &[&str]) {
    let key = Key::new();
    let path = key.path().display().to_string();
    let args = args.iter().map(|arg| if *arg == "KEY" { path.as_str() } else { arg });
    run(spipe().args(args)).failed_with(2, &[parts, &["see 'spipe --help'"]].concat());
}

#[test]
fn every_short_flag_is_accepted() {
    // -q is not in the list: it would hide the port from the log.
    let key = Key::new();
    for flag in ["-F", "-g", "-j", "-n5", "-o5", "-b127.0.0.1", "-D", "-R", "-r60"] {
        let responder = End::responder(&key, echo()).args(&[flag]).start();
        let initiator = End::initiator(&key, responder.address()).args(&[flag]).start();
        assert_echoes(&mut initiator.connect(), flag);
    }
}

#[test]
fn a_source_that_is_given_twice_is_a_usage_error() {
    assert_usage_error(
        &["-e", "-s", "@twice", "-s", "@twice", "-t", "127.0.0.1:9", "-k", "KEY"],
        &["@twice is a source twice", "once is enough"],
    );
}

#[test]
fn every_option_has_a_long_name() {
    let key = Key::new();
    let path = key.path().display().to_string();
    let start = |mode: &str, target: &str| {
        let mut command = spipe();
        command.args([mode, "--source", "127.0.0.1:0", "--target", target, "--key", &path]);
        command.args(["--max-connections", "5", "--timeout", "5", "--bind", "127.0.0.1", "--no-keepalive"]);
        command.args(["--label", "a label", "--cipher", "auto", "--insecure-key-permissions", "--verbose"]);
        let process = Process::start(command.args(["--foreground", "--forward-secrecy"]));
        let line = process.await_line(&["listening"]);
        let address: std::net::SocketAddr =
            field(&line, "source").replace(['[', ']'], "").parse().expect("an address");
        (process, address)
    };
    let (_responder, sealed) = start("--decrypt", &echo().to_string());
    let (_initiator, plain) = start("--encrypt", &sealed.to_string());
    assert_echoes(&mut connect(plain), "hello");
}

#[test]
fn quiet_has_a_long_name() {
    let key = Key::new();
    let mut command = crate::support::pipe::stdio("127.0.0.1:9", &key.path());
    run(command.arg("--quiet").args(["-o", "1"])).failed_with(1, &["cannot connect to"]);
}

#[test]
fn an_option_against_forward_secrecy_is_refused_with_the_reason() {
    for flag in ["-f", "--no-forward-secrecy"] {
        assert_usage_error(
            &["-e", "-s", "127.0.0.1:0", "-t", "127.0.0.1:9", "-k", "KEY", flag],
            &["forward secrecy cannot be turned off", "leave -f out"],
        );
    }
}

#[test]
fn encrypt_and_decrypt_exclude_each_other() {
    assert_usage_error(
        &["-e", "-d", "-s", "127.0.0.1:0", "-t", "127.0.0.1:9", "-k", "KEY"],
        &["cannot be used with"],
    );
}

#[test]
fn quiet_and_verbose_exclude_each_other() {
    assert_usage_error(&["-t", "127.0.0.1:9", "-k", "KEY", "-q", "--verbose"], &["cannot be used with"]);
}

#[test]
fn a_source_needs_a_mode() {
    assert_usage_error(&["-s", "127.0.0.1:0", "-t", "127.0.0.1:9", "-k", "KEY"], &["--encrypt", "--decrypt"]);
}

#[test]
fn a_mode_needs_a_source() {
    for mode in ["-e", "-d"] {
        assert_usage_error(&[mode, "-t", "127.0.0.1:9", "-k", "KEY"], &["--source"]);
    }
}

#[test]
fn a_target_and_a_key_are_needed() {
    assert_usage_error(&["-e", "-s", "127.0.0.1:0", "-k", "KEY"], &["--target"]);
    assert_usage_error(&["-e", "-s", "127.0.0.1:0", "-t", "127.0.0.1:9"], &["--key"]);
}

#[test]
fn no_arguments_are_a_usage_error() {
    assert_usage_error(&[], &[]);
}

#[test]
fn an_unknown_option_is_a_usage_error() {
    assert_usage_error(&["--frobnicate"], &["--frobnicate"]);
}

#[test]
fn an_unknown_cipher_is_a_usage_error_that_lists_the_known_ones() {
    assert_usage_error(
        &["-t", "127.0.0.1:9", "-k", "KEY", "--cipher", "rot13"],
        &["rot13", "aegis256x4", "aes256gcm", "chacha20poly1305"],
    );
}

#[test]
fn standard_input_cannot_be_the_key_and_the_data() {
    assert_usage_error(&["-t", "127.0.0.1:9", "-k", "-"], &["-k -", "standard input"]);
}

#[test]
fn addresses_of_different_kinds_exclude_each_other() {
    assert_usage_error(
        &["-e", "-s", "127.0.0.1:0", "-t", "/a.sock", "-k", "KEY", "-b", "127.0.0.1"],
        &["cannot be reached from"],
    );
}

#[test]
fn invalid_addresses_are_usage_errors() {
    for (address, reason) in [
        ("localhost", "the port is missing"),
        ("127.0.0.1", "the port is missing"),
        ("127.0.0.1:0", "is not a port"),
        ("127.0.0.1:65536", "is not a port"),
        ("127.0.0.1:no-such-service", "write the number of its port"),
        ("127.0.0.1:http/tcp", "is not a port"),
        ("::1:80", "goes in brackets"),
        ("[::1:80", "needs a ']'"),
        ("[]:80", "a place to listen on"),
        ("*:80", "a place to listen on"),
        ("300.1.1.1:80", "neither an IP address nor a host name"),
        ("", "cannot be empty"),
        ("@", "a Unix-domain socket's name"),
    ] {
        assert_usage_error(&["-t", address, "-k", "KEY"], &[reason]);
    }
}

#[test]
fn invalid_sources_and_outgoing_addresses_are_usage_errors() {
    assert_usage_error(
        &["-e", "-s", "nowhere", "-t", "127.0.0.1:9", "-k", "KEY"],
        &["--source", "the port is missing"],
    );
    assert_usage_error(
        &["-t", "127.0.0.1:9", "-k", "KEY", "-b", "*:80"],
        &["--bind", "a place to listen on"],
    );
}

#[test]
fn invalid_numbers_are_usage_errors() {
    for [option, value] in [["-n", "many"], ["-n", "-1"], ["-o", "0"], ["-o", "soon"], ["-o", "86401"]] {
        assert_usage_error(&["-t", "127.0.0.1:9", "-k", "KEY", option, value], &[]);
    }
}

#[test]
fn a_label_that_is_too_long_is_a_usage_error() {
    assert_usage_error(
        &["-t", "127.0.0.1:9", "-k", "KEY", "--label", &"x".repeat(256)],
        &["a label is at most 255 bytes"],
    );
}

#[test]
fn the_version_is_printed() {
    for flag in ["-v", "-V", "--version"] {
        let ended = run(spipe().arg(flag)).succeeded();
        assert_eq!(ended.text(), format!("spipe {}", env!("CARGO_PKG_VERSION")));
    }
}

#[test]
fn help_fits_80_columns_and_has_examples() {
    for args in
        [&["--help"][..], &["-h"], &["keygen", "--help"], &["fingerprint", "--help"], &["demo", "--help"]]
    {
        let help = run(spipe().args(args)).succeeded().text();
        for line in help.lines() {
            assert!(line.chars().count() <= 80, "{} columns: {line}", line.chars().count());
        }
        assert!(help.contains("Usage:"), "{help}");
    }
    let help = run(spipe().arg("--help")).succeeded().text();
    for part in
        ["Examples:", "spipe keygen redis.key", "spipe -d -s", "spipe -e -s", "ProxyCommand=", "spipe demo"]
    {
        assert!(help.contains(part), "no {part} in the help");
    }
}

#[test]
fn a_port_in_use_is_one_line_and_exit_code_1() {
    let (key, taken) = (Key::new(), Service::start());
    let end = End::initiator(&key, "127.0.0.1:9").source(taken.address());
    run(&mut end.command()).failed_with(1, &["cannot listen on", "in use", "choose another port"]);
}

#[test]
fn an_address_of_another_host_is_one_line_and_exit_code_1() {
    let key = Key::new();
    // TEST-NET-3 is for documentation only, so no host has this address.
    let end = End::initiator(&key, "127.0.0.1:9").source("203.0.113.1:0");
    run(&mut end.command()).failed_with(1, &["this host does not have that address"]);
}

#[test]
fn the_demo_shows_every_part() {
    let page = run(spipe().arg("demo")).succeeded().text();
    for part in ["spipe -e", "spipe -d", "correct", "Round trip", "Throughput", "spipe keygen"] {
        assert!(page.contains(part), "no {part} in:\n{page}");
    }
    for line in page.lines() {
        assert!(line.chars().count() <= 120, "{line}");
    }
}

#[test]
fn it_starts_in_a_directory_that_is_gone() {
    let key = Key::new();
    let end = End::initiator(&key, "127.0.0.1:9");
    let mut process =
        Process::start(&mut after("d=$(mktemp -d) && cd $d && rmdir $d || exit 99;", &end.command()));
    process.await_line(&["listening"]);
    process.signal(rustix::process::Signal::TERM);
    assert_eq!(process.wait().code(), Some(0));
}

#[test]
fn a_umask_of_0_makes_no_file_that_everybody_may_write_to() {
    let (site, key) = (crate::support::site::Site::new(), Key::new());
    let end =
        End::initiator(&key, "127.0.0.1:9").source(site.socket("plain")).args(&["-p", &site.name("pid")]);
    let process = Process::start(&mut after("umask 0;", &end.command()));
    process.await_line(&["listening"]);
    for file in [site.path("plain.sock"), site.path("pid")] {
        let mode = std::fs::metadata(&file).expect("the file exists").permissions();
        assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode) & 0o002, 0, "{}", file.display());
    }
}
