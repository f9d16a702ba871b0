//! [`Alerting`]: everything of this crate at work.
//!
//! ```text
//!  rule files ─▶ groups (a task each) ─▶ InstantQuery ─▶ RuleAlerts ─▶ Recorder ─┬▶ StateStore
//!                                                                                └▶ Dispatcher (a task per receiver) ─▶ Notifier
//! ```
//!
//! # Start and stop
//! Start reads the rule files, then the store: alerts of known rules go on where they were, alerts of rules that are gone are resolved, notifications
//! that wait are sent. Stop ends the groups after the evaluation they are in, then the receivers.

use crate::InstantQuery;
use crate::metrics::Metrics;
use crate::notify::Notifier;
use crate::notify::dispatcher::{Dispatcher, QUEUE_MAX, Shared as DispatcherShared};
use crate::notify::ledger::{Ledger, ReceiverPolicy, Source};
use crate::notify::payload::GroupId;
use crate::notify::webhook::{Webhook, WebhookSettings};
use crate::record::{Recorder, Subject};
use crate::rules::file::{Defaults, Group, RuleError, expand, read};
use crate::rules::group::{GroupRun, LastRun, RuleRun, Shared};
use crate::rules::snapshot::{self, AlertsSnapshot, RulesFilter, RulesSnapshot};
use crate::state::{Alert, Id, RuleAlerts};
use crate::store::{HistoryRow, NotificationStatus, OutboxEntry, StateStore, StoreError, StoredAlert};
use crate::stream::evaluator::{SampleHistory, StreamRule, StreamSink};
use crate::stream::{self, StreamFile};
use fletch_common::SharedClock;
use fletch_ingest::{BatchSink, SeriesRegistry};
use fletch_schemas::{Labels, TenantId};
use parking_lot::{Mutex, RwLock};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Rule evaluations at the same time, by default.
pub const EVALUATIONS_CONCURRENT: usize = 4;
/// How long the history is kept, by default.
pub const HISTORY_RETENTION: Duration = Duration::from_secs(400 * 86_400);
/// How long the record of notifications is kept, by default.
pub const NOTIFICATIONS_RETENTION: Duration = Duration::from_secs(90 * 86_400);
/// How often what is older is removed.
const PRUNE_INTERVAL: Duration = Duration::from_secs(3_600);

/// What a deployment chooses.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Whose rules the files hold.
    pub tenant: TenantId,
    /// Patterns of rule files, as `rule_files` of prometheus.yml, relative to the working directory.
    pub rule_files: Vec<String>,
    /// Patterns of streaming rule files.
    pub stream_rule_files: Vec<String>,
    /// What rule files do not say.
    pub defaults: Defaults,
    /// Where users reach this server.
    pub external_url: String,
    /// `global.external_labels`: visible to templates.
    pub external_labels: Labels,
    /// `fletch.alerting.webhooks`.
    pub webhooks: Vec<WebhookSettings>,
    /// Rule evaluations at the same time.
    pub evaluations_concurrent_max: usize,
    /// How long the history is kept.
    pub history_retention: Duration,
    /// How long the record of notifications is kept.
    pub notifications_retention: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            tenant: TenantId::default(),
            rule_files: Vec::new(),
            stream_rule_files: Vec::new(),
            defaults: Defaults::default(),
            external_url: "http://127.0.0.1:9090".to_owned(),
            external_labels: Labels::empty(),
            webhooks: Vec::new(),
            evaluations_concurrent_max: EVALUATIONS_CONCURRENT,
            history_retention: HISTORY_RETENTION,
            notifications_retention: NOTIFICATIONS_RETENTION,
        }
    }
}

/// Why alerting does not start, or does not take new rules.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AlertingError {
    /// Rule files that cannot be loaded; all that is wrong with them.
    #[error("rule files cannot be loaded:\n{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Rules(Vec<RuleError>),
    /// A receiver that cannot work.
    #[error("{0}")]
    Receiver(String),
    /// Streaming rule files that cannot be loaded.
    #[error("streaming rules cannot be loaded:\n{0}")]
    StreamRules(String),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What streaming rules need of the earlier stages.
#[derive(Debug, Clone)]
pub struct Streams {
    /// The series of the process.
    pub registry: Arc<SeriesRegistry>,
    /// Samples from before the first delivery.
    pub history: Arc<dyn SampleHistory>,
}

/// Rules, alerts and notifications of a process.
pub struct Alerting {
    streams: Streaming,
    settings: Settings,
    shared: Shared,
    store: Arc<dyn StateStore>,
    dispatcher: Arc<Dispatcher>,
    groups: RwLock<Vec<Arc<GroupRun>>>,
    /// Tasks of the groups; held while they are replaced, so that two reloads come one after the other.
    tasks: tokio::sync::Mutex<Tasks>,
}

