//! Builds by the names (`buildid`) that clients give them: to cancel them, and to upload a context in another request.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::body::Body;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Result};

/// How long an upload and its build wait for each other.
const PATIENCE: Duration = Duration::from_secs(10);

/// The builds that have names. Cloning gives another handle.
#[derive(Clone, Debug, Default)]
pub(super) struct Named(Arc<Mutex<Builds>>);

#[derive(Debug, Default)]
struct Builds {
    /// What ends each build.
    running: HashMap<String, CancellationToken>,
    /// Where each build, or its upload, waits for the other.
    meeting: HashMap<String, Meeting>,
}

/// The context, once it has come; who takes it leaves nothing.
type Meeting = watch::Sender<Option<Arc<Mutex<Option<Arrival>>>>>;

/// A context that is being uploaded.
#[derive(Debug)]
pub(super) struct Arrival {
    /// It.
    pub(super) body: Body,
    /// Dropped when it was read.
    pub(super) read: Option<oneshot::Sender<()>>,
}

impl Arrival {
    /// A context that nobody else waits for.
    pub(super) fn of(body: Body) -> Self {
        Self { body, read: None }
    }
}

/// A build that has a name as long as this lives.
#[derive(Debug)]
pub(super) struct Guard {
    named: Named,
    id: String,
    token: CancellationToken,
}

impl Guard {
    /// Waits until somebody cancels the build.
    pub(super) async fn cancelled(&self) {
        self.token.cancelled().await;
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.named.lock().running.remove(&self.id);
    }
}

impl Named {
    fn lock(&self) -> MutexGuard<'_, Builds> {
        self.0.lock().expect("no panic happens while the lock is held")
    }

    /// Gives a build its name; a later build of the same name takes it over.
    pub(super) fn begin(&self, id: &str) -> Guard {
        let token = CancellationToken::new();
        self.lock().running.insert(id.to_owned(), token.clone());
        Guard { named: self.clone(), id: id.to_owned(), token }
    }

    /// Cancels a build, if there is one of this name.
    pub(super) fn cancel(&self, id: &str) {
        if let Some(token) = self.lock().running.get(id) {
            token.cancel();
        }
    }

    fn meeting(&self, id: &str) -> Meeting {
        self.lock().meeting.entry(id.to_owned()).or_default().clone()
    }

    /// Hands a context to the build that waits for it, and waits until it was read.
    ///
    /// # Errors
    /// `Timeout` when no build asks for it.
    pub(super) async fn upload(&self, id: &str, body: Body) -> Result<()> {
        let (read, done) = oneshot::channel();
        let arrival = Arc::new(Mutex::new(Some(Arrival { body, read: Some(read) })));
        let meeting = self.meeting(id);
        meeting.send_replace(Some(Arc::clone(&arrival)));
        let taken = async {
            let mut meeting = meeting.subscribe();
            // The build takes the place away when it has taken the context.
            while meeting.borrow_and_update().is_some() {
                if meeting.changed().await.is_err() {
                    break;
                }
            }
        };
        if tokio::time::timeout(PATIENCE, taken).await.is_err() {
            self.lock().meeting.remove(id);
            return Err(Error::timeout(format!("no build {id:?} asks for the context that is uploaded for it")));
        }
        // An error of the build is the build's to report.
        let _ = done.await;
        Ok(())
    }

    /// Waits for the context of a build.
    ///
    /// # Errors
    /// `Timeout` when it is not uploaded; `InvalidArgument` without a name.
    pub(super) async fn arrival(&self, id: &str) -> Result<Arrival> {
        if id.is_empty() {
            return Err(Error::invalid("remote=upload-request needs a buildid, under which the context is uploaded"));
        }
        let meeting = self.meeting(id);
        let mut waiting = meeting.subscribe();
        let arrived = tokio::time::timeout(PATIENCE, waiting.wait_for(Option::is_some)).await;
        self.lock().meeting.remove(id);
        let arrived = arrived.ok().and_then(|arrived| arrived.ok()?.clone());
        let arrival = arrived.and_then(|place| place.lock().expect("no panic happens meanwhile").take());
        meeting.send_replace(None);
        arrival.ok_or_else(|| Error::timeout(format!("the context of the build {id:?} was not uploaded")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[tokio::test]
    async fn an_upload_and_its_build_meet_whoever_comes_first() {
        for build_first in [true, false] {
            let named = Named::default();
            let (building, uploading) = (named.clone(), named.clone());
            let build = async move { building.arrival("a").await.map(drop) };
            let upload = async move { uploading.upload("a", Body::from("context")).await };
            let (built, uploaded) = if build_first {
                tokio::join!(build, upload)
            } else {
                let (uploaded, built) = tokio::join!(upload, build);
                (built, uploaded)
            };
            built.unwrap();
            uploaded.unwrap();
            assert!(named.lock().meeting.is_empty());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_comes_alone_does_not_wait_for_ever() {
        let named = Named::default();
        assert_eq!(named.arrival("a").await.unwrap_err().kind(), Kind::Timeout);
        assert_eq!(named.upload("b", Body::empty()).await.unwrap_err().kind(), Kind::Timeout);
        assert!(named.lock().meeting.is_empty());
    }

    #[tokio::test]
    async fn a_build_is_cancelled_by_its_name_as_long_as_it_runs() {
        let named = Named::default();
        let guard = named.begin("a");
        named.cancel("b");
        assert!(!guard.token.is_cancelled());
        named.cancel("a");
        guard.cancelled().await;
        drop(guard);
        named.cancel("a");
        assert!(named.lock().running.is_empty());
    }
}
