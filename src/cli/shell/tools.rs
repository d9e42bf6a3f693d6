//! The tools of the small shell, for images that have none of their own.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

/// Their names.
pub(super) const NAMES: [&str; 11] = ["cat", "chmod", "cp", "echo", "find", "id", "ls", "mkdir", "mv", "ps", "rm"];

/// Runs one of them.
pub(super) fn run(name: &str, args: &[String], input: Option<File>, out: &mut dyn Write) -> io::Result<()> {
    let (flags, operands): (Vec<&str>, Vec<&str>) =
        args.iter().map(String::as_str).partition(|arg| arg.len() > 1 && arg.starts_with('-'));
    let has = |flag: char| flags.iter().any(|arg| arg.contains(flag));
    match name {
        "cat" => cat(&operands, input, out),
        "chmod" => chmod(&operands),
        "cp" => pairs(&operands, |from, to| fs::copy(from, to).map(drop)),
        "echo" => writeln!(out, "{}", args.join(" ")),
        "find" => operands_or(&operands, ".").iter().try_for_each(|path| find(Path::new(path), out)),
        "id" => id(out),
        "ls" => operands_or(&operands, ".").iter().try_for_each(|path| ls(Path::new(path), has('l'), has('a'), out)),
        "mkdir" => {
            operands.iter().try_for_each(|dir| if has('p') { fs::create_dir_all(dir) } else { fs::create_dir(dir) })
        }
        "mv" => pairs(&operands, |from, to| fs::rename(from, to)),
        "ps" => ps(out),
        _ => operands.iter().try_for_each(|path| {
            let is_dir = fs::symlink_metadata(path)?.is_dir();
            if is_dir && has('r') { fs::remove_dir_all(path) } else { fs::remove_file(path) }
        }),
    }
}

fn usage(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("usage: {text}"))
}

fn operands_or<'a>(operands: &[&'a str], usual: &'a str) -> Vec<&'a str> {
    if operands.is_empty() { vec![usual] } else { operands.to_vec() }
}

fn cat(paths: &[&str], input: Option<File>, out: &mut dyn Write) -> io::Result<()> {
    if paths.is_empty() {
        let mut input: Box<dyn Read> =
            input.map_or_else(|| Box::new(io::stdin()) as Box<dyn Read>, |file| Box::new(file));
        return io::copy(&mut input, out).map(drop);
    }
    paths.iter().try_for_each(|path| io::copy(&mut File::open(path)?, out).map(drop))
}

fn chmod(operands: &[&str]) -> io::Result<()> {
    let [mode, paths @ ..] = operands else { return Err(usage("chmod MODE FILE..")) };
    let mode = u32::from_str_radix(mode, 8).map_err(|_| usage("chmod MODE FILE.., with a mode such as 644"))?;
    let permissions = std::os::unix::fs::PermissionsExt::from_mode(mode);
    paths.iter().try_for_each(|path| fs::set_permissions(path, fs::Permissions::clone(&permissions)))
}

/// Does something from each operand but the last to the last, or into it when that is a directory.
fn pairs(operands: &[&str], each: impl Fn(&Path, &Path) -> io::Result<()>) -> io::Result<()> {
    let [from @ .., to] = operands else { return Err(usage("SOURCE.. TARGET")) };
    if from.is_empty() {
        return Err(usage("SOURCE.. TARGET"));
    }
    from.iter().map(Path::new).try_for_each(|from| {
        let to = Path::new(to);
        let into = from.file_name().filter(|_| to.is_dir()).map(|name| to.join(name));
        each(from, into.as_deref().unwrap_or(to))
    })
}

fn sorted(dir: &Path) -> io::Result<Vec<fs::DirEntry>> {
    let mut entries = fs::read_dir(dir)?.collect::<io::Result<Vec<_>>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    Ok(entries)
}

