//! Planning: what is known of a whole graph before anything runs.
//!
//! Keys are computed from the sources on, as far as inputs are identified; what was found is reported, and what is left is
//! what the scheduler gets. A build that finds everything asks the database a few questions, reads the directories of its
//! contexts, and is done.

use std::collections::HashMap;
use std::sync::Arc;

use kiln_graph::VertexId;
use kiln_graph::op::{Op, Source};
use rusqlite::Connection;

use super::cache;
use super::failure::Failure;
use super::identify::{Found, Work};
use super::job::Job;
use super::lock;
use super::value::{FileSystem, Value};
use crate::error::{Error, Result};

/// What is left to do.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// The steps that have no value yet, inputs first.
    pub(super) steps: Vec<VertexId>,
    /// What was asked for of them, as positions in `steps`.
    pub(super) roots: Vec<usize>,
    /// For each of them, those it needs, as positions in `steps`.
    pub(super) inputs: Vec<Vec<usize>>,
    /// What was found out about those that have to run.
    pub(super) misses: HashMap<VertexId, Work>,
}

/// Steps, with what was found out about them.
type Works = HashMap<VertexId, Work>;

/// How often a plan is made again because something it found was removed meanwhile.
const ATTEMPTS: usize = 3;

impl Job {
    /// Plans. Blocking.
    ///
    /// # Errors
    /// The first step that cannot be done: what it copies does not exist, its source cannot be brought.
    pub(super) fn plan(self: &Arc<Self>, roots: &[VertexId]) -> Result<Plan, Failure> {
        let order = self.graph.reachable(roots.iter().copied());
        for _ in 0..ATTEMPTS {
            let mut records = HashMap::new();
            let (mut misses, named) = self.identify_all(&order, &mut records)?;
            self.demand(roots, named, &mut misses);
            let plan = self.left(roots, misses);
            if self.lease_needed(roots, &records)? {
                self.report_found(&order);
                records.into_values().flatten().for_each(|record| self.hit(record));
                return Ok(plan);
            }
        }
        Err(Error::conflict("results of earlier builds are removed as fast as they are found").into())
    }

    fn identify_all(
        self: &Arc<Self>,
        order: &[VertexId],
        records: &mut HashMap<VertexId, Vec<i64>>,
    ) -> Result<(Works, Works), Failure> {
        // One connection for all: taking one, and a lock for every question, would cost more than the questions do.
        let db = self.solver.deps().store.root().db();
        let asked = db.read(|connection| {
            let questions = connection.unchecked_transaction()?;
            Ok(self.identify_each(&questions, order, records))
        });
        asked?
    }

    fn identify_each(
        self: &Arc<Self>,
        connection: &Connection,
        order: &[VertexId],
        records: &mut HashMap<VertexId, Vec<i64>>,
    ) -> Result<(Works, Works), Failure> {
        let (mut misses, mut named) = (HashMap::new(), HashMap::new());
        for id in order {
            self.cancel.check()?;
            let vertex = self.graph.vertex(*id);
            if !matches!(vertex.op, Op::Source(_)) {
                self.note_peer_records(*id).map_err(|error| Failure::of_step(error, &self.graph, vertex))?;
            }
            let found = match &vertex.op {
                Op::Source(source @ (Source::Git(_) | Source::Http(_) | Source::Blob(_))) => {
                    self.identify_source(connection, *id, source).map(Some)
                }
                Op::Source(source) => self.source(vertex, source).map(|value| Some(Found::Value(value, Vec::new()))),
                _ if vertex.inputs.iter().any(|edge| !self.has_value(edge.vertex)) => Ok(None),
                _ => self.identify_now(connection, *id),
            };
            let failed = |error| {
                self.report_failed(*id, &error);
                Failure::of_step(error, &self.graph, vertex)
            };
            match found.map_err(failed)? {
                Some(Found::Value(value, record)) => {
                    self.set_value(*id, value);
                    records.insert(*id, record);
                }
                Some(Found::Named(value, work)) => {
                    self.set_value(*id, value);
                    named.insert(*id, *work);
                }
                // What it works on is made before that is known.
                Some(Found::Miss(work)) if work.is_provisional() => {}
                Some(Found::Miss(work)) => {
                    misses.insert(*id, *work);
                }
                None => {}
            }
            if matches!(vertex.op, Op::Source(_)) {
                self.note_peer_records(*id).map_err(|error| Failure::of_step(error, &self.graph, vertex))?;
            }
        }
        Ok((misses, named))
    }

