//! Running a program with a deadline, and showing what it said when it does not do what it should.

use std::ffi::{OsStr, OsString};
use std::io::{Read, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use super::{PATIENCE, eventually};

/// A command that is being prepared.
#[derive(Debug)]
pub struct Run {
    command: Command,
    stdin: Input,
    patience: Duration,
}

#[derive(Debug)]
enum Input {
    Nothing,
    Bytes(Vec<u8>),
    Open,
}

/// What a command did.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// As a shell reports it: 128 and the signal's number for a signal.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
    /// From its start to its end.
    pub elapsed: Duration,
    line: String,
}

/// A command that runs. Dropping it kills it.
#[derive(Debug)]
pub struct Running {
    child: Child,
    readers: Vec<JoinHandle<()>>,
    stdout: Arc<Mutex<Vec<u8>>>,
    stderr: Arc<Mutex<Vec<u8>>>,
    started: Instant,
    patience: Duration,
    line: String,
}

impl Run {
    /// Prepares a program. It gets no input, this process's environment and [`PATIENCE`].
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Self { command: Command::new(program), stdin: Input::Nothing, patience: PATIENCE }
    }

    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.command.args(args);
        self
    }

    pub fn cwd(mut self, dir: impl AsRef<Path>) -> Self {
        self.command.current_dir(dir);
        self
    }

    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    pub fn without_env(mut self, name: &str) -> Self {
        self.command.env_remove(name);
        self
    }

    /// Gives it this on standard input, then the end.
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = Input::Bytes(bytes.into());
        self
    }

    /// Leaves standard input to [`Running::stdin`].
    pub fn open_stdin(mut self) -> Self {
        self.stdin = Input::Open;
        self
    }

    /// Allows it this long instead of [`PATIENCE`].
    pub fn within(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Starts it.
    pub fn spawn(mut self) -> Running {
        let line = shell_line(&self.command);
        let stdin = if matches!(self.stdin, Input::Nothing) { Stdio::null() } else { Stdio::piped() };
        let command = self.command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("start {line}: {error}"));
        let (stdout, stderr) = (Arc::default(), Arc::default());
        let mut readers = vec![
            collect(child.stdout.take().expect("it was piped"), &stdout),
            collect(child.stderr.take().expect("it was piped"), &stderr),
        ];
        if let Input::Bytes(bytes) = self.stdin {
            let mut pipe = child.stdin.take().expect("it was piped");
            // A command that reads only a part is free to do so.
            readers.push(std::thread::spawn(move || drop(pipe.write_all(&bytes))));
        }
        Running { child, readers, stdout, stderr, started: Instant::now(), patience: self.patience, line }
    }

    /// Runs it to its end.
    pub fn output(self) -> Outcome {
        self.spawn().wait()
    }

    /// Runs it; panics unless it succeeds. Returns its standard output without the last line feed.
    pub fn ok(self) -> String {
        self.output().expect_code(0).stdout.trim_end_matches('\n').to_owned()
    }

    /// Runs it; panics if it succeeds, or is killed by a signal.
    pub fn fails(self) -> Outcome {
        let outcome = self.output();
        assert!((1..128).contains(&outcome.code), "should have failed: {}", outcome.report());
        outcome
    }
}

impl Running {
    /// Returns its process id.
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        rustix::process::kill_process(self.pid(), signal).expect("send a signal");
    }

    /// Returns its standard input, if it was left open; dropping that is the end of it.
    pub fn stdin(&mut self) -> ChildStdin {
        self.child.stdin.take().expect("`open_stdin` was asked for, and the input not yet taken")
    }

    /// Returns what it has said so far: standard output, then standard error.
    pub fn said(&self) -> String {
        text(&self.stdout) + &text(&self.stderr)
    }

    /// Waits until it has said something.
    pub fn until_it_says(&mut self, words: &str) {
        let started = Instant::now();
        while !self.said().contains(words) {
            let ended = self.child.try_wait().expect("ask for a child").is_some();
            let late = started.elapsed() > self.patience;
            assert!(!ended && !late, "{} never said {words:?}, only:\n{}", self.line, self.said());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Returns whether it has not ended.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("ask for a child").is_none()
    }

    /// Waits for its end; panics when it takes too long.
    pub fn wait(mut self) -> Outcome {
        let left = self.patience.saturating_sub(self.started.elapsed());
        let deadline = Instant::now() + left;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("wait for a child") {
                break status;
            }
            if Instant::now() > deadline {
                let _ = self.child.kill();
                panic!("{} did not end within {:?}; it said:\n{}", self.line, self.patience, self.said());
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        let elapsed = self.started.elapsed();
        // Somebody who inherited the pipes could hold them open.
        let readers = std::mem::take(&mut self.readers);
        eventually("the end of the output", PATIENCE, || readers.iter().all(JoinHandle::is_finished).then_some(()));
        let (stdout, stderr) = (text(&self.stdout), text(&self.stderr));
        Outcome { code: exit_code(status), stdout, stderr, elapsed, line: self.line.clone() }
    }

    /// Ends it as `kill -9` does.
    pub fn kill(mut self) {
        self.child.kill().expect("kill a child");
        self.child.wait().expect("wait for a child");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Outcome {
    /// Panics unless the exit code is this.
    pub fn expect_code(self, code: i32) -> Self {
        assert!(self.code == code, "expected exit code {code}: {}", self.report());
        self
    }

    /// Panics unless standard error contains every one of these.
    pub fn expect_stderr(self, words: &[&str]) -> Self {
        for word in words {
            assert!(self.stderr.contains(word), "nothing of {word:?} on standard error: {}", self.report());
        }
        self
    }

    /// Panics unless standard output contains every one of these.
    pub fn expect_stdout(self, words: &[&str]) -> Self {
        for word in words {
            assert!(self.stdout.contains(word), "nothing of {word:?} on standard output: {}", self.report());
        }
        self
    }

    /// Returns all that is known, for the message of a failed assertion.
    pub fn report(&self) -> String {
        let Self { code, stdout, stderr, elapsed, line } = self;
        format!("{line}\nended with {code} after {elapsed:.2?}\n--- stdout\n{stdout}\n--- stderr\n{stderr}\n---")
    }
}

/// Runs a program of the machine that must succeed, and returns its standard output without the last line feed.
pub fn run<S: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = S>) -> String {
    Run::new(program).args(args).ok()
}

/// Runs a shell script in a directory; it ends at the first command that fails.
pub fn shell(dir: &Path, script: &str) -> String {
    Run::new("sh").args(["-euc", script]).cwd(dir).ok()
}

fn exit_code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

fn collect(mut pipe: impl Read + Send + 'static, into: &Arc<Mutex<Vec<u8>>>) -> JoinHandle<()> {
    let into = Arc::clone(into);
    std::thread::spawn(move || {
        let mut buffer = [0; 16 << 10];
        while let Ok(read @ 1..) = pipe.read(&mut buffer) {
            into.lock().expect("nobody panics with it").extend_from_slice(&buffer[..read]);
        }
    })
}

fn text(bytes: &Mutex<Vec<u8>>) -> String {
    String::from_utf8_lossy(&bytes.lock().expect("nobody panics with it")).into_owned()
}

fn shell_line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args()).map(OsString::from);
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}
