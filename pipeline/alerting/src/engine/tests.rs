//! The whole crate in one process: rule files, a scripted query engine, SQLite, a webhook sink, a clock by hand.

use super::*;
use crate::notify::sink::{Reply, Sink, eventually};
use crate::store::open;
use crate::stream::evaluator::FrozenSamples;
use async_trait::async_trait;
use fletch_common::{Clock, ManualClock};
use fletch_schemas::SeriesSet;
use serde_json::{Value, json};

const MINUTE: i64 = 60_000;
/// A multiple of every interval used here.
const START: i64 = 28_000_000 * MINUTE;

/// A past without samples.
#[derive(Debug)]
struct NoHistory;

#[async_trait]
impl SampleHistory for NoHistory {
    fn freeze(&self, _tenant: &TenantId) -> Arc<dyn FrozenSamples> {
        Arc::new(NoHistory)
    }
}

#[async_trait]
impl FrozenSamples for NoHistory {
    async fn since(&self, _metric: &str, _from_ms: i64) -> Result<SeriesSet, String> {
        Ok(SeriesSet::default())
    }
}

fn streams() -> Streams {
    Streams { registry: Arc::new(SeriesRegistry::new()), history: Arc::new(NoHistory) }
}

/// Answers `up == 0` with the hosts that a test says are down.
#[derive(Default)]
struct Hosts {
    down: Mutex<Vec<(String, f64)>>,
    error: Mutex<Option<String>>,
    asked: Mutex<Vec<(String, i64)>>,
}

impl Hosts {
    fn set(&self, down: &[&str]) {
        *self.down.lock() = down.iter().map(|h| ((*h).to_owned(), 0.0)).collect();
    }
}

#[async_trait]
impl InstantQuery for Hosts {
    async fn instant(&self, _tenant: &TenantId, promql: &str, at_ms: i64) -> Result<Vec<(Labels, f64)>, String> {
        self.asked.lock().push((promql.to_owned(), at_ms));
        if let Some(error) = self.error.lock().clone() {
            return Err(error);
        }
        let row = |(host, value): &(String, f64)| (Labels::from_pairs([("__name__", "up"), ("host", host)]).expect("valid"), *value);
        Ok(self.down.lock().iter().map(row).collect())
    }
}

struct Fixture {
    dir: tempfile::TempDir,
    hosts: Arc<Hosts>,
    clock: Arc<ManualClock>,
    metrics: Metrics,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("temp dir");
        Self { dir, hosts: Arc::default(), clock: ManualClock::at(START), metrics: Metrics::unregistered() }
    }

    fn rules(&self, text: &str) {
        std::fs::write(self.dir.path().join("r.yml"), text).expect("write");
    }

    async fn start(&self, url: Option<&str>) -> Arc<Alerting> {
        let store = open(&format!("sqlite://{}/meta.db", self.dir.path().display())).await.expect("store");
        let settings = Settings {
            rule_files: vec![self.dir.path().join("*.yml").display().to_string()],
            webhooks: url.map(WebhookSettings::to).into_iter().collect(),
            external_url: "http://fletch".to_owned(),
            ..Settings::default()
        };
        let queries: Arc<dyn InstantQuery> = Arc::clone(&self.hosts) as _;
        let clock: SharedClock = Arc::clone(&self.clock) as _;
        Alerting::start(settings, queries, streams(), store, clock, self.metrics.clone()).await.expect("starts")
    }

    /// Lets one minute pass, in which every group ticks once, and waits until all have.
    async fn minute(&self, alerting: &Alerting) {
        let mut ticks = alerting.ticks();
        let groups = u64::try_from(alerting.groups.read().len()).expect("few");
        let before = *ticks.borrow();
        self.clock.advance(Duration::from_secs(60));
        ticks.wait_for(|now| *now >= before + groups).await.expect("alive");
    }
}

