//! Many pipes in one process.

use std::fmt::Write as _;
use std::io::Read;

use crate::support::pipe::field;
use crate::support::site::Site;
use crate::support::socket::{assert_echoes, echo};

const MANY: usize = 200;

#[test]
fn two_hundred_pipes_of_two_processes_carry_bytes_at_once() {
    let (here, there, target) = (Site::with_key(), Site::with_key(), echo());
    std::fs::copy(there.path("test.key"), here.path("test.key")).expect("the file can be copied");
    let (mut initiators, mut responders) = (String::new(), String::new());
    for number in 0..MANY {
        let name = format!("pipe-{number}");
        initiators += &here.encrypt(&name, there.socket(&name));
        responders += &there.decrypt(&name, target);
    }
    let responder = there.serve(responders);
    let initiator = here.serve(initiators);
    let mut clients: Vec<_> = (0..MANY).map(|number| here.connect(&format!("pipe-{number}"))).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        assert_echoes(client, &format!("through the pipe number {number}"));
    }
    drop(clients);
    for process in [&initiator, &responder] {
        process.await_lines(MANY, " listening ");
        let mut names: Vec<_> = process
            .await_lines(MANY, " closed ")
            .iter()
            .map(|line| {
                assert_eq!(field(line, "reason"), "finished");
                field(line, "pipe").to_owned()
            })
            .collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), MANY, "each line has the name of a different pipe");
    }
}

#[test]
fn every_pipe_dials_its_own_target() {
    let site = Site::with_key();
    let mut text = String::new();
    for name in ["a", "b", "c"] {
        let service = crate::support::socket::Service::start().serve(move |mut stream| {
            let _ = std::io::Write::write_all(&mut stream, name.as_bytes());
        });
        text += &site.both_ends(name, service);
    }
    let _process = site.serve(text);
    for name in ["c", "a", "b"] {
        let mut answer = String::new();
        site.connect(name).read_to_string(&mut answer).expect("a clean end");
        assert_eq!(answer, name);
    }
}

#[test]
fn a_pipe_with_a_dead_target_does_not_affect_other_pipes() {
    let (site, target) = (Site::with_key(), echo());
    // Nothing listens at this name.
    let dead = site.socket("nobody");
    let process = site.serve(site.both_ends("dead", dead) + &site.both_ends("alive", target));
    let mut running = site.connect("alive");
    assert_echoes(&mut running, "before");
    // More than one, so that success cannot be by chance.
    for _ in 0..20 {
        let mut refused = site.connect("dead");
        // There are no resets between Unix-domain sockets.
        let _ = refused.read_to_end(&mut Vec::new());
    }
    process.await_lines(20, "refused pipe=\"dead-sealed\"");
    assert_echoes(&mut running, "after");
    assert_echoes(&mut site.connect("alive"), "a new one, too");
    let log = process.log();
    for line in log.lines().filter(|line| line.contains(" WARN ")) {
        assert!(field(line, "pipe").starts_with("dead"), "{line}");
    }
}

#[test]
fn a_full_pipe_does_not_affect_other_pipes() {
    let (site, target) = (Site::with_key(), echo());
    let full = site.encrypt("full", site.socket("full-sealed")) + "max-connections = 1\n";
    let process = site.serve(full + &site.decrypt("full-sealed", target) + &site.both_ends("other", target));
    let mut only = site.connect("full");
    assert_echoes(&mut only, "the only one");
    let line = process.await_line(&["as many connections as -n allows"]);
    assert_eq!(field(&line, "pipe"), "full");
    let mut others: Vec<_> = (0..5).map(|_| site.connect("other")).collect();
    for other in &mut others {
        assert_echoes(other, "another pipe");
    }
}

#[test]
fn one_source_in_use_prevents_the_start_of_all_pipes() {
    let site = Site::with_key();
    let (mut text, taken) = (String::new(), Site::new());
    let _listener = std::os::unix::net::UnixListener::bind(taken.path("taken.sock")).expect("a free name");
    for number in 0..10 {
        let _ = write!(text, "{}", site.encrypt(&format!("pipe-{number}"), "127.0.0.1:9"));
    }
    text = text.replace(&site.socket("pipe-7"), &taken.socket("taken"));
    site.configure(text);
    let ended = crate::support::process::run(&mut site.command());
    ended.failed_with(1, &["cannot listen on", "taken.sock", "another process is listening there"]);
    for number in 0..10 {
        assert!(
            !site.path(&format!("pipe-{number}.sock")).exists(),
            "the sockets made before the failure are removed"
        );
    }
}

#[test]
fn a_file_of_20_000_pipes_is_read() {
    let site = Site::with_key();
    let pipes: Vec<_> = (0..20_000).map(|number| site.encrypt(&number.to_string(), "127.0.0.1:9")).collect();
    site.configure(pipes.concat());
    let checked =
        crate::support::process::run(crate::support::process::spipe().arg("check").arg(site.file()))
            .succeeded();
    assert_eq!(checked.text().lines().count(), 20_001);
}
