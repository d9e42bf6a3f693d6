//! The views against scripted builds: `testdata/progress/*.jsonl`, and what each view shows of them beside it.
//!
//! A script's lines happen one after the other, `at` so many milliseconds. What a terminal shows is what a small emulator has
//! on its screen. `KILN_BLESS=1` rewrites what is expected.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::*;
use crate::types::build::{Vertex, VertexLog, VertexStatus, VertexWarning, pb, timestamp};

/// When all scripts begin, in nanoseconds since 1970.
const EPOCH: i64 = 1_700_000_000_000_000_000;

/// One line of a script.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Action {
    at: i64,
    /// A step begins, is announced (`known`), or ends.
    begin: Option<String>,
    known: Option<String>,
    end: Option<String>,
    name: String,
    cached: bool,
    error: String,
    /// A step prints.
    log: Option<String>,
    text: String,
    /// A part of a step comes further.
    part: Option<String>,
    of: String,
    current: i64,
    total: i64,
    done: bool,
    warning: Option<String>,
    line: i32,
    /// The terminal is looked at, with so many columns and rows.
    draw: Option<(usize, usize)>,
    finish: Option<String>,
}

#[derive(Default)]
struct Script {
    began: std::collections::HashMap<String, (i64, String)>,
    parts: std::collections::HashMap<String, i64>,
}

impl Script {
    fn message(&mut self, action: &Action) -> StatusResponse {
        let now = EPOCH + action.at * 1_000_000;
        let mut message = StatusResponse::default();
        if let Some(digest) = action.known.as_ref().or(action.begin.as_ref()) {
            self.began.insert(digest.clone(), (now, action.name.clone()));
            message.vertexes.push(Vertex {
                digest: digest.clone(),
                name: action.name.clone(),
                started: action.begin.as_ref().map(|_| timestamp(now)),
                ..Vertex::default()
            });
        }
        if let Some(digest) = &action.end {
            let (began, name) = self.began.get(digest).cloned().unwrap_or((now, action.name.clone()));
            message.vertexes.push(Vertex {
                digest: digest.clone(),
                name,
                started: Some(timestamp(began)),
                completed: Some(timestamp(now)),
                cached: action.cached,
                error: action.error.clone(),
                ..Vertex::default()
            });
        }
        if let Some(vertex) = &action.log {
            let msg = action.text.clone().into_bytes();
            message.logs.push(VertexLog { vertex: vertex.clone(), timestamp: Some(timestamp(now)), stream: 1, msg });
        }
        if let Some(id) = &action.part {
            let began = *self.parts.entry(id.clone()).or_insert(now);
            message.statuses.push(VertexStatus {
                id: id.clone(),
                vertex: action.of.clone(),
                name: id.clone(),
                current: action.current,
                total: action.total,
                timestamp: Some(timestamp(now)),
                started: Some(timestamp(began)),
                completed: action.done.then(|| timestamp(now)),
            });
        }
        if let Some(short) = &action.warning {
            let start = Some(pb::Position { line: action.line, character: 0 });
            message.warnings.push(VertexWarning {
                level: 1,
                short: short.clone().into_bytes(),
                ranges: vec![pb::Range { start, end: start }],
                ..VertexWarning::default()
            });
        }
        message
    }
}

/// A terminal: the lines so far and the cursor.
#[derive(Default)]
struct Emulator {
    rows: Vec<String>,
    row: usize,
    cursor_hidden: bool,
}

