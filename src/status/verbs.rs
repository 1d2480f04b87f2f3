//! What an administrator can tell a process to do, by the control socket.

use hyper::StatusCode;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use tracing::info;

use super::gather::Gatherer;
use super::query::Query;
use crate::pipe::Registry;
use crate::proto::connection_info::ConnectionId;
use crate::proto::key::Fingerprint;
use crate::service::supervisor::ReloadRequest;

/// Asks the supervisor for reloads, and does all else itself.
#[derive(Clone)]
pub struct Reload(mpsc::Sender<ReloadRequest>);

/// What is answered.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) text: Value,
}

impl Answer {
    fn ok(text: Value) -> Self {
        Self { status: StatusCode::OK, text }
    }

    fn error(status: StatusCode, error: impl Into<String>) -> Self {
        let error: String = error.into();
        Self { status, text: json!({ "error": error }) }
    }

    fn bad_request(error: impl Into<String>) -> Self {
        Self::error(StatusCode::BAD_REQUEST, error)
    }

    fn not_found(error: impl Into<String>) -> Self {
        Self::error(StatusCode::NOT_FOUND, error)
    }
}

impl Reload {
    /// Asks whoever receives from the other end of `requests`.
    pub fn new(requests: mpsc::Sender<ReloadRequest>) -> Self {
        Self(requests)
    }

    /// Does what `path` says. None, if that is no verb.
    pub(super) async fn act(&self, path: &str, query: &Query, gatherer: &Gatherer) -> Option<Answer> {
        let registry = gatherer.registry();
        Some(match path {
            "/reload" => self.reload().await,
            "/close" => close(query, registry),
            "/drain" => set_drained(query, registry, true),
            "/resume" => set_drained(query, registry, false),
            _ => return None,
        })
    }

    async fn reload(&self) -> Answer {
        let (request, result) = oneshot::channel();
        let stopping =
            || Answer::error(StatusCode::SERVICE_UNAVAILABLE, "the process is stopping, and reloads no more");
        if self.0.send(request).await.is_err() {
            return stopping();
        }
        match result.await {
            Ok(Ok(pipes)) => {
                let plural = if pipes == 1 { "" } else { "s" };
                Answer::ok(json!({
                    "message": format!("reloaded: {pipes} pipe{plural}; new connections are served by it, running ones go on"),
                }))
            }
            Ok(Err(error)) => Answer::error(
                StatusCode::CONFLICT,
                format!("not reloaded, what was in force stays in force: {error}"),
            ),
            Err(_) => stopping(),
        }
    }
}

fn plural(count: usize) -> &'static str {
    if count == 1 { "connection" } else { "connections" }
}

fn close(query: &Query, registry: &Registry) -> Answer {
    let (told, what) = match (query.get("id"), query.get("key")) {
        (Some(id), None) => {
            let Ok(id) = id.parse::<ConnectionId>() else {
                return Answer::bad_request(format!(
                    "'{id}' is no id of a connection; those have 16 hexadecimal digits, as in the log"
                ));
            };
            (registry.close(id), format!("no connection with the id {id} is running"))
        }
        (None, Some(key)) => {
            let Ok(key) = key.parse::<Fingerprint>() else {
                return Answer::bad_request(format!(
                    "'{key}' is no fingerprint of a key; those look like 7f3a-19c2"
                ));
            };
            (registry.close_all_of(key), format!("no connection with the key {key} is running"))
        }
        _ => return Answer::bad_request("say which: by an id, or by a key"),
    };
    if told == 0 {
        return Answer::not_found(what);
    }
    Answer::ok(json!({ "message": format!("closed {told} {}", plural(told)), "connections": told }))
}

/// Takes a target away from new connections, or gives it back.
fn set_drained(query: &Query, registry: &Registry, is_drained: bool) -> Answer {
    let Some(wanted) = query.get("target") else { return Answer::bad_request("say which target") };
    let views = registry.views();
    let pipes = views.pipes.iter().filter(|view| query.get("pipe").is_none_or(|pipe| pipe == view.name));
    let targets: Vec<_> = pipes
        .flat_map(|view| &view.targets)
        // As it is shown, or as it was written.
        .filter(|known| {
            let shown = known.target().to_string();
            shown == wanted || wanted.parse().is_ok_and(|wanted| *known.target() == wanted)
        })
        .collect();
    if targets.is_empty() {
        let there = views.pipes.iter().flat_map(|view| &view.targets).map(|known| known.target().to_string());
        let mut there: Vec<_> = there.collect();
        there.dedup();
        return Answer::not_found(format!("no pipe has the target {wanted}; there is {}", there.join(", ")));
    }
    for known in &targets {
        known.set_drained(is_drained);
        let target = known.target();
        if is_drained {
            info!(%target, "target drained: new connections get others, as an administrator wants it");
        } else {
            info!(%target, "target no longer drained");
        }
    }
    let connections = targets.iter().map(|known| known.connections()).sum();
    let message = if is_drained {
        format!("{wanted} gets no new connections; {connections} {} left", plural(connections))
    } else {
        format!("{wanted} gets connections again")
    };
    Answer::ok(json!({ "message": message, "connections": connections }))
}
