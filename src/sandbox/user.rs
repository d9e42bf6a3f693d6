//! Users and groups as the container's own `/etc/passwd` and `/etc/group` know them.
//!
//! The host's databases are never asked. Both files are untrusted: they are opened beneath the root, must be regular files,
//! and are read up to a limit; malformed lines are passed over, as libc does.

use std::io::Read as _;
use std::os::fd::{AsFd as _, BorrowedFd};

use rustix::fs::{FileType, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::error::{Error, Result, ResultExt as _};
use crate::sys::plan::open_beneath;

/// A user database larger than this is cut.
const MAX_DATABASE_BYTES: u64 = 4 << 20;

/// Who runs a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum User {
    /// To be looked up in the root file system.
    Named {
        /// `user` or `user:group`, each a name or a number; empty is root.
        name: String,
        /// Further groups, as names or numbers.
        groups: Vec<String>,
    },
    /// Known already.
    Ids(Ids),
}

impl Default for User {
    fn default() -> Self {
        Self::Named { name: String::new(), groups: Vec::new() }
    }
}

/// A user in numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ids {
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// All groups, the primary one among them.
    pub groups: Vec<u32>,
    /// The home directory.
    pub home: String,
}

impl User {
    /// Looks the user up in a root file system, with the rules of runc: a number needs no entry, `user:group` takes no groups
    /// from the database, and the primary group is one of the groups.
    ///
    /// # Errors
    /// `InvalidArgument` for a name that has no entry, in Docker's words, and for numbers out of range.
    pub fn resolve(&self, root: BorrowedFd<'_>) -> Result<Ids> {
        let (name, extra) = match self {
            Self::Ids(ids) => return Ok(ids.clone()),
            Self::Named { name, groups } => (name.as_str(), groups),
        };
        let (user, group) = match name.split_once(':') {
            Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
            None => (name, None),
        };
        let user = if user.is_empty() { "0" } else { user };
        let passwd = read_database(root, c"etc/passwd")?;
        let entry = find_user(&passwd, user);
        let (uid, primary, home, login) = match (&entry, number(user)?) {
            (Some(entry), _) => (entry.uid, entry.gid, entry.home, Some(entry.name)),
            (None, Some(uid)) => (uid, 0, "/", None),
            (None, None) => {
                return Err(Error::invalid(format!("unable to find user {user}: no matching entries in passwd file")));
            }
        };
        let needs_groups = group.is_some_and(|group| !is_number(group))
            || extra.iter().any(|name| !is_number(name))
            || (group.is_none() && login.is_some());
        let database = if needs_groups { read_database(root, c"etc/group")? } else { String::new() };
        let gid = group.map_or(Ok(primary), |group| find_group(&database, group))?;
        let mut groups = vec![gid];
        if let (None, Some(login)) = (group, login) {
            groups.extend(memberships(&database, login));
        }
        for name in extra {
            groups.push(find_group(&database, name)?);
        }
        groups.sort_unstable();
        groups.dedup();
        Ok(Ids { uid, gid, groups, home: home.to_owned() })
    }
}

/// What the names of an owner of files stand for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NamedOwner {
    /// The user, and the group of the user's entry.
    pub user: Option<(u32, u32)>,
    /// The group that was named.
    pub group: Option<u32>,
}

/// Looks the names of an owner of files up in a root file system, with the rules of BuildKit: a user's name stands for the group of
/// its entry, too, and a name that has no entry is root, whatever its documentation says.
///
/// # Errors
/// When the files cannot be read.
pub fn owner_by_names(root: BorrowedFd<'_>, user: Option<&str>, group: Option<&str>) -> Result<NamedOwner> {
    let ids = |user: &str| -> Result<(u32, u32)> {
        let passwd = read_database(root, c"etc/passwd")?;
        let entry = passwd.lines().filter_map(parse_user).find(|entry| entry.name == user);
        Ok(entry.map_or((0, 0), |entry| (entry.uid, entry.gid)))
    };
    let gid = |group: &str| -> Result<u32> {
        let database = read_database(root, c"etc/group")?;
        let found = groups(&database).find(|(name, ..)| *name == group).map(|(_, gid, _)| gid);
        Ok(found.unwrap_or(0))
    };
    Ok(NamedOwner { user: user.map(ids).transpose()?, group: group.map(gid).transpose()? })
}

struct Entry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

fn parse_user(line: &str) -> Option<Entry<'_>> {
    let mut fields = line.trim().split(':');
    let name = fields.next().filter(|name| !name.is_empty())?;
    let uid = fields.nth(1)?.parse().ok()?;
    let gid = fields.next()?.parse().ok()?;
    let home = fields.nth(1).filter(|home| !home.is_empty()).unwrap_or("/");
    Some(Entry { name, uid, gid, home })
}

/// A name wins over a number that happens to be a name as well.
fn find_user<'a>(passwd: &'a str, user: &str) -> Option<Entry<'a>> {
    let entries = || passwd.lines().filter_map(parse_user);
    entries().find(|entry| entry.name == user).or_else(|| {
        let uid = user.parse::<u32>().ok()?;
        entries().find(|entry| entry.uid == uid)
    })
}

/// The name, number and members of each group.
fn groups(database: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    database.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let gid = fields.nth(1)?.parse().ok()?;
        Some((name, gid, fields.next().unwrap_or("")))
    })
}

fn find_group(database: &str, wanted: &str) -> Result<u32> {
    match (groups(database).find(|(name, ..)| *name == wanted), number(wanted)?) {
        (Some((_, gid, _)), _) | (None, Some(gid)) => Ok(gid),
        (None, None) => {
            Err(Error::invalid(format!("unable to find group {wanted}: no matching entries in group file")))
        }
    }
}

