//! Sources: identifiers and attributes. An attribute nobody knows is refused, because it may be one that makes the source safe.

use std::collections::BTreeMap;

use kiln_graph::op::{
    BlobLocator, BlobPlace, FileVerification, GitAccess, GitSource, GitVerification, HttpSource, ImageBlob,
    ImageSource, LocalSource, OciLayoutSource, ResolveMode, Source,
};
use kiln_graph::{Digest, Reference};

use crate::graph::bounded;
use crate::pb;
use crate::refusal::Refusal;

/// The attributes of a source; each is taken once, and what is left is not known.
struct Attributes(BTreeMap<String, String>);

impl Attributes {
    fn take(&mut self, name: &str) -> Option<String> {
        self.0.remove(name)
    }

    fn text(&mut self, name: &str) -> String {
        self.take(name).unwrap_or_default()
    }

    /// Anything but `true` is false, as with BuildKit.
    fn flag(&mut self, name: &str) -> bool {
        self.take(name).is_some_and(|value| value == "true")
    }

    fn parsed<T>(&mut self, name: &str, parse: impl Fn(&str) -> Result<T, String>) -> Result<Option<T>, Refusal> {
        let Some(value) = self.take(name).filter(|value| !value.is_empty()) else { return Ok(None) };
        let parsed = parse(&value).map_err(|why| Refusal::malformed(field(name), format!("{value:?}: {why}")));
        parsed.map(Some)
    }

    fn digest(&mut self, name: &str) -> Result<Option<Digest>, Refusal> {
        self.parsed(name, |text| text.parse().map_err(|error| format!("{error}")))
    }

    /// A list in JSON; what is no list is one pattern, as with BuildKit.
    fn list(&mut self, name: &str) -> Result<Vec<String>, Refusal> {
        let Some(value) = self.take(name).filter(|value| !value.is_empty()) else { return Ok(Vec::new()) };
        if !value.starts_with('[') {
            return Ok(vec![value]);
        }
        let list: Result<Vec<String>, _> = serde_json::from_str(&value);
        let list = list.map_err(|error| Refusal::malformed(field(name), format!("it is no list of texts: {error}")))?;
        bounded(&field(name), list.len())?;
        Ok(list)
    }

    fn finish(self) -> Result<(), Refusal> {
        match self.0.into_keys().next() {
            Some(name) => Err(Refusal::unsupported(field(&name), "the attribute is not supported")),
            None => Ok(()),
        }
    }
}

fn field(name: &str) -> String {
    format!("source.attrs[{name:?}]")
}

fn identifier(reason: impl std::fmt::Display) -> Refusal {
    Refusal::malformed("source.identifier", reason.to_string())
}

/// The schemes of blobs.
const REGISTRY_BLOB: &str = "docker-image+blob";
const LAYOUT_BLOB: &str = "oci-layout+blob";

/// Reads a source.
pub(crate) fn read(source: pb::SourceOp) -> Result<Source, Refusal> {
    bounded("source.attrs", source.attrs.len())?;
    let mut attrs = Attributes(source.attrs);
    let text = source.identifier;
    let (scheme, rest) =
        text.split_once("://").ok_or_else(|| identifier(format!("{text:?}: expected scheme://name")))?;
    let source = match scheme {
        "docker-image" => Source::Image(image(rest, &mut attrs)?),
        "local" => Source::Local(local(rest, &mut attrs)?),
        "git" => Source::Git(git(rest, &mut attrs)?),
        "http" | "https" => Source::Http(http(&text, &mut attrs)?),
        "oci-layout" => Source::OciLayout(oci_layout(rest, &mut attrs)?),
        REGISTRY_BLOB | LAYOUT_BLOB => Source::Blob(blob(scheme, rest, &mut attrs)?),
        other => {
            let known = ["docker-image", REGISTRY_BLOB, "local", "git", "http", "https", "oci-layout", LAYOUT_BLOB];
            let near = kiln_graph::diagnostic::closest(other, known);
            let hint = near.map(|near| format!(" (did you mean {near}?)")).unwrap_or_default();
            return Err(Refusal::unsupported("source.identifier", format!("unknown scheme {other:?}{hint}")));
        }
    };
    attrs.finish()?;
    Ok(source)
}

