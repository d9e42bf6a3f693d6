//! `RUN --mount`: reading its fields, and deciding what they mean once their variables are expanded.
//!
//! Which stage or image `from` names, and how a mount enters the graph, is lowering's business.

use std::borrow::Cow;

use kiln_graph::diagnostic::closest;
use kiln_graph::op::Sharing;
use kiln_graph::{Diagnostic, Span};

use crate::line::{Piece, Word};
use crate::{scalar, split};

/// A value of `--mount` as written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountFlag {
    /// The whole value.
    pub word: Word,
    /// What `from` names, unless the mount is of a type that has no source.
    pub from: Option<Word>,
    /// What it is, when that depends on nothing that is known later only.
    settled: Option<Resolved>,
}

/// What a mount is, and what it is not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Resolved {
    pub(crate) mount: Mount,
    /// The fields that have no effect on a mount of its type.
    pub(crate) idle: Vec<Word>,
}

/// Expands the variables in a value.
type Expand<'e> = dyn for<'w> FnMut(Piece<'w>) -> Result<Cow<'w, str>, Diagnostic> + 'e;

struct Field<'w> {
    key: Key,
    /// The field as written, key included.
    text: Cow<'w, str>,
    span: Span,
    /// Where its value begins in the text.
    value: Option<usize>,
}

impl Field<'_> {
    fn name(&self) -> &str {
        self.value.map_or(&self.text, |start| &self.text[..start - 1])
    }

    fn value(&self) -> Option<Piece<'_>> {
        let start = self.value?;
        let literal = self.span.range().len() == self.text.len();
        let span =
            if literal { Span::new(self.span.start as usize + start, self.span.end as usize) } else { self.span };
        Some(Piece { text: Cow::Borrowed(&self.text[start..]), span })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Key {
    Type,
    From,
    Source,
    Target,
    Readonly,
    Readwrite,
    Required,
    Size,
    Id,
    Sharing,
    Mode,
    Uid,
    Gid,
    Env,
}

const KEYS: &[(&str, Key)] = &[
    ("type", Key::Type),
    ("from", Key::From),
    ("source", Key::Source),
    ("src", Key::Source),
    ("target", Key::Target),
    ("dst", Key::Target),
    ("destination", Key::Target),
    ("readonly", Key::Readonly),
    ("ro", Key::Readonly),
    ("readwrite", Key::Readwrite),
    ("rw", Key::Readwrite),
    ("required", Key::Required),
    ("size", Key::Size),
    ("id", Key::Id),
    ("sharing", Key::Sharing),
    ("mode", Key::Mode),
    ("uid", Key::Uid),
    ("gid", Key::Gid),
    ("env", Key::Env),
];

const TYPES: &[(&str, Type)] = &[
    ("bind", Type::Bind),
    ("cache", Type::Cache),
    ("tmpfs", Type::Tmpfs),
    ("secret", Type::Secret),
    ("ssh", Type::Ssh),
];
const SHARINGS: &[&str] = &["shared", "private", "locked"];

/// Who a cache, a secret or an agent's socket belongs to, as far as that is said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Permissions {
    /// The permission bits.
    pub mode: Option<u32>,
    /// The owner.
    pub uid: Option<u32>,
    /// The group.
    pub gid: Option<u32>,
}

impl Permissions {
    /// Says whether nothing is said.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A mount, its variables expanded and its defaults filled in, except for paths that depend on the working directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mount {
    /// A path of the context, a stage or an image.
    Bind {
        /// What `from` names; `None` is the context.
        from: Option<Word>,
        /// The path within it; empty means all of it.
        source: String,
        /// The mount point.
        target: String,
        /// Whether writing is refused.
        readonly: bool,
    },
    /// A directory that survives between builds.
    Cache {
        /// Its name, without the build's namespace.
        id: String,
        /// Who may use it at the same time.
        sharing: Sharing,
        /// What `from` names: its initial content; `None` is nothing.
        from: Option<Word>,
        /// The path within it.
        source: String,
        /// The mount point.
        target: String,
        /// Whether writing is refused.
        readonly: bool,
        /// Permissions of a new directory.
        permissions: Permissions,
    },
    /// Memory.
    Tmpfs {
        /// The mount point.
        target: String,
        /// The largest size in bytes.
        size_bytes: Option<u64>,
    },
    /// A secret: a file, a variable, or both.
    Secret {
        /// Its name in the session.
        id: String,
        /// The file; `None` when it is a variable only.
        target: Option<String>,
        /// The variable.
        env: Option<String>,
        /// Whether the step fails without it.
        required: bool,
        /// Permissions of the file.
        permissions: Permissions,
    },
    /// The client's SSH agent.
    Ssh {
        /// Its name in the session.
        id: String,
        /// The socket; `None` is the default place.
        target: Option<String>,
        /// Whether the step fails without it.
        required: bool,
        /// Permissions of the socket.
        permissions: Permissions,
    },
}

