//! What definitions say beside the operations: names, groups, capabilities, and places in sources.

use std::collections::HashMap;

use kiln_graph::graph::{Group, Location, Meta};
use kiln_graph::{Digest, Graph, SourceFile, Span};

use crate::graph::bounded;
use crate::refusal::Refusal;
use crate::{caps, pb};

/// The description that is shown in the place of what the operation does.
pub(crate) const CUSTOM_NAME: &str = "llb.customname";

/// The most bytes of all source files together.
const MAX_SOURCE_BYTES: usize = 16 << 20;

/// Where operations stand in the sources.
#[derive(Debug, Default)]
pub(crate) struct Places(HashMap<Digest, Location>);

impl Places {
    /// Adds the sources to the graph. A place that makes no sense is left out: it is for messages only.
    pub(crate) fn read(source: Option<&pb::Source>, graph: &mut Graph) -> Result<Self, Refusal> {
        let Some(source) = source else { return Ok(Self::default()) };
        bounded("Source.infos", source.infos.len())?;
        let bytes: usize = source.infos.iter().map(|info| info.data.len()).sum();
        if bytes > MAX_SOURCE_BYTES {
            let reason = format!("the sources are larger than {} MiB", MAX_SOURCE_BYTES >> 20);
            return Err(Refusal::too_large("Source.infos", reason));
        }
        for info in &source.infos {
            graph.add_source(SourceFile::new(&info.filename, &String::from_utf8_lossy(&info.data)));
        }
        let mut places = HashMap::new();
        for (digest, locations) in &source.locations {
            let Ok(digest) = digest.parse() else { continue };
            let known = locations.locations.iter().find_map(|location| place(location, graph));
            places.extend(known.map(|location| (digest, location)));
        }
        Ok(Self(places))
    }

    /// Returns where an operation stands.
    pub(crate) fn of(&self, digest: &Digest) -> Option<Location> {
        self.0.get(digest).copied()
    }
}

fn place(location: &pb::Location, graph: &Graph) -> Option<Location> {
    let file = u32::try_from(location.source_index).ok()?;
    let text = graph.sources().get(file as usize)?.text();
    let range = location.ranges.first()?;
    let line = |position: &Option<pb::Position>| usize::try_from(position.as_ref()?.line).ok().filter(|line| *line > 0);
    let first = line(&range.start)?;
    let last = line(&range.end).unwrap_or(first).max(first);
    let mut starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).skip(first - 1);
    let start = starts.next().filter(|start| *start <= text.len())?;
    let end = starts.nth(last - first).map_or(text.len(), |next| next - 1);
    Some(Location { file, span: Span::new(start, end) })
}

/// Reads what is said about an operation.
pub(crate) fn metadata(metadata: Option<&pb::OpMetadata>, location: Option<Location>) -> Result<Meta, Refusal> {
    let Some(metadata) = metadata else { return Ok(Meta { location, ..Meta::default() }) };
    for (name, _) in metadata.caps.iter().filter(|(_, needed)| **needed) {
        caps::check(name)?;
    }
    let group = metadata.progress_group.as_ref().map(|group| {
        let pb::ProgressGroup { id, name, weak } = group.clone();
        Group { id, name, weak }
    });
    Ok(Meta {
        name: metadata.description.get(CUSTOM_NAME).cloned().unwrap_or_default(),
        location,
        no_cache: metadata.ignore_cache,
        group,
        export_cache: metadata.export_cache.map(|export| export.value),
        ..Meta::default()
    })
}