fn image(name: &str, attrs: &mut Attributes) -> Result<ImageSource, Refusal> {
    let reference: Reference = name.parse().map_err(identifier)?;
    let resolve = attrs.parsed("image.resolvemode", |mode| match mode {
        "default" | "local" => Ok(ResolveMode::PreferLocal),
        "pull" => Ok(ResolveMode::Pull),
        _ => Err("expected default, pull or local".to_owned()),
    })?;
    // It says how the record of the image is listed, which is by what uses it here.
    attrs.take("image.recordtype");
    Ok(ImageSource {
        reference: reference.with_default_tag(),
        image_id: None,
        resolve: resolve.unwrap_or_default(),
        checksum: attrs.digest("image.checksum")?,
        layer_limit: attrs.parsed("image.layerlimit", layer_limit)?,
    })
}

fn layer_limit(text: &str) -> Result<u32, String> {
    text.parse().ok().filter(|limit| *limit > 0).ok_or_else(|| "expected a number above 0".to_owned())
}

fn local(name: &str, attrs: &mut Attributes) -> Result<LocalSource, Refusal> {
    // How files are compared, and that this source is another than before: what is transferred is the same.
    attrs.parsed("local.differ", |differ| match differ {
        "none" | "metadata" => Ok(()),
        _ => Err("expected none or metadata".to_owned()),
    })?;
    let listed = attrs.parsed("local.metadatatransfer", boolean)?.unwrap_or_default();
    let exceptions = attrs.list("local.metadatatransferexclude")?;
    Ok(LocalSource {
        name: name.to_owned(),
        exclude: attrs.list("local.excludepatterns")?,
        include: attrs.list("local.includepattern")?,
        follow: attrs.list("local.followpaths")?,
        session: attrs.text("local.session"),
        key_hint: format!("{}{}", attrs.text("local.sharedkeyhint"), attrs.text("local.unique")),
        listed_but: listed.then_some(exceptions),
    })
}

/// Reads a truth value as Go does.
fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("expected true or false".to_owned()),
    }
}

fn git(rest: &str, attrs: &mut Attributes) -> Result<GitSource, Refusal> {
    let (remote, fragment) = rest.split_once('#').unwrap_or((rest, ""));
    let (reference, subdir) = fragment.split_once(':').unwrap_or((fragment, ""));
    let has_protocol = ["http://", "https://", "ssh://", "git://"].iter().any(|known| remote.starts_with(known));
    let is_scp = remote.split('/').next().is_some_and(|host| host.contains('@') && host.contains(':'));
    let remote = match attrs.text("git.fullurl") {
        full if !full.is_empty() => full.split('#').next().unwrap_or_default().to_owned(),
        _ if remote.is_empty() => return Err(identifier("a repository without a name")),
        _ if has_protocol || is_scp => remote.to_owned(),
        _ => format!("https://{remote}"),
    };
    let commit_mtime = attrs.parsed("git.mtime", |policy| match policy {
        "commit" => Ok(true),
        "checkout" => Ok(false),
        _ => Err("expected commit or checkout".to_owned()),
    })?;
    let checksum = attrs.parsed("git.checksum", |text| {
        let hex = text.len() >= 7 && text.len() <= 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if hex { Ok(text.to_ascii_lowercase()) } else { Err("expected a commit id or the beginning of one".to_owned()) }
    })?;
    let bundle = bundle(reference, checksum.as_deref().unwrap_or_default(), attrs)?;
    let verification = git_verification(attrs)?;
    if bundle.is_some() && verification.is_some() {
        let why = "signatures of what is in a bundle are not verified".to_owned();
        return Err(Refusal::unsupported(field("git.bundle"), why));
    }
    let as_bundle = attrs.flag("git.checkoutbundle");
    let keep_git_dir = attrs.flag("git.keepgitdir");
    let subdir = subdir.trim_matches('/');
    if as_bundle && (keep_git_dir || !subdir.is_empty()) {
        let why = "a bundle holds a whole repository: it goes neither with git.keepgitdir nor with a directory";
        return Err(Refusal::malformed(field("git.checkoutbundle"), why.to_owned()));
    }
    Ok(GitSource {
        remote,
        reference: reference.to_owned(),
        subdir: subdir.to_owned(),
        keep_git_dir,
        checksum: checksum.unwrap_or_default(),
        skip_submodules: attrs.flag("git.skipsubmodules"),
        commit_mtime: commit_mtime.unwrap_or_default(),
        fetch_by_commit: attrs.flag("git.fetchbycommit"),
        verification,
        access: GitAccess {
            header_secret: attrs.text("git.authheadersecret"),
            token_secret: attrs.text("git.authtokensecret"),
            agent: attrs.text("git.mountsshsock"),
            known_hosts: attrs.text("git.knownsshhosts"),
        },
        bundle: bundle.map(Box::new),
        as_bundle,
    })
}

