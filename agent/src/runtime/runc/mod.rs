//! Programs in running containers beneath Docker: by runc itself, for when Docker cannot start them.
//!
//! runc needs no daemon. It has the container's state below a root that the wrapper wrote down beside the disk, and
//! gives the program what Docker's exec gives it: the container's environment, user and folder, its capabilities and
//! filters, namespaces and control groups. Docker never hears of such a program.
//!
//! runc stays beside the program, hands its bytes on and ends with its code. A client that goes away leaves both
//! running. Without a terminal the output ends as with ssh: when neither the program nor what it left behind has it
//! open any more.

mod terminal;

use super::{Error, ExecEnd, ExecRequest, ExecStream, Output};
use bytes::{Bytes, BytesMut};
use enoki_api::protocol::TerminalSize;
use enoki_helpers::{claim, runc};
use futures::{StreamExt, stream};
use std::collections::HashMap;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use terminal::Terminal;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use uuid::Uuid;

/// How often to look whether the program has begun.
const LOOK: Duration = Duration::from_millis(5);
/// How long an end is kept for who asks for it.
const KEPT: Duration = Duration::from_secs(60);
/// Bytes read at once, and pieces that wait for a slow client.
const PIECE: usize = 32 << 10;
const PIECES: usize = 4;
/// runc's own code when it fails.
const FAILED: i64 = 255;
/// Files in a folder of each start: what runc has to say, and the mark that the program has begun.
const LOG: &str = "log";
const BEGUN: &str = "pid";

/// A program that was started.
#[derive(Clone)]
pub struct Program {
    terminal: Option<Arc<Terminal>>,
    end: Arc<OnceLock<ExecEnd>>,
}

impl Program {
    pub fn resize(&self, size: TerminalSize) -> Result<(), Error> {
        let Some(terminal) = &self.terminal else {
            return Err(Error::Refused("the program has no terminal".to_owned()));
        };
        terminal.resize(size).map_err(failed("resize its terminal"))
    }

    /// None: it still runs.
    pub fn end(&self) -> Option<ExecEnd> {
        self.end.get().copied()
    }
}

/// All programs that were started so, by id. Cheap to clone.
#[derive(Clone, Default)]
pub struct Programs(Arc<Mutex<HashMap<String, Program>>>);

impl Programs {
    fn all(&self) -> MutexGuard<'_, HashMap<String, Program>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// None: it was not started here, or ended a while ago.
    pub fn find(&self, id: &str) -> Option<Program> {
        self.all().get(id).cloned()
    }

    /// Starts a program; it has begun when this returns, `deadline` from now at the latest.
    ///
    /// # Errors
    /// With runc's reason when it could not be started.
    pub async fn exec(
        &self,
        container: &str,
        request: &ExecRequest,
        deadline: Duration,
    ) -> Result<ExecStream, Error> {
        let id = container.to_owned();
        let place = tokio::task::spawn_blocking(move || Place::of(&id));
        let place = place.await.map_err(|error| Error::Unavailable(error.to_string()))??;
        let notes = tempfile::tempdir().map_err(failed("make a folder for it"))?;
        let mut running = spawn(&place, notes.path(), container, request).map_err(failed("run it"))?;
        match tokio::time::timeout(deadline, begun(&mut running.child, notes.path())).await {
            Ok(result) => result?,
            Err(_) => {
                // An error: it has ended meanwhile. It is reaped either way.
                let _ = running.child.start_kill();
                let late = format!("runc did not start the program within {} s", deadline.as_secs_f32());
                return Err(Error::Unavailable(late));
            }
        }
        Ok(self.follow(running))
    }

