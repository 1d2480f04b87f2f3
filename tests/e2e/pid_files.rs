//! The pid file (-p).

use std::os::unix::fs::PermissionsExt;

use rustix::process::Signal;

use crate::support::pipe::{End, Key};
use crate::support::process::{after, run};
use crate::support::site::Site;
use crate::support::socket::{Service, assert_echoes, echo};

/// A process with a pid file.
fn start(site: &Site, key: &Key) -> End {
    End::initiator(key, "127.0.0.1:9").args(&["-p", &site.name("pid")]).start()
}

fn content(site: &Site) -> String {
    std::fs::read_to_string(site.path("pid")).expect("the file exists")
}

#[test]
fn it_has_the_process_id_and_is_removed_at_the_end() {
    let (site, key) = (Site::new(), Key::new());
    let mut end = start(&site, &key);
    assert_eq!(content(&site), format!("{}\n", end.process.pid()));
    end.process.signal(Signal::TERM);
    assert_eq!(end.process.wait().code(), Some(0));
    assert!(!site.path("pid").exists());
}

#[test]
fn everybody_may_read_it_if_the_umask_allows() {
    let (site, key) = (Site::new(), Key::new());
    let end = End::initiator(&key, "127.0.0.1:9").args(&["-p", &site.name("pid")]);
    let process = crate::support::process::Process::start(&mut after("umask 022;", &end.command()));
    process.await_line(&["listening"]);
    let mode = std::fs::metadata(site.path("pid")).expect("the file exists").permissions().mode();
    assert_eq!(mode & 0o7777, 0o644);
}

#[test]
fn it_survives_a_reload() {
    let (site, key) = (Site::new(), Key::new());
    let end = start(&site, &key);
    end.process.reload_successfully();
    assert_eq!(content(&site), format!("{}\n", end.process.pid()));
}

#[test]
fn it_stays_during_a_drain_and_is_removed_when_connections_are_cut() {
    let (site, key) = (Site::new(), Key::new());
    let responder = End::responder(&key, echo()).start();
    let mut end = End::initiator(&key, responder.address()).args(&["-p", &site.name("pid")]).start();
    let mut client = end.connect();
    assert_echoes(&mut client, "hello");
    end.process.signal(Signal::TERM);
    end.await_line(&["stopping"]);
    assert!(site.path("pid").exists());
    end.process.signal(Signal::TERM);
    assert_eq!(end.process.wait().code(), Some(0));
    end.await_line(&["WARN stopped", "connections=1"]);
    assert!(!site.path("pid").exists());
}

#[test]
fn a_pid_file_of_a_running_process_is_refused_and_not_changed() {
    let (site, key) = (Site::new(), Key::new());
    let first = start(&site, &key);
    let second = End::initiator(&key, "127.0.0.1:9").args(&["-p", &site.name("pid")]);
    run(&mut second.command()).failed_with_last_line(
        1,
        &["the pid file", "belongs to a running process", "choose another name for -p"],
    );
    assert_eq!(content(&site), format!("{}\n", first.process.pid()));
}

#[test]
fn a_pid_file_of_a_killed_process_is_replaced() {
    let (site, key) = (Site::new(), Key::new());
    start(&site, &key).process.kill();
    assert!(site.path("pid").exists(), "a killed process cannot remove it");
    let end = start(&site, &key);
    assert_eq!(content(&site), format!("{}\n", end.process.pid()));
}

#[test]
fn a_file_that_is_not_a_pid_file_is_not_changed() {
    let (site, key) = (Site::new(), Key::new());
    for precious in ["precious", "12 monkeys", "-5", "99999999999999999999999999999999999999"] {
        std::fs::write(site.path("pid"), precious).expect("the file can be written");
        let end = End::initiator(&key, "127.0.0.1:9").args(&["-p", &site.name("pid")]);
        run(&mut end.command()).failed_with_last_line(1, &["is not a pid file", "is left as it is"]);
        assert_eq!(content(&site), precious);
    }
}

