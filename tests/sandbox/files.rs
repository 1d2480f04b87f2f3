//! Files.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use spipe::addr::Target;
use spipe::service::log::Destination;
use spipe::service::pid_file::PidFile;
use spipe::service::sandbox::Needs;

use crate::isolated::{assert_denied, assert_no_such_call, isolated, lock_in};

/// A file with this name and some content, in directories that are made for it.
pub(crate) fn file(directory: &Path, name: &str) -> PathBuf {
    let path = directory.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, name).unwrap();
    path
}

#[test]
fn what_nobody_asked_for_cannot_be_read() {
    isolated(|directory| {
        let (key, other) = (file(directory, "keys/key"), file(directory, "other/file"));
        let mut needs = Needs::new();
        needs.key(&key);
        needs.dial(&"192.0.2.1:80".parse::<Target>().unwrap().into());
        lock_in(&needs);
        for path in [
            other.as_path(),
            Path::new("/etc/passwd"),
            Path::new("/proc/self/environ"),
            Path::new("/dev/zero"),
        ] {
            assert_denied(File::open(path));
        }
        for path in [directory, Path::new("/"), Path::new("/etc"), Path::new("/usr/lib")] {
            assert_denied(fs::read_dir(path));
        }
        assert_eq!(fs::read_to_string(key).unwrap(), "keys/key");
    });
}

#[test]
fn what_can_be_read_cannot_be_written() {
    isolated(|directory| {
        let key = file(directory, "keys/key");
        let mut needs = Needs::new();
        needs.key(&key);
        lock_in(&needs);
        assert_denied(File::options().write(true).open(&key));
        assert_denied(File::options().append(true).open(&key));
        assert_denied(File::options().write(true).truncate(true).open(&key));
        assert_denied(fs::remove_file(&key));
    });
}

#[test]
fn no_file_is_made_moved_or_changed_anywhere() {
    isolated(|directory| {
        let socket: spipe::addr::Source = directory.join("sockets/s").to_str().unwrap().parse().unwrap();
        let here = file(directory, "sockets/here");
        let mut needs = Needs::new();
        // The directory with the most rights.
        needs.listen_at(&socket);
        needs.configuration(&here);
        lock_in(&needs);
        let new = directory.join("sockets/new");
        assert_no_such_call(File::create(&new));
        assert_no_such_call(File::create_new(&new));
        assert_no_such_call(fs::rename(&here, &new));
        assert_no_such_call(fs::hard_link(&here, &new));
        assert_no_such_call(symlink(&here, &new));
        assert_no_such_call(fs::create_dir(&new));
        assert_no_such_call(fs::set_permissions(&here, fs::Permissions::from_mode(0o4755)));
        assert_no_such_call(std::os::unix::fs::chown(&here, Some(0), None));
    });
}

#[test]
fn the_neighbours_of_a_key_in_a_home_directory_stay_private() {
    isolated(|directory| {
        let (key, neighbour) = (file(directory, "home/key"), file(directory, "home/.ssh/id_ed25519"));
        let mut needs = Needs::new();
        needs.key(&key);
        lock_in(&needs);
        assert_denied(File::open(neighbour));
        assert_denied(fs::read_dir(directory.join("home")));
        assert!(File::open(key).is_ok());
    });
}

#[test]
fn a_key_in_a_top_level_directory_is_all_of_it_that_can_be_read() {
    isolated(|directory| {
        let top = Path::new("/dev/shm").join(directory.file_name().unwrap());
        fs::write(&top, "key").unwrap();
        let mut needs = Needs::new();
        needs.key(Path::new("/etc/hostname"));
        needs.key(&top);
        // It is still there for those who have it, and must not stay behind.
        let open = File::open(&top).unwrap();
        fs::remove_file(&top).unwrap();
        lock_in(&needs);
        assert_denied(File::open("/etc/passwd"));
        assert_denied(fs::read_dir("/etc"));
        assert_denied(fs::read_dir("/dev/shm"));
        assert!(open.metadata().is_ok());
        assert!(File::open("/etc/hostname").is_ok());
    });
}

#[test]
fn a_key_behind_links_can_be_read_where_they_lead() {
    isolated(|directory| {
        let (key, neighbour) = (file(directory, "store/secret/key"), file(directory, "store/file"));
        fs::create_dir(directory.join("keys")).unwrap();
        let link = directory.join("keys/link");
        symlink(&key, &link).unwrap();
        let mut needs = Needs::new();
        needs.key(&link);
        lock_in(&needs);
        assert_eq!(fs::read_to_string(&link).unwrap(), "store/secret/key");
        assert_denied(File::open(neighbour));
    });
}