struct Streaming {
    groups: Vec<Arc<GroupRun>>,
    sink: Arc<StreamSink>,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl std::fmt::Debug for Alerting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Alerting").field("settings", &self.settings).finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Tasks {
    cancel: CancellationToken,
    groups: Vec<JoinHandle<()>>,
    prune: Option<JoinHandle<()>>,
    stopped: bool,
}

impl Alerting {
    /// Loads the rule files and everything the store holds, then runs.
    ///
    /// # Errors
    /// [`AlertingError`]; then nothing runs.
    pub async fn start(
        settings: Settings,
        queries: Arc<dyn InstantQuery>,
        streams: Streams,
        store: Arc<dyn StateStore>,
        clock: SharedClock,
        metrics: Metrics,
    ) -> Result<Arc<Self>, AlertingError> {
        let settings = Settings { external_url: settings.external_url.trim_end_matches('/').to_owned(), ..settings };
        let groups = load(&settings, &settings.rule_files).await?;
        let stream_files = stream::load(&settings.stream_rule_files, &settings.tenant).await.map_err(AlertingError::StreamRules)?;
        let (notifiers, policies) = receivers(&settings.webhooks, &clock)?;
        let stored = store.alerts().await?;
        let outbox = store.outbox().await?;

        let ledger = Arc::new(Mutex::new(Ledger::new(policies, settings.external_url.clone())));
        restore_ledger(&mut ledger.lock(), clock.now_ms(), &stored, &outbox);
        let dispatcher_shared = DispatcherShared {
            store: Arc::clone(&store),
            ledger: Arc::clone(&ledger),
            clock: Arc::clone(&clock),
            metrics: metrics.clone(),
            queue_max: QUEUE_MAX,
        };
        let pending = outbox.into_iter().filter(|e| e.status == NotificationStatus::Pending).collect();
        let dispatcher = Arc::new(Dispatcher::start(notifiers, &dispatcher_shared, pending));
        let recorder = Arc::new(Recorder::new(Arc::clone(&store), ledger, Arc::clone(&dispatcher), metrics.clone()));
        let shared = Shared {
            tenant: settings.tenant.clone(),
            external_url: Arc::from(settings.external_url.as_str()),
            external_labels: settings.external_labels.clone(),
            queries,
            recorder,
            clock,
            metrics,
            permits: Arc::new(Semaphore::new(settings.evaluations_concurrent_max.max(1))),
            ticks: watch::Sender::new(0),
        };
        let (streaming, stored) = Streaming::start(stream_files, stored, &shared, &store, streams);
        let alerting = Arc::new(Self {
            streams: streaming,
            settings,
            shared,
            store,
            dispatcher,
            groups: RwLock::default(),
            tasks: tokio::sync::Mutex::default(),
        });
        alerting.begin(groups, stored).await;
        Ok(alerting)
    }

    async fn begin(&self, groups: Vec<Group>, stored: Vec<StoredAlert>) {
        let mut by_rule: BTreeMap<Id, Vec<StoredAlert>> = BTreeMap::new();
        for alert in stored {
            by_rule.entry(alert.rule).or_default().push(alert);
        }
        let mut tasks = self.tasks.lock().await;
        let alerts = |rule: Id| by_rule.remove(&rule).unwrap_or_default().into_iter().map(|s| s.alert).collect();
        self.run(&mut tasks, groups, alerts);
        for (rule, alerts) in by_rule {
            self.end_orphans(rule, alerts).await;
        }
        tasks.prune = Some(self.spawn_prune());
    }

    /// Starts the groups; `alerts` gives each rule what it had.
    fn run(&self, tasks: &mut Tasks, groups: Vec<Group>, mut alerts: impl FnMut(Id) -> Vec<Alert>) {
        let mut runs = Vec::with_capacity(groups.len());
        let now_ms = self.shared.clock.now_ms();
        for group in groups {
            let rules = group.rules.iter().map(|rule| Arc::new(RuleRun::new(rule.clone(), &self.shared, alerts(rule.id)))).collect();
            let run = Arc::new(GroupRun { group, rules, last: Mutex::new(LastRun::default()) });
            tasks.groups.push(tokio::spawn(Arc::clone(&run).run(self.shared.clone(), now_ms, tasks.cancel.clone())));
            runs.push(run);
        }
        *self.groups.write() = runs;
    }