impl MountFlag {
    /// Reads the fields. Without variables in it, the whole flag is checked.
    ///
    /// # Errors
    /// All fields that no mount has, and what [`Self::resolve`] refuses.
    pub(crate) fn parse(word: Word) -> Result<Self, Vec<Diagnostic>> {
        let fields = fields(&word)?;
        let from = from(&fields);
        let mut settled = None;
        if !word.text.contains('$') {
            let resolved = resolve(&word, &fields, &mut |value| Ok(value.text)).map_err(|error| vec![error])?;
            // Expansion takes quotes and escapes away, too.
            let quotes = |byte| matches!(byte, b'\'' | b'"' | b'\\' | b'`');
            settled = (!word.text.bytes().any(quotes)).then_some(resolved);
        }
        drop(fields);
        Ok(Self { word, from, settled })
    }

    /// Decides what the mount is. `expand` expands variables in a value.
    ///
    /// # Errors
    /// The first value that is wrong or does not fit the type, or what `expand` fails with.
    pub(crate) fn resolve(&self, expand: &mut Expand<'_>) -> Result<Cow<'_, Resolved>, Diagnostic> {
        if let Some(resolved) = &self.settled {
            return Ok(Cow::Borrowed(resolved));
        }
        let fields = fields(&self.word).map_err(|mut errors| errors.remove(0))?;
        resolve(&self.word, &fields, expand).map(Cow::Owned)
    }
}

/// Reads the fields of a flag.
fn fields(word: &Word) -> Result<Vec<Field<'_>>, Vec<Diagnostic>> {
    let mut fields = Vec::new();
    let mut wrong = Vec::new();
    for piece in split::fields(word) {
        match piece.and_then(field) {
            Ok(field) => fields.push(field),
            Err(error) => wrong.push(error),
        }
    }
    if wrong.is_empty() { Ok(fields) } else { Err(wrong) }
}

fn from(fields: &[Field<'_>]) -> Option<Word> {
    let sourceless = |field: &Field<'_>| {
        let is = |kind: &&str| field.value().is_some_and(|value| value.text.eq_ignore_ascii_case(kind));
        field.key == Key::Type && ["tmpfs", "secret", "ssh"].iter().any(is)
    };
    if fields.iter().any(sourceless) {
        return None;
    }
    fields.iter().rev().find(|field| field.key == Key::From)?.value().map(Word::from)
}

fn resolve(word: &Word, fields: &[Field<'_>], expand: &mut Expand<'_>) -> Result<Resolved, Diagnostic> {
    let mut options = Options::default();
    for field in fields {
        let value = match field.value() {
            Some(value) if field.key != Key::From => Some(expand(value)?),
            value => value.map(|value| value.text),
        };
        options.set(field, value)?;
    }
    let mount = options.mount(word)?;
    let idle = idle_keys(&mount);
    let idle = fields.iter().filter(|field| idle.contains(&field.key));
    let idle = idle.map(|field| Word::new(&*field.text, field.span)).collect();
    Ok(Resolved { mount, idle })
}

/// The fields that have no effect on a mount of this type.
fn idle_keys(mount: &Mount) -> &'static [Key] {
    match mount {
        Mount::Bind { .. } => &[Key::Id],
        Mount::Cache { .. } => &[],
        Mount::Tmpfs { .. } => &[Key::From, Key::Source, Key::Id, Key::Readonly],
        Mount::Secret { .. } => &[Key::Readwrite],
        Mount::Ssh { .. } => &[Key::From, Key::Source, Key::Readwrite],
    }
}

