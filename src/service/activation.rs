//! Sockets that the service manager has opened for us (socket activation, `sd_listen_fds(3)`): they listen while we are
//! being restarted, and their ports may be below 1024 without any right of ours.

use std::env;
use std::io;
use std::os::fd::AsFd;

use listenfd::ListenFd;
use socket2::{Domain, SockRef, Type};
use thiserror::Error;

use crate::listen::Passed;

/// Why a passed socket cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ActivationError {
    /// Something else than a listening stream socket.
    #[error(
        "systemd has passed {what} as '{name}', and spipe takes stream sockets that listen; in the .socket unit, write \
         ListenStream= and Accept=no"
    )]
    Unusable {
        /// `FileDescriptorName=`
        name: String,
        /// What it is.
        what: &'static str,
    },
    /// As many names as sockets are expected, or none.
    #[error("LISTEN_FDNAMES has {names} names for {sockets} sockets; let systemd set it, or unset it")]
    Names {
        /// How many names.
        names: usize,
        /// How many sockets.
        sockets: usize,
    },
    /// The operating system says no.
    #[error("cannot use the socket '{name}' that systemd has passed: {source}")]
    Refused {
        /// `FileDescriptorName=`
        name: String,
        /// Why.
        source: io::Error,
    },
}

/// Takes the sockets that were passed to this process, if any, once for the process.
///
/// # Errors
/// [`ActivationError`], for the first that is of no use.
pub fn take() -> Result<Passed, ActivationError> {
    let names = env::var("LISTEN_FDNAMES").ok();
    let mut descriptors = ListenFd::from_env();
    let count = descriptors.len();
    let names: Vec<String> = match names {
        Some(names) if count > 0 => names.split(':').map(ToOwned::to_owned).collect(),
        // What sd_listen_fds_with_names(3) says then.
        _ => vec!["unknown".to_owned(); count],
    };
    if names.len() != count {
        return Err(ActivationError::Names { names: names.len(), sockets: count });
    }
    let mut passed = Passed::default();
    for (index, name) in names.into_iter().enumerate() {
        take_one(&mut descriptors, index, &name, &mut passed)?;
    }
    Ok(passed)
}

fn take_one(
    descriptors: &mut ListenFd,
    index: usize,
    name: &str,
    passed: &mut Passed,
) -> Result<(), ActivationError> {
    let unusable = |what| ActivationError::Unusable { name: name.to_owned(), what };
    let refused = |source| ActivationError::Refused { name: name.to_owned(), source };
    // Each of these looks at the family and the type, and leaves what is of another.
    if let Ok(Some(socket)) = descriptors.take_tcp_listener(index) {
        check(&socket).map_err(refused)?.map_or(Ok(()), |what| Err(unusable(what)))?;
        return passed.add_tcp(name.to_owned(), socket).map_err(refused);
    }
    if let Ok(Some(socket)) = descriptors.take_unix_listener(index) {
        check(&socket).map_err(refused)?.map_or(Ok(()), |what| Err(unusable(what)))?;
        return passed.add_unix(name.to_owned(), socket).map_err(refused);
    }
    Err(unusable("something that is no stream socket"))
}

/// What is wrong with a stream socket, if something is.
fn check(socket: &impl AsFd) -> io::Result<Option<&'static str>> {
    let socket = SockRef::from(socket);
    if !socket.is_listener()? {
        return Ok(Some("a connection or a socket that does not listen"));
    }
    // The families are looked at as well, but not which protocol of them this is: MPTCP carries bytes as TCP does.
    let known = [Domain::IPV4, Domain::IPV6, Domain::UNIX].contains(&socket.domain()?);
    Ok((!known || socket.r#type()? != Type::STREAM).then_some("a socket of another kind"))
}
