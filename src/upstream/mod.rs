//! Connecting out: from the targets of a pipe to a connected stream.

mod attempt;
mod choice;
mod dial;
mod health;
mod route;
mod targets;
mod tls;
mod via;

pub use self::attempt::Refusals;
pub use self::choice::{Candidate, Choice, Chosen, InUse, Known, Next, Upstream};
pub use self::dial::{Connected, DialError, DialFailure, Dialer};
pub use self::health::{Condition, Standing};
pub use self::route::{FamilyMismatch, NotAServerName, NotOverInterface, NotThroughProxy, Route};
pub use self::targets::{Balance, Check, Exchange, RepeatedTarget, Running, Targets};
pub use self::tls::{
    Authorities, Certificate, CertificateName, ClientIdentity, NoAuthority, Pin, PrivateKey, TlsClient,
    TlsError, Trust,
};
pub use self::via::{Credentials, NotCredentials, ProxyError, Refusal};