fn field(piece: Piece<'_>) -> Result<Field<'_>, Diagnostic> {
    let Piece { text, span } = piece;
    let length = text.find('=').unwrap_or(text.len());
    let name = &text[..length];
    let Some((_, key)) = KEYS.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)) else {
        let at = Word::new(&*text, span).part(0..length).span;
        let error = Diagnostic::error(at, format!("mounts have no option {name:?}"));
        return Err(suggest(error, &name.to_ascii_lowercase(), KEYS.iter().map(|(known, _)| *known)));
    };
    let value = (length < text.len()).then_some(length + 1);
    let field = Field { key: *key, text, span, value };
    let switch = matches!(key, Key::Readonly | Key::Readwrite | Key::Required);
    match field.value() {
        None if !switch => {
            let name = field.name();
            let error = Diagnostic::error(span, format!("the mount option {name} has no value"));
            Err(error.with_hint(format!("write {name}=VALUE")))
        }
        Some(value) if *key == Key::From && value.text.contains('$') => {
            let error = Diagnostic::error(value.span, "variables are not expanded in the mount option from");
            Err(error.with_hint("define a stage with FROM and name it here"))
        }
        _ => Ok(field),
    }
}

fn suggest<'a>(error: Diagnostic, word: &str, known: impl Iterator<Item = &'a str> + Clone) -> Diagnostic {
    let hint = match closest(word, known.clone()) {
        Some(near) => format!("did you mean {near}?"),
        None => format!("known are {}", known.collect::<Vec<_>>().join(", ")),
    };
    error.with_hint(hint)
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Type {
    #[default]
    Bind,
    Cache,
    Tmpfs,
    Secret,
    Ssh,
}

/// The values of a mount's fields. Some fit some types only, and keep the field for the error message.
#[derive(Default)]
struct Options<'f> {
    kind: Type,
    from: Option<Word>,
    source: String,
    target: String,
    readonly: Option<bool>,
    required: Option<(bool, &'f Field<'f>)>,
    size_bytes: Option<(u64, &'f Field<'f>)>,
    id: String,
    sharing: Option<(Sharing, &'f Field<'f>)>,
    permissions: Permissions,
    permission_field: Option<&'f Field<'f>>,
    env: Option<(String, &'f Field<'f>)>,
}