    /// From its begin to its end, whether anybody listens or not.
    fn follow(&self, running: Running) -> ExecStream {
        let Running { mut child, output, errors, input, terminal } = running;
        let id = Uuid::new_v4().to_string();
        let end = Arc::new(OnceLock::new());
        self.all().insert(id.clone(), Program { terminal: terminal.map(Arc::new), end: end.clone() });
        let (to, from) = mpsc::channel(PIECES);
        let (programs, name) = (self.clone(), id.clone());
        tokio::spawn(async move {
            let second = async {
                if let Some(errors) = errors {
                    pour(errors, Output::Stderr, to.clone()).await;
                }
            };
            tokio::join!(pour(output, Output::Stdout, to.clone()), second);
            drop(to);
            let code = child.wait().await.map_or(FAILED, |status| i64::from(runc::code(status)));
            end.get_or_init(|| ExecEnd::Exited(code));
            tokio::time::sleep(KEPT).await;
            programs.all().remove(&name);
        });
        let output =
            stream::unfold(from, |mut from| async move { from.recv().await.map(|piece| (Ok(piece), from)) });
        ExecStream { id, output: output.boxed(), input }
    }
}

fn failed(what: &str) -> impl Fn(io::Error) -> Error {
    move |error| Error::Unavailable(format!("runc: cannot {what}: {error}"))
}

/// Where runc is, and where it has the container.
struct Place {
    runc: PathBuf,
    root: Option<PathBuf>,
}

impl Place {
    fn of(container: &str) -> Result<Self, Error> {
        let runc = runc::find().map_err(|why| Error::Unavailable(why.to_string()))?;
        let owner = claim::owner(container)
            .ok_or_else(|| Error::Conflict(format!("container {container} has no disk: it does not run")))?;
        Ok(Place { runc, root: owner.runc_root })
    }
}

/// PURE: what runc is told.
fn words(root: Option<&Path>, notes: &Path, container: &str, request: &ExecRequest) -> Vec<OsString> {
    let mut words: Vec<OsString> = Vec::new();
    if let Some(root) = root {
        words.extend(["--root".into(), root.into()]);
    }
    words.extend(["--log".into(), notes.join(LOG).into(), "--log-format".into(), "json".into()]);
    words.extend(["exec".into(), "--pid-file".into(), notes.join(BEGUN).into()]);
    if request.tty {
        // As Docker has it; the last of two counts.
        words.extend(["--tty", "--env", "TERM=xterm"].map(OsString::from));
    }
    for (key, value) in &request.env {
        words.extend(["--env".into(), format!("{key}={value}").into()]);
    }
    // From the first word that is no flag on, nothing is read as one.
    words.push(container.into());
    words.extend(request.command.iter().map(OsString::from));
    words
}

struct Running {
    child: Child,
    output: Box<dyn AsyncRead + Send + Unpin>,
    /// None: a terminal has one output.
    errors: Option<Box<dyn AsyncRead + Send + Unpin>>,
    input: Pin<Box<dyn AsyncWrite + Send>>,
    terminal: Option<Terminal>,
}

fn spawn(place: &Place, notes: &Path, container: &str, request: &ExecRequest) -> io::Result<Running> {
    let mut command = Command::new(&place.runc);
    command.args(words(place.root.as_deref(), notes, container, request));
    // Nothing of the agent's own reaches the program: runc hands on sockets that variables name.
    command.env_clear().current_dir("/");
    if request.tty {
        let (terminal, theirs) = Terminal::open(request.size)?;
        terminal::give(&mut command, theirs)?;
        let child = command.spawn()?;
        let (output, input) = (Box::new(terminal.output()?), Box::pin(terminal.input()?));
        return Ok(Running { child, output, errors: None, input, terminal: Some(terminal) });
    }
    command.stdin(if request.stdin { Stdio::piped() } else { Stdio::null() });
    // A group of its own: what ends a group that the agent is in is not meant for it.
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).spawn()?;
    let missing = || io::Error::other("a stream is missing");
    let output = Box::new(child.stdout.take().ok_or_else(missing)?);
    let errors = Box::new(child.stderr.take().ok_or_else(missing)?);
    let input: Pin<Box<dyn AsyncWrite + Send>> = match child.stdin.take() {
        Some(input) => Box::pin(input),
        None => Box::pin(tokio::io::sink()),
    };
    Ok(Running { child, output, errors: Some(errors), input, terminal: None })
}

