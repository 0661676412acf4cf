//! A side's process, seen from the table.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// A process that measures when it is asked. It is ended with this.
#[derive(Debug)]
pub struct Process {
    child: Child,
    questions: ChildStdin,
    answers: Receiver<String>,
    /// What it said on standard error.
    errors: Option<JoinHandle<String>>,
}

/// Who has not answered by then does not answer any more.
const LIMIT: Duration = Duration::from_secs(120);

impl Process {
    /// Starts `side` of this program for a case.
    ///
    /// # Panics
    ///
    /// If the system does not start it.
    pub fn start(program: &str, side: &str, case: &str) -> Process {
        let mut child = Command::new(program)
            .args([side, case])
            .env("RUST_BACKTRACE", "0")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it was built with this");
        let questions = child.stdin.take().expect("piped");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let (sender, answers) = mpsc::channel();
        thread::spawn(move || {
            lines
                .map_while(Result::ok)
                .try_for_each(|line| sender.send(line))
        });
        let lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        let errors = thread::spawn(move || {
            // The message of a panic is its second line.
            let lines: Vec<_> = lines.map_while(Result::ok).collect();
            let said = lines
                .iter()
                .skip_while(|line| !line.contains("panicked at"));
            said.skip(1).take(1).cloned().collect()
        });
        Process {
            child,
            questions,
            answers,
            errors: Some(errors),
        }
    }

    /// Asks for a number of operations, and waits for the answer.
    ///
    /// # Errors
    ///
    /// What became of the process, if it does not answer.
    pub fn ask(&mut self, n: u64) -> Result<String, String> {
        // If it has ended, there will be no answer.
        let _ = writeln!(self.questions, "{n}");
        match self.answers.recv_timeout(LIMIT) {
            Ok(answer) => Ok(answer),
            Err(RecvTimeoutError::Timeout) => Err(format!("no answer in {LIMIT:?}")),
            Err(RecvTimeoutError::Disconnected) => Err(self.end()),
        }
    }

    fn end(&mut self) -> String {
        let status = self.child.wait().expect("it is our child");
        let errors = self.errors.take().and_then(|errors| errors.join().ok());
        let errors = errors.filter(|errors| !errors.is_empty());
        let end = match status.signal() {
            Some(6) => "aborts".to_owned(),
            Some(11) => "crashes: SIGSEGV".to_owned(),
            Some(signal) => format!("ends: signal {signal}"),
            None if errors.is_some() => "panics".to_owned(),
            None => format!("ends: {status}"),
        };
        match errors {
            Some(errors) => format!("{end}: {}", errors.trim()),
            None => end,
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
