//! End to end: the real binary between real clients and services. Each test is named after the one behaviour it shows;
//! the modules follow the README's promises.

mod support;

mod addresses;
mod bytes;
mod ciphers;
mod command_line;
mod cuts;
mod keepalive;
mod key_files;
mod limits;
mod logs;
mod redis;
mod resets;
mod sandbox;
mod signals;
mod stdio;
mod strangers;
mod unix_sockets;
