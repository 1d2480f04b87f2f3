//! Which command line is meant: the name that we were called by decides.

use std::env;
use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, absolute};

/// Whose command line it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Called {
    /// Our own.
    Spipe,
    /// That of spiped: called by this name, wherever it is.
    Spiped,
    /// That of the spipe that comes with spiped: called by this name, in or below a directory `libexec`.
    SpipedsSpipe,
}

impl Called {
    /// What this process was called.
    pub fn by_name() -> Self {
        let name = env::args_os().next().unwrap_or_default();
        // The path that execve(2) was given, before any link was followed. A shell that has found us by PATH gives a path here,
        // and the name alone as argv[0].
        let executed = Path::new(OsStr::from_bytes(rustix::param::linux_execfn().to_bytes()));
        let executed = absolute(executed).unwrap_or_else(|_| executed.to_owned());
        Self::of(Path::new(&name), &executed)
    }

    fn of(name: &Path, executed: &Path) -> Self {
        let is_in_libexec =
            || executed.parent().is_some_and(|parent| parent.iter().any(|part| part == "libexec"));
        match name.file_name() {
            Some(name) if name == "spiped" => Self::Spiped,
            Some(name) if name == "spipe" && is_in_libexec() => Self::SpipedsSpipe,
            _ => Self::Spipe,
        }
    }
}

/// What goes before messages for people.
impl fmt::Display for Called {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Spipe | Self::SpipedsSpipe => "spipe",
            Self::Spiped => "spiped",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_decides_and_for_spipe_the_directory_too() {
        for (name, executed, expected) in [
            ("spiped", "/usr/bin/spiped", Called::Spiped),
            ("/usr/bin/spiped", "/usr/bin/spiped", Called::Spiped),
            ("../spiped", "/srv/spiped", Called::Spiped),
            ("spipe", "/usr/libexec/spipe", Called::SpipedsSpipe),
            ("/usr/libexec/spiped/spipe", "/usr/libexec/spiped/spipe", Called::SpipedsSpipe),
            ("./spipe", "/usr/libexec/spiped/spipe", Called::SpipedsSpipe),
            ("spipe", "/usr/bin/spipe", Called::Spipe),
            ("/usr/bin/spipe", "/usr/bin/spipe", Called::Spipe),
            ("spipe", "/usr/libexec-old/spipe", Called::Spipe),
            ("spipe", "/usr/bin/libexec", Called::Spipe),
            ("other", "/usr/libexec/other", Called::Spipe),
            ("spiped.old", "/usr/bin/spiped.old", Called::Spipe),
            ("-spiped", "/usr/bin/spiped", Called::Spipe),
            ("", "/usr/bin/spiped", Called::Spipe),
        ] {
            assert_eq!(Called::of(Path::new(name), Path::new(executed)), expected, "{name} at {executed}");
        }
    }
}
