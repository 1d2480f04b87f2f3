//! Who may read the status: a password, or no more than being on this host.

use std::net::IpAddr;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64ct::{Base64, Encoding};
use hyper::header::{AUTHORIZATION, HOST};
use hyper::{HeaderMap, Uri};
use sha_crypt::{PasswordVerifier, ShaCrypt};
use thiserror::Error;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use zeroize::Zeroizing;

use crate::proto::secret::are_equal;

/// The pause after a wrong password, in which no other is looked at: strangers get four guesses a second, all together, and cost
/// next to no processor time.
const PAUSE: Duration = Duration::from_millis(250);

/// A user of the status page, and a hash of the password: `USER:HASH`, as openssl-passwd(1) with -6 makes it.
#[derive(Clone, PartialEq, Eq)]
pub struct StatusUser {
    name: String,
    hash: String,
}

/// A text that is no [`StatusUser`].
#[derive(Debug, Error, PartialEq, Eq)]
pub enum NotAStatusUser {
    /// There is no colon, or nothing before it.
    #[error("write USER:HASH, with what 'openssl passwd -6' prints as HASH")]
    Form,
    /// The hash is of another kind, or a password.
    #[error("the hash is to begin with $6$ (or $5$) and to be whole, as 'openssl passwd -6' prints it")]
    Hash,
}

impl FromStr for StatusUser {
    type Err = NotAStatusUser;

    fn from_str(text: &str) -> Result<Self, NotAStatusUser> {
        let (name, hash) = text.split_once(':').ok_or(NotAStatusUser::Form)?;
        if name.is_empty() {
            return Err(NotAStatusUser::Form);
        }
        // The wrong password is the one answer that a good hash gives to this.
        match ShaCrypt::default().verify_password(b"", hash) {
            Ok(()) | Err(sha_crypt::password_hash::Error::PasswordInvalid) => {}
            Err(_) => return Err(NotAStatusUser::Hash),
        }
        Ok(Self { name: name.to_owned(), hash: hash.to_owned() })
    }
}

impl StatusUser {
    /// Whether `credentials` are the user's name and password, as RFC 7617 has them. Takes milliseconds.
    fn is(&self, credentials: &str) -> bool {
        let Some(encoded) = credentials.strip_prefix("Basic ") else { return false };
        let Ok(decoded) = Base64::decode_vec(encoded.trim()).map(Zeroizing::new) else { return false };
        let Some(colon) = decoded.iter().position(|byte| *byte == b':') else { return false };
        let (name, password) = (&decoded[..colon], &decoded[colon + 1..]);
        let is_password = ShaCrypt::default().verify_password(password, &*self.hash).is_ok();
        // Both are looked at in any case.
        are_equal(name, self.name.as_bytes()) & is_password
    }
}

/// Who may read the status: pure data.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Access {
    /// Who can connect. The sockets are out of reach of other hosts, and browsers that are here are not tricked into reading it.
    Local,
    /// Anybody (`--status-public`).
    Anybody,
    /// Who has the password.
    User(StatusUser),
}

/// Looks at requests.
pub(super) struct Guard {
    access: Access,
    /// Credentials that were right: a scraper sends them each second, and looking at them anew takes milliseconds.
    known: Mutex<Option<Zeroizing<String>>>,
    /// One look at a time.
    looking: Semaphore,
}

/// Why a request is not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It names a host that is none of ours: a page of somebody else's may have made a browser send it (DNS rebinding).
    WrongHost,
    /// It has no password, or a wrong one.
    Unauthorized,
}

impl Guard {
    pub(super) fn new(access: Access) -> Arc<Self> {
        Arc::new(Self { access, known: Mutex::default(), looking: Semaphore::new(1) })
    }

    /// Whether a request with these `headers` may be answered.
    ///
    /// # Errors
    /// [`Refusal`].
    pub(super) async fn admit(self: &Arc<Self>, uri: &Uri, headers: &HeaderMap) -> Result<(), Refusal> {
        match &self.access {
            Access::Anybody => Ok(()),
            Access::Local if is_local(uri, headers) => Ok(()),
            Access::Local => Err(Refusal::WrongHost),
            Access::User(user) => {
                let credentials = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
                let credentials = credentials.ok_or(Refusal::Unauthorized)?;
                if self.is_known(credentials) {
                    return Ok(());
                }
                let _one_at_a_time = self.looking.acquire().await.expect("the semaphore is never closed");
                let (user, credentials) = (user.clone(), Zeroizing::new(credentials.to_owned()));
                let looked = spawn_blocking(move || (user.is(&credentials), credentials)).await;
                let Ok((true, credentials)) = looked else {
                    sleep(PAUSE).await;
                    return Err(Refusal::Unauthorized);
                };
                *self.known.lock().unwrap_or_else(PoisonError::into_inner) = Some(credentials);
                Ok(())
            }
        }
    }

