//! Files.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use spipe::addr::Target;
use spipe::service::log::Destination;
use spipe::service::pid_file::PidFile;
use spipe::service::sandbox::Needs;

use crate::isolated::{assert_denied, assert_no_such_call, enter_sandbox, isolated};

/// Makes a file with this name and some content, and the directories above it.
pub(crate) fn file(directory: &Path, name: &str) -> PathBuf {
    let path = directory.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, name).unwrap();
    path
}

#[test]
fn files_without_a_need_cannot_be_read() {
    isolated(|directory| {
        let (key, other) = (file(directory, "keys/key"), file(directory, "other/file"));
        let mut needs = Needs::new();
        needs.key(&key);
        needs.dial(&"192.0.2.1:80".parse::<Target>().unwrap().into());
        enter_sandbox(&needs);
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
fn readable_files_cannot_be_written() {
    isolated(|directory| {
        let key = file(directory, "keys/key");
        let mut needs = Needs::new();
        needs.key(&key);
        enter_sandbox(&needs);
        assert_denied(File::options().write(true).open(&key));
        assert_denied(File::options().append(true).open(&key));
        assert_denied(File::options().write(true).truncate(true).open(&key));
        assert_denied(fs::remove_file(&key));
    });
}

#[test]
fn files_can_be_made_and_replaced_in_the_state_directory_and_nowhere_else() {
    isolated(|directory| {
        let (state, key) = (directory.join("state"), file(directory, "keys/key"));
        fs::create_dir(&state).unwrap();
        let mut needs = Needs::new();
        needs.state_directory(&state);
        needs.key(&key);
        enter_sandbox(&needs);
        for content in ["first", "second"] {
            fs::write(state.join("new"), content).unwrap();
            fs::rename(state.join("new"), state.join("it")).unwrap();
        }
        // What was written there before is of no use to a process that has it in memory.
        assert_denied(fs::read(state.join("it")));
        for elsewhere in [directory.join("keys/new"), directory.join("new"), "/tmp/new".into()] {
            assert_denied(File::create(elsewhere));
        }
        assert_denied(fs::write(&key, "replaced"));
        fs::write(state.join("new"), "third").unwrap();
        assert!(fs::rename(state.join("new"), &key).is_err());
        assert_eq!(fs::read_to_string(key).unwrap(), "keys/key");
    });
}

#[test]
fn no_file_can_be_created_moved_or_changed_anywhere() {
    isolated(|directory| {
        let socket: spipe::addr::Source = directory.join("sockets/s").to_str().unwrap().parse().unwrap();
        let here = file(directory, "sockets/here");
        let mut needs = Needs::new();
        // The directory with the most rights.
        needs.listen_at(&socket);
        needs.configuration(&here);
        enter_sandbox(&needs);
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
fn only_the_key_can_be_read_in_a_home_directory() {
    isolated(|directory| {
        let (key, neighbour) = (file(directory, "home/key"), file(directory, "home/.ssh/id_ed25519"));
        let mut needs = Needs::new();
        needs.key(&key);
        enter_sandbox(&needs);
        assert_denied(File::open(neighbour));
        assert_denied(fs::read_dir(directory.join("home")));
        assert!(File::open(key).is_ok());
    });
}

#[test]
fn only_the_key_can_be_read_in_a_top_level_directory() {
    isolated(|directory| {
        let top = Path::new("/dev/shm").join(directory.file_name().unwrap());
        fs::write(&top, "key").unwrap();
        let mut needs = Needs::new();
        needs.key(Path::new("/etc/hostname"));
        needs.key(&top);
        // An open file stays readable after it is removed, and the test must leave no file behind.
        let open = File::open(&top).unwrap();
        fs::remove_file(&top).unwrap();
        enter_sandbox(&needs);
        assert_denied(File::open("/etc/passwd"));
        assert_denied(fs::read_dir("/etc"));
        assert_denied(fs::read_dir("/dev/shm"));
        assert!(open.metadata().is_ok());
        assert!(File::open("/etc/hostname").is_ok());
    });
}

#[test]
fn a_key_behind_links_can_be_read() {
    isolated(|directory| {
        let (key, neighbour) = (file(directory, "store/secret/key"), file(directory, "store/file"));
        fs::create_dir(directory.join("keys")).unwrap();
        let link = directory.join("keys/link");
        symlink(&key, &link).unwrap();
        let mut needs = Needs::new();
        needs.key(&link);
        enter_sandbox(&needs);
        assert_eq!(fs::read_to_string(&link).unwrap(), "store/secret/key");
        assert_denied(File::open(neighbour));
    });
}

#[test]
fn a_link_beside_the_keys_to_another_directory_cannot_be_followed() {
    isolated(|directory| {
        let (key, secret) = (file(directory, "keys/key"), file(directory, "other/secret"));
        let link = directory.join("keys/link");
        symlink(secret, &link).unwrap();
        let mut needs = Needs::new();
        needs.key(&key);
        enter_sandbox(&needs);
        assert_denied(File::open(link));
    });
}

#[test]
fn a_relative_key_can_be_read_after_a_change_of_directory() {
    isolated(|directory| {
        let key = file(directory, "keys/key");
        std::env::set_current_dir(directory).unwrap();
        let mut needs = Needs::new();
        needs.key(Path::new("keys/key"));
        // As --daemon does.
        std::env::set_current_dir("/").unwrap();
        enter_sandbox(&needs);
        assert!(File::open(key).is_ok());
    });
}

#[test]
fn only_the_directory_of_keys_can_be_listed_and_read() {
    isolated(|directory| {
        let (first, beside) = (file(directory, "keys/a.key"), file(directory, "key"));
        file(directory, "keys/b.key");
        let mut needs = Needs::new();
        needs.key(&directory.join("keys"));
        enter_sandbox(&needs);
        assert_eq!(fs::read_dir(directory.join("keys")).unwrap().count(), 2);
        assert!(File::open(first).is_ok());
        assert_denied(File::open(beside));
    });
}

#[test]
fn a_socket_can_be_removed_at_the_end_and_no_file_in_another_directory() {
    isolated(|directory| {
        let elsewhere = file(directory, "other/file");
        fs::create_dir(directory.join("sockets")).unwrap();
        let path = directory.join("sockets/s");
        let source = path.to_str().unwrap().parse().unwrap();
        let bound = spipe::listen::listen(
            &source,
            &spipe::listen::SocketPermissions::default(),
            &mut spipe::listen::Passed::default(),
        )
        .unwrap();
        let secret = file(directory, "sockets/secret");
        let mut needs = Needs::new();
        needs.listen_at(&source);
        enter_sandbox(&needs);
        assert_denied(fs::remove_file(elsewhere));
        assert_denied(File::open(secret));
        assert_denied(fs::read_dir(directory.join("sockets")));
        drop(bound);
        assert!(!path.exists());
    });
}

#[test]
fn a_pipe_with_fixed_sockets_cannot_make_another() {
    isolated(|directory| {
        fs::create_dir(directory.join("sockets")).unwrap();
        let mut needs = Needs::new();
        needs.listen_at(&directory.join("sockets/s").to_str().unwrap().parse().unwrap());
        enter_sandbox(&needs);
        assert_no_such_call(UnixListener::bind(directory.join("sockets/other")));
    });
}

#[test]
fn the_pid_file_can_be_removed_at_the_end_and_no_file_in_another_directory() {
    isolated(|directory| {
        let elsewhere = file(directory, "other/file");
        fs::create_dir(directory.join("run")).unwrap();
        let path = directory.join("run/spipe.pid");
        let pid_file = PidFile::create(&path, None).unwrap();
        let mut needs = Needs::new();
        needs.pid_file(&path);
        enter_sandbox(&needs);
        assert_denied(fs::remove_file(elsewhere));
        assert_denied(File::open(&path));
        drop(pid_file);
        assert!(!path.exists());
    });
}

#[test]
fn the_pid_file_cannot_be_written() {
    isolated(|directory| {
        let path = directory.join("spipe.pid");
        let pid_file = PidFile::create(&path, None).unwrap();
        let mut needs = Needs::new();
        needs.pid_file(&path);
        // Descriptors are looked at before /proc is out of reach.
        let writable: Vec<_> = fs::read_dir("/proc/self/fdinfo")
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|number| fs::read_link(format!("/proc/self/fd/{number}")).is_ok_and(|file| file == path))
            .filter(|number| {
                // Of `flags: 0100000`, in octal, the lowest digit is the access mode.
                let information = fs::read_to_string(format!("/proc/self/fdinfo/{number}")).unwrap();
                !information.lines().any(|line| line.starts_with("flags:") && line.ends_with('0'))
            })
            .collect();
        assert!(writable.is_empty(), "{writable:?}");
        enter_sandbox(&needs);
        assert_denied(File::options().write(true).open(&path));
        drop(pid_file);
    });
}

#[test]
fn a_pid_file_that_cannot_be_removed_stays_as_it_is() {
    isolated(|directory| {
        let path = directory.join("spipe.pid");
        let pid_file = PidFile::create(&path, None).unwrap();
        enter_sandbox(&Needs::new());
        drop(pid_file);
        assert!(path.exists());
    });
}

#[test]
fn standard_output_can_become_the_null_device_only() {
    isolated(|_| {
        enter_sandbox(&Needs::new());
        assert!(File::options().write(true).open("/dev/null").is_ok());
        assert_denied(File::options().write(true).open("/dev/full"));
    });
}

#[test]
fn without_syslog_the_time_zone_cannot_be_read() {
    isolated(|_| {
        let mut needs = Needs::new();
        needs.log_to(Destination::Stderr);
        enter_sandbox(&needs);
        assert_denied(File::open("/etc/localtime"));
    });
}

#[test]
fn with_syslog_the_time_zone_can_be_read() {
    isolated(|_| {
        let mut needs = Needs::new();
        needs.log_to(Destination::Syslog);
        enter_sandbox(&needs);
        assert!(File::open("/etc/localtime").is_ok());
        assert_denied(File::open("/etc/passwd"));
    });
}

#[test]
fn missing_files_are_not_an_error() {
    isolated(|directory| {
        let mut needs = Needs::new();
        needs.key(&directory.join("missing/key"));
        needs.pid_file(&directory.join("missing/pid"));
        enter_sandbox(&needs);
        assert_denied(File::open("/etc/passwd"));
    });
}
