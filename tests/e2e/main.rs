//! End-to-end tests: the real binary between real clients and targets. Each test is named after the one behaviour
//! that it tests. The modules follow the promises of the README.

mod support;

mod access;
mod activation;
mod addresses;
mod background;
mod bastion;
mod bytes;
mod checks;
mod ciphers;
mod command_line;
mod configuration;
mod cuts;
mod dead_paths;
mod documents;
mod drain;
mod failover;
mod floods;
mod forward_proxies;
mod gone;
mod keepalive;
mod key_files;
mod limits;
mod log_destinations;
mod logs;
mod many_pipes;
mod names;
mod notification;
mod pid_files;
mod proxies;
mod redis;
mod reload;
mod resets;
mod sandbox;
mod secrets;
mod several_keys;
mod several_targets;
mod signals;
mod stdio;
mod storm;
mod strangers;
mod time_limits;
mod tls_targets;
mod unix_sockets;
mod users;
