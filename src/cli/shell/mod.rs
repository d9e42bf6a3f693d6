//! A small shell of Kiln's own, for sandboxes whose image has none: `--on-failure=shell` runs this program in them.
//!
//! It runs commands with quotes, variables, `;`, `&&`, `||` and redirections, and has the few tools that looking around takes.
//! It is no POSIX shell: there are no pipes, patterns, functions or jobs. Editing a line is the terminal's business.

mod line;
mod tools;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead as _, IsTerminal as _, Write};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use tokio::signal::unix::{SignalKind, signal};

use self::line::{Join, Step, Target};

/// What `help` prints before the tools.
const HELP: &str = "\
Kiln's own shell, because the image has none. Commands are those of the image, and:
  cd [DIR], pwd, exit [CODE], env, export NAME=VALUE, unset NAME, help
";

/// Runs one command line (`-c LINE`), one command (its words), or reads commands from standard input.
pub(super) fn main(args: &[OsString]) -> ExitCode {
    let args: Vec<String> = args.iter().map(|arg| arg.to_string_lossy().into_owned()).collect();
    let mut shell = Shell::new();
    match args.as_slice() {
        [] => shell.converse(),
        [option, line] if option == "-c" => shell.run_line(line),
        words => shell.status = shell.run(words, &[]),
    }
    ExitCode::from(shell.status)
}

struct Shell {
    variables: BTreeMap<String, String>,
    /// The exit code of the last command.
    status: u8,
    exiting: bool,
}

impl Shell {
    fn new() -> Self {
        let text = |text: OsString| text.to_string_lossy().into_owned();
        let variables = std::env::vars_os().map(|(name, value)| (text(name), text(value))).collect();
        Self { variables, status: 0, exiting: false }
    }