    fn is_known(&self, credentials: &str) -> bool {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.as_ref().is_some_and(|known| are_equal(known.as_bytes(), credentials.as_bytes()))
    }
}

/// Whether the host that a request names is this one, by address or as localhost: a name of somebody else's may lead here as well.
fn is_local(uri: &Uri, headers: &HeaderMap) -> bool {
    let named = match uri.host() {
        Some(host) => Some(host.to_owned()),
        None => headers.get(HOST).and_then(|value| value.to_str().ok()).map(without_port),
    };
    let Some(host) = named else { return true };
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare.parse::<IpAddr>().is_ok()
        || host.eq_ignore_ascii_case("localhost")
        || host.to_ascii_lowercase().ends_with(".localhost")
        || host.is_empty()
}

fn without_port(host: &str) -> String {
    match host.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host.to_owned(),
        _ => host.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `openssl passwd -6 -salt saltsalt 'open: sesame'`
    const HASH: &str =
        "$6$saltsalt$wGBiwlGgVvxvlDIPXWGeLICYcWfEYj9QW0Dr7uPtLrEqapYQ.N7ZeYUUjuigWIq4hBAlHir7TNXRQiyUdu4GT.";

    fn basic(credentials: &str) -> HeaderMap {
        let value = format!("Basic {}", Base64::encode_string(credentials.as_bytes()));
        [(AUTHORIZATION, value.parse().unwrap())].into_iter().collect()
    }

    fn guard() -> Arc<Guard> {
        Guard::new(Access::User(format!("admin:{HASH}").parse().unwrap()))
    }

    async fn admit(guard: &Arc<Guard>, headers: &HeaderMap) -> Result<(), Refusal> {
        guard.admit(&Uri::from_static("/"), headers).await
    }

    #[tokio::test]
    async fn the_password_that_openssl_has_hashed_is_right() {
        assert_eq!(admit(&guard(), &basic("admin:open: sesame")).await, Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_wrong_user_or_password_is_refused_after_a_pause() {
        let guard = guard();
        for credentials in ["admin:open sesame", "admin:", "root:open: sesame", ":", "admin", ""] {
            let start = tokio::time::Instant::now();
            assert_eq!(admit(&guard, &basic(credentials)).await, Err(Refusal::Unauthorized), "{credentials}");
            assert_eq!(start.elapsed(), PAUSE);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn guesses_of_many_at_once_are_looked_at_one_after_the_other() {
        let (guard, start) = (guard(), tokio::time::Instant::now());
        let guesses = (0..8).map(|guess| {
            let guard = Arc::clone(&guard);
            tokio::spawn(async move { admit(&guard, &basic(&format!("admin:{guess}"))).await })
        });
        for guess in guesses.collect::<Vec<_>>() {
            assert_eq!(guess.await.unwrap(), Err(Refusal::Unauthorized));
        }
        assert_eq!(start.elapsed(), 8 * PAUSE);
    }

    #[tokio::test(start_paused = true)]
    async fn credentials_that_were_right_are_not_kept_waiting_by_guesses() {
        let guard = guard();
        admit(&guard, &basic("admin:open: sesame")).await.unwrap();
        let _guessing = guard.looking.acquire().await.unwrap();
        assert_eq!(admit(&guard, &basic("admin:open: sesame")).await, Ok(()));
    }

    #[tokio::test]
    async fn a_request_without_a_password_is_refused_at_once() {
        assert_eq!(admit(&guard(), &HeaderMap::new()).await, Err(Refusal::Unauthorized));
    }

    #[test]
    fn a_password_in_the_place_of_its_hash_is_refused() {
        for (text, error) in [
            ("admin", NotAStatusUser::Form),
            (":x", NotAStatusUser::Form),
            ("admin:sesame", NotAStatusUser::Hash),
            ("admin:$6$saltsalt", NotAStatusUser::Hash),
            ("admin:$2y$05$abc", NotAStatusUser::Hash),
            ("admin:", NotAStatusUser::Hash),
        ] {
            assert_eq!(text.parse::<StatusUser>().err(), Some(error), "{text}");
        }
    }

    #[tokio::test]
    async fn a_host_that_leads_here_by_somebody_elses_name_is_refused() {
        let guard = Guard::new(Access::Local);
        for (host, is_ours) in [
            ("127.0.0.1:9000", true),
            ("[::1]:9000", true),
            ("localhost:9000", true),
            ("LOCALHOST", true),
            ("redis.localhost", true),
            ("evil.example", false),
            ("localhost.evil.example:9000", false),
            ("127.0.0.1.evil.example", false),
        ] {
            let headers = [(HOST, host.parse().unwrap())].into_iter().collect();
            assert_eq!(guard.admit(&Uri::from_static("/"), &headers).await.is_ok(), is_ours, "{host}");
        }
        let absolute = Uri::from_static("http://evil.example/");
        assert_eq!(guard.admit(&absolute, &HeaderMap::new()).await, Err(Refusal::WrongHost));
    }
}
