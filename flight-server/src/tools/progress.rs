//! How far a long command is: a bar that redraws itself on a terminal, a line now and then elsewhere. Always on standard error.

use super::text;
use fletch_common::{Clock, SystemClock};
use fletch_storage::tools::Progress;
use parking_lot::Mutex;
use std::io::{IsTerminal, Write};

/// Between two drawings of the bar.
const REDRAW_MS: i64 = 100;
/// Between two lines where there is no terminal.
const LINE_MS: i64 = 10_000;
const BAR_WIDTH: u64 = 30;

#[derive(Debug, Default)]
struct State {
    doing: String,
    files: u64,
    bytes: u64,
    done_files: u64,
    done_bytes: u64,
    shown_ms: i64,
    drawn: bool,
}

/// Shows progress on standard error.
#[derive(Debug)]
pub struct Bar {
    terminal: bool,
    state: Mutex<State>,
}

impl Default for Bar {
    fn default() -> Self {
        Self { terminal: std::io::stderr().is_terminal(), state: Mutex::default() }
    }
}

impl Bar {
    /// Ends the line of the bar, so that what follows begins on one of its own.
    pub fn finish(&self) {
        let mut state = self.state.lock();
        if state.drawn {
            self.show(&mut state);
            write("\n");
            state.drawn = false;
        }
    }

    fn show(&self, state: &mut State) {
        let text = line(state);
        if self.terminal {
            write(&format!("\r\u{1b}[2K{text}"));
            state.drawn = true;
        } else {
            write(&format!("{text}\n"));
        }
    }
}

impl Progress for Bar {
    fn begin(&self, doing: &str, files: u64, bytes: u64) {
        self.finish();
        let shown_ms = SystemClock.now_ms();
        *self.state.lock() = State { doing: doing.to_owned(), files, bytes, shown_ms, ..State::default() };
    }

    fn advance(&self, bytes: u64) {
        let mut state = self.state.lock();
        state.done_files += 1;
        state.done_bytes += bytes;
        let now_ms = SystemClock.now_ms();
        let every = if self.terminal { REDRAW_MS } else { LINE_MS };
        if now_ms.saturating_sub(state.shown_ms) >= every {
            state.shown_ms = now_ms;
            self.show(&mut state);
        }
    }
}

fn line(state: &State) -> String {
    let (done, all) = if state.bytes > 0 { (state.done_bytes, state.bytes) } else { (state.done_files, state.files) };
    let all = all.max(done).max(1);
    let filled = usize::try_from(done.saturating_mul(BAR_WIDTH) / all).unwrap_or(0);
    let empty = usize::try_from(BAR_WIDTH).unwrap_or(0).saturating_sub(filled);
    let sizes =
        if state.bytes > 0 { format!(", {} of {}", text::bytes(state.done_bytes), text::bytes(state.bytes)) } else { String::new() };
    let percent = done.saturating_mul(100) / all;
    let bar = format!("[{}{}]", "#".repeat(filled), ".".repeat(empty));
    format!("{} {bar} {percent}% {} of {} files{sizes}", state.doing, state.done_files, state.files)
}

/// Progress that cannot be shown is no reason to stop.
fn write(text: &str) {
    let mut out = std::io::stderr().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_how_far_it_is() {
        let state = State { doing: "files".into(), files: 4, bytes: 4096, done_files: 1, done_bytes: 1024, ..State::default() };
        assert_eq!(line(&state), "files [#######.......................] 25% 1 of 4 files, 1.0 KiB of 4.0 KiB");
        assert_eq!(line(&State { doing: "logs".into(), ..State::default() }), format!("logs [{}] 0% 0 of 0 files", ".".repeat(30)));
    }
}