const RULE: &str = r#"
groups:
- name: g
  interval: 1m
  rules:
  - alert: Down
    expr: up == 0
    for: 2m
    labels: {severity: page, where: "{{ $labels.host }}"}
    annotations: {summary: "{{ $labels.host }} has {{ $value }}"}
"#;

fn state(alerting: &Alerting) -> String {
    let rules = alerting.rules(&RulesFilter::default());
    rules.groups[0].rules[0].state.to_owned()
}

#[tokio::test]
async fn an_alert_goes_from_pending_to_firing_to_resolved_and_the_webhook_hears_of_it() {
    let f = Fixture::new();
    f.rules(RULE);
    let mut sink = Sink::start(vec![Reply::Answer("500 Internal Server Error")]).await;
    let alerting = f.start(Some(&sink.url)).await;
    f.minute(&alerting).await;
    assert_eq!(state(&alerting), "inactive");
    f.hosts.set(&["db"]);
    for expected in ["pending", "pending", "firing"] {
        f.minute(&alerting).await;
        assert_eq!(state(&alerting), expected);
    }
    // The first delivery fails; the retry says the same.
    let failed = sink.next().await.body;
    eventually("the failure is recorded", async || {
        let all = alerting.notifications(&TenantId::default(), 1).await.expect("read");
        (all[0].attempts == 1).then_some(())
    })
    .await;
    f.minute(&alerting).await;
    let sent = sink.next().await.body;
    assert_eq!(sent, failed);
    assert_eq!((&sent["status"], &sent["version"], &sent["groupKey"]), (&json!("firing"), &json!("4"), &json!("{}:{alertname=\"Down\"}")));
    let alert = &sent["alerts"][0];
    assert_eq!(alert["labels"], json!({"alertname": "Down", "host": "db", "severity": "page", "where": "db"}));
    assert_eq!(alert["annotations"], json!({"summary": "db has 0"}));
    assert_eq!(alert["endsAt"], json!("0001-01-01T00:00:00Z"));
    assert_eq!(alert["generatorURL"], json!("http://fletch/graph?g0.expr=up+%3D%3D+0&g0.tab=1"));
    eventually("the delivery is recorded", async || {
        let all = alerting.notifications(&TenantId::default(), 1).await.expect("read");
        (all[0].status == NotificationStatus::Sent).then_some(())
    })
    .await;
    f.hosts.set(&[]);
    f.minute(&alerting).await;
    let resolved = sink.next().await.body;
    assert_eq!((&resolved["status"], &resolved["alerts"][0]["status"]), (&json!("resolved"), &json!("resolved")));
    assert_eq!(resolved["alerts"][0]["startsAt"], alert["startsAt"]);
    assert_ne!(resolved["alerts"][0]["endsAt"], json!("0001-01-01T00:00:00Z"));
    f.minute(&alerting).await;
    alerting.stop().await;
    assert!(sink.is_idle(), "resolved is told once");
    let history = alerting.history(&TenantId::default(), 0, i64::MAX, 10).await.expect("history");
    let kinds: Vec<&str> = history.iter().rev().map(|h| h.transition.kind.as_str()).collect();
    assert_eq!(kinds, ["pending", "firing", "resolved"]);
}