/// Whose signature is asked for. BuildKit asks for it as soon as one of the attributes is there, whatever it says.
fn git_verification(attrs: &mut Attributes) -> Result<Option<Box<GitVerification>>, Refusal> {
    let is_asked_for = attrs.0.keys().any(|name| name.starts_with("git.sig."));
    let verification = GitVerification {
        keys: attrs.text("git.sig.pubkey"),
        reject_expired: attrs.flag("git.sig.rejectexpired"),
        require_signed_tag: attrs.flag("git.sig.requiresignedtag"),
        ignore_signed_tag: attrs.flag("git.sig.ignoresignedtag"),
    };
    if is_asked_for && verification.keys.is_empty() {
        return Err(Refusal::malformed(field("git.sig.pubkey"), "a signature is asked for, and no key is given"));
    }
    if verification.require_signed_tag && verification.ignore_signed_tag {
        let text = "a signed tag is asked for that is to be ignored";
        return Err(Refusal::malformed(field("git.sig.ignoresignedtag"), text));
    }
    Ok(is_asked_for.then(|| Box::new(verification)))
}

fn file_verification(attrs: &mut Attributes) -> Result<Option<Box<FileVerification>>, Refusal> {
    let verification =
        FileVerification { keys: attrs.text("http.sig.pubkey"), signature: attrs.text("http.sig.signature") };
    match (verification.keys.is_empty(), verification.signature.is_empty()) {
        (true, true) => Ok(None),
        (false, false) => Ok(Some(Box::new(verification))),
        (true, false) => Err(Refusal::malformed(field("http.sig.pubkey"), "a signature is given, and no key")),
        (false, true) => Err(Refusal::malformed(field("http.sig.signature"), "a key is given, and no signature")),
    }
}

/// Reads which bundle a commit is taken from. What it must be is said by the checksum.
fn bundle(reference: &str, checksum: &str, attrs: &mut Attributes) -> Result<Option<BlobLocator>, Refusal> {
    let Some(text) = attrs.take("git.bundle").filter(|text| !text.is_empty()) else { return Ok(None) };
    let refuse = |why: String| Refusal::malformed(field("git.bundle"), format!("{text:?}: {why}"));
    let (scheme, rest) = text.split_once("://").unwrap_or_default();
    if ![REGISTRY_BLOB, LAYOUT_BLOB].contains(&scheme) {
        return Err(refuse(format!("expected {REGISTRY_BLOB}:// or {LAYOUT_BLOB}://")));
    }
    let mut blob = locator(scheme, rest).map_err(refuse)?;
    if blob.digest.algorithm() != kiln_graph::Algorithm::Sha256 {
        return Err(refuse("expected a digest of sha256".to_owned()));
    }
    let is_commit = |text: &str| matches!(text.len(), 40 | 64) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let reference = reference.to_ascii_lowercase();
    match () {
        () if checksum.is_empty() => return Err(refuse("git.checksum must be given, too".to_owned())),
        () if reference.is_empty() && !is_commit(checksum) => {
            return Err(refuse("without a reference, git.checksum must be a commit id in full".to_owned()));
        }
        () if is_commit(&reference) && !reference.starts_with(checksum) => {
            return Err(refuse(format!("git.checksum {checksum} is not that of the commit {reference}")));
        }
        () => {}
    }
    layout_store(&mut blob.place, attrs);
    Ok(Some(blob))
}

