//! The thread of a source, from the config to its end.

use super::SourceError;
use super::batch::Decoding;
use super::collector::{Collector, LINGER, Wiring};
use super::config::KafkaSource;
use super::dead_letter::{DeadLetters, KafkaDeadLetters};
use super::feed::{Event, Feed, KafkaFeed};
use super::metrics::{GroupLabels, SourceMetrics};
use crate::decode::RemoteWriteDecoder;
use crate::{Bus, SeriesRegistry};
use fletch_common::{Limits, SharedClock};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

/// How long partitions may be elsewhere before the source of a bus of one process gives up. A member that joins is seen after a moment.
const GRACE_MS: i64 = 5_000;
/// The same when the broker assigns (KIP-848): a process that was killed keeps its share until its session ends, 45 s by default.
const BROKER_ASSIGNS_GRACE_MS: i64 = 60_000;
/// How long one question for the cluster's id may take.
const CLUSTER_ID_WAIT: Duration = Duration::from_secs(1);

/// What a source needs of the process.
#[derive(Debug, Clone)]
pub struct SourceDeps {
    /// Where samples go. [`Bus::single_process`] says whether all partitions must be here.
    pub bus: Arc<dyn Bus>,
    /// Where label sets become numbers.
    pub registry: Arc<SeriesRegistry>,
    /// Sizes and counts of one message.
    pub limits: Limits,
    /// The clock.
    pub clock: SharedClock,
    /// The decoder of remote write, shared with the HTTP side for its cache.
    pub remote_write: Arc<RemoteWriteDecoder>,
    /// Topics that no regular expression may match: those of the bus, when it is on the same cluster.
    pub excluded_topics: Vec<String>,
    /// Counters.
    pub metrics: SourceMetrics,
}

/// A source that reads.
#[derive(Debug)]
pub struct SourceRunner {
    group: String,
    finished: oneshot::Receiver<Result<(), SourceError>>,
}

impl SourceRunner {
    /// Checks the settings and starts to read on a thread of its own. A cluster that does not answer is waited for. Must be called in a
    /// tokio runtime, which must outlive the source: stop it and wait for [`finished`](Self::finished) before the bus is closed.
    ///
    /// # Errors
    /// [`SourceError::Config`] and [`SourceError::Client`].
    pub fn start(source: KafkaSource, deps: SourceDeps, stop: CancellationToken) -> Result<Self, SourceError> {
        source.check()?;
        let client = |reason: String| SourceError::Client { group: source.group.clone(), reason };
        let feed = KafkaFeed::new(&source, source.patterns()?, &deps.excluded_topics).map_err(|e| client(e.to_string()))?;
        let (done, finished) = oneshot::channel();
        let group = source.group.clone();
        let wiring = wiring(&source, deps, Handle::current())?;
        let run = move || {
            let up = wiring.metrics.up.get_or_create_owned(&GroupLabels { group: wiring.group.clone() });
            up.set(1);
            let result = run(feed, wiring, &stop);
            up.set(0);
            // Nobody may be waiting any more.
            let _ = done.send(result);
        };
        std::thread::Builder::new().name("kafka-source".into()).spawn(run).map_err(|e| client(format!("starting its thread: {e}")))?;
        Ok(Self { group, finished })
    }

    /// Returns when the source has ended: after its stop, or because it cannot go on.
    ///
    /// # Errors
    /// Why it cannot go on.
    pub async fn finished(self) -> Result<(), SourceError> {
        let Self { group, finished } = self;
        finished.await.unwrap_or_else(|_| Err(SourceError::Client { group, reason: "its thread has ended with a panic".into() }))
    }
}

fn wiring(source: &KafkaSource, deps: SourceDeps, runtime: Handle) -> Result<Wiring, SourceError> {
    let letters = KafkaDeadLetters::new(source).map(|letters| Arc::new(letters) as Arc<dyn DeadLetters>);
    Ok(Wiring {
        group: source.group.clone(),
        cluster: String::new(),
        on_gap: source.on_gap,
        grace_ms: if source.broker_assigns() { BROKER_ASSIGNS_GRACE_MS } else { GRACE_MS },
        bus: deps.bus,
        decoding: Decoding {
            decoder: source.decoder,
            tenant: source.default_tenant()?,
            limits: deps.limits,
            registry: deps.registry,
            remote_write: deps.remote_write,
            keep_letters: letters.is_some(),
        },
        letters,
        clock: deps.clock,
        metrics: deps.metrics,
        runtime,
    })
}

fn run(mut feed: KafkaFeed, mut wiring: Wiring, stop: &CancellationToken) -> Result<(), SourceError> {
    let Some(cluster) = cluster_id(&mut feed, &wiring.group, stop)? else { return Ok(()) };
    feed.join().map_err(|error| SourceError::Client { group: wiring.group.clone(), reason: error.to_string() })?;
    wiring.cluster = cluster;
    let mut collector = Collector::new(feed, wiring);
    while !stop.is_cancelled() {
        collector.turn(LINGER)?;
    }
    collector.finish()
}

/// Waits for the cluster; `None` when the stop comes first.
fn cluster_id(feed: &mut KafkaFeed, group: &str, stop: &CancellationToken) -> Result<Option<String>, SourceError> {
    let mut said = false;
    while !stop.is_cancelled() {
        if let Some(id) = feed.cluster_id(CLUSTER_ID_WAIT) {
            return Ok(Some(id));
        }
        let mut fatal = None;
        feed.poll(Duration::ZERO, &mut |event| match event {
            Event::Fatal(reason) => fatal = Some(reason),
            Event::Trouble(error) if !said => {
                said = true;
                tracing::warn!(group, error, "kafka source: waiting for the cluster");
            }
            _ => {}
        });
        if let Some(reason) = fatal {
            return Err(SourceError::Client { group: group.to_owned(), reason });
        }
    }
    Ok(None)
}