#[tokio::test]
async fn after_a_restart_in_pending_the_clock_goes_on() {
    let f = Fixture::new();
    f.rules(RULE);
    f.hosts.set(&["db"]);
    let mut sink = Sink::start(vec![]).await;
    let alerting = f.start(Some(&sink.url)).await;
    f.minute(&alerting).await;
    let before = serde_json::to_value(alerting.alerts()).expect("json");
    assert_eq!(before["alerts"][0]["state"], json!("pending"));
    alerting.stop().await;

    let alerting = f.start(Some(&sink.url)).await;
    assert_eq!(serde_json::to_value(alerting.alerts()).expect("json"), before, "there at once, since the same time");
    f.minute(&alerting).await;
    assert_eq!(state(&alerting), "pending");
    f.minute(&alerting).await;
    assert_eq!(state(&alerting), "firing");
    assert_eq!(sink.next().await.body["status"], json!("firing"));
    eventually("the delivery is recorded", async || {
        let all = alerting.notifications(&TenantId::default(), 1).await.expect("read");
        (all[0].status == NotificationStatus::Sent).then_some(())
    })
    .await;
    alerting.stop().await;

    // A restart while firing tells nobody again; the end is told.
    let alerting = f.start(Some(&sink.url)).await;
    f.minute(&alerting).await;
    assert_eq!(state(&alerting), "firing");
    f.hosts.set(&[]);
    f.minute(&alerting).await;
    let body = sink.next().await.body;
    assert_eq!(body["status"], json!("resolved"));
    assert_eq!(body["alerts"][0]["generatorURL"], json!("http://fletch/graph?g0.expr=up+%3D%3D+0&g0.tab=1"));
    alerting.stop().await;
    assert!(sink.is_idle());
}

#[tokio::test]
async fn the_api_has_prometheus_shape() {
    let f = Fixture::new();
    f.rules(&RULE.replace("for: 2m", "for: 2m\n    keep_firing_for: 5m"));
    f.hosts.set(&["db"]);
    let alerting = f.start(None).await;
    let rules = serde_json::to_value(alerting.rules(&RulesFilter::default())).expect("json");
    let rule = &rules["groups"][0]["rules"][0];
    assert_eq!((&rule["health"], &rule["state"]), (&json!("unknown"), &json!("unknown")));
    assert_eq!(rules["groups"][0]["lastEvaluation"], json!("0001-01-01T00:00:00Z"));
    for _ in 0..3 {
        f.minute(&alerting).await;
    }
    f.hosts.set(&[]);
    f.minute(&alerting).await;
    let tick = f.hosts.asked.lock().last().expect("asked").1;
    let time = |ms: i64| json!(crate::go::rfc3339(ms));
    let mut rules = serde_json::to_value(alerting.rules(&RulesFilter::default())).expect("json");
    let group = &mut rules["groups"][0];
    assert!(group["evaluationTime"].as_f64().expect("number") > 0.0);
    assert!(group["rules"][0]["evaluationTime"].as_f64().expect("number") > 0.0);
    (group["evaluationTime"], group["rules"][0]["evaluationTime"]) = (Value::Null, Value::Null);
    let alert = json!({
        "labels": {"alertname": "Down", "host": "db", "severity": "page", "where": "db"}, "annotations": {"summary": "db has 0"},
        "state": "firing", "activeAt": time(tick - 3 * MINUTE), "keepFiringSince": time(tick), "value": "0e+00"
    });
    let expected = json!({"groups": [{
        "name": "g", "file": f.dir.path().join("r.yml").display().to_string(), "interval": 60.0, "limit": 0,
        "evaluationTime": null, "lastEvaluation": time(tick),
        "rules": [{
            "state": "firing", "name": "Down", "query": "up == 0", "duration": 120.0, "keepFiringFor": 300.0,
            "labels": {"severity": "page", "where": "{{ $labels.host }}"}, "annotations": {"summary": "{{ $labels.host }} has {{ $value }}"},
            "alerts": [alert], "health": "ok", "evaluationTime": null, "lastEvaluation": time(tick), "type": "alerting"
        }]
    }]});
    assert_eq!(rules, expected);
    assert_eq!(serde_json::to_value(alerting.alerts()).expect("json"), json!({"alerts": [alert]}));
    let of = |filter: RulesFilter| alerting.rules(&filter).groups.len();
    assert_eq!(of(RulesFilter { rule_names: vec!["Down".into()], groups: vec!["g".into()], ..Default::default() }), 1);
    assert_eq!(of(RulesFilter { rule_names: vec!["Other".into()], ..Default::default() }), 0);
    assert_eq!(of(RulesFilter { files: vec!["other.yml".into()], ..Default::default() }), 0);
    alerting.stop().await;
}