    /// Ends alerts whose rule is no longer in any file.
    async fn end_orphans(&self, rule: Id, stored: Vec<StoredAlert>) {
        let Some(first) = stored.first() else { return };
        let subject = Subject {
            tenant: first.tenant.clone(),
            rule,
            name: first.rule_name.clone(),
            generator_url: self.settings.external_url.clone(),
        };
        let alerts = RuleAlerts::restore(first.tenant.clone(), rule, stored.into_iter().map(|s| s.alert));
        self.shared.recorder.end(&subject, self.shared.clock.now_ms(), alerts).await;
    }

    fn spawn_prune(&self) -> JoinHandle<()> {
        let (store, clock) = (Arc::clone(&self.store), Arc::clone(&self.shared.clock));
        let before = |now_ms: i64, age: Duration| now_ms.saturating_sub(i64::try_from(age.as_millis()).unwrap_or(i64::MAX));
        let (history, notifications) = (self.settings.history_retention, self.settings.notifications_retention);
        tokio::spawn(async move {
            loop {
                clock.sleep(PRUNE_INTERVAL).await;
                let now_ms = clock.now_ms();
                match store.prune(before(now_ms, history), before(now_ms, notifications)).await {
                    Ok(0) => {}
                    Ok(rows) => tracing::info!(rows, "removed old alert history and notification records"),
                    Err(error) => tracing::error!(%error, "old alert history could not be removed"),
                }
            }
        })
    }

    /// Reads rule files again, those of `patterns` or, without, those of the settings. Rules that were there keep their alerts, also with another
    /// expression or `for`; firing alerts of rules that are gone are resolved.
    ///
    /// # Errors
    /// [`AlertingError::Rules`]; then everything stays as it was.
    pub async fn reload(&self, patterns: Option<&[String]>) -> Result<(), AlertingError> {
        let groups = load(&self.settings, patterns.unwrap_or(&self.settings.rule_files)).await?;
        let mut tasks = self.tasks.lock().await;
        if tasks.stopped {
            return Ok(());
        }
        end_groups(&mut tasks).await;
        tasks.cancel = CancellationToken::new();
        let old = std::mem::take(&mut *self.groups.write());
        let kept: BTreeSet<Id> = groups.iter().flat_map(|g| &g.rules).map(|r| r.id).collect();
        let mut had: BTreeMap<Id, Vec<Alert>> = BTreeMap::new();
        for rule in old.iter().flat_map(|g| &g.rules) {
            if kept.contains(&rule.rule.id) {
                let alerts = rule.detach(&self.shared);
                had.insert(rule.rule.id, alerts);
            } else {
                rule.end(&self.shared, self.shared.clock.now_ms()).await;
            }
        }
        self.run(&mut tasks, groups, |rule| had.remove(&rule).unwrap_or_default());
        Ok(())
    }

    /// What `/api/v1/rules` answers.
    pub fn rules(&self, filter: &RulesFilter) -> RulesSnapshot {
        filter.apply(&self.all_groups())
    }

    /// What `/api/v1/alerts` answers.
    pub fn alerts(&self) -> AlertsSnapshot {
        snapshot::alerts(&self.all_groups())
    }

    fn all_groups(&self) -> Vec<Arc<GroupRun>> {
        self.groups.read().iter().chain(&self.streams.groups).cloned().collect()
    }

    /// Where the bus delivers samples for streaming rules.
    pub fn stream_sink(&self) -> Arc<dyn BatchSink> {
        self.streams.sink.clone()
    }

    /// The history of a tenant in `from_ms..=to_ms`, newest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn history(&self, tenant: &TenantId, from_ms: i64, to_ms: i64, limit: u32) -> Result<Vec<HistoryRow>, StoreError> {
        self.store.history(tenant, from_ms, to_ms, limit).await
    }

    /// The notifications of a tenant, newest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn notifications(&self, tenant: &TenantId, limit: u32) -> Result<Vec<OutboxEntry>, StoreError> {
        self.store.notifications(tenant, limit).await
    }

    /// Counts the ticks that groups have finished.
    pub fn ticks(&self) -> watch::Receiver<u64> {
        self.shared.ticks.subscribe()
    }

    /// Where other evaluators (streaming rules) bring their changes, so that there is one history and one outbox.
    pub fn recorder(&self) -> Arc<Recorder> {
        Arc::clone(&self.shared.recorder)
    }

    /// Ends the groups after the evaluation they are in, then the receivers. What waits, waits in the store.
    pub async fn stop(&self) {
        let mut tasks = self.tasks.lock().await;
        tasks.stopped = true;
        end_groups(&mut tasks).await;
        if let Some(prune) = tasks.prune.take() {
            prune.abort();
        }
        let streaming = self.streams.task.lock().take();
        if let Some(task) = streaming {
            self.streams.sink.close();
            let _ = task.await;
        }
        self.dispatcher.stop().await;
    }
}

