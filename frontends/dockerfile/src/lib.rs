//! The Dockerfile frontend: parser, variable expansion, checks and lowering to the step graph.