    /// Reads and runs lines until the end of the input.
    fn converse(&mut self) {
        // Keys that end a command must not end the shell; commands get back what signals usually do.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let _caught = runtime.as_ref().ok().map(|runtime| {
            let _entered = runtime.enter();
            [SignalKind::interrupt(), SignalKind::quit()].map(signal)
        });
        let interactive = io::stdin().is_terminal();
        let mut lines = io::stdin().lock().lines();
        if interactive {
            print!("{HELP}  {}\nType help for this.\n", tools::NAMES.join(", "));
        }
        while !self.exiting {
            if interactive {
                print!("kiln:{}# ", std::env::current_dir().unwrap_or_default().display());
            }
            let _ = io::stdout().flush();
            let Some(Ok(line)) = lines.next() else { break };
            self.run_line(&line);
        }
        if interactive && !self.exiting {
            println!();
        }
    }

    fn run_line(&mut self, line: &str) {
        let steps = match line::parse(line) {
            Ok(steps) => steps,
            Err(error) => {
                eprintln!("{error}");
                self.status = 2;
                return;
            }
        };
        for Step { join, words, targets } in steps {
            let goes_on = match join {
                Join::Always => true,
                Join::And => self.status == 0,
                Join::Or => self.status != 0,
            };
            if !goes_on || self.exiting {
                continue;
            }
            let words: Vec<String> = words.iter().map(|word| word.expand(|name| self.variable(name))).collect();
            self.status = self.run(&words, &targets);
        }
    }

    fn variable(&self, name: &str) -> String {
        match name {
            "?" => self.status.to_string(),
            name => self.variables.get(name).cloned().unwrap_or_default(),
        }
    }

    /// Runs a command, and returns its exit code.
    fn run(&mut self, words: &[String], targets: &[(Target, line::Word)]) -> u8 {
        let Some((name, args)) = words.split_first() else { return self.status };
        let opened = match self.open(targets) {
            Ok(opened) => opened,
            Err(error) => return complain(name, &error),
        };
        let mut out: Box<dyn Write> = match opened.output.as_ref().map(File::try_clone) {
            Some(Ok(file)) => Box::new(file),
            _ => Box::new(io::stdout()),
        };
        let done = match name.as_str() {
            "cd" => change_directory(args.first().map_or_else(|| self.variable("HOME"), Clone::clone).as_str()),
            "pwd" => std::env::current_dir().and_then(|dir| writeln!(out, "{}", dir.display())),
            "exit" => {
                self.exiting = true;
                return args.first().map_or(self.status, |code| code.parse().unwrap_or(2));
            }
            "env" => self.variables.iter().try_for_each(|(name, value)| writeln!(out, "{name}={value}")),
            "export" => {
                self.variables.extend(args.iter().filter_map(|arg| {
                    let (name, value) = arg.split_once('=')?;
                    Some((name.to_owned(), value.to_owned()))
                }));
                Ok(())
            }
            "unset" => {
                args.iter().for_each(|name| drop(self.variables.remove(name)));
                Ok(())
            }
            "help" => writeln!(out, "{HELP}  {}", tools::NAMES.join(", ")),
            // The image's own come first.
            name if tools::NAMES.contains(&name) && !self.is_in_path(name) => {
                tools::run(name, args, opened.input, &mut out)
            }
            _ => return self.execute(name, args, opened),
        };
        match done.and_then(|()| out.flush()) {
            Ok(()) => 0,
            Err(error) => complain(name, &error),
        }
    }

    fn is_in_path(&self, name: &str) -> bool {
        self.variable("PATH").split(':').any(|dir| Path::new(dir).join(name).is_file())
    }

    fn open(&self, targets: &[(Target, line::Word)]) -> io::Result<Opened> {
        let mut opened = Opened::default();
        for (target, word) in targets {
            let path = word.expand(|name| self.variable(name));
            match target {
                Target::Input => opened.input = Some(File::open(path)?),
                Target::Output => opened.output = Some(File::create(path)?),
                Target::Append => opened.output = Some(File::options().append(true).create(true).open(path)?),
            }
        }
        Ok(opened)
    }

    fn execute(&self, name: &str, args: &[String], opened: Opened) -> u8 {
        let mut command = Command::new(name);
        command.args(args).env_clear().envs(&self.variables);
        if let Some(file) = opened.input {
            command.stdin(Stdio::from(file));
        }
        if let Some(file) = opened.output {
            command.stdout(Stdio::from(file));
        }
        match command.status() {
            Ok(status) => {
                let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
                u8::try_from(code).unwrap_or(u8::MAX)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                eprintln!("{name}: not found");
                127
            }
            Err(error) => {
                eprintln!("{name}: {error}");
                126
            }
        }
    }
}

/// The files of a command's redirections.
#[derive(Debug, Default)]
struct Opened {
    input: Option<File>,
    output: Option<File>,
}

fn change_directory(to: &str) -> io::Result<()> {
    std::env::set_current_dir(if to.is_empty() { "/" } else { to })
}

fn complain(name: &str, error: &io::Error) -> u8 {
    eprintln!("{name}: {error}");
    1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Result;

    #[test]
    fn commands_follow_one_another_as_their_exit_codes_say() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("out").display().to_string();
        let mut shell = Shell::new();
        shell.run_line("export A='x y'; unset PATH");
        shell
            .run_line(&format!("echo \"<$A>\" > {file} && echo b >> {file} || echo c >> {file}; cat {file} > {file}2"));
        assert_eq!((std::fs::read_to_string(format!("{file}2"))?.as_str(), shell.status), ("<x y>\nb\n", 0));
        shell.run_line(&format!("cat {file}3 || exit 7; echo never > {file}"));
        assert_eq!((shell.status, shell.exiting), (7, true));
        assert_eq!(std::fs::read_to_string(&file)?, "<x y>\nb\n");
        Ok(())
    }

    #[test]
    fn what_is_not_there_has_the_code_that_shells_give() {
        let mut shell = Shell::new();
        shell.run_line("no-such-command-anywhere");
        assert_eq!(shell.status, 127);
        shell.run_line("echo 'open");
        assert_eq!(shell.status, 2);
    }
}
