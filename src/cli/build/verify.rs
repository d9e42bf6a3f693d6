//! `--verify`: says how two builds differ.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::error::{Error, Result};
use crate::types::build::{Comparison, Difference, SolveResponse, VERIFY};

/// Reads how two builds differ; `None` when they were not compared.
///
/// # Errors
/// When the engine's answer makes no sense.
pub(super) fn comparison(response: &SolveResponse) -> Result<Option<Comparison>> {
    let Some(text) = response.exporter_response.get(VERIFY) else { return Ok(None) };
    let json = STANDARD.decode(text).map_err(|_| Error::internal("the comparison is not base64"))?;
    Ok(Some(serde_json::from_slice(&json)?))
}

/// Writes what a comparison found: layers with their instructions, and their files.
pub(super) fn report(comparison: &Comparison) -> String {
    let layers = plural(comparison.layers, "layer");
    if comparison.total == 0 {
        let are = if comparison.layers == 1 { "is" } else { "are" };
        return format!("reproducible: {layers} {are} the same in both builds\n");
    }
    let mut text = format!("not reproducible: {} in {layers}\n", plural(comparison.total, "difference"));
    let several = comparison.differences.windows(2).any(|pair| pair[0].platform != pair[1].platform);
    let width = comparison.differences.iter().map(|difference| difference.path.chars().count()).max().unwrap_or(0);
    let mut last: Option<&Difference> = None;
    for difference in &comparison.differences {
        let same = |last: &Difference| last.layer == difference.layer && last.platform == difference.platform;
        if difference.layer > 0 && !last.is_some_and(same) {
            let platform = if several { format!(" of {}", difference.platform) } else { String::new() };
            let _ = writeln!(text, "\nlayer {}{platform}: {}", difference.layer, difference.step);
        }
        let (path, what) = (&difference.path, difference.what.join(", "));
        let _ = writeln!(text, "  {path:<width$}  {what}", width = width.min(60));
        last = Some(difference);
    }
    let left = comparison.total - comparison.differences.len();
    if left > 0 {
        let _ = writeln!(text, "  and {left} more");
    }
    if comparison.differences.iter().all(|difference| difference.what == ["mtime"]) {
        text.push_str(
            "\nOnly times differ: set SOURCE_DATE_EPOCH, and export with rewrite-timestamp=true, to have them set to that.\n",
        );
    }
    text
}

fn plural(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn difference(layer: usize, path: &str, what: &[&str]) -> Difference {
        Difference {
            platform: "linux/amd64".to_owned(),
            layer,
            step: format!("RUN step {layer}"),
            path: path.to_owned(),
            what: what.iter().map(|what| (*what).to_owned()).collect(),
        }
    }

    #[test]
    fn differences_are_shown_by_layer() {
        let comparison = Comparison {
            layers: 3,
            total: 4,
            differences: vec![
                difference(2, "/date", &["content", "mtime"]),
                difference(2, "/etc", &["mtime"]),
                difference(3, "/x", &["mode (644, 600)"]),
            ],
        };
        assert_eq!(
            report(&comparison),
            "not reproducible: 4 differences in 3 layers\n\nlayer 2: RUN step 2\n  /date  content, mtime\n  /etc   mtime\n\n\
             layer 3: RUN step 3\n  /x     mode (644, 600)\n  and 1 more\n"
        );
        assert_eq!(
            report(&Comparison { layers: 1, ..Comparison::default() }),
            "reproducible: 1 layer is the same in both builds\n"
        );
    }

    #[test]
    fn when_only_times_differ_it_says_what_to_do() {
        let comparison = Comparison { layers: 1, total: 1, differences: vec![difference(1, "/x", &["mtime"])] };
        assert!(report(&comparison).contains("SOURCE_DATE_EPOCH"));
    }
}