#[test]
fn a_key_file_is_not_overwritten() {
    let key = Key::new();
    let before = std::fs::read(key.path()).expect("the file can be read");
    let end = End::initiator(&key, "127.0.0.1:9").args(&["-p", &key.path().display().to_string()]);
    run(&mut end.command()).failed_with_last_line(1, &["is not a pid file"]);
    assert_eq!(std::fs::read(key.path()).expect("the file exists"), before);
}

#[test]
fn paths_that_cannot_be_written_are_refused() {
    let (site, key) = (Site::new(), Key::new());
    std::os::unix::fs::symlink(site.path("elsewhere"), site.path("link")).expect("the link can be created");
    for (name, part) in [("", "directory"), ("no/such/pid", "No such file"), ("link", "symbolic link")] {
        let end = End::initiator(&key, "127.0.0.1:9").args(&["-p", &site.name(name)]);
        run(&mut end.command()).failed_with_last_line(1, &["cannot write the pid file", part]);
    }
    assert!(!site.path("elsewhere").exists(), "nothing is written through a link");
}

#[test]
fn a_process_that_cannot_write_it_removes_its_socket() {
    let (site, key) = (Site::new(), Key::new());
    let end = End::initiator(&key, "127.0.0.1:9").source(site.socket("plain"));
    run(end.args(&["-p", "/no/such/pid"]).command().env_remove("NOTIFY_SOCKET"))
        .failed_with_last_line(1, &["cannot write the pid file"]);
    assert!(!site.path("plain.sock").exists());
}

#[test]
fn a_process_that_cannot_listen_writes_no_pid_file() {
    let (site, key, taken) = (Site::new(), Key::new(), Service::start());
    let end = End::initiator(&key, "127.0.0.1:9").source(taken.address()).args(&["-p", &site.name("pid")]);
    run(&mut end.command()).failed_with(1, &["cannot listen on"]);
    assert!(!site.path("pid").exists());
}

#[test]
fn a_file_that_replaced_it_is_not_removed() {
    let (site, key) = (Site::new(), Key::new());
    let mut end = start(&site, &key);
    std::fs::write(site.path("other"), "1\n").expect("the file can be written");
    std::fs::rename(site.path("other"), site.path("pid")).expect("the file can be renamed");
    end.process.signal(Signal::TERM);
    assert_eq!(end.process.wait().code(), Some(0));
    assert_eq!(content(&site), "1\n");
}

#[test]
fn a_removed_pid_file_causes_no_warning() {
    let (site, key) = (Site::new(), Key::new());
    let mut end = start(&site, &key);
    std::fs::remove_file(site.path("pid")).expect("the file can be removed");
    end.process.signal(Signal::TERM);
    assert_eq!(end.process.wait().code(), Some(0));
    assert!(!end.process.log().contains("WARN"), "{}", end.process.log());
}

#[test]
fn a_relative_path_in_a_configuration_is_relative_to_its_directory() {
    let site = Site::with_key();
    std::fs::create_dir(site.path("elsewhere")).expect("the directory can be created");
    site.configure("pid-file = \"pid\"\n".to_owned() + &site.encrypt("a", "127.0.0.1:9"));
    let mut command = site.command();
    let process = crate::support::process::Process::start(command.current_dir(site.path("elsewhere")));
    process.await_line(&["listening"]);
    assert_eq!(content(&site), format!("{}\n", process.pid()));
    // A reload must not report a changed path.
    process.reload_successfully();
    process.reload_successfully();
    assert!(!process.log().contains("takes a restart"), "{}", process.log());
}

#[test]
fn the_null_device_in_its_place_means_that_there_is_none() {
    let key = Key::new();
    let mut end = End::initiator(&key, "127.0.0.1:9").args(&["-p", "/dev/null"]).start();
    end.process.signal(Signal::TERM);
    assert_eq!(end.process.wait().code(), Some(0));
    let still = std::fs::metadata("/dev/null").expect("it is still there");
    assert!(std::os::unix::fs::FileTypeExt::is_char_device(&still.file_type()));
}
