//! The tags of a repository.

use std::collections::HashSet;

use http::header::LINK;
use http::{Method, StatusCode};
use kiln_graph::Reference;
use serde::Deserialize;

use super::refusal::Refusal;
use super::transport::{Answer, Request, follow};
use super::{Access, Client, unexpected};
use crate::error::{Error, Result};

/// One page of a list; registries send at most some thousand names of 128 characters.
const MAX_PAGE: usize = 4 << 20;

/// More tags than any repository has; ends lists that never do.
const MAX_TAGS: usize = 1_000_000;

#[derive(Deserialize)]
struct Page {
    #[serde(default)]
    tags: Option<Vec<String>>,
}

impl Client {
    /// Returns all tags of a reference's repository, in the registry's order. Mirrors are not asked: they may not know all.
    ///
    /// # Errors
    /// `NotFound` when there is no such repository or this user may not see it; otherwise as [`Client::resolve`].
    pub async fn tags(&self, reference: &Reference) -> Result<Vec<String>> {
        let endpoint = self.registry(reference);
        let access = Access::pull("list the tags of", reference, &endpoint);
        let mut first = endpoint.url("tags/list")?;
        first.query_pairs_mut().append_pair("n", "1000");
        let mut next = Some(first);
        let (mut tags, mut seen) = (Vec::new(), HashSet::new());
        while let Some(url) = next.take() {
            if !seen.insert(url.clone()) || tags.len() > MAX_TAGS {
                return Err(Error::unavailable(format!("{access}: {} sends a list without an end", endpoint.name)));
            }
            let request = Request::new(Method::GET, url);
            let answer = self.retrying(|| self.call(&endpoint, &access, &request)).await?;
            match answer.status() {
                StatusCode::OK => {}
                StatusCode::NOT_FOUND => {
                    let refusal = Refusal::read(answer).await;
                    let repository = reference.familiar_repository();
                    return Err(Error::not_found(format!("repository {repository} not found: {}", refusal.words())));
                }
                _ => return Err(unexpected(&endpoint, &access, answer).await),
            }
            next = next_page(&answer).map(|link| follow(answer.url(), &link)).transpose()?;
            if next.as_ref().is_some_and(|next| next.origin() != request.url.origin()) {
                return Err(Error::unavailable(format!("{access}: {} sends on to another server", endpoint.name)));
            }
            let body = answer.read(MAX_PAGE).await.map_err(|fault| fault.context(&access).into_error())?;
            let page: Page = serde_json::from_slice(&body)
                .map_err(|_| Error::unavailable(format!("{access}: {} sent no list of tags", endpoint.name)))?;
            tags.extend(page.tags.unwrap_or_default());
        }
        Ok(tags)
    }
}

/// Reads the address of the next page: `Link: </v2/a/tags/list?last=x>; rel="next"`.
fn next_page(answer: &Answer) -> Option<String> {
    let link = answer.header(LINK)?;
    let (address, params) = link.strip_prefix('<')?.split_once('>')?;
    let next = params.split(';').any(|param| matches!(param.trim(), "rel=\"next\"" | "rel=next"));
    next.then(|| address.to_owned())
}
