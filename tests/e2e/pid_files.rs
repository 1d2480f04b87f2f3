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
fn it_has_the_process_id_while_the_process_runs_and_is_gone_then() {
    let (site, key) = (Site::new(), Key::new());
    let mut end = start(&site, &key);
    assert_eq!(content(&site), format!("{}\n", end.process.pid()));
    end.process.signal(Signal::TERM);
    assert_eq!(end.process.wait().code(), Some(0));
    assert!(!site.path("pid").exists());
}

#[test]
fn everybody_may_read_it_if_the_umask_does_not_mind() {
    let (site, key) = (Site::new(), Key::new());
    let end = End::initiator(&key, "127.0.0.1:9").args(&["-p", &site.name("pid")]);
    let process = crate::support::process::Process::start(&mut after("umask 022;", &end.command()));
    process.await_line(&["listening"]);
    let mode = std::fs::metadata(site.path("pid")).expect("the file exists").permissions().mode();
    assert_eq!(mode & 0o7777, 0o644);
}

#[test]
fn it_stays_through_a_reload() {
    let (site, key) = (Site::new(), Key::new());
    let end = start(&site, &key);
    end.process.reload_successfully();
    assert_eq!(content(&site), format!("{}\n", end.process.pid()));
}

#[test]
fn it_stays_while_connections_finish_and_goes_when_they_are_cut() {
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
fn one_that_belongs_to_a_running_process_is_refused_and_left_alone() {
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
fn one_that_a_killed_process_left_behind_is_taken_over() {
    let (site, key) = (Site::new(), Key::new());
    start(&site, &key).process.kill();
    assert!(site.path("pid").exists(), "nobody could remove it");
    let end = start(&site, &key);
    assert_eq!(content(&site), format!("{}\n", end.process.pid()));
}

#[test]
fn a_file_that_is_no_pid_file_is_left_as_it_is() {
    let (site, key) = (Site::new(), Key::new());
    for precious in ["precious", "12 monkeys", "-5", "99999999999999999999999999999999999999"] {
        std::fs::write(site.path("pid"), precious).expect("the file can be written");
        let end = End::initiator(&key, "127.0.0.1:9").args(&["-p", &site.name("pid")]);
        run(&mut end.command()).failed_with_last_line(1, &["is not a pid file", "is left as it is"]);
        assert_eq!(content(&site), precious);
    }
}

#[test]
fn a_key_is_never_taken_for_a_pid_file() {
    let key = Key::new();
    let before = std::fs::read(key.path()).expect("the file can be read");
    let end = End::initiator(&key, "127.0.0.1:9").args(&["-p", &key.path().display().to_string()]);
    run(&mut end.command()).failed_with_last_line(1, &["is not a pid file"]);
    assert_eq!(std::fs::read(key.path()).expect("the file exists"), before);
}

#[test]
fn places_where_no_file_can_be_are_refused() {
    let (site, key) = (Site::new(), Key::new());
    std::os::unix::fs::symlink(site.path("elsewhere"), site.path("link")).expect("the link can be created");
    for (name, part) in [("", "directory"), ("no/such/pid", "No such file"), ("link", "symbolic link")] {
        let end = End::initiator(&key, "127.0.0.1:9").args(&["-p", &site.name(name)]);
        run(&mut end.command()).failed_with_last_line(1, &["cannot write the pid file", part]);
    }
    assert!(!site.path("elsewhere").exists(), "nothing is written through a link");
}

#[test]
fn a_process_that_cannot_write_it_leaves_no_socket_behind() {
    let (site, key) = (Site::new(), Key::new());
    let end = End::initiator(&key, "127.0.0.1:9").source(site.socket("plain"));
    run(end.args(&["-p", "/no/such/pid"]).command().env_remove("NOTIFY_SOCKET"))
        .failed_with_last_line(1, &["cannot write the pid file"]);
    assert!(!site.path("plain.sock").exists());
}

#[test]
fn a_process_that_cannot_listen_writes_none() {
    let (site, key, taken) = (Site::new(), Key::new(), Service::start());
    let end = End::initiator(&key, "127.0.0.1:9").source(taken.address()).args(&["-p", &site.name("pid")]);
    run(&mut end.command()).failed_with(1, &["cannot listen on"]);
    assert!(!site.path("pid").exists());
}

#[test]
fn one_that_somebody_put_in_its_place_is_not_removed() {
    let (site, key) = (Site::new(), Key::new());
    let mut end = start(&site, &key);
    std::fs::write(site.path("other"), "1\n").expect("the file can be written");
    std::fs::rename(site.path("other"), site.path("pid")).expect("the file can be renamed");
    end.process.signal(Signal::TERM);
    assert_eq!(end.process.wait().code(), Some(0));
    assert_eq!(content(&site), "1\n");
}

#[test]
fn one_that_somebody_has_removed_is_not_missed() {
    let (site, key) = (Site::new(), Key::new());
    let mut end = start(&site, &key);
    std::fs::remove_file(site.path("pid")).expect("the file can be removed");
    end.process.signal(Signal::TERM);
    assert_eq!(end.process.wait().code(), Some(0));
    assert!(!end.process.log().contains("WARN"), "{}", end.process.log());
}

#[test]
fn a_relative_name_in_a_file_is_beside_the_file() {
    let site = Site::with_key();
    std::fs::create_dir(site.path("elsewhere")).expect("the directory can be created");
    site.configure("pid-file = \"pid\"\n".to_owned() + &site.encrypt("a", "127.0.0.1:9"));
    let mut command = site.command();
    let process = crate::support::process::Process::start(command.current_dir(site.path("elsewhere")));
    process.await_line(&["listening"]);
    assert_eq!(content(&site), format!("{}\n", process.pid()));
    // And a reload sees no change in that.
    process.reload_successfully();
    process.reload_successfully();
    assert!(!process.log().contains("takes a restart"), "{}", process.log());
}
