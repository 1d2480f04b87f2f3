//! The files and addresses that a reload (SIGHUP) may use.

use std::fs::{self, File};
use std::net::{TcpListener, TcpStream, ToSocketAddrs, UdpSocket};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use spipe::addr::{AddressError, Target};
use spipe::listen::{Passed, SocketPermissions, listen};
use spipe::service::sandbox::Needs;

use crate::files::file;
use crate::isolated::{
    assert_denied, enter_sandbox, enter_sandbox_and_then, isolated, isolated_in_namespaces,
};

/// Replaces a file, as editors do.
fn replace(path: &Path, content: &str) {
    let new = path.with_extension("new");
    fs::write(&new, content).unwrap();
    fs::rename(new, path).unwrap();
}

#[test]
fn a_replaced_key_can_be_read() {
    isolated(|directory| {
        let key = file(directory, "keys/key");
        let mut needs = Needs::new();
        needs.key(&key);
        let path = key.clone();
        enter_sandbox_and_then(&needs, move || replace(&path, "another"));
        assert_eq!(fs::read_to_string(key).unwrap(), "another");
    });
}

#[test]
fn an_added_key_can_be_read() {
    isolated(|directory| {
        let (keys, late) = (directory.join("keys"), directory.join("keys/late.key"));
        fs::create_dir(&keys).unwrap();
        let mut needs = Needs::new();
        needs.key(&keys);
        let path = late.clone();
        enter_sandbox_and_then(&needs, move || fs::write(path, "late").unwrap());
        assert_eq!(fs::read_dir(keys).unwrap().count(), 1);
        assert_eq!(fs::read_to_string(late).unwrap(), "late");
    });
}

#[test]
fn keys_switched_by_a_link_can_be_read() {
    isolated(|directory| {
        // As Kubernetes does.
        file(directory, "keys/..first/key");
        file(directory, "keys/..second/key");
        let (key, data) = (directory.join("keys/key"), directory.join("keys/..data"));
        symlink("..first", &data).unwrap();
        symlink("..data/key", &key).unwrap();
        let mut needs = Needs::new();
        needs.key(&key);
        enter_sandbox_and_then(&needs, move || {
            let new = data.with_file_name("..data_tmp");
            symlink("..second", &new).unwrap();
            fs::rename(new, data).unwrap();
        });
        assert_eq!(fs::read_to_string(key).unwrap(), "keys/..second/key");
    });
}

#[test]
fn a_key_in_a_home_directory_can_be_read_if_overwritten_but_not_if_replaced() {
    isolated(|directory| {
        let (written, replaced) = (file(directory, "home/written"), file(directory, "home/replaced"));
        let mut needs = Needs::new();
        needs.key(&written);
        needs.key(&replaced);
        let paths = (written.clone(), replaced.clone());
        enter_sandbox_and_then(&needs, move || {
            fs::write(paths.0, "another").unwrap();
            replace(&paths.1, "another");
        });
        assert_eq!(fs::read_to_string(written).unwrap(), "another");
        assert_denied(File::open(replaced));
    });
}

#[test]
fn credentials_refreshed_by_systemd_can_be_read() {
    isolated_in_namespaces(|directory| {
        let credentials = directory.join("credentials/spipe.service");
        let key = file(directory, "credentials/spipe.service/key");
        let other = file(directory, "other/secret");
        let mut needs = Needs::new();
        needs.key(&key);
        enter_sandbox_and_then(&needs, move || {
            // systemd replaces the file system with a new one.
            let nothing = None::<&str>;
            mount(Some("tmpfs"), &credentials, Some("tmpfs"), MsFlags::empty(), nothing).unwrap();
            fs::write(credentials.join("key"), "refreshed").unwrap();
        });
        assert_eq!(fs::read_to_string(key).unwrap(), "refreshed");
        assert_denied(File::open(other));
    });
}

