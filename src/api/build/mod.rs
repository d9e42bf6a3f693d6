//! Builds: the BuildKit services on the API's listener, and the upgrades that lead to them.

pub(super) mod session;
