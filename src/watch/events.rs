//! The engine's events about the gateway's container: something happened, whatever it was.

use std::collections::HashMap;
use std::time::Duration;

use bollard::query_parameters::EventsOptionsBuilder;
use futures_util::StreamExt as _;
use tokio::sync::{Notify, watch};

use crate::docker::{Engine, SOCKET};
use crate::gateway::NAME;
use crate::host::Host;

/// Where the news arrive.
pub(super) type Events = Notify;

/// What is news. The container's health check alone would be three events every few minutes.
const KINDS: [&str; 10] =
    ["create", "start", "die", "oom", "kill", "stop", "pause", "unpause", "destroy", "health_status"];

/// The pause before a stream that ended is opened again, doubled each time that it did not last.
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const MAX_BACKOFF: Duration = Duration::from_secs(60);

/// Follows the events of every engine that is up, one after the other. After the end of a stream the next look says
/// whether there is one: to ask an engine that is down would start it.
pub(super) async fn follow(host: &Host, mut engine_is_up: watch::Receiver<bool>, events: &Events) {
    let socket = host.path(SOCKET);
    let mut backoff = FIRST_BACKOFF;
    while engine_is_up.changed().await.is_ok() {
        if !*engine_is_up.borrow_and_update() {
            continue;
        }
        if let Ok(engine) = Engine::connect(&socket.to_string_lossy()).await
            && pass_on(&engine, events).await
        {
            backoff = FIRST_BACKOFF;
        }
        // The engine goes away, perhaps for good.
        events.notify_one();
        tokio::time::sleep(backoff).await;
        engine_is_up.mark_unchanged();
        backoff = (backoff * 2).min(MAX_BACKOFF);
    }
}

/// Passes each event on until the stream ends; true when there was any.
async fn pass_on(engine: &Engine, events: &Events) -> bool {
    let filters = HashMap::from([("container", vec![NAME]), ("event", KINDS.to_vec())]);
    let options = EventsOptionsBuilder::default().filters(&filters).build();
    let mut stream = Box::pin(engine.client.events(Some(options)));
    let mut any = false;
    while let Some(Ok(event)) = stream.next().await {
        tracing::debug!("the engine says {}", event.action.unwrap_or_default());
        events.notify_one();
        any = true;
    }
    any
}
