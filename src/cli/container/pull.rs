//! The pull of an image that `run` or `create` needs.

use axum::body::Body;
use http::Method;

use crate::cli::args::Context;
use crate::client::{Lines, Query};
use crate::error::{Error, Result};
use crate::types::Progress;

/// Returns the name as docker prints it: with the tag it stands for.
pub(super) fn familiar(name: &str) -> String {
    let last = name.rsplit('/').next().unwrap_or(name);
    if last.contains([':', '@']) { name.to_owned() } else { format!("{name}:latest") }
}

/// Pulls an image, showing its progress on standard error unless `quiet`.
pub(super) async fn pull(context: &Context, name: &str, platform: Option<&str>, quiet: bool) -> Result<()> {
    let query = Query::new().with("fromImage", familiar(name)).with_some("platform", platform);
    let request = context.client.request(Method::POST, &query.path(&["images", "create"])).body(Body::empty());
    let request = request.expect("the request is well formed");
    let mut lines: Lines<Progress> = context.client.lines(request).await?;
    while let Some(line) = lines.next().await? {
        if let Some(message) = line.error_detail.map(|error| error.message).or(line.error) {
            return Err(Error::unavailable(message));
        }
        if !quiet && let (Some(status), None) = (line.status, line.detail.filter(|detail| detail.total > 0)) {
            match line.id {
                Some(id) => anstream::eprintln!("{id}: {status}"),
                None => anstream::eprintln!("{status}"),
            }
        }
    }
    Ok(())
}