#[tokio::test]
async fn a_failing_query_keeps_the_alerts_and_says_so() {
    let f = Fixture::new();
    f.rules(&RULE.replace("for: 2m", "for: 0s"));
    f.hosts.set(&["db"]);
    let alerting = f.start(None).await;
    f.minute(&alerting).await;
    *f.hosts.error.lock() = Some("the store is away".to_owned());
    f.minute(&alerting).await;
    let rules = alerting.rules(&RulesFilter::default());
    let rule = &rules.groups[0].rules[0];
    assert_eq!((rule.state, rule.health, rule.last_error.as_deref()), ("firing", "err", Some("the store is away")));
    assert_eq!((f.metrics.evaluations.get(), f.metrics.evaluation_failures.get()), (2, 1));
    *f.hosts.error.lock() = None;
    f.minute(&alerting).await;
    assert_eq!(alerting.rules(&RulesFilter::default()).groups[0].rules[0].health, "ok");
    alerting.stop().await;
}

#[tokio::test]
async fn equal_label_sets_and_limits_are_errors_of_the_rule() {
    let f = Fixture::new();
    f.rules("groups:\n- name: g\n  limit: 1\n  rules:\n  - alert: A\n    expr: up == 0\n    labels: {host: ''}\n  - alert: B\n    expr: up == 0\n");
    f.hosts.set(&["a", "b"]);
    let alerting = f.start(None).await;
    f.minute(&alerting).await;
    let rules = alerting.rules(&RulesFilter::default());
    let errors: Vec<&str> = rules.groups[0].rules.iter().filter_map(|r| r.last_error.as_deref()).collect();
    assert!(errors[0].starts_with("vector contains metrics with the same labelset after applying alert labels"), "{errors:?}");
    assert_eq!(errors[1], "exceeded limit of 1 with 2 alerts");
    assert!(alerting.alerts().alerts.is_empty());
    alerting.stop().await;
}

#[tokio::test]
async fn a_reload_keeps_what_stays_and_ends_what_goes() {
    let f = Fixture::new();
    f.rules(&RULE.replace("for: 2m", "for: 0s"));
    f.hosts.set(&["db"]);
    let mut sink = Sink::start(vec![]).await;
    let alerting = f.start(Some(&sink.url)).await;
    f.minute(&alerting).await;
    assert_eq!(sink.next().await.body["status"], json!("firing"));
    let since = alerting.alerts().alerts[0].active_at.clone();

    f.rules(&RULE.replace("for: 2m", "for: 0s").replace("up == 0", "up < 1"));
    alerting.reload(None).await.expect("valid");
    assert_eq!(alerting.alerts().alerts[0].active_at, since);
    f.minute(&alerting).await;
    assert_eq!(alerting.alerts().alerts[0].active_at, since);

    f.rules("groups: [oops");
    let error = alerting.reload(None).await.expect_err("refused").to_string();
    assert!(error.contains("r.yml: ") && error.contains("yaml: "), "{error}");
    assert_eq!(alerting.alerts().alerts.len(), 1);

    eventually("the delivery is recorded", async || {
        let all = alerting.notifications(&TenantId::default(), 1).await.expect("read");
        (all[0].status == NotificationStatus::Sent).then_some(())
    })
    .await;
    f.rules("groups: []");
    alerting.reload(None).await.expect("valid");
    assert_eq!(sink.next().await.body["status"], json!("resolved"));
    assert!(alerting.alerts().alerts.is_empty());
    alerting.stop().await;
    let again = f.start(None).await;
    assert!(again.store.alerts().await.expect("read").is_empty(), "nothing of the rule is kept");
    again.stop().await;
}