/// The attributes of a source that is one file: its permissions, its owner and its group.
fn file(attrs: &mut Attributes) -> Result<(Option<u32>, u32, u32), Refusal> {
    let mode = attrs.parsed("http.perm", |text| {
        let mode = number(text).filter(|mode| *mode <= 0o7777);
        mode.ok_or_else(|| "expected permissions such as 0644".to_owned())
    })?;
    let id = |text: &str| number(text).ok_or_else(|| "expected a number".to_owned());
    let uid = attrs.parsed("http.uid", id)?.unwrap_or_default();
    Ok((mode, uid, attrs.parsed("http.gid", id)?.unwrap_or_default()))
}

/// Reads a number as Go does: 0644 and 0o644 are octal, 0x1a4 is hexadecimal.
fn number(text: &str) -> Option<u32> {
    let digits = |text: &str, radix| u32::from_str_radix(text, radix).ok();
    let prefixed = |prefix: &str, radix| text.strip_prefix(prefix).and_then(|text| digits(text, radix));
    let number = prefixed("0x", 16).or_else(|| prefixed("0o", 8)).or_else(|| prefixed("0b", 2));
    number.or_else(|| prefixed("0", 8)).or_else(|| digits(text, 10))
}

fn http(url: &str, attrs: &mut Attributes) -> Result<HttpSource, Refusal> {
    let (mode, uid, gid) = file(attrs)?;
    let mut headers = Vec::new();
    for name in ["accept", "user-agent"] {
        headers.extend(attrs.take(&format!("http.header.{name}")).map(|value| (name.to_owned(), value)));
    }
    Ok(HttpSource {
        url: url.to_owned(),
        checksum: attrs.digest("http.checksum")?,
        filename: attrs.text("http.filename"),
        mode,
        uid,
        gid,
        header_secret: attrs.text("http.authheadersecret"),
        headers,
        verification: file_verification(attrs)?,
    })
}

fn oci_layout(rest: &str, attrs: &mut Attributes) -> Result<OciLayoutSource, Refusal> {
    let (name, digest) = rest.rsplit_once('@').ok_or_else(|| identifier("an OCI layout's image needs a digest"))?;
    let store = attrs.text("oci.store");
    // Layouts are named for the whole build, whichever of its sessions offers them.
    attrs.take("oci.session");
    let name = if store.is_empty() { name.to_owned() } else { store };
    let layer_limit = attrs.parsed("oci.layerlimit", layer_limit)?;
    Ok(OciLayoutSource { name, digest: digest.parse().map_err(identifier)?, layer_limit })
}

fn blob(scheme: &str, rest: &str, attrs: &mut Attributes) -> Result<ImageBlob, Refusal> {
    let mut blob = locator(scheme, rest).map_err(identifier)?;
    layout_store(&mut blob.place, attrs);
    attrs.parsed("image.recordtype", |kind| match kind {
        // It says how the record of the blob is listed, which is by what uses it here.
        "regular" | "internal" | "frontend" => Ok(()),
        _ => Err("expected regular, internal or frontend".to_owned()),
    })?;
    let (mode, uid, gid) = file(attrs)?;
    // 0 is what is written when nothing is said, as with BuildKit.
    Ok(ImageBlob { blob, filename: attrs.text("http.filename"), mode: mode.filter(|mode| *mode != 0), uid, gid })
}

