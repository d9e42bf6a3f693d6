//! Text in cells of a terminal: how wide it is, how to cut it, and what of a process's output is text at all.

use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

/// Where tabs lead.
const TAB: usize = 8;

/// Returns how many cells a text takes.
pub(super) fn columns(text: &str) -> usize {
    text.width()
}

/// Returns a text cut to so many cells; an ellipsis says that something is missing.
pub(super) fn cut(text: &str, width: usize) -> String {
    if columns(text) <= width {
        return text.to_owned();
    }
    let mut cells = 0;
    let fits = |c: &char| {
        cells += c.width().unwrap_or(0);
        cells < width
    };
    let kept: String = text.chars().take_while(fits).collect();
    format!("{kept}…")
}

/// Returns what a line of output would leave on a screen: without control sequences, with tabs as blanks, and only what stands
/// after the last carriage return.
pub(in crate::cli::build) fn plain_text(line: &str) -> String {
    let line = line.trim_end_matches('\r');
    let line = line.rsplit('\r').next().unwrap_or(line);
    let mut text = String::new();
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            '\x1b' => skip_sequence(&mut chars),
            '\t' => {
                let blanks = TAB - columns(&text) % TAB;
                text.extend(std::iter::repeat_n(' ', blanks));
            }
            c if c.is_control() => {}
            c => text.push(c),
        }
    }
    text
}

/// Skips an escape sequence after its first character (ECMA-48): `[` up to a final byte, `]` up to a bell or `ESC \`.
fn skip_sequence(chars: &mut std::str::Chars<'_>) {
    match chars.next() {
        Some('[') => drop(chars.find(|c| matches!(c, '\x40'..='\x7e'))),
        Some(']') => {
            while let Some(c) = chars.next() {
                if c == '\x07' || (c == '\x1b' && chars.next() == Some('\\')) {
                    break;
                }
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_by_cells_not_letters() {
        assert_eq!(cut("short", 5), "short");
        assert_eq!(cut("longer", 5), "long…");
        assert_eq!(cut("日本語です", 6), "日本…");
        assert_eq!((columns("日本…"), cut("abc", 0)), (5, "…".to_owned()));
    }

    #[test]
    fn control_sequences_do_not_reach_the_screen() {
        assert_eq!(plain_text("\x1b[1;31mred\x1b[0m\x1b]0;title\x07!\x08"), "red!");
        assert_eq!(plain_text(" 10%\r 50%\r100%\r"), "100%");
        assert_eq!(plain_text("a\tb"), "a       b");
        assert_eq!(plain_text("x\x1b[2"), "x");
    }
}