/// The needs of a process with a configuration, a key and a socket, each in its own directory.
fn configured(directory: &Path) -> Needs {
    let mut needs = Needs::new();
    needs.configuration(&file(directory, "etc/spipe.toml"));
    needs.key(&file(directory, "keys/key"));
    fs::create_dir(directory.join("sockets")).unwrap();
    needs.listen_at(&directory.join("sockets/s").to_str().unwrap().parse().unwrap());
    needs.dial(&"192.0.2.1:80".parse::<Target>().unwrap().into());
    needs
}

#[test]
fn a_replaced_configuration_can_be_read() {
    isolated(|directory| {
        let path = directory.join("etc/spipe.toml");
        let needs = configured(directory);
        let late = path.clone();
        enter_sandbox_and_then(&needs, move || replace(&late, "another"));
        assert_eq!(fs::read_to_string(path).unwrap(), "another");
    });
}

#[test]
fn a_new_pipe_may_have_any_port_and_host_name() {
    isolated(|directory| {
        let target = TcpListener::bind("127.0.0.1:0").unwrap();
        enter_sandbox(&configured(directory));
        assert!(TcpStream::connect(target.local_addr().unwrap()).is_ok());
        assert!(
            listen(&"127.0.0.1:0".parse().unwrap(), &SocketPermissions::default(), &mut Passed::default())
                .is_ok()
        );
        assert!(("localhost", 80).to_socket_addrs().is_ok());
        assert!(UdpSocket::bind("127.0.0.1:0").is_ok());
    });
}

#[test]
fn a_new_pipe_may_name_a_service_of_a_database_that_was_replaced() {
    isolated_in_namespaces(|directory| {
        fs::write(directory.join("etc/nsswitch.conf"), "services: db files\n").unwrap();
        let services = file(directory, "etc/services");
        fs::write(&services, "early 4711/tcp\n").unwrap();
        let mut needs = Needs::new();
        needs.configuration(&file(directory, "configuration/spipe.toml"));
        enter_sandbox_and_then(&needs, move || replace(&services, "late 4712/tcp\nonly-udp 4713/udp\n"));
        assert_eq!("192.0.2.1:late".parse::<Target>().unwrap().to_string(), "[192.0.2.1]:4712");
        for unknown in ["early", "only-udp"] {
            let error = format!("192.0.2.1:{unknown}").parse::<Target>().unwrap_err();
            assert_eq!(error, AddressError::Service(unknown.to_owned()));
        }
    });
}

#[test]
fn services_cannot_be_looked_up_without_a_configuration_to_name_them() {
    isolated(|_| {
        enter_sandbox(&Needs::new());
        assert_eq!("192.0.2.1:http".parse::<Target>(), Err(AddressError::Service("http".to_owned())));
    });
}

#[test]
fn a_new_pipe_may_listen_in_the_directory_of_an_earlier_socket() {
    isolated(|directory| {
        let listen = |name: &str| {
            let path = directory.join(name);
            listen(
                &path.to_str().unwrap().parse().unwrap(),
                &SocketPermissions::default(),
                &mut Passed::default(),
            )
            .map(drop)
        };
        // A socket file that a killed process left behind.
        drop(UnixListener::bind({
            fs::create_dir(directory.join("sockets")).unwrap();
            directory.join("sockets/stale")
        }));
        fs::create_dir(directory.join("elsewhere")).unwrap();
        let mut needs = Needs::new();
        needs.configuration(&file(directory, "etc/spipe.toml"));
        needs.listen_at(&directory.join("sockets/s").to_str().unwrap().parse().unwrap());
        enter_sandbox(&needs);
        assert!(listen("sockets/new").is_ok());
        assert!(listen("sockets/stale").is_ok());
        let error = listen("elsewhere/new").expect_err("the sandbox forbids it");
        assert!(error.to_string().contains("Permission denied"), "{error}");
    });
}

#[test]
fn a_new_key_in_another_directory_cannot_be_read() {
    isolated(|directory| {
        let (here, elsewhere) = (directory.join("keys/late"), file(directory, "elsewhere/key"));
        let needs = configured(directory);
        let late = here.clone();
        enter_sandbox_and_then(&needs, move || fs::write(late, "late").unwrap());
        assert!(File::open(here).is_ok());
        assert_denied(File::open(elsewhere));
    });
}