    /// Has those results made that an imported cache names only, and that something works on.
    fn demand(&self, roots: &[VertexId], mut named: Works, misses: &mut Works) {
        let mut needed = vec![false; self.graph.vertices().len()];
        roots.iter().for_each(|root| needed[root.index()] = true);
        let ids: Vec<VertexId> = self.graph.ids().collect();
        for id in ids.into_iter().rev() {
            if !needed[id.index()] {
                continue;
            }
            if self.is_open(id) {
                lock(&self.values)[id.index()] = None;
                let work = named.remove(&id).filter(|work| !work.is_provisional());
                misses.extend(work.map(|work| (id, work)));
            }
            if !self.has_value(id) {
                for edge in &self.graph.vertex(id).inputs {
                    needed[edge.vertex.index()] = true;
                }
            }
        }
    }

    /// What has no value and is needed, with the needs among them.
    fn left(&self, roots: &[VertexId], misses: HashMap<VertexId, Work>) -> Plan {
        let mut plan = Plan { misses, ..Plan::default() };
        let mut positions = HashMap::new();
        for id in self.needed(roots) {
            if self.has_value(id) {
                continue;
            }
            let inputs = self.graph.vertex(id).inputs.iter();
            let inputs = inputs.filter_map(|edge| positions.get(&edge.vertex).copied()).collect();
            positions.insert(id, plan.steps.len());
            plan.steps.push(id);
            plan.inputs.push(inputs);
        }
        plan.roots = roots.iter().filter_map(|root| positions.get(root).copied()).collect();
        plan
    }

    /// The vertices whose values are needed: the roots, and the inputs of what has no value. Inputs come first.
    fn needed(&self, roots: &[VertexId]) -> Vec<VertexId> {
        let mut needed = vec![false; self.graph.vertices().len()];
        roots.iter().for_each(|root| needed[root.index()] = true);
        let ids: Vec<VertexId> = self.graph.ids().collect();
        for id in ids.iter().rev() {
            if needed[id.index()] && !self.has_value(*id) {
                for edge in &self.graph.vertex(*id).inputs {
                    needed[edge.vertex.index()] = true;
                }
            }
        }
        ids.into_iter().filter(|id| needed[id.index()]).collect()
    }

    /// Leases the results that are needed; what has gone is forgotten, and then the plan does not hold.
    fn lease_needed(&self, roots: &[VertexId], records: &HashMap<VertexId, Vec<i64>>) -> Result<bool> {
        let store = &self.solver.deps().store;
        let mut holds = true;
        for id in self.needed(roots) {
            let (Some(value), Some(records)) = (self.value(id), records.get(&id)) else { continue };
            let layers = value.file_systems().iter().filter_map(|file_system| match file_system {
                FileSystem::Layer(layer) => Some(layer.made),
                FileSystem::Empty | FileSystem::Image { .. } | FileSystem::Cached(_) => None,
            });
            for (snapshot, record) in layers.zip(records) {
                if store.snapshot(&self.lease, snapshot)?.is_none() {
                    store.root().db().write(|tx| cache::forget(tx, *record))?;
                    holds = false;
                }
            }
        }
        if !holds {
            self.values.lock().expect("no panic happens while the lock is held").fill(None);
        }
        Ok(holds)
    }

    /// Reports what needs no work.
    fn report_found(&self, order: &[VertexId]) {
        for id in order {
            let is_here = match &lock(&self.values)[id.index()] {
                None | Some(Value::Local(_)) => false,
                Some(Value::FileSystem(FileSystem::Image { image, .. })) => !image.is_remote(),
                Some(Value::FileSystem(_) | Value::Several(_)) => true,
            };
            if is_here && !self.pins.is_reported(&self.graph.vertex(*id).digest()) {
                self.report_cached(*id);
            }
        }
    }
}