impl Emulator {
    fn print(&mut self, text: &str, size: Size) {
        let mut chars = text.chars().peekable();
        let mut column = 0;
        while let Some(c) = chars.next() {
            self.rows.resize(self.rows.len().max(self.row + 1), String::new());
            match c {
                '\r' => column = 0,
                '\n' => (self.row, column) = (self.row + 1, 0),
                '\x1b' => {
                    assert_eq!(chars.next(), Some('['));
                    let mut arguments = String::new();
                    let end = loop {
                        match chars.next().unwrap() {
                            c if c.is_ascii_alphabetic() => break c,
                            c => arguments.push(c),
                        }
                    };
                    let top = self.rows.len().saturating_sub(size.rows);
                    match (end, arguments.as_str()) {
                        ('A', up) => self.row = self.row.saturating_sub(up.parse().unwrap()).max(top),
                        ('K', "") => self.rows[self.row] = self.rows[self.row].chars().take(column).collect(),
                        ('J', "") => self.rows.truncate(self.row),
                        ('l', "?25") => self.cursor_hidden = true,
                        ('h', "?25") => self.cursor_hidden = false,
                        other => panic!("unknown sequence {other:?}"),
                    }
                }
                c => {
                    let row = &mut self.rows[self.row];
                    let mut text: Vec<char> = row.chars().collect();
                    text.resize(text.len().max(column + 1), ' ');
                    text[column] = c;
                    *row = text.into_iter().collect();
                    column += 1;
                    let wide = width::columns(row);
                    assert!(wide < size.columns || !self.cursor_hidden, "{wide} columns: {row}");
                }
            }
        }
    }

    fn shown(&self) -> String {
        let rows: Vec<&str> = self.rows.iter().map(|row| row.trim_end()).collect();
        format!("{}\n", rows.join("\n").trim_end())
    }
}

fn play(path: &Path) -> [(&'static str, String); 3] {
    let (mut plain, mut json, mut screen) = (String::new(), String::new(), String::new());
    let display = |mode| Display::new(mode, false, Colors::Off, EPOCH);
    let (mut tty, mut lines, mut raw) = (display(Mode::Tty), display(Mode::Plain), display(Mode::Rawjson));
    let (mut script, mut emulator) = (Script::default(), Emulator::default());
    for line in std::fs::read_to_string(path).unwrap().lines() {
        let action: Action = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        let now = EPOCH + action.at * 1_000_000;
        let message = script.message(&action);
        if message != StatusResponse::default() {
            plain.push_str(&lines.update(&message));
            json.push_str(&raw.update(&message));
            assert_eq!(tty.update(&message), "");
        }
        let Some((columns, rows)) = action.draw else { continue };
        let size = Size { columns, rows };
        let outcome = action.finish.as_deref().map(|outcome| match outcome {
            "finished" => Outcome::Finished,
            "failed" => Outcome::Failed,
            _ => Outcome::Interrupted,
        });
        let frame = match outcome {
            None => tty.frame(now, size),
            Some(outcome) => {
                plain.push_str(&lines.finish(now, size, outcome, Detail::Short));
                tty.finish(now, size, outcome, Detail::Short)
            }
        };
        emulator.print(&frame, size);
        assert_eq!(emulator.cursor_hidden, outcome.is_none());
        screen.push_str(&format!("--- {} ms, {columns}x{rows}\n{}", action.at, emulator.shown()));
    }
    [("plain", plain), ("tty", screen), ("rawjson", json)]
}

fn scripts() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/progress");
    let paths = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut scripts: Vec<PathBuf> = paths.filter(|path| path.extension().is_some_and(|e| e == "jsonl")).collect();
    scripts.sort();
    scripts
}

#[test]
fn views_show_scripted_builds_as_expected() {
    let bless = std::env::var_os("KILN_BLESS").is_some();
    let mut different = Vec::new();
    for script in scripts() {
        for (view, shown) in play(&script) {
            let path = script.with_extension(view);
            if bless {
                std::fs::write(&path, &shown).unwrap();
            } else if std::fs::read_to_string(&path).unwrap_or_default() != shown {
                different.push(format!("{} is not as expected; it shows:\n{shown}", path.display()));
            }
        }
    }
    assert!(different.is_empty(), "{}", different.join("\n"));
}

#[test]
fn a_frame_redrawn_on_a_narrower_screen_begins_where_its_wrapped_lines_do() {
    let mut display = Display::new(Mode::Tty, true, Colors::Off, EPOCH);
    let name = "x".repeat(100);
    let begin = Vertex { digest: "a".into(), name, started: Some(timestamp(EPOCH)), ..Vertex::default() };
    display.update(&StatusResponse { vertexes: vec![begin], ..StatusResponse::default() });
    display.frame(EPOCH, Size { columns: 101, rows: 24 });
    // The step's 100 columns wrap to three rows of 40, the summary needs one.
    let frame = display.frame(EPOCH, Size { columns: 40, rows: 24 });
    assert!(frame.starts_with("\r\x1b[4A"), "{frame:?}");
}
