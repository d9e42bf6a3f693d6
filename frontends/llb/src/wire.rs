//! Fields nobody knows: protobuf skips them, and a client that set one would get something else than it asked for.
//!
//! The bytes of an operation are walked beside a table of its messages. What is malformed is left to the decoder.

/// A message of the protocol.
struct Message {
    fields: &'static [(u32, &'static str, Option<&'static Self>)],
}

/// The deepest nesting that is walked; the messages below nest less.
const MAX_DEPTH: usize = 8;

macro_rules! message {
    ($name:ident: $($number:literal $field:literal $(-> $inner:ident)?),* $(,)?) => {
        static $name: Message = Message { fields: &[$(($number, $field, message!(@ $($inner)?))),*] };
    };
    (@) => { None };
    (@ $inner:ident) => { Some(&$inner) };
}

message!(OP: 1 "inputs" -> INPUT, 2 "exec" -> EXEC, 3 "source" -> SOURCE, 4 "file" -> FILE, 5 "build" -> BUILD,
    6 "merge" -> MERGE, 7 "diff" -> DIFF, 8 "passthrough" -> PASSTHROUGH, 10 "platform" -> PLATFORM, 11 "constraints" -> CONSTRAINTS);
message!(INPUT: 1 "digest", 2 "index");
message!(PLATFORM: 1 "Architecture", 2 "OS", 3 "Variant", 4 "OSVersion", 5 "OSFeatures");
message!(CONSTRAINTS: 1 "filter");
message!(EXEC: 1 "meta" -> META, 2 "mounts" -> MOUNT, 3 "network", 4 "security", 5 "secretenv" -> SECRET_ENV,
    6 "cdiDevices" -> DEVICE);
message!(META: 1 "args", 2 "env", 3 "cwd", 4 "user", 5 "proxy_env" -> PROXY, 6 "extraHosts" -> HOST, 7 "hostname",
    9 "ulimit" -> ULIMIT, 10 "cgroupParent", 11 "removeMountStubsRecursive", 12 "validExitCodes");
message!(PROXY: 1 "http_proxy", 2 "https_proxy", 3 "ftp_proxy", 4 "no_proxy", 5 "all_proxy");
message!(HOST: 1 "Host", 2 "IP");
message!(ULIMIT: 1 "Name", 2 "Soft", 3 "Hard");
message!(SECRET_ENV: 1 "ID", 2 "name", 3 "optional");
message!(DEVICE: 1 "name", 2 "optional");
message!(MOUNT: 1 "input", 2 "selector", 3 "dest", 4 "output", 5 "readonly", 6 "mountType", 19 "TmpfsOpt" -> TMPFS,
    20 "cacheOpt" -> CACHE, 21 "secretOpt" -> SECRET, 22 "SSHOpt" -> SECRET, 23 "resultID", 24 "contentCache");
message!(TMPFS: 1 "size");
message!(CACHE: 1 "ID", 2 "sharing");
message!(SECRET: 1 "ID", 2 "uid", 3 "gid", 4 "mode", 5 "optional");
message!(SOURCE: 1 "identifier", 2 "attrs" -> ENTRY);
message!(ENTRY: 1 "key", 2 "value");
message!(BUILD: 1 "builder", 2 "inputs" -> BUILD_ENTRY, 3 "def", 4 "attrs" -> ENTRY);
message!(BUILD_ENTRY: 1 "key", 2 "value" -> BUILD_INPUT);
message!(BUILD_INPUT: 1 "input");
message!(MERGE: 1 "inputs" -> BUILD_INPUT);
message!(PASSTHROUGH: 1 "id", 2 "outputs");
message!(DIFF: 1 "lower" -> BUILD_INPUT, 2 "upper" -> BUILD_INPUT);
message!(FILE: 2 "actions" -> ACTION);
message!(ACTION: 1 "input", 2 "secondaryInput", 3 "output", 4 "copy" -> COPY, 5 "mkfile" -> MKFILE, 6 "mkdir" -> MKDIR,
    7 "rm" -> RM, 8 "symlink" -> SYMLINK);