/// Waits for the program's begin, of which runc writes before it waits for the end.
async fn begun(child: &mut Child, notes: &Path) -> Result<(), Error> {
    let mark = notes.join(BEGUN);
    loop {
        let ended = child.try_wait().map_err(failed("wait for it"))?;
        if mark.exists() {
            return Ok(());
        }
        if let Some(status) = ended {
            let log = std::fs::read_to_string(notes.join(LOG)).unwrap_or_default();
            return Err(Error::Refused(reason(&log, status)));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// PURE: the last error that runc wrote down, without its own frame around it.
fn reason(log: &str, status: ExitStatus) -> String {
    let mut lines = log.lines().rev().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let last = lines.find(|line| line["level"] == "error");
    let Some(text) = last.as_ref().and_then(|line| line["msg"].as_str()) else {
        return format!("runc could not start it ({status})");
    };
    let text = text.trim_start_matches("exec failed: ");
    text.trim_start_matches("unable to start container process: ").to_owned()
}

/// Everything from one output, whether anybody listens or not: a program is not to block on a client that has gone.
async fn pour(mut from: impl AsyncRead + Unpin, piece: impl Fn(Bytes) -> Output, to: mpsc::Sender<Output>) {
    let mut buffer = BytesMut::with_capacity(PIECE);
    // A terminal ends with an error: nobody has its other side any more.
    while from.read_buf(&mut buffer).await.is_ok_and(|count| count > 0) {
        // An error: nobody listens.
        let _ = to.send(piece(buffer.split().freeze())).await;
        buffer.reserve(PIECE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    fn told(request: &ExecRequest) -> String {
        let words = words(Some(Path::new("/r")), Path::new("/n"), "abc", request);
        words.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn runc_is_told_all_and_reads_no_word_of_the_program_as_its_own() {
        let mut request = ExecRequest {
            command: ["sh", "--tty", "-c", "exit 7"].map(str::to_owned).to_vec(),
            env: [("A".to_owned(), "b c".to_owned())].into(),
            ..ExecRequest::default()
        };
        let head = "--root /r --log /n/log --log-format json exec --pid-file /n/pid";
        assert_eq!(told(&request), format!("{head} --env A=b c abc sh --tty -c exit 7"));
        request.tty = true;
        request.env = [("TERM".to_owned(), "screen".to_owned())].into();
        let terminal = "--tty --env TERM=xterm --env TERM=screen";
        assert_eq!(told(&request), format!("{head} {terminal} abc sh --tty -c exit 7"));
    }

    #[test]
    fn the_reason_is_runcs_last_error() {
        let ended = ExitStatus::from_raw(255 << 8);
        let log = concat!(
            r#"{"level":"error","msg":"an earlier one","time":"t"}"#,
            "\n",
            r#"{"level":"error","msg":"exec failed: unable to start container process: exec: \"nope\": executable file not found in $PATH","time":"t"}"#,
            "\n",
            r#"{"level":"warning","msg":"exit status 1","time":"t"}"#,
            "\nnot JSON\n"
        );
        assert_eq!(reason(log, ended), "exec: \"nope\": executable file not found in $PATH");
        let stopped = r#"{"level":"error","msg":"cannot exec in a stopped container"}"#;
        assert_eq!(reason(stopped, ended), "cannot exec in a stopped container");
        assert_eq!(reason("", ended), "runc could not start it (exit status: 255)");
    }

    #[tokio::test]
    async fn a_program_is_read_to_its_end_when_nobody_listens() {
        let (to, from) = mpsc::channel(PIECES);
        drop(from);
        let all = vec![b'x'; PIECE * PIECES * 4];
        let mut rest = all.as_slice();
        pour(&mut rest, Output::Stdout, to).await;
        assert!(rest.is_empty(), "{} bytes were left", rest.len());
    }
}
