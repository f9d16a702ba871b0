//! Named points at which a test ends the process or makes a step fail.
//!
//! `FLETCH_FAILPOINTS="log-after-fsync=exit:3,commit-before-put=error:1"`: the action at the n-th pass. Read once, at the first pass;
//! a process without the variable pays one atomic load per point. Points are named where they stand; [`POINTS`] lists them all.

use std::collections::HashMap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Every failpoint there is.
pub const POINTS: [&str; 10] = [
    "log-before-fsync",
    "log-after-fsync",
    "flush-before-put",
    "flush-after-put",
    "commit-before-put",
    "commit-after-put",
    "series-after-commit",
    "tier-before-commit",
    "compact-before-commit",
    "compact-after-commit",
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Exit,
    Error,
}

#[derive(Debug)]
struct Armed {
    action: Action,
    at_pass: u64,
    passes: AtomicU64,
}

/// The error of a failpoint armed with `error`.
#[derive(Debug, thiserror::Error)]
#[error("failpoint `{0}`")]
pub struct FailpointError(pub &'static str);

/// Passes the point `name`: ends the process, fails, or (nearly always) does nothing.
///
/// # Errors
/// [`FailpointError`] when armed with `error`.
pub fn pass(name: &'static str) -> Result<(), FailpointError> {
    debug_assert!(POINTS.contains(&name), "failpoint `{name}` is not listed");
    let Some(armed) = armed().get(name) else { return Ok(()) };
    if armed.passes.fetch_add(1, Ordering::Relaxed) + 1 != armed.at_pass {
        return Ok(());
    }
    match armed.action {
        Action::Error => Err(FailpointError(name)),
        Action::Exit => {
            tracing::error!(failpoint = name, "ending the process, as FLETCH_FAILPOINTS asks");
            std::process::abort()
        }
    }
}

fn armed() -> &'static HashMap<String, Armed> {
    static ARMED: OnceLock<HashMap<String, Armed>> = OnceLock::new();
    ARMED.get_or_init(|| std::env::var("FLETCH_FAILPOINTS").map(|v| parse(&v)).unwrap_or_default())
}

fn parse(text: &str) -> HashMap<String, Armed> {
    let one = |part: &str| {
        let (name, rest) = part.trim().split_once('=')?;
        let (action, pass) = rest.split_once(':').unwrap_or((rest, "1"));
        let action = match action {
            "exit" => Action::Exit,
            "error" => Action::Error,
            _ => return None,
        };
        Some((name.to_owned(), Armed { action, at_pass: pass.parse().ok()?, passes: AtomicU64::new(0) }))
    };
    text.split(',').filter_map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variable_is_read_as_documented() {
        let armed = parse("log-after-fsync=exit:3, commit-before-put=error,bad,x=y:1");
        assert_eq!(armed.len(), 2);
        assert_eq!((armed["log-after-fsync"].action, armed["log-after-fsync"].at_pass), (Action::Exit, 3));
        assert_eq!((armed["commit-before-put"].action, armed["commit-before-put"].at_pass), (Action::Error, 1));
    }
}
