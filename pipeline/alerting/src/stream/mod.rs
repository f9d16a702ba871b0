//! Streaming SQL rules: windows over the samples as they arrive, judged in event time before any flush.
//!
//! ```text
//!  Delivery ─▶ subscriptions (once per series) ─▶ panes: (window end, group) → partial aggregates
//!                                                    │ append time − lateness passes the end
//!                                                    ▼
//!                                   HAVING, SELECT on the closed window ─▶ verdicts ─▶ state machine
//! ```
//!
//! # Invariants
//! - **W1** Time moves by the append times of bus records alone; a sample's own time never moves it.
//! - **W2** A (series, time) counts once per open window, whatever is delivered or replayed twice.
//! - **W3** A window is judged once, when it closes; windows that end at or before a rule's stored watermark are never judged again.
//! - **W4** A closed window has the value that the same SQL gives over the stored table, as long as no sample of it came later than `lateness`.
//!
//! # When it fails
//! What the rule language does not have is refused by name when the rule is loaded ([`compile()`]). A late row is counted and left to the table.
//!
//! # Not here
//! States and their persistence ([`crate::state`], [`crate::store`]); hopping windows, joins, expressions inside aggregates.

mod aggregate;
pub mod compile;
pub mod evaluator;
pub mod file;
mod load;
mod panes;
mod rule;

pub use compile::{CompileError, compile};
pub use evaluator::{FrozenSamples, SampleHistory, StreamSink};
pub use file::StreamRuleSpec;
pub use load::check;
pub(crate) use load::{StreamFile, load};
pub use rule::{ClosedWindow, RuleWindows, Subscription};