fn find(path: &Path, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "{}", path.display())?;
    if fs::symlink_metadata(path)?.is_dir() {
        sorted(path)?.iter().try_for_each(|entry| find(&entry.path(), out))?;
    }
    Ok(())
}

fn ls(path: &Path, long: bool, all: bool, out: &mut dyn Write) -> io::Result<()> {
    let metadata = fs::symlink_metadata(path)?;
    let mut show = |path: &Path, name: &str| {
        if !long {
            return writeln!(out, "{name}");
        }
        let metadata = fs::symlink_metadata(path)?;
        let target = fs::read_link(path).map(|target| format!(" -> {}", target.display())).unwrap_or_default();
        let (uid, gid, size) = (metadata.uid(), metadata.gid(), metadata.len());
        writeln!(out, "{} {uid:>5} {gid:>5} {size:>10} {name}{target}", mode(&metadata))
    };
    if !metadata.is_dir() {
        return show(path, &path.display().to_string());
    }
    for entry in sorted(path)? {
        let name = entry.file_name().to_string_lossy().into_owned();
        if all || !name.starts_with('.') {
            show(&entry.path(), &name)?;
        }
    }
    Ok(())
}

/// `drwxr-xr-x`, with the set-id and sticky bits.
fn mode(metadata: &fs::Metadata) -> String {
    let (kind, mode) = (metadata.file_type(), metadata.mode());
    let kinds = [
        (kind.is_dir(), 'd'),
        (kind.is_symlink(), 'l'),
        (kind.is_char_device(), 'c'),
        (kind.is_block_device(), 'b'),
        (kind.is_fifo(), 'p'),
        (kind.is_socket(), 's'),
    ];
    let mut text: Vec<char> = vec![kinds.iter().find(|(is, _)| *is).map_or('-', |(_, letter)| *letter)];
    text.extend((0..9).map(|bit| if mode & (0o400 >> bit) == 0 { '-' } else { ['r', 'w', 'x'][bit % 3] }));
    for (bit, at, letter) in [(0o4000, 3, 's'), (0o2000, 6, 's'), (0o1000, 9, 't')] {
        if mode & bit != 0 {
            text[at] = if text[at] == 'x' { letter } else { letter.to_ascii_uppercase() };
        }
    }
    text.into_iter().collect()
}

fn id(out: &mut dyn Write) -> io::Result<()> {
    let groups = rustix::process::getgroups()?;
    let groups: Vec<String> = groups.iter().map(|group| group.as_raw().to_string()).collect();
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    writeln!(out, "uid={uid} gid={gid} groups={}", groups.join(","))
}

fn ps(out: &mut dyn Write) -> io::Result<()> {
    let mut pids: Vec<u32> =
        fs::read_dir("/proc")?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    for pid in pids {
        // One that has ended meanwhile is passed over.
        let Ok(command) = fs::read(format!("/proc/{pid}/cmdline")) else { continue };
        writeln!(out, "{pid:>7} {}", String::from_utf8_lossy(&command).replace('\0', " ").trim_end())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_made_shown_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        let tool = |name: &str, args: &[&str]| {
            let mut out = Vec::new();
            run(name, &args.iter().map(ToString::to_string).collect::<Vec<_>>(), None, &mut out).unwrap();
            String::from_utf8(out).unwrap()
        };
        tool("mkdir", &["-p", &path("a/b")]);
        fs::write(path("a/file"), "x").unwrap();
        tool("cp", &[&path("a/file"), &path("a/b")]);
        tool("chmod", &["4755", &path("a/file")]);
        assert_eq!(tool("cat", &[&path("a/file"), &path("a/b/file")]), "xx");
        assert_eq!(tool("ls", &[&path("a")]), "b\nfile\n");
        assert!(tool("ls", &["-l", &path("a/file")]).starts_with("-rwsr-xr-x "));
        assert_eq!(tool("find", &[&path("a")]).lines().count(), 4);
        tool("rm", &["-r", &path("a")]);
        assert!(!dir.path().join("a").exists());
    }
}
