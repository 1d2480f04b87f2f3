//! Switching from the user that started us to one with fewer rights (`-u`).

use std::fmt;
use std::str::FromStr;

use nix::errno::Errno;
use nix::unistd::{Gid, Group, Uid, User, geteuid, getresgid, getresuid, setgroups, setresgid, setresuid};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use thiserror::Error;

/// `USER[:GROUP]` or `:GROUP`, each a name or a number. Only the text: it is looked up by [`Identity::of`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct UserName {
    user: Option<String>,
    group: Option<String>,
}

/// A text that names neither a user nor a group.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("'{0}' names no user; write USER, USER:GROUP or :GROUP, by name or number")]
pub struct NotAUserName(String);

impl FromStr for UserName {
    type Err = NotAUserName;

    fn from_str(text: &str) -> Result<Self, NotAUserName> {
        let bad = || NotAUserName(text.to_owned());
        let (user, group) = match text.split_once(':') {
            Some((_, "")) => return Err(bad()),
            Some((user, group)) => (user, Some(group)),
            None => (text, None),
        };
        if (user.is_empty() && group.is_none()) || group.is_some_and(|group| group.contains(':')) {
            return Err(bad());
        }
        Ok(Self {
            user: Some(user).filter(|user| !user.is_empty()).map(ToOwned::to_owned),
            group: group.map(ToOwned::to_owned),
        })
    }
}

impl fmt::Display for UserName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.user.as_deref().unwrap_or_default())?;
        self.group.as_ref().map_or(Ok(()), |group| write!(formatter, ":{group}"))
    }
}

/// Why a name stands for nobody.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LookupError {
    /// There is no such user or group.
    #[error("there is no {what} '{name}' on this host; create it or choose another")]
    Unknown {
        /// "user" or "group".
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// The operating system says no.
    #[error("cannot look up the {what} '{name}': {source}")]
    Failed {
        /// "user" or "group".
        what: &'static str,
        /// Its name.
        name: String,
        /// Why.
        source: Errno,
    },
}

/// The user of a name or a number, and its group if it is in the database.
fn user(name: &str) -> Result<(Uid, Option<Gid>), LookupError> {
    let failed = |source| LookupError::Failed { what: "user", name: name.to_owned(), source };
    // A name that is all digits is a name first, as it is for chown(1).
    if let Some(user) = User::from_name(name).map_err(failed)? {
        return Ok((user.uid, Some(user.gid)));
    }
    let unknown = |_| LookupError::Unknown { what: "user", name: name.to_owned() };
    let uid = name.parse().map(Uid::from_raw).map_err(unknown)?;
    Ok((uid, User::from_uid(uid).map_err(failed)?.map(|user| user.gid)))
}

/// The group of a name or a number.
fn group(name: &str) -> Result<Gid, LookupError> {
    let failed = |source| LookupError::Failed { what: "group", name: name.to_owned(), source };
    if let Some(group) = Group::from_name(name).map_err(failed)? {
        return Ok(group.gid);
    }
    let unknown = |_| LookupError::Unknown { what: "group", name: name.to_owned() };
    name.parse().map(Gid::from_raw).map_err(unknown)
}

impl UserName {
    /// The user and the group that it names, as numbers. As for chown(1), a user's own group is not meant.
    ///
    /// # Errors
    /// [`LookupError`].
    pub fn ids(&self) -> Result<(Option<u32>, Option<u32>), LookupError> {
        let uid = self.user.as_deref().map(user).transpose()?.map(|(uid, _)| uid.as_raw());
        let gid = self.group.as_deref().map(group).transpose()?.map(Gid::as_raw);
        Ok((uid, gid))
    }
}

/// Why the process does not have the user and group that it should have.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PrivilegesError {
    /// There is no such user or group.
    #[error("-u {wanted}: {source}")]
    Lookup {
        /// What was asked for.
        wanted: UserName,
        /// Why.
        source: LookupError,
    },
    /// A number that no user has comes without a group.
    #[error("-u {0}: this user is not in the user database, so its group is not known; write {0}:GROUP")]
    GroupUnknown(UserName),
    /// The operating system says no.
    #[error("-u {wanted}: cannot {doing}: {source}{}", if *.source == Errno::EPERM { "; start spipe as root, or leave -u out" } else { "" })]
    Refused {
        /// What was asked for.
        wanted: UserName,
        /// What was tried.
        doing: &'static str,
        /// Why.
        source: Errno,
    },
    /// It said yes, but did not do it.
    #[error("-u {0}: the way back to the old user is still open, and spipe does not run like that")]
    StillPrivileged(UserName),
}

/// A user and a group that exist.
pub struct Identity {
    wanted: UserName,
    /// None keeps the one we have.
    uid: Option<Uid>,
    gid: Gid,
}

