//! End to end: the real binary between real clients and services. Each test is named after the one behaviour it shows;
//! the modules follow the README's promises.

mod support;

mod activation;
mod addresses;
mod background;
mod bytes;
mod ciphers;
mod command_line;
mod configuration;
mod cuts;
mod documents;
mod drain;
mod keepalive;
mod key_files;
mod limits;
mod log_destinations;
mod logs;
mod many_pipes;
mod notification;
mod pid_files;
mod redis;
mod reload;
mod resets;
mod sandbox;
mod several_keys;
mod signals;
mod stdio;
mod strangers;
mod unix_sockets;
mod users;
