//! A command on a terminal of its own, as a person would have it.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal};
use rustix::pty::OpenptFlags;
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

use super::{KILN, Kiln, PATIENCE, eventually};

/// A command that runs on a terminal. Dropping it kills it.
#[derive(Debug)]
pub struct Terminal {
    keyboard: File,
    /// The command's end; kept so that its settings can be read after the command.
    other: File,
    child: Child,
    said: Arc<Mutex<Vec<u8>>>,
}

impl Terminal {
    /// Starts a command of Kiln's with a terminal of so many rows and columns as input, output and errors.
    pub fn open<S: AsRef<OsStr>>(kiln: &Kiln, size: [u16; 2], args: impl IntoIterator<Item = S>) -> Self {
        Self::run(KILN, size, |command| {
            command.arg("--root").arg(kiln.root()).args(args).current_dir(kiln.scratch());
            command.env("HOME", kiln.home()).env_remove("DOCKER_HOST").env_remove("KILN_HOST").env_remove("KILN_ROOT");
        })
    }

    /// Starts a program that way; `prepare` gives it arguments and an environment.
    pub fn run(program: &str, size: [u16; 2], prepare: impl FnOnce(&mut Command)) -> Self {
        let keyboard = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("make a terminal");
        rustix::pty::grantpt(&keyboard).and_then(|()| rustix::pty::unlockpt(&keyboard)).expect("unlock the terminal");
        let name = rustix::pty::ptsname(&keyboard, Vec::new()).expect("the terminal has a name");
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let other = File::from(rustix::fs::open(&name, flags, Mode::empty()).expect("open the terminal"));
        let stdio = || Stdio::from(other.try_clone().expect("share the terminal"));
        // Of util-linux: makes the terminal the controlling one, so that its keys make signals.
        let mut command = Command::new("setsid");
        command.arg("--ctty").arg(program);
        prepare(&mut command);
        let keyboard = File::from(keyboard);
        resize(&keyboard, size);
        let child = command.stdin(stdio()).stdout(stdio()).stderr(stdio()).spawn().expect("start on a terminal");
        let said: Arc<Mutex<Vec<u8>>> = Arc::default();
        let (mut screen, into) = (keyboard.try_clone().expect("share the terminal"), Arc::clone(&said));
        // Ends when the last user of the other end has gone.
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(read @ 1..) = screen.read(&mut buffer) {
                into.lock().expect("nobody panics with it").extend_from_slice(&buffer[..read]);
            }
        });
        Self { keyboard, other, child, said }
    }

    /// Types.
    pub fn keys(&mut self, keys: impl AsRef<[u8]>) {
        self.keyboard.write_all(keys.as_ref()).expect("type");
    }

    /// Changes the size.
    pub fn resize(&self, size: [u16; 2]) {
        resize(&self.keyboard, size);
    }

    /// Sends the command a signal.
    pub fn signal(&self, signal: Signal) {
        rustix::process::kill_process(Pid::from_child(&self.child), signal).expect("send a signal");
    }

    /// Returns what the screen has shown since the last call that waited for something.
    pub fn said(&self) -> String {
        String::from_utf8_lossy(&self.said.lock().expect("nobody panics with it")).into_owned()
    }

    /// Waits until the screen shows something, and forgets everything up to there.
    pub fn until_it_says(&mut self, words: &str) {
        let started = Instant::now();
        loop {
            let mut said = self.said.lock().expect("nobody panics with it");
            if let Some(at) = said.windows(words.len()).position(|window| window == words.as_bytes()) {
                said.drain(..at + words.len());
                return;
            }
            assert!(started.elapsed() < PATIENCE, "never {words:?}, only {:?}", String::from_utf8_lossy(&said));
            drop(said);
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    /// Returns whether keys arrive unchanged and make no signals.
    pub fn is_raw(&self) -> bool {
        let modes = tcgetattr(&self.other).expect("read the terminal's settings").local_modes;
        !modes.intersects(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
    }

    /// Waits until the keys arrive unchanged.
    pub fn until_raw(&self) {
        eventually("a raw terminal", PATIENCE, || self.is_raw().then_some(()));
    }

    /// Waits for the end; returns the exit code.
    pub fn code(&mut self) -> i32 {
        let child = &mut self.child;
        let status = eventually("the end of the command", PATIENCE, || child.try_wait().expect("wait for a child"));
        status.code().expect("it was not killed")
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn resize(terminal: &File, [rows, columns]: [u16; 2]) {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(terminal, size).expect("resize the terminal");
}