message!(COPY: 1 "src", 2 "dest", 3 "owner" -> CHOWN, 4 "mode", 5 "followSymlink", 6 "dirCopyContents",
    7 "attemptUnpackDockerCompatibility", 8 "createDestPath", 9 "allowWildcard", 10 "allowEmptyWildcard", 11 "timestamp",
    12 "include_patterns", 13 "exclude_patterns", 14 "alwaysReplaceExistingDestPaths", 15 "modeStr", 16 "required_paths");
message!(MKFILE: 1 "path", 2 "mode", 3 "data", 4 "owner" -> CHOWN, 5 "timestamp");
message!(MKDIR: 1 "path", 2 "mode", 3 "makeParents", 4 "owner" -> CHOWN, 5 "timestamp");
message!(RM: 1 "path", 2 "allowNotFound", 3 "allowWildcard");
message!(SYMLINK: 1 "oldpath", 2 "newpath", 3 "owner" -> CHOWN, 4 "timestamp");
message!(CHOWN: 1 "user" -> USER, 2 "group" -> USER);
message!(USER: 1 "byName" -> NAMED, 2 "byID");
message!(NAMED: 1 "name", 2 "input");

/// Returns the value that a message's field has at last, which is of bytes; `None` when it has none.
pub(crate) fn last_of(mut message: &[u8], number: u32) -> Option<&[u8]> {
    let mut last = None;
    while !message.is_empty() {
        let tag = varint(&mut message)?;
        let value = value(&mut message, tag & 7)?;
        if tag == u64::from(number) << 3 | 2 {
            last = Some(value);
        }
    }
    last
}

/// Returns the path of the first field of an operation that the protocol does not have, for example `exec.meta.(13)`.
pub(crate) fn unknown_field(op: &[u8]) -> Option<String> {
    walk(op, &OP, 0).err()
}

fn walk(mut bytes: &[u8], message: &Message, depth: usize) -> Result<(), String> {
    while !bytes.is_empty() {
        let Some(tag) = varint(&mut bytes) else { return Ok(()) };
        let (number, kind) = (u32::try_from(tag >> 3).unwrap_or(u32::MAX), tag & 7);
        let Some((_, name, inner)) = message.fields.iter().find(|(known, ..)| *known == number) else {
            return Err(format!("({number})"));
        };
        let Some(value) = value(&mut bytes, kind) else { return Ok(()) };
        if let (Some(inner), 2) = (inner, kind)
            && depth < MAX_DEPTH
        {
            walk(value, inner, depth + 1).map_err(|path| format!("{name}.{path}"))?;
        }
    }
    Ok(())
}

/// Takes a field's value; `None` when the bytes are malformed.
fn value<'a>(bytes: &mut &'a [u8], kind: u64) -> Option<&'a [u8]> {
    let length = match kind {
        0 => {
            varint(bytes)?;
            0
        }
        1 => 8,
        2 => usize::try_from(varint(bytes)?).ok()?,
        5 => 4,
        _ => return None,
    };
    let (value, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(value)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0_u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::pb;

    #[test]
    fn known_fields_pass_and_others_are_named() {
        let meta = pb::Meta { args: vec!["x".to_owned()], valid_exit_codes: vec![1, 2], ..pb::Meta::default() };
        let exec = pb::ExecOp { meta: Some(meta), ..pb::ExecOp::default() };
        let op = pb::Op { op: Some(pb::op::Op::Exec(exec)), ..pb::Op::default() };
        assert_eq!(unknown_field(&op.encode_to_vec()), None);
        // The operation of field 9; the field 13 of exec.meta, a number.
        assert_eq!(unknown_field(&[0x4a, 0]).as_deref(), Some("(9)"));
        assert_eq!(unknown_field(&[0x12, 4, 0x0a, 2, 0x68, 1]).as_deref(), Some("exec.meta.(13)"));
    }

    #[test]
    fn the_last_value_of_a_field_counts() {
        // Field 1, a number; field 8, twice.
        let message = [0x08, 5, 0x42, 1, b'a', 0x42, 2, b'b', b'c'];
        assert_eq!((last_of(&message, 8), last_of(&message, 7)), (Some(&b"bc"[..]), None));
    }

    #[test]
    fn malformed_bytes_are_left_to_the_decoder() {
        for bytes in [&[0x12, 200][..], &[0xff; 20], &[0x0a], &[0x0b, 0x0c]] {
            assert_eq!(unknown_field(bytes), None);
        }
    }
}
