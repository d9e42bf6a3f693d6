//! Sending layers while the build still runs: what a cache will hold anyway is on its way as soon as it is identified.
//!
//! What goes wrong here is not told: the export finds what is not there, and tries again.

use std::sync::Arc;

use tokio::sync::{OnceCell, Semaphore};
use tokio_util::sync::CancellationToken;

use super::option::{CacheExport, Mode};
use super::place::{Content, Place};
use crate::error::{Error, Result};
use crate::solver::job::{Job, Shared};
use crate::solver::value::Settled;
use crate::task::{self, Cancel};

/// How many layers are compressed and sent at a time: the build comes first.
const LAYERS: usize = 2;

/// Where layers are sent ahead.
#[derive(Debug)]
pub(in crate::solver) struct Ahead {
    exports: Vec<CacheExport>,
    shared: Shared,
    places: OnceCell<Vec<Place>>,
    turns: Semaphore,
    given_up: CancellationToken,
}

impl Ahead {
    /// Takes those caches that will hold the layers of all steps; `None` when there is none.
    pub(in crate::solver) fn of(exports: &[CacheExport], shared: &Shared) -> Option<Arc<Self>> {
        // What changes a layer's digest waits for the end, when it is known what lies on what.
        let early = |export: &&CacheExport| export.mode == Mode::Max && !export.is_inline() && export.estargz.is_none();
        let all = exports.iter().filter(early);
        let exports: Vec<CacheExport> = all.cloned().collect();
        (!exports.is_empty()).then(|| {
            Arc::new(Self {
                exports,
                shared: shared.clone(),
                places: OnceCell::new(),
                turns: Semaphore::new(LAYERS),
                given_up: CancellationToken::new(),
            })
        })
    }

    /// Stops what is under way: the build has failed.
    pub(in crate::solver) fn give_up(&self) {
        self.given_up.cancel();
    }

    async fn places(&self) -> Result<&[Place]> {
        let open = || async {
            let mut places = Vec::with_capacity(self.exports.len());
            for export in &self.exports {
                places.push(self.shared.place(&export.to).await?);
            }
            Ok::<_, Error>(places)
        };
        self.places.get_or_try_init(open).await.map(Vec::as_slice)
    }

    async fn send(&self, settled: Settled) -> Result<()> {
        let places = self.places().await?;
        let _turn = self.turns.acquire().await.map_err(|_| Error::internal("a semaphore was closed"))?;
        for (export, place) in self.exports.iter().zip(places) {
            let (images, lease) = (self.shared.solver.deps().images.clone(), self.shared.lease.clone());
            let (form, cancel) = (export.form.clone(), Cancel::new());
            let _given_up = cancel.on_drop();
            let stop = cancel.clone();
            let made = task::blocking(move || {
                let snapshot = images.store().snapshot(&lease, settled.id)?;
                let snapshot = snapshot.ok_or_else(|| Error::not_found("a layer has gone"))?;
                images.assemble_layer(&lease, &snapshot, &form, &stop)
            });
            let made = made.await?;
            if let Some(blob) = made.blob {
                place.put(&made.descriptor, Content::Blob(blob)).await?;
            }
        }
        Ok(())
    }
}

impl Job {
    /// Begins to send a layer that was just identified, if it will be in a cache. The build waits for it at its end, unless it
    /// has failed.
    pub(in crate::solver) fn send_ahead(self: &Arc<Self>, settled: Settled) {
        let Some(ahead) = self.ahead.clone() else { return };
        let (tasks, pending) = (&self.solver.deps().tasks, self.pending.token());
        let stopping = tasks.stopping();
        tasks.spawn(async move {
            tokio::select! {
                // The export tells.
                _ = ahead.send(settled) => {}
                () = ahead.given_up.cancelled() => {}
                () = stopping.cancelled() => {}
            }
            drop(pending);
        });
    }
}
