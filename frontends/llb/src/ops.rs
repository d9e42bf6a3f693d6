//! The small operations: sources, merge, diff and build.

use kiln_graph::Platform;
use kiln_graph::op::Op;

use crate::graph::{Adding, Output, Passthrough, bounded};
use crate::refusal::Refusal;
use crate::{pb, source};

/// The name of the input that holds a definition, and of the file in it.
pub(crate) const DEFINITION: &str = "buildkit.llb.definition";

/// The attribute that names another file.
pub(crate) const FILENAME: &str = "llbbuild.filename";

/// The number of the only builder there is: LLB.
pub(crate) const LLB_BUILDER: i64 = -1;

pub(crate) fn platform(platform: pb::Platform) -> Platform {
    let pb::Platform { architecture, os, variant, os_version, os_features } = platform;
    Platform { architecture, os, variant, os_version, os_features }.normalized()
}

pub(crate) fn source(mut adding: Adding<'_, '_>, source: pb::SourceOp) -> Result<Vec<Output>, Refusal> {
    if !adding.received.is_empty() {
        return Err(Refusal::malformed("inputs", "a source has no inputs"));
    }
    adding.default_name(source.identifier.as_str());
    let op = Op::Source(source::read(source)?);
    Ok(vec![Some(adding.finish(op))])
}

pub(crate) fn merge(mut adding: Adding<'_, '_>, merge: &pb::MergeOp) -> Result<Vec<Output>, Refusal> {
    bounded("merge.inputs", merge.inputs.len())?;
    let mut stacked = Vec::new();
    for (at, input) in merge.inputs.iter().enumerate() {
        stacked.push(adding.source_of(input.input, &format!("merge.inputs[{at}].input"))?);
    }
    let names: Vec<String> = stacked.iter().map(|output| adding.name_of(*output)).collect();
    adding.default_name(format!("merge ({})", names.join(", ")));
    // The same file system may be there twice: what lies between is then hidden again.
    let edges = stacked.into_iter().flatten();
    let edges = edges.map(|edge| adding.again(edge)).collect::<Vec<_>>();
    if edges.is_empty() {
        return Ok(vec![None]);
    }
    Ok(vec![Some(adding.finish_with(Op::Merge, edges))])
}

pub(crate) fn diff(mut adding: Adding<'_, '_>, diff: pb::DiffOp) -> Result<Vec<Output>, Refusal> {
    let missing = |side: &str| Refusal::malformed(format!("diff.{side}"), "it is missing; -1 is an empty file system");
    let lower = adding.source_of(diff.lower.ok_or_else(|| missing("lower"))?.input, "diff.lower.input")?;
    let upper = adding.source_of(diff.upper.ok_or_else(|| missing("upper"))?.input, "diff.upper.input")?;
    adding.default_name(format!("diff {} -> {}", adding.name_of(lower), adding.name_of(upper)));
    if lower == upper {
        return Ok(vec![None]);
    }
    let (lower, upper) = (adding.whole_of(lower), adding.whole_of(upper));
    Ok(vec![Some(adding.finish(Op::Diff { lower, upper }))])
}

/// What it gives is what its inputs are: no vertex stands for it.
pub(crate) fn passthrough(adding: &Adding<'_, '_>, passthrough: &Passthrough) -> Result<Vec<Output>, Refusal> {
    bounded("passthrough.outputs", passthrough.outputs.len())?;
    if passthrough.id.is_empty() {
        return Err(Refusal::malformed("passthrough.id", "it is missing"));
    }
    let outputs = passthrough.outputs.iter().enumerate().map(|(at, input)| {
        let field = format!("passthrough.outputs[{at}]");
        if *input < 0 {
            return Err(Refusal::malformed(field, format!("there is no input {input}")));
        }
        adding.source_of(*input, &field)
    });
    outputs.collect()
}

pub(crate) fn build(mut adding: Adding<'_, '_>, build: &pb::BuildOp) -> Result<Vec<Output>, Refusal> {
    if build.builder != LLB_BUILDER {
        let reason = format!("there is no builder {}: only that of LLB, {LLB_BUILDER}", build.builder);
        return Err(Refusal::unsupported("build.builder", reason));
    }
    if let Some(other) = build.inputs.keys().find(|name| *name != DEFINITION) {
        return Err(Refusal::unsupported(format!("build.inputs[{other:?}]"), format!("only {DEFINITION} is known")));
    }
    if let Some(other) = build.attrs.keys().find(|name| *name != FILENAME) {
        return Err(Refusal::unsupported(format!("build.attrs[{other:?}]"), format!("only {FILENAME} is known")));
    }
    let field = format!("build.inputs[{DEFINITION:?}]");
    let input = build.inputs.get(DEFINITION);
    let input = input.ok_or_else(|| Refusal::malformed(field.as_str(), "it is missing"))?;
    let holder = adding.source_of(input.input, &field)?;
    let holder = adding.whole_of(holder);
    holder.ok_or_else(|| Refusal::malformed(field, "an empty file system holds no definition"))?;
    let filename = build.attrs.get(FILENAME).cloned().unwrap_or_else(|| DEFINITION.to_owned());
    Ok(vec![Some(adding.finish(Op::Build { filename }))])
}
