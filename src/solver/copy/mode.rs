//! `--chmod`: octal and symbolic modes, the latter as `chmod(1)` of POSIX reads them.

use kiln_graph::op::Mode;

use crate::error::{Error, Result};

/// Returns the permissions a file gets whose permissions are `current`.
///
/// # Errors
/// `InvalidArgument` for a malformed symbolic mode.
pub fn apply_mode(mode: &Mode, current: u32, is_dir: bool) -> Result<u32> {
    match mode {
        Mode::Octal(bits) => Ok(*bits & 0o7777),
        Mode::Symbolic(text) => {
            let invalid = || Error::invalid(format!("invalid mode {text:?}: expected something like u=rwX,go=rX"));
            text.split(',').try_fold(current, |bits, clause| apply_clause(clause, bits, is_dir).ok_or_else(invalid))
        }
    }
}

/// Applies one clause, such as `ug+rw` or `a=rX-t`.
fn apply_clause(clause: &str, current: u32, is_dir: bool) -> Option<u32> {
    let operators = clause.find(['+', '-', '='])?;
    let (who, mut rest) = clause.split_at(operators);
    let mut mask = 0;
    for c in who.chars() {
        mask |= match c {
            'u' => 0o4700,
            'g' => 0o2070,
            'o' => 0o1007,
            'a' => 0o7777,
            _ => return None,
        };
    }
    // Nobody named is everybody. (chmod would leave out what the umask forbids; a build has no umask.)
    let mask = if mask == 0 { 0o7777 } else { mask };
    let mut bits = current;
    while !rest.is_empty() {
        let (operator, after) = rest.split_at(1);
        let end = after.find(['+', '-', '=']).unwrap_or(after.len());
        let (permissions, after) = after.split_at(end);
        let wanted = permission_bits(permissions, bits, is_dir)? & mask;
        // On a directory, `=` leaves set-ID bits that were not named alone, as GNU chmod does.
        let kept = if is_dir { 0o6000 & !wanted } else { 0 };
        bits = match operator {
            "+" => bits | wanted,
            "-" => bits & !wanted,
            "=" => bits & !(mask & !kept) | wanted,
            _ => return None,
        };
        rest = after;
    }
    Some(bits)
}

fn permission_bits(text: &str, current: u32, is_dir: bool) -> Option<u32> {
    let copy = |shift: u32| (current >> shift & 7) * 0o111;
    match text {
        "u" => return Some(copy(6)),
        "g" => return Some(copy(3)),
        "o" => return Some(copy(0)),
        _ => {}
    }
    let mut bits = 0;
    for c in text.chars() {
        bits |= match c {
            'r' => 0o444,
            'w' => 0o222,
            'x' => 0o111,
            'X' if is_dir || current & 0o111 != 0 => 0o111,
            'X' => 0,
            's' => 0o6000,
            't' => 0o1000,
            _ => return None,
        };
    }
    Some(bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn symbolic_modes_do_what_chmod_does() {
        for (mode, current, is_dir, result) in [
            ("u=rwX,go=rX", 0o600, false, 0o644),
            ("u=rwX,go=rX", 0o700, true, 0o755),
            ("+x", 0o644, false, 0o755),
            ("go-w", 0o666, false, 0o644),
            ("a=r", 0o777, false, 0o444),
            ("u+s", 0o755, false, 0o4755),
            ("g=u", 0o740, false, 0o770),
            ("+t", 0o777, true, 0o1777),
            ("u=rw+x", 0o000, false, 0o700),
            ("o=", 0o777, false, 0o770),
        ] {
            assert_eq!(apply_mode(&Mode::Symbolic(mode.to_owned()), current, is_dir).unwrap(), result, "{mode}");
        }
        assert_eq!(apply_mode(&Mode::Octal(0o755), 0, false).unwrap(), 0o755);
    }

    #[test]
    fn nonsense_is_refused() {
        for mode in ["", "u", "z+r", "u+q", "rw"] {
            assert!(apply_mode(&Mode::Symbolic(mode.to_owned()), 0, false).is_err(), "{mode}");
        }
    }
}
