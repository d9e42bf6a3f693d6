//! Columns as docker's lists have them.
//!
//! The rules are those of Go's `text/tabwriter` with docker's settings; only widths are the terminal's, so that wide characters
//! line up.

use unicode_width::UnicodeWidthStr as _;

/// Blanks between columns.
const GAP: usize = 3;
/// The least width of a column, with its gap.
const LEAST: usize = 10;

/// Replaces tabs by blanks so that cells line up.
///
/// A cell is what stands before a tab; what stands after the last tab of a line belongs to no column. A column is as wide as
/// its widest cell in adjacent lines that have the column, and at least ten.
#[must_use]
pub fn align(text: &str) -> String {
    let lines: Vec<Vec<&str>> = text.split('\n').map(|line| line.split('\t').collect()).collect();
    let mut widths: Vec<Vec<usize>> = lines.iter().map(|cells| vec![0; cells.len() - 1]).collect();
    let columns = widths.iter().map(Vec::len).max().unwrap_or(0);
    for column in 0..columns {
        let mut block = 0..0;
        while block.start < lines.len() {
            let has_column = |line: &usize| widths[*line].len() > column;
            let start = (block.end..lines.len()).find(has_column).unwrap_or(lines.len());
            let end = (start..lines.len()).find(|line| !has_column(line)).unwrap_or(lines.len());
            block = start..end;
            let widest = block.clone().map(|line| lines[line][column].width()).max().unwrap_or(0);
            block.clone().for_each(|line| widths[line][column] = (widest + GAP).max(LEAST));
        }
    }
    let aligned = lines.iter().zip(&widths).map(|(cells, widths)| line(cells, widths));
    aligned.collect::<Vec<_>>().join("\n")
}

fn line(cells: &[&str], widths: &[usize]) -> String {
    let mut out = String::new();
    for (index, cell) in cells.iter().enumerate() {
        out.push_str(cell);
        if let Some(width) = widths.get(index) {
            out.push_str(&" ".repeat(width.saturating_sub(cell.width())));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_as_in_go() {
        for line in include_str!("../../../testdata/format/tables.jsonl").lines() {
            let case: serde_json::Value = serde_json::from_str(line).unwrap();
            assert_eq!(align(case["tabs"].as_str().unwrap()), case["output"].as_str().unwrap(), "{line}");
        }
    }

    #[test]
    fn wide_characters_do_not_shift_the_next_column() {
        assert_eq!(align("日本語の名前です\tx\nb\ty"), "日本語の名前です   x\nb                  y");
    }
}