/// Reads what the client calls the layout of a blob; attributes of layouts are not known of what is at a registry.
fn layout_store(place: &mut BlobPlace, attrs: &mut Attributes) {
    if let BlobPlace::Layout { store, .. } = place {
        // Layouts are named for the whole build, whichever of its sessions offers them.
        attrs.take("oci.session");
        *store = attrs.text("oci.store");
    }
}

/// Reads which blob is meant, behind the scheme: a name and a digest.
fn locator(scheme: &str, rest: &str) -> Result<BlobLocator, String> {
    let (name, digest) = rest.rsplit_once('@').ok_or_else(|| format!("{rest:?}: a blob needs a digest"))?;
    let digest = digest.parse().map_err(|error| format!("{error}"))?;
    let place = match scheme {
        REGISTRY_BLOB => {
            let name: Reference = name.parse().map_err(|error| format!("{error}"))?;
            BlobPlace::Registry(name.with_digest(digest))
        }
        _ if name.is_empty() => return Err(format!("{rest:?}: an OCI layout needs a name")),
        _ => BlobPlace::Layout { name: name.to_owned(), store: String::new() },
    };
    Ok(BlobLocator { place, digest })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::refusal::Kind;

    fn source(identifier: &str, attrs: &[(&str, &str)]) -> Result<Source, Refusal> {
        let attrs = attrs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        read(pb::SourceOp { identifier: identifier.to_owned(), attrs })
    }

    #[test]
    fn images_keep_their_limits_and_promises() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let attrs = [("image.resolvemode", "pull"), ("image.layerlimit", "2"), ("image.checksum", digest.as_str())];
        let Ok(Source::Image(image)) = source("docker-image://busybox", &attrs) else { panic!("an image") };
        assert_eq!(image.reference.to_string(), "docker.io/library/busybox:latest");
        assert_eq!((image.resolve, image.layer_limit), (ResolveMode::Pull, Some(2)));
        assert_eq!(image.checksum.unwrap().to_string(), digest);
    }

    #[test]
    fn repositories_are_named_by_their_address_or_in_full() {
        let git = |identifier: &str, attrs: &[(&str, &str)]| match source(identifier, attrs).unwrap() {
            Source::Git(git) => git,
            other => panic!("{other:?}"),
        };
        let plain = git("git://github.com/a/b.git#v1:dir", &[("git.keepgitdir", "true")]);
        assert_eq!((plain.remote.as_str(), plain.reference.as_str()), ("https://github.com/a/b.git", "v1"));
        assert_eq!((plain.subdir.as_str(), plain.keep_git_dir, plain.commit_mtime), ("dir", true, false));
        let full = git("git://a/b#x", &[("git.fullurl", "ssh://git@a/b"), ("git.mountsshsock", "key")]);
        assert_eq!((full.remote.as_str(), full.access.agent.as_str()), ("ssh://git@a/b", "key"));
        assert_eq!(git("git://git@a:b/c", &[]).remote, "git@a:b/c");
    }

    #[test]
    fn commits_come_from_bundles_and_become_bundles() {
        let (digest, commit) = (format!("sha256:{}", "a".repeat(64)), "1".repeat(40));
        let bundle = format!("oci-layout+blob://not/real@{digest}");
        let of = |identifier: &str, attrs: &[(&str, &str)]| match source(identifier, attrs) {
            Ok(Source::Git(git)) => Ok(git),
            Ok(other) => panic!("{other:?}"),
            Err(refusal) => Err(refusal.to_string()),
        };
        let given = [("git.bundle", bundle.as_str()), ("git.checksum", commit.as_str()), ("oci.store", "kept")];
        let git = of("git://a/b#main", &given).unwrap();
        let blob = git.bundle.unwrap();
        assert_eq!((blob.address(), blob.place.layout(), git.as_bundle), (bundle.clone(), Some("kept"), false));
        assert!(of("git://a/b", &[("git.checkoutbundle", "true")]).unwrap().as_bundle);
        let http = format!("https://x/y@{digest}");
        let longer = format!("docker-image+blob://x@sha512:{}", "a".repeat(128));
        for (identifier, attrs, word) in [
            ("git://a/b", &[("git.bundle", bundle.as_str())][..], "git.checksum must be given"),
            ("git://a/b", &[("git.bundle", &bundle), ("git.checksum", "1111111")], "in full"),
            (&format!("git://a/b#{}", "2".repeat(40)), &given, "is not that of the commit"),
            ("git://a/b", &[("git.bundle", &http), ("git.checksum", &commit)], "docker-image+blob://"),
            ("git://a/b", &[("git.bundle", &longer), ("git.checksum", &commit)], "sha256"),
            ("git://a/b", &[("git.bundle", "docker-image+blob://x"), ("git.checksum", &commit)], "digest"),
            ("git://a/b", &[("git.checkoutbundle", "true"), ("git.keepgitdir", "true")], "git.keepgitdir"),
            ("git://a/b#main:dir", &[("git.checkoutbundle", "true")], "a directory"),
            ("git://a/b", &[("oci.store", "kept")], "oci.store"),
            ("git://a/b#main", &[&given[..], &[("git.sig.pubkey", "key")]].concat(), "signatures"),
        ] {
            let refusal = of(identifier, attrs).unwrap_err();
            assert!(refusal.contains(word), "{refusal}");
        }
    }

    #[test]
    fn files_by_http_have_permissions_as_go_writes_them() {
        let attrs = [("http.perm", "0640"), ("http.uid", "5"), ("http.header.accept", "x/y")];
        let Ok(Source::Http(http)) = source("https://a/b", &attrs) else { panic!("a file") };
        assert_eq!((http.mode, http.uid, http.gid), (Some(0o640), 5, 0));
        assert_eq!(http.headers, [("accept".to_owned(), "x/y".to_owned())]);
    }

    #[test]
    fn signatures_are_asked_for_with_their_keys() {
        let attrs =
            [("git.sig.pubkey", "key"), ("git.sig.rejectexpired", "true"), ("git.sig.requiresignedtag", "false")];
        let Ok(Source::Git(git)) = source("git://a/b", &attrs) else { panic!("a repository") };
        let wanted = GitVerification { keys: "key".to_owned(), reject_expired: true, ..GitVerification::default() };
        assert_eq!(git.verification.as_deref(), Some(&wanted));
        let attrs = [("http.sig.pubkey", "key"), ("http.sig.signature", "signature")];
        let Ok(Source::Http(http)) = source("https://a/b", &attrs) else { panic!("a file") };
        let wanted = FileVerification { keys: "key".to_owned(), signature: "signature".to_owned() };
        assert_eq!(http.verification.as_deref(), Some(&wanted));
        let Ok(Source::Http(plain)) = source("https://a/b", &[]) else { panic!("a file") };
        assert_eq!(plain.verification, None);
    }

    #[test]
    fn patterns_are_lists_or_one() {
        let attrs = [("local.includepattern", "[\"a\",\"b\"]"), ("local.followpaths", "c"), ("local.differ", "none")];
        let Ok(Source::Local(local)) = source("local://context", &attrs) else { panic!("a directory") };
        assert_eq!(
            (local.include.as_slice(), local.follow.as_slice()),
            (&["a", "b"].map(str::to_owned)[..], &["c".to_owned()][..])
        );
    }

    #[test]
    fn blobs_are_files_of_registries_and_layouts() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let blob = |identifier: &str, attrs: &[(&str, &str)]| match source(identifier, attrs).unwrap() {
            Source::Blob(blob) => blob,
            other => panic!("{other:?}"),
        };
        let attrs = [("http.filename", "f"), ("http.perm", "0644"), ("http.uid", "1"), ("http.gid", "0x10")];
        let at = format!("docker-image+blob://busybox:1@{digest}");
        let file = blob(&at, &[&attrs[..], &[("image.recordtype", "internal")]].concat());
        assert_eq!((file.filename.as_str(), file.mode, file.uid, file.gid), ("f", Some(0o644), 1, 16));
        assert_eq!(file.blob.address(), format!("docker-image+blob://docker.io/library/busybox@{digest}"));
        let at = format!("oci-layout+blob://example.com/a/b@{digest}");
        let plain = blob(&at, &[("http.perm", "0"), ("oci.session", "s")]);
        assert_eq!((plain.mode, plain.blob.place.layout()), (None, Some("example.com/a/b")));
        let own = blob(&at, &[("oci.store", "own")]).blob;
        assert_eq!((own.address(), own.place.layout()), (at, Some("own")));
    }

    #[test]
    fn directories_are_transferred_or_listed_but_for_exceptions() {
        let listed = |attrs: &[(&str, &str)]| match source("local://context", attrs).unwrap() {
            Source::Local(local) => local.listed_but,
            other => panic!("{other:?}"),
        };
        let exceptions = ("local.metadatatransferexclude", "[\"a\"]");
        assert_eq!(listed(&[("local.metadatatransfer", "1"), exceptions]), Some(vec!["a".to_owned()]));
        assert_eq!(listed(&[("local.metadatatransfer", "True")]), Some(Vec::new()));
        assert_eq!(listed(&[("local.metadatatransfer", "false"), exceptions]), None);
        assert_eq!(listed(&[exceptions]), None);
    }

    #[test]
    fn what_is_not_known_or_makes_no_sense_is_refused_by_name() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for (identifier, attrs, kind, word) in [
            ("busybox", &[][..], Kind::Malformed, "source.identifier"),
            ("docker-imag://x", &[], Kind::Unsupported, "did you mean docker-image"),
            ("docker-image://UPPER", &[], Kind::Malformed, "source.identifier"),
            ("docker-image+blob://a@b", &[], Kind::Malformed, "digest"),
            ("docker-image+blob://a:latest", &[], Kind::Malformed, "digest"),
            (&format!("oci-layout+blob://@{digest}"), &[], Kind::Malformed, "name"),
            (&format!("docker-image+blob://a@{digest}"), &[("image.recordtype", "x")], Kind::Malformed, "recordtype"),
            (&format!("docker-image+blob://a@{digest}"), &[("oci.store", "x")], Kind::Unsupported, "oci.store"),
            ("git://a/b", &[("git.sig.mood", "x"), ("git.sig.pubkey", "x")], Kind::Unsupported, "git.sig.mood"),
            ("git://a/b", &[("git.sig.rejectexpired", "true")], Kind::Malformed, "git.sig.pubkey"),
            (
                "git://a/b",
                &[("git.sig.pubkey", "x"), ("git.sig.requiresignedtag", "true"), ("git.sig.ignoresignedtag", "true")],
                Kind::Malformed,
                "to be ignored",
            ),
            ("http://x/y", &[("http.sig.pubkey", "x")], Kind::Malformed, "http.sig.signature"),
            ("http://x/y", &[("http.sig.signature", "x")], Kind::Malformed, "http.sig.pubkey"),
            ("docker-image://x", &[("image.layerlimit", "0")], Kind::Malformed, "image.layerlimit"),
            ("local://x", &[("local.includepattern", "[1]")], Kind::Malformed, "local.includepattern"),
            ("local://x", &[("local.metadatatransfer", "yes")], Kind::Malformed, "metadatatransfer"),
            ("http://x/y", &[("http.perm", "rwx")], Kind::Malformed, "http.perm"),
            ("oci-layout://x", &[], Kind::Malformed, "digest"),
            (&format!("oci-layout://x@{digest}"), &[("oci.layerlimit", "0")], Kind::Malformed, "oci.layerlimit"),
        ] {
            let refusal = source(identifier, attrs).unwrap_err();
            assert!(refusal.kind == kind && refusal.to_string().contains(word), "{refusal}");
        }
    }
}