#[tokio::test]
async fn rules_that_are_gone_after_a_restart_are_ended() {
    let f = Fixture::new();
    f.rules(&RULE.replace("for: 2m", "for: 0s"));
    f.hosts.set(&["db"]);
    let mut sink = Sink::start(vec![]).await;
    let alerting = f.start(Some(&sink.url)).await;
    f.minute(&alerting).await;
    sink.next().await;
    eventually("the delivery is recorded", async || {
        let all = alerting.notifications(&TenantId::default(), 1).await.expect("read");
        (all[0].status == NotificationStatus::Sent).then_some(())
    })
    .await;
    alerting.stop().await;
    f.rules("");
    let alerting = f.start(Some(&sink.url)).await;
    assert_eq!(sink.next().await.body["status"], json!("resolved"));
    assert!(alerting.store.alerts().await.expect("read").is_empty());
    alerting.stop().await;
}

#[tokio::test]
async fn late_ticks_are_skipped_and_counted() {
    let f = Fixture::new();
    f.rules(RULE);
    let alerting = f.start(None).await;
    f.minute(&alerting).await;
    let mut ticks = alerting.ticks();
    let before = *ticks.borrow();
    f.clock.advance(Duration::from_secs(5 * 60));
    ticks.wait_for(|now| *now > before).await.expect("alive");
    assert_eq!(f.metrics.missed.get(), 4);
    let asked: Vec<i64> = f.hosts.asked.lock().iter().map(|a| a.1).collect();
    assert_eq!(asked[1] - asked[0], 5 * MINUTE);
    assert!(f.clock.now_ms() - asked[1] < MINUTE);
    alerting.stop().await;
}

#[tokio::test]
async fn a_store_that_fails_does_not_silence_alerts() {
    let f = Fixture::new();
    f.rules(&RULE.replace("for: 2m", "for: 0s"));
    f.hosts.set(&["db"]);
    let mut sink = Sink::start(vec![]).await;
    let alerting = f.start(Some(&sink.url)).await;
    // The tables are taken away under the store.
    let pool = sqlx::SqlitePool::connect(&format!("sqlite://{}/meta.db", f.dir.path().display())).await.expect("open");
    sqlx::query("ALTER TABLE alert_instances RENAME TO away").execute(&pool).await.expect("rename");
    f.minute(&alerting).await;
    assert_eq!(sink.next().await.body["status"], json!("firing"));
    assert_eq!(state(&alerting), "firing");
    assert_eq!(f.metrics.store_failures.get(), 1);
    sqlx::query("ALTER TABLE away RENAME TO alert_instances").execute(&pool).await.expect("rename");
    f.minute(&alerting).await;
    let stored = alerting.store.alerts().await.expect("read");
    assert_eq!(stored.len(), 1, "written with the next evaluation");
    let history = alerting.history(&TenantId::default(), 0, i64::MAX, 10).await.expect("history");
    assert_eq!(history.len(), 1);
    alerting.stop().await;
}

#[tokio::test]
async fn wrong_receivers_are_refused_by_name() {
    let f = Fixture::new();
    let refused = async |webhooks: Vec<WebhookSettings>| {
        let store = open(&format!("sqlite://{}/meta.db", f.dir.path().display())).await.expect("store");
        let queries: Arc<dyn InstantQuery> = Arc::clone(&f.hosts) as _;
        let clock: SharedClock = Arc::clone(&f.clock) as _;
        let settings = Settings { webhooks, ..Settings::default() };
        Alerting::start(settings, queries, streams(), store, clock, f.metrics.clone()).await.expect_err("refused").to_string()
    };
    assert!(refused(vec![WebhookSettings::to("ftp://x")]).await.contains("webhook `webhook-0`: the url must begin with http"));
    let named = |url: &str| WebhookSettings { name: Some("a".into()), ..WebhookSettings::to(url) };
    assert!(refused(vec![named("http://x"), named("http://y")]).await.contains("webhook `a`: the name is given twice"));
}
