//! A DNS server with one answer, in namespaces in which it is the only server.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Sender, channel};
use std::thread;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answers {
    InOneDatagram,
    /// Datagrams are truncated; the whole answer comes over TCP.
    OverTcp,
}

/// Replaces `/etc/resolv.conf` from a thread that is not sandboxed.
pub(crate) struct Replace(Sender<(String, Sender<()>)>);

impl Replace {
    pub(crate) fn with(&self, content: &str) {
        let (done, wait) = channel();
        self.0.send((content.to_owned(), done)).unwrap();
        wait.recv().unwrap();
    }
}

/// Starts a DNS server at 127.0.0.1 that gives every name the address 127.0.0.7, and makes this process use it.
pub(crate) fn set_up(directory: &Path, answers: Answers) -> Replace {
    let etc = directory.join("etc");
    assert_eq!(
        fs::read_dir("/etc").unwrap().count(),
        fs::read_dir(&etc).unwrap().count(),
        "/etc is the directory of the test"
    );
    fs::write(etc.join("nsswitch.conf"), "hosts: files dns\n").unwrap();
    fs::write(etc.join("hosts"), "127.0.0.1 localhost\n").unwrap();
    replace(etc.join("resolv.conf"), "nameserver 127.0.0.1\n");
    serve("127.0.0.1:53", answers, Ipv4Addr::new(127, 0, 0, 7));
    let (sender, receiver) = channel::<(String, Sender<()>)>();
    thread::spawn(move || {
        for (content, done) in receiver {
            replace(etc.join("resolv.conf"), &content);
            done.send(()).unwrap();
        }
    });
    Replace(sender)
}

/// Replaces the file, as the tools that write it do.
fn replace(path: PathBuf, content: &str) {
    let new = path.with_extension("new");
    fs::write(&new, content).unwrap();
    fs::rename(&new, path).unwrap();
}

/// Answers every question for an IPv4 address with `address`, and all other questions with an empty answer.
pub(crate) fn serve(at: &str, answers: Answers, address: Ipv4Addr) {
    let (datagrams, streams) = (UdpSocket::bind(at).unwrap(), TcpListener::bind(at).unwrap());
    thread::spawn(move || {
        let mut query = [0; 512];
        loop {
            let (length, from) = datagrams.recv_from(&mut query).unwrap();
            let answer = match answers {
                Answers::InOneDatagram => answer(&query[..length], address),
                Answers::OverTcp => truncated(&query[..length]),
            };
            datagrams.send_to(&answer, from).unwrap();
        }
    });
    thread::spawn(move || {
        for stream in streams.incoming() {
            let mut stream = stream.unwrap();
            let mut length = [0; 2];
            while stream.read_exact(&mut length).is_ok() {
                let mut query = vec![0; u16::from_be_bytes(length).into()];
                stream.read_exact(&mut query).unwrap();
                let answer = answer(&query, address);
                let length = u16::try_from(answer.len()).unwrap().to_be_bytes();
                stream.write_all(&[&length[..], &answer].concat()).unwrap();
            }
        }
    });
}

/// The header of an answer (RFC 1035, section 4.1.1) and the question, without records.
fn head(query: &[u8], flags: [u8; 2], answers: u8) -> Vec<u8> {
    let name = query[12..].iter().position(|byte| *byte == 0).unwrap();
    let question = &query[12..12 + name + 5];
    [&query[..2], &flags, &[0, 1, 0, answers, 0, 0, 0, 0], question].concat()
}

fn truncated(query: &[u8]) -> Vec<u8> {
    head(query, [0x83, 0x80], 0)
}

fn answer(query: &[u8], address: Ipv4Addr) -> Vec<u8> {
    let empty = head(query, [0x81, 0x80], 0);
    // The question ends with its type and its class: A and IN.
    if empty[empty.len() - 4..] != [0, 1, 0, 1] {
        return empty;
    }
    // The name of the question, type A, class IN, a time to live of 0, four bytes.
    let record = [0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4];
    [&head(query, [0x81, 0x80], 1)[..], &record, &address.octets()].concat()
}