fn memberships<'a>(database: &'a str, login: &'a str) -> impl Iterator<Item = u32> + 'a {
    let is_member = move |members: &str| members.split(',').any(|member| member == login);
    groups(database).filter(move |(_, _, members)| is_member(members)).map(|(_, gid, _)| gid)
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// A number if it looks like one. The largest id means "do not change" to the kernel.
fn number(text: &str) -> Result<Option<u32>> {
    if !is_number(text) {
        return Ok(None);
    }
    match text.parse::<u32>() {
        Ok(id) if id <= i32::MAX.cast_unsigned() => Ok(Some(id)),
        _ => Err(Error::invalid(format!("id {text} is out of range: expected 0 to {}", i32::MAX))),
    }
}

/// A missing file is an empty one.
fn read_database(root: BorrowedFd<'_>, path: &std::ffi::CStr) -> Result<String> {
    let doing = || format!("read /{} of the root file system", path.to_string_lossy());
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    let fd = match open_beneath(root, path, flags, ResolveFlags::empty()) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(String::new()),
        fd => fd.context(doing)?,
    };
    if FileType::from_raw_mode(rustix::fs::fstat(fd.as_fd()).context(doing)?.st_mode) != FileType::RegularFile {
        return Err(Error::invalid("it is not a regular file").context(doing()));
    }
    let mut bytes = Vec::new();
    std::fs::File::from(fd).take(MAX_DATABASE_BYTES).read_to_end(&mut bytes).context(doing)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_whose_name_has_no_entry_is_root() {
        let (_dir, root) = root("app:x:700:701::/:\n12:x:1:2::/:\n", "web:x:55:\n");
        let owner = |user, group| owner_by_names(root.as_fd(), user, group).unwrap();
        assert_eq!(owner(Some("app"), None), NamedOwner { user: Some((700, 701)), group: None });
        assert_eq!(owner(Some("nobody"), Some("web")), NamedOwner { user: Some((0, 0)), group: Some(55) });
        assert_eq!(owner(None, Some("staff")), NamedOwner { user: None, group: Some(0) });
    }

    fn root(passwd: &str, group: &str) -> (tempfile::TempDir, std::fs::File) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        std::fs::write(dir.path().join("etc/passwd"), passwd).unwrap();
        std::fs::write(dir.path().join("etc/group"), group).unwrap();
        let file = std::fs::File::open(dir.path()).unwrap();
        (dir, file)
    }

    fn resolve(name: &str, extra: &[&str]) -> Result<Ids> {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbroken\napp:x:1000:1001::/srv/app:/bin/sh\n7:x:70:70::/seven:\n";
        let group = "root:x:0:\napp:x:1001:\naudio:x:29:app,other\nvideo:x:44:other,app\nwheel:x:10:root\n";
        let (_dir, file) = root(passwd, group);
        let groups = extra.iter().map(ToString::to_string).collect();
        User::Named { name: name.to_owned(), groups }.resolve(file.as_fd())
    }

    fn ids(uid: u32, gid: u32, groups: &[u32], home: &str) -> Ids {
        Ids { uid, gid, groups: groups.to_vec(), home: home.to_owned() }
    }

    #[test]
    fn a_user_is_looked_up_in_the_containers_own_files() {
        assert_eq!(resolve("", &[]).unwrap(), ids(0, 0, &[0, 10], "/root"));
        assert_eq!(resolve("app", &[]).unwrap(), ids(1000, 1001, &[29, 44, 1001], "/srv/app"));
        assert_eq!(resolve("1000", &[]).unwrap(), ids(1000, 1001, &[29, 44, 1001], "/srv/app"));
        assert_eq!(resolve("app:audio", &[]).unwrap(), ids(1000, 29, &[29], "/srv/app"));
        assert_eq!(resolve("app:5", &["wheel", "99"]).unwrap(), ids(1000, 5, &[5, 10, 99], "/srv/app"));
        assert_eq!(resolve("4242", &[]).unwrap(), ids(4242, 0, &[0], "/"));
        assert_eq!(resolve("7", &[]).unwrap(), ids(70, 70, &[70], "/seven"));
    }

    #[test]
    fn an_unknown_user_or_group_is_refused_in_dockers_words() {
        let error = |name: &str| resolve(name, &[]).unwrap_err().to_string();
        assert_eq!(error("nobody"), "unable to find user nobody: no matching entries in passwd file");
        assert_eq!(error("app:staff"), "unable to find group staff: no matching entries in group file");
        assert!(error("4294967295").contains("out of range"));
    }

    #[test]
    fn a_user_database_that_is_a_link_stays_within_the_root() {
        let (dir, file) = root("", "");
        std::fs::remove_file(dir.path().join("etc/passwd")).unwrap();
        std::os::unix::fs::symlink("/../../../../../../etc/passwd", dir.path().join("etc/passwd")).unwrap();
        let error = User::Named { name: "root".to_owned(), groups: Vec::new() }.resolve(file.as_fd()).unwrap_err();
        assert!(error.to_string().contains("etc/passwd") || error.to_string().contains("unable to find"), "{error}");
        std::fs::remove_file(dir.path().join("etc/passwd")).unwrap();
        rustix::fs::mkfifoat(&file, "etc/passwd", rustix::fs::Mode::RUSR).unwrap();
        let error = User::default().resolve(file.as_fd()).unwrap_err();
        assert!(error.to_string().contains("not a regular file"), "{error}");
    }
}