impl<'f> Options<'f> {
    fn set(&mut self, field: &'f Field<'f>, value: Option<Cow<'_, str>>) -> Result<(), Diagnostic> {
        let text = value.as_deref().unwrap_or_default();
        let invalid = |what: &str| {
            let span = field.value().map_or(field.span, |value| value.span);
            Diagnostic::error(span, format!("{}={text} is not {what}", field.name()))
        };
        let switch = || value.as_deref().map_or(Some(true), scalar::boolean);
        let switch = || switch().ok_or_else(|| invalid("true or false"));
        let number = || text.parse::<u32>().map_err(|_| invalid("a number"));
        match field.key {
            Key::Type => {
                let Some((_, kind)) = TYPES.iter().find(|(name, _)| name.eq_ignore_ascii_case(text)) else {
                    let names = TYPES.iter().map(|(name, _)| *name);
                    return Err(suggest(invalid("a type of mount"), &text.to_ascii_lowercase(), names));
                };
                self.kind = *kind;
            }
            Key::From => self.from = field.value().filter(|value| !value.text.is_empty()).map(Word::from),
            Key::Source => self.source = value.map(Cow::into_owned).unwrap_or_default(),
            Key::Target => self.target = value.map(Cow::into_owned).unwrap_or_default(),
            Key::Readonly => self.readonly = Some(switch()?),
            Key::Readwrite => self.readonly = Some(!switch()?),
            Key::Required => self.required = Some((switch()?, field)),
            Key::Size => {
                let size = scalar::size_bytes(text).ok_or_else(|| invalid("a size such as 64m"))?;
                self.size_bytes = Some((size, field));
            }
            Key::Id => self.id = value.map(Cow::into_owned).unwrap_or_default(),
            Key::Sharing => {
                let sharing = match text.to_ascii_lowercase().as_str() {
                    "shared" => Sharing::Shared,
                    "private" => Sharing::Private,
                    "locked" => Sharing::Locked,
                    other => return Err(suggest(invalid("a way of sharing"), other, SHARINGS.iter().copied())),
                };
                self.sharing = Some((sharing, field));
            }
            Key::Mode => {
                let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o7777);
                self.permissions.mode = Some(mode.ok_or_else(|| invalid("an octal number up to 7777"))?);
            }
            Key::Uid => self.permissions.uid = Some(number()?),
            Key::Gid => self.permissions.gid = Some(number()?),
            Key::Env => self.env = Some((value.map(Cow::into_owned).unwrap_or_default(), field)),
        }
        if matches!(field.key, Key::Mode | Key::Uid | Key::Gid) {
            self.permission_field = Some(field);
        }
        Ok(())
    }

    /// Refuses options that the type does not have.
    fn check(&self) -> Result<(), Diagnostic> {
        let is = |kinds: &[Type]| kinds.contains(&self.kind);
        let misplaced = [
            (self.required.map(|(_, field)| field), is(&[Type::Secret, Type::Ssh]), "secret and ssh mounts"),
            (self.size_bytes.map(|(_, field)| field), is(&[Type::Tmpfs]), "tmpfs mounts"),
            (self.sharing.map(|(_, field)| field), is(&[Type::Cache]), "cache mounts"),
            (self.permission_field, is(&[Type::Cache, Type::Secret, Type::Ssh]), "cache, secret and ssh mounts"),
            (self.env.as_ref().map(|(_, field)| *field), is(&[Type::Secret]), "secret mounts"),
        ];
        for (field, allowed, whose) in misplaced {
            if let (Some(field), false) = (field, allowed) {
                let message = format!("the mount option {} is for {whose} only", field.name());
                return Err(Diagnostic::error(field.span, message));
            }
        }
        Ok(())
    }

    fn mount(self, word: &Word) -> Result<Mount, Diagnostic> {
        self.check()?;
        let required = self.required.is_some_and(|(required, _)| required);
        let given = |target: String| Some(target).filter(|target| !target.is_empty());
        Ok(match self.kind {
            Type::Bind => Mount::Bind {
                from: self.from,
                source: self.source,
                target: self.target,
                readonly: self.readonly.unwrap_or(true),
            },
            Type::Cache => Mount::Cache {
                id: if self.id.is_empty() { crate::path::clean(&self.target) } else { self.id },
                sharing: self.sharing.map_or(Sharing::Shared, |(sharing, _)| sharing),
                from: self.from,
                source: self.source,
                target: self.target,
                readonly: self.readonly.unwrap_or(false),
                permissions: self.permissions,
            },
            Type::Tmpfs => Mount::Tmpfs {
                target: self.target,
                size_bytes: self.size_bytes.map(|(size, _)| size).filter(|s| *s > 0),
            },
            Type::Secret => {
                if let Some(from) = &self.from {
                    return Err(Diagnostic::error(from.span, "a secret mount has no from"));
                }
                if !self.source.is_empty() && !self.id.is_empty() {
                    return Err(Diagnostic::error(word.span, "a secret mount has either id or source, not both"));
                }
                let target = given(self.target);
                let id = [self.id, self.source].into_iter().find(|id| !id.is_empty());
                let base = target.as_deref().map(crate::path::base);
                let Some(id) = id.or(base) else {
                    return Err(Diagnostic::error(word.span, "a secret mount needs an id")
                        .with_hint("write --mount=type=secret,id=NAME"));
                };
                let file =
                    target.or_else(|| self.env.is_none().then(|| format!("/run/secrets/{}", crate::path::base(&id))));
                let env = self.env.map(|(name, _)| name);
                Mount::Secret { id, target: file, env, required, permissions: self.permissions }
            }
            Type::Ssh => {
                let id = if self.id.is_empty() { "default".to_owned() } else { self.id };
                Mount::Ssh { id, target: given(self.target), required, permissions: self.permissions }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use kiln_graph::Span;

    use super::*;

    fn parse(text: &str) -> Result<Mount, Vec<Diagnostic>> {
        let flag = MountFlag::parse(Word::new(text, Span::new(0, text.len())))?;
        let resolved = flag.resolve(&mut |value| Ok(value.text)).map_err(|error| vec![error])?;
        Ok(resolved.into_owned().mount)
    }

    #[track_caller]
    fn message(text: &str) -> String {
        parse(text).unwrap_err().iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn bind_mounts_are_read_only_unless_asked_otherwise() {
        let bind = |readonly| Mount::Bind { from: None, source: "a".into(), target: "/b".into(), readonly };
        assert_eq!(parse("source=a,target=/b").unwrap(), bind(true));
        assert_eq!(parse("type=Bind,SRC=a,dst=/b,rw").unwrap(), bind(false));
        assert_eq!(parse("src=a,destination=/b,ro=false").unwrap(), bind(false));
        assert_eq!(parse("src=a,target=/b,readwrite=0").unwrap(), bind(true));
    }

    #[test]
    fn caches_are_named_after_their_target_and_shared() {
        let Mount::Cache { id, sharing, readonly, permissions, .. } = parse("type=cache,target=/root//x/").unwrap()
        else {
            panic!("not a cache")
        };
        assert_eq!((id.as_str(), sharing, readonly, permissions.is_empty()), ("/root/x", Sharing::Shared, false, true));
        let Mount::Cache { id, sharing, permissions, .. } =
            parse("type=cache,target=/x,id=go,sharing=locked,mode=0700,uid=5,gid=6").unwrap()
        else {
            panic!("not a cache")
        };
        assert_eq!((id.as_str(), sharing), ("go", Sharing::Locked));
        assert_eq!(permissions, Permissions { mode: Some(0o700), uid: Some(5), gid: Some(6) });
    }

    #[test]
    fn a_secret_is_a_file_unless_it_is_only_a_variable() {
        let secret = |text: &str| match parse(text).unwrap() {
            Mount::Secret { id, target, env, required, .. } => {
                (id, target.unwrap_or_default(), env.unwrap_or_default(), required)
            }
            other => panic!("{other:?}"),
        };
        let expect =
            |id: &str, target: &str, env: &str, required| (id.to_owned(), target.to_owned(), env.to_owned(), required);
        assert_eq!(secret("type=secret,id=a/b"), expect("a/b", "/run/secrets/b", "", false));
        assert_eq!(secret("type=secret,target=/x/y,required"), expect("y", "/x/y", "", true));
        assert_eq!(secret("type=secret,source=s,required=false"), expect("s", "/run/secrets/s", "", false));
        assert_eq!(secret("type=secret,id=a,env=TOKEN"), expect("a", "", "TOKEN", false));
        assert_eq!(secret("type=secret,id=a,env=TOKEN,dst=/t"), expect("a", "/t", "TOKEN", false));
    }

    #[test]
    fn other_mounts_have_their_defaults() {
        assert_eq!(
            parse("type=tmpfs,target=/t,size=1g").unwrap(),
            Mount::Tmpfs { target: "/t".into(), size_bytes: Some(1 << 30) }
        );
        let Mount::Ssh { id, target, required, .. } = parse("type=ssh").unwrap() else { panic!("not ssh") };
        assert_eq!((id.as_str(), target, required), ("default", None, false));
    }

    #[test]
    fn wrong_options_are_refused_with_advice() {
        assert_eq!(
            message("tpye=cache,targt=/x"),
            "mounts have no option \"tpye\" (did you mean type?); mounts have no option \"targt\" (did you mean target?)"
        );
        assert_eq!(message("type=cach,target=/x"), "type=cach is not a type of mount (did you mean cache?)");
        assert_eq!(message("target"), "the mount option target has no value (write target=VALUE)");
        assert_eq!(
            message("type=cache,sharing=lokced"),
            "sharing=lokced is not a way of sharing (did you mean locked?)"
        );
        assert_eq!(message("type=cache,mode=9"), "mode=9 is not an octal number up to 7777");
        assert_eq!(message("ro=perhaps"), "ro=perhaps is not true or false");
        assert_eq!(message("type=tmpfs,size=x"), "size=x is not a size such as 64m");
        assert_eq!(message("uid=1"), "the mount option uid is for cache, secret and ssh mounts only");
        assert_eq!(message("env=A"), "the mount option env is for secret mounts only");
        assert_eq!(message("type=cache,required"), "the mount option required is for secret and ssh mounts only");
        assert_eq!(message("type=secret"), "a secret mount needs an id (write --mount=type=secret,id=NAME)");
        assert_eq!(message("type=secret,id=a,src=b"), "a secret mount has either id or source, not both");
        assert_eq!(message("type=secret,id=a,from=b"), "a secret mount has no from");
        assert_eq!(
            message("from=$x"),
            "variables are not expanded in the mount option from (define a stage with FROM and name it here)"
        );
    }

    #[test]
    fn a_flag_with_variables_is_judged_when_they_are_known() {
        let text = "type=$kind,target=/x,from=base";
        let flag = MountFlag::parse(Word::new(text, Span::new(0, text.len()))).unwrap();
        assert_eq!(flag.from.as_ref().unwrap().text, "base");
        let resolved = flag.resolve(&mut |value| Ok(value.text.replace("$kind", "cache").into())).unwrap();
        assert!(matches!(resolved.mount, Mount::Cache { .. }));
    }
}