impl Streaming {
    /// Starts the streaming rules with the alerts they had; gives back the alerts of other rules.
    fn start(
        files: Vec<StreamFile>,
        stored: Vec<StoredAlert>,
        shared: &Shared,
        store: &Arc<dyn StateStore>,
        streams: Streams,
    ) -> (Self, Vec<StoredAlert>) {
        let ids: BTreeSet<Id> = files.iter().flat_map(|f| &f.rules).map(|r| r.rule.id).collect();
        let (mine, others): (Vec<_>, Vec<_>) = stored.into_iter().partition(|alert| ids.contains(&alert.rule));
        let (mut groups, mut rules) = (Vec::new(), Vec::new());
        for file in files {
            let mut runs = Vec::new();
            for rule in file.rules {
                let alerts = mine.iter().filter(|a| a.rule == rule.rule.id).map(|a| a.alert.clone()).collect();
                let run = Arc::new(RuleRun::new(rule.rule, shared, alerts));
                rules.push(StreamRule { run: Arc::clone(&run), compiled: Arc::new(rule.compiled), lateness_ms: rule.lateness_ms });
                runs.push(run);
            }
            groups.push(Arc::new(GroupRun { group: file.group, rules: runs, last: Mutex::new(LastRun::default()) }));
        }
        let (sink, task) = StreamSink::start(shared.clone(), rules, Arc::clone(store), streams.registry, streams.history);
        (Self { groups, sink, task: Mutex::new(Some(task)) }, others)
    }
}

async fn end_groups(tasks: &mut Tasks) {
    tasks.cancel.cancel();
    for task in tasks.groups.drain(..) {
        if let Err(error) = task.await {
            tracing::error!(%error, "the task of a rule group ended badly");
        }
    }
}

async fn load(settings: &Settings, patterns: &[String]) -> Result<Vec<Group>, AlertingError> {
    let (patterns, tenant, defaults) = (patterns.to_vec(), settings.tenant.clone(), settings.defaults);
    let read_all = move || {
        let mut groups = Vec::new();
        let mut errors = Vec::new();
        for path in expand(&patterns)? {
            match read(&path, &tenant, defaults) {
                Ok(read) => groups.extend(read),
                Err(wrong) => errors.extend(wrong),
            }
        }
        if errors.is_empty() { Ok(groups) } else { Err(errors) }
    };
    match tokio::task::spawn_blocking(read_all).await {
        Ok(result) => result.map_err(AlertingError::Rules),
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

type Receivers = (Vec<Arc<dyn Notifier>>, Vec<ReceiverPolicy>);

fn receivers(webhooks: &[WebhookSettings], clock: &SharedClock) -> Result<Receivers, AlertingError> {
    let mut notifiers: Vec<Arc<dyn Notifier>> = Vec::new();
    let mut policies = Vec::new();
    let mut names = BTreeSet::new();
    for (i, settings) in webhooks.iter().enumerate() {
        let name = settings.name_at(i);
        if !names.insert(name.clone()) {
            return Err(AlertingError::Receiver(format!("webhook `{name}`: the name is given twice")));
        }
        let repeat_ms = i64::try_from(settings.repeat_interval_seconds.saturating_mul(1_000)).unwrap_or(i64::MAX);
        policies.push(ReceiverPolicy { name: name.clone(), repeat_ms });
        let webhook = Webhook::new(name, settings, Arc::clone(clock)).map_err(AlertingError::Receiver)?;
        notifiers.push(Arc::new(webhook));
    }
    Ok((notifiers, policies))
}

/// The ledger as it was: what receivers know first, then the alerts, or ends that nobody was told of would be forgotten.
fn restore_ledger(ledger: &mut Ledger, now_ms: i64, stored: &[StoredAlert], outbox: &[OutboxEntry]) {
    ledger.restore(outbox);
    let mut by_rule: BTreeMap<(Id, &str), Vec<&StoredAlert>> = BTreeMap::new();
    for alert in stored {
        by_rule.entry((alert.rule, &alert.rule_name)).or_default().push(alert);
    }
    for ((rule, name), alerts) in by_rule {
        let group = GroupId { tenant: alerts[0].tenant.clone(), alertname: name.to_owned() };
        ledger.update(now_ms, &group, Source { rule, generator_url: "" }, alerts.iter().map(|s| &s.alert));
    }
}

#[cfg(test)]
mod tests;