impl Identity {
    /// Looks `wanted` up in the user database.
    ///
    /// # Errors
    /// [`PrivilegesError`], when there is no such user or group.
    pub fn of(wanted: &UserName) -> Result<Self, PrivilegesError> {
        let refused =
            |doing| move |source| PrivilegesError::Refused { wanted: wanted.clone(), doing, source };
        let unknown = |source| PrivilegesError::Lookup { wanted: wanted.clone(), source };
        let (uid, own_group) = match &wanted.user {
            None => (None, None),
            Some(name) => user(name).map(|(uid, own_group)| (Some(uid), own_group)).map_err(unknown)?,
        };
        let gid = match &wanted.group {
            None => own_group.ok_or_else(|| PrivilegesError::GroupUnknown(wanted.clone()))?,
            Some(name) => group(name).map_err(unknown)?,
        };
        // The value that setresuid(2) takes for "leave it as it is".
        if uid.is_some_and(|uid| uid.as_raw() == u32::MAX) || gid.as_raw() == u32::MAX {
            return Err(refused("switch to it")(Errno::EINVAL));
        }
        Ok(Self { wanted: wanted.clone(), uid, gid })
    }

    /// The user, if it is another one than now.
    pub fn uid(&self) -> Option<u32> {
        self.uid.map(Uid::as_raw)
    }

    /// Switches to it for good, with all of the process: real, effective and saved ids, and no other groups.
    ///
    /// # Errors
    /// [`PrivilegesError`]; the process is not to go on then, for it may be half of each.
    pub fn assume(self) -> Result<(), PrivilegesError> {
        let Self { wanted, uid, gid } = self;
        let refused = |doing| {
            let wanted = &wanted;
            move |source| PrivilegesError::Refused { wanted: wanted.clone(), doing, source }
        };
        if !geteuid().is_root() && is_current(uid, gid).map_err(refused("ask for the user"))? {
            // A service manager has done it. Only root could do more: leave further groups.
            return Ok(());
        }
        // The groups first: the right to change them goes with the user.
        setgroups(&[gid]).map_err(refused("leave the other groups"))?;
        setresgid(gid, gid, gid).map_err(refused("change the group"))?;
        if let Some(uid) = uid {
            setresuid(uid, uid, uid).map_err(refused("change the user"))?;
        }
        // A system call filter may make believe, and rights other than root's (CAP_SETUID) survive some changes. So we look,
        // and try the way back.
        let group = getresgid().map_err(refused("ask for the group"))?;
        let mut changed = [group.real, group.effective, group.saved] == [gid; 3];
        if let Some(uid) = uid {
            let user = getresuid().map_err(refused("ask for the user"))?;
            changed &= [user.real, user.effective, user.saved] == [uid; 3];
            changed &=
                uid.is_root() || setresuid(Uid::from_raw(0), Uid::from_raw(0), Uid::from_raw(0)).is_err();
        }
        if !changed {
            return Err(PrivilegesError::StillPrivileged(wanted));
        }
        // A change of user undoes this (prctl(2), PR_SET_DUMPABLE), and keys are in memory.
        set_dumpable_behavior(DumpableBehavior::NotDumpable)
            .map_err(|error| refused("keep keys out of core dumps")(Errno::from_raw(error.raw_os_error())))
    }
}

/// Whether the process has this user, if one is given, and this group, in every way.
fn is_current(uid: Option<Uid>, gid: Gid) -> Result<bool, Errno> {
    let (user, group) = (getresuid()?, getresgid()?);
    let has_user = uid.is_none_or(|uid| [user.real, user.effective, user.saved] == [uid; 3]);
    Ok(has_user && [group.real, group.effective, group.saved] == [gid; 3])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_read_and_written() {
        for text in ["redis", "redis:redis", ":redis", "100:200", "100"] {
            assert_eq!(text.parse::<UserName>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_text_that_names_no_user_is_refused() {
        for text in ["", ":", "redis:", "a:b:c", "::"] {
            assert_eq!(text.parse::<UserName>(), Err(NotAUserName(text.to_owned())), "{text}");
        }
    }

    fn error(text: &str) -> String {
        Identity::of(&text.parse().unwrap()).err().expect("there is none of that name").to_string()
    }

    #[test]
    fn a_user_or_group_that_does_not_exist_is_refused() {
        assert!(error("no-such-user").contains("there is no user 'no-such-user'"));
        assert!(error("root:no-such-group").contains("there is no group 'no-such-group'"));
        assert!(error(":no-such-group").contains("there is no group 'no-such-group'"));
        // Digits, but no number that a user can have.
        assert!(error("99999999999").contains("there is no user"));
    }

    #[test]
    fn a_number_that_no_user_has_needs_a_group() {
        assert!(error("4000000000").contains("write 4000000000:GROUP"));
        assert!(Identity::of(&"4000000000:4000000000".parse().unwrap()).is_ok());
    }

    #[test]
    fn the_number_that_means_no_change_is_refused() {
        assert!(error("4294967295:1").contains("Invalid argument"));
        assert!(error(":4294967295").contains("Invalid argument"));
    }

    #[test]
    fn names_are_looked_up() {
        let root = Identity::of(&"root".parse().unwrap()).unwrap();
        assert_eq!((root.uid, root.gid), (Some(Uid::from_raw(0)), Gid::from_raw(0)));
        let group_only = Identity::of(&":root".parse().unwrap()).unwrap();
        assert_eq!((group_only.uid, group_only.gid), (None, Gid::from_raw(0)));
    }
}
