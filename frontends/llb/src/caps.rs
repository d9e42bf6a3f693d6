//! The capabilities of LLB that definitions may rely on. A definition names those it needs, and one that is not here is refused
//! by name; clients learn of them before they write a definition.

use crate::refusal::Refusal;

/// The capabilities of operations, exactly those that are there; sorted.
pub const CAPABILITIES: &[&str] = &[
    "constraints",
    "diffop",
    "exec.cgroup",
    "exec.meta.base",
    "exec.meta.cdi.alpha",
    "exec.meta.cgroup.parent",
    "exec.meta.network",
    "exec.meta.proxyenv",
    "exec.meta.removemountstubs.recursive",
    "exec.meta.security",
    "exec.meta.security.devices.v1",
    "exec.meta.setsdefaultpath",
    "exec.meta.ulimit",
    "exec.mount.bind",
    "exec.mount.bind.readwrite-nooutput",
    "exec.mount.cache",
    "exec.mount.cache.content",
    "exec.mount.cache.sharing",
    "exec.mount.secret",
    "exec.mount.selector",
    "exec.mount.ssh",
    "exec.mount.tmpfs",
    "exec.mount.tmpfs.size",
    "exec.secretenv",
    "exec.validexitcode",
    "file.base",
    "file.copy.alwaysreplaceexistingdestpaths",
    "file.copy.includeexcludepatterns",
    "file.copy.modestring",
    "file.rm.nofollowsymlink",
    "file.rm.wildcard",
    "file.symlink.create",
    "mergeop",
    "meta.description",
    "meta.exportcache",
    "meta.ignorecache",
    "passthroughop",
    "platform",
    "soruce.http.uidgid",
    "source.buildop.llbfilename",
    "source.git",
    "source.git.bundle",
    "source.git.checkoutbundle",
    "source.git.checksum",
    "source.git.fetchbycommit",
    "source.git.fullurl",
    "source.git.httpauth",
    "source.git.keepgitdir",
    "source.git.knownsshhosts",
    "source.git.mountsshsock",
    "source.git.mtime",
    "source.git.skipsubmodules",
    "source.git.subdir",
    "source.http",
    "source.http.auth",
    "source.http.checksum",
    "source.http.header",
    "source.http.perm",
    "source.http.signatureverify",
    "source.image",
    "source.image.checksum",
    "source.image.layerlimit",
    "source.image.resolvemode",
    "source.imageblob",
    "source.local",
    "source.local.differ",
    "source.local.excludepatterns",
    "source.local.followpaths",
    "source.local.includepatterns",
    "source.local.metadatatransfer",
    "source.local.sessionid",
    "source.local.sharedkeyhint",
    "source.local.unique",
    "source.ocilayout",
];

/// Refuses a capability that is not there.
pub(crate) fn check(name: &str) -> Result<(), Refusal> {
    if CAPABILITIES.binary_search(&name).is_ok() {
        return Ok(());
    }
    let hint = kiln_graph::diagnostic::closest(name, CAPABILITIES.iter().copied());
    let hint = hint.map(|near| format!(" (did you mean {near}?)")).unwrap_or_default();
    Err(Refusal::unsupported("caps", format!("it needs the capability {name:?}, which is not supported{hint}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_sorted_and_others_refused_by_name() {
        assert!(CAPABILITIES.is_sorted());
        assert!(check("source.image").is_ok());
        assert!(check("source.imageblobs").unwrap_err().to_string().contains("did you mean source.imageblob?"));
    }
}
