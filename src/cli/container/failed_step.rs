//! A shell in a step of a build that failed.

use axum::body::Body;
use http::{Method, header};
use serde_json::json;

use super::attached::{Ends, Signals, accompany};
use super::session::{self, Settings};
use super::signals::Resizing;
use super::terminal;
use crate::client::{Client, Query};
use crate::error::{Error, Result};

/// Where failed steps are.
const NOUN: &str = "failed-steps";

/// Refuses a shell that nobody could type into.
///
/// # Errors
/// `InvalidArgument`, with what to do instead.
pub(in crate::cli) fn require_terminal(option: &str) -> Result<()> {
    if terminal::input_is_terminal() && terminal::output_is_terminal() {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "{option}: a shell needs a terminal as standard input and output; without one, --on-failure=export=DIR saves the step's \
         files"
    )))
}

/// Opens a shell in a failed step, and returns when it has ended.
///
/// # Errors
/// `NotFound` when the step is not kept; when the connection breaks.
pub(in crate::cli) async fn shell(client: &Client, id: &str) -> Result<()> {
    let size = terminal::size().map_or([0, 0], |size| [size.rows, size.columns]);
    let term = std::env::var("TERM").ok().map(|term| format!("TERM={term}"));
    let body = json!({ "Env": term.into_iter().collect::<Vec<_>>(), "ConsoleSize": size });
    let request = client
        .request(Method::POST, &Query::new().path(&[NOUN, id, "shell"]))
        .header(header::CONTENT_TYPE, "application/json");
    let stream = client.hijack(request, "tcp", Body::from(body.to_string())).await?;
    let settings = Settings { input: true, output: true, tty: true, keys: None };
    let ends = Ends::new(true, true, Resizing::new(NOUN, id));
    accompany(client, &ends, Signals::Own, session::converse(stream, settings)).await.map(drop)
}

/// Lets a failed step go.
///
/// # Errors
/// What the engine answers.
pub(in crate::cli) async fn release(client: &Client, id: &str) -> Result<()> {
    client.delete(&Query::new().path(&[NOUN, id])).await
}

/// The path of what a failed step has changed.
pub(in crate::cli) fn changes(id: &str) -> String {
    Query::new().path(&[NOUN, id, "changes"])
}
