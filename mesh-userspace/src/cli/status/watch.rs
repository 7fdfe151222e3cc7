//! `status --watch`: the report, refreshed in place. Plain escape sequences: one screen of text that is drawn once a
//! second needs no library for widgets.

use std::{
    io::{self, IsTerminal, Read},
    os::fd::AsFd,
    time::Duration,
};

use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    time::{MissedTickBehavior, interval},
};

use super::{StatusArgs, fetch, render};
use crate::cli::{
    Failure,
    admin::Admin,
    output::{Style, print, terminal_size},
};

const PERIOD: Duration = Duration::from_secs(1);

pub async fn run(admin: &Admin, args: &StatusArgs) -> Result<(), Failure> {
    let screen = Screen::enter(io::stdout().is_terminal() && !args.json)?;
    let mut keys = Keys::listen();
    let stop = |error: io::Error| Failure::Refused(format!("signals cannot be handled: {error}"));
    let mut resized = signal(SignalKind::window_change()).map_err(stop)?;
    let mut interrupted = signal(SignalKind::interrupt()).map_err(stop)?;
    let mut terminated = signal(SignalKind::terminate()).map_err(stop)?;
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut shown = String::new();
    loop {
        tokio::select! {
            _ = ticks.tick() => shown = frame(admin, args).await?,
            _ = resized.recv() => {}
            _ = interrupted.recv() => return Ok(()),
            _ = terminated.recv() => return Ok(()),
            () = keys.quit() => return Ok(()),
        }
        screen.draw(&shown)?;
    }
}

/// Returns what to show now. Once begun, a daemon that restarts is waited for.
async fn frame(admin: &Admin, args: &StatusArgs) -> Result<String, Failure> {
    match fetch(admin, args).await {
        Ok(report) if args.json => {
            Ok(serde_json::to_string(&report).expect("invariant: reports have string keys") + "\n")
        }
        Ok(report) => Ok(render::report(&report, Style::of_stdout())),
        Err(failure @ Failure::NoDaemon { .. }) if !args.json => {
            Ok(format!("{failure}\n\nWaiting for it.\n"))
        }
        Err(failure) => Err(failure),
    }
}

/// The terminal's alternate screen; left when this is dropped.
struct Screen {
    terminal: bool,
}

impl Screen {
    fn enter(terminal: bool) -> Result<Self, Failure> {
        if terminal {
            print("\x1b[?1049h\x1b[?25l\x1b[?7l")?;
        }
        Ok(Self { terminal })
    }

    fn draw(&self, text: &str) -> Result<(), Failure> {
        if !self.terminal {
            return print(text);
        }
        let rows = terminal_size().map_or(24, |(rows, _)| rows);
        print(&one_screen(text, rows))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        if self.terminal {
            // The terminal may be gone; then there is nothing to restore.
            let _ = print("\x1b[?7h\x1b[?25h\x1b[?1049l");
        }
    }
}

/// Returns `text` cut to `rows`, over what was on the screen before: each line cleared to its end, then all below.
fn one_screen(text: &str, rows: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let fits = lines.len() <= rows;
    let shown = if fits { lines.len() } else { rows.saturating_sub(1) };
    let mut screen = "\x1b[H".to_owned();
    for (index, line) in lines[..shown].iter().enumerate() {
        screen.push_str(line);
        screen.push_str("\x1b[K");
        if index + 1 < rows {
            screen.push_str("\r\n");
        }
    }
    if !fits {
        screen.push_str(&format!(
            "… {} more lines: a higher terminal, or --service NAME\x1b[K",
            lines.len() - shown
        ));
    }
    screen.push_str("\x1b[J");
    screen
}

/// Keys without Enter, where standard input is a terminal; its modes are restored when this is dropped.
struct Keys {
    before: Option<Termios>,
    quit: mpsc::UnboundedReceiver<()>,
}

impl Keys {
    fn listen() -> Self {
        let (pressed, quit) = mpsc::unbounded_channel();
        let before = io::stdin().is_terminal().then(|| Self::without_enter().ok()).flatten();
        if before.is_some() {
            // It waits in read() until the process ends: tokio's own standard input would hold up the end.
            std::thread::spawn(move || {
                for key in io::stdin().lock().bytes().map_while(Result::ok) {
                    if matches!(key, b'q' | b'Q') && pressed.send(()).is_err() {
                        return;
                    }
                }
            });
        }
        Self { before, quit }
    }

    /// Signals stay on, so that Ctrl-C and Ctrl-Z mean what they mean.
    fn without_enter() -> nix::Result<Termios> {
        let stdin = io::stdin();
        let before = tcgetattr(stdin.as_fd())?;
        let mut keys = before.clone();
        keys.local_flags.remove(LocalFlags::ICANON | LocalFlags::ECHO);
        tcsetattr(stdin.as_fd(), SetArg::TCSANOW, &keys)?;
        Ok(before)
    }

    /// Returns when q was pressed; never, where there are no keys.
    async fn quit(&mut self) {
        if self.quit.recv().await.is_none() {
            std::future::pending().await
        }
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            // The terminal may be gone; then there is nothing to restore.
            let _ = tcsetattr(io::stdin().as_fd(), SetArg::TCSANOW, before);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_screen_is_never_longer_than_the_terminal() {
        let text = (1..=10).map(|n| format!("line {n}\n")).collect::<String>();
        let all = one_screen(&text, 24);
        assert!(all.contains("line 10\x1b[K") && !all.contains("more lines") && all.ends_with("\x1b[J"));
        let cut = one_screen(&text, 4);
        assert!(
            cut.contains("line 3") && !cut.contains("line 4") && cut.contains("… 7 more lines"),
            "{cut:?}"
        );
        assert_eq!(cut.matches("\r\n").count(), 3);
    }
}