#[test]
fn a_link_that_is_put_among_the_keys_later_leads_nowhere() {
    isolated(|directory| {
        let (key, secret) = (file(directory, "keys/key"), file(directory, "other/secret"));
        let link = directory.join("keys/link");
        symlink(secret, &link).unwrap();
        let mut needs = Needs::new();
        needs.key(&key);
        lock_in(&needs);
        assert_denied(File::open(link));
    });
}

#[test]
fn a_relative_key_is_where_it_was_when_it_was_named() {
    isolated(|directory| {
        let key = file(directory, "keys/key");
        std::env::set_current_dir(directory).unwrap();
        let mut needs = Needs::new();
        needs.key(Path::new("keys/key"));
        // As --daemon does.
        std::env::set_current_dir("/").unwrap();
        lock_in(&needs);
        assert!(File::open(key).is_ok());
    });
}

#[test]
fn a_directory_of_keys_can_be_listed_and_read_and_nothing_beside_it() {
    isolated(|directory| {
        let (first, beside) = (file(directory, "keys/a.key"), file(directory, "key"));
        file(directory, "keys/b.key");
        let mut needs = Needs::new();
        needs.key(&directory.join("keys"));
        lock_in(&needs);
        assert_eq!(fs::read_dir(directory.join("keys")).unwrap().count(), 2);
        assert!(File::open(first).is_ok());
        assert_denied(File::open(beside));
    });
}

#[test]
fn a_socket_can_be_removed_at_the_end_and_nothing_elsewhere() {
    isolated(|directory| {
        let elsewhere = file(directory, "other/file");
        fs::create_dir(directory.join("sockets")).unwrap();
        let path = directory.join("sockets/s");
        let source = path.to_str().unwrap().parse().unwrap();
        let bound = spipe::listen::listen(&source, &mut spipe::listen::Passed::default()).unwrap();
        let secret = file(directory, "sockets/secret");
        let mut needs = Needs::new();
        needs.listen_at(&source);
        lock_in(&needs);
        assert_denied(fs::remove_file(elsewhere));
        assert_denied(File::open(secret));
        assert_denied(fs::read_dir(directory.join("sockets")));
        drop(bound);
        assert!(!path.exists());
    });
}

#[test]
fn a_pipe_of_fixed_sockets_makes_no_other() {
    isolated(|directory| {
        fs::create_dir(directory.join("sockets")).unwrap();
        let mut needs = Needs::new();
        needs.listen_at(&directory.join("sockets/s").to_str().unwrap().parse().unwrap());
        lock_in(&needs);
        assert_no_such_call(UnixListener::bind(directory.join("sockets/other")));
    });
}

#[test]
fn the_pid_file_can_be_removed_at_the_end_and_nothing_elsewhere() {
    isolated(|directory| {
        let elsewhere = file(directory, "other/file");
        fs::create_dir(directory.join("run")).unwrap();
        let path = directory.join("run/spipe.pid");
        let pid_file = PidFile::create(&path).unwrap();
        let mut needs = Needs::new();
        needs.pid_file(&path);
        lock_in(&needs);
        assert_denied(fs::remove_file(elsewhere));
        assert_denied(File::open(&path));
        drop(pid_file);
        assert!(!path.exists());
    });
}

#[test]
fn a_pid_file_that_cannot_be_removed_is_emptied() {
    isolated(|directory| {
        let path = directory.join("spipe.pid");
        let pid_file = PidFile::create(&path).unwrap();
        lock_in(&Needs::new());
        drop(pid_file);
        assert_eq!(fs::metadata(&path).unwrap().len(), 0);
    });
}

#[test]
fn standard_output_can_become_the_null_device_and_no_other() {
    isolated(|_| {
        lock_in(&Needs::new());
        assert!(File::options().write(true).open("/dev/null").is_ok());
        assert_denied(File::options().write(true).open("/dev/full"));
    });
}

#[test]
fn without_syslog_the_time_zone_is_out_of_reach() {
    isolated(|_| {
        let mut needs = Needs::new();
        needs.log_to(Destination::Stderr);
        lock_in(&needs);
        assert_denied(File::open("/etc/localtime"));
    });
}

#[test]
fn the_time_zone_is_there_for_syslog() {
    isolated(|_| {
        let mut needs = Needs::new();
        needs.log_to(Destination::Syslog);
        lock_in(&needs);
        assert!(File::open("/etc/localtime").is_ok());
        assert_denied(File::open("/etc/passwd"));
    });
}

#[test]
fn what_is_not_there_is_no_failure() {
    isolated(|directory| {
        let mut needs = Needs::new();
        needs.key(&directory.join("missing/key"));
        needs.pid_file(&directory.join("missing/pid"));
        lock_in(&needs);
        assert_denied(File::open("/etc/passwd"));
    });
}
