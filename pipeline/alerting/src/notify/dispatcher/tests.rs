//! Delivery against a sink with faults; time passes by hand.

use super::*;
use crate::notify::ledger::ReceiverPolicy;
use crate::notify::sink::{Reply, Sink, eventually};
use crate::notify::webhook::{Webhook, WebhookSettings};

use crate::store::{Batch, open};
use fletch_common::ManualClock;

struct Fixture {
    _dir: tempfile::TempDir,
    shared: Shared,
    clock: Arc<ManualClock>,
}

impl Fixture {
    async fn new() -> Self {
        let dir = tempfile::tempdir().expect("temp dir");
        let store = open(&format!("sqlite://{}/meta.db", dir.path().display())).await.expect("store");
        let clock = ManualClock::at(1_000_000);
        let policy = ReceiverPolicy { name: "webhook-0".to_owned(), repeat_ms: 1 };
        let ledger = Arc::new(Mutex::new(Ledger::new(vec![policy], String::new())));
        let shared =
            Shared { store, ledger, clock: Arc::clone(&clock) as SharedClock, metrics: Metrics::unregistered(), queue_max: QUEUE_MAX };
        Self { _dir: dir, shared, clock }
    }

    fn dispatcher(&self, url: &str, pending: Vec<OutboxEntry>) -> Dispatcher {
        let settings = WebhookSettings::to(url);
        let webhook = Webhook::new(settings.name_at(0), &settings, Arc::clone(&self.shared.clock)).expect("webhook");
        Dispatcher::start(vec![Arc::new(webhook)], &self.shared, pending)
    }

    async fn saved(&self, number: u32, alertname: &str) -> OutboxEntry {
        let entry = OutboxEntry {
            id: Id(u128::from(number)),
            tenant: TenantId::default(),
            receiver: "webhook-0".to_owned(),
            alertname: alertname.to_owned(),
            payload: format!("{{\"number\":{number}}}"),
            firing: vec![Id(7)],
            resolved: vec![],
            status: NotificationStatus::Pending,
            created_ms: 1_000_000 + i64::from(number),
            finished_ms: None,
            attempts: 0,
            last_error: String::new(),
        };
        self.shared.store.save(&Batch { outbox: vec![entry.clone()], ..Batch::default() }).await.expect("save");
        entry
    }

    async fn recorded(&self, number: u32, condition: impl Fn(&OutboxEntry) -> bool) -> OutboxEntry {
        let store = &self.shared.store;
        eventually("the record of a delivery", async || {
            let all = store.notifications(&TenantId::default(), 100).await.expect("notifications");
            all.into_iter().find(|e| e.id == Id(u128::from(number)) && condition(e))
        })
        .await
    }
}

fn number(body: &serde_json::Value) -> i64 {
    body["number"].as_i64().expect("a number")
}

#[tokio::test]
async fn a_500_is_tried_again_and_then_sent_once() {
    let f = Fixture::new().await;
    let mut sink = Sink::start(vec![Reply::Answer("500 Internal Server Error"), Reply::Answer("503 Service Unavailable")]).await;
    let dispatcher = f.dispatcher(&sink.url, vec![]);
    dispatcher.enqueue(vec![f.saved(1, "A").await]);
    for attempt in 1..=2 {
        let request = sink.next().await;
        assert!(request.head.starts_with("POST /hook?token=secret HTTP/1.1"), "{}", request.head);
        assert!(request.head.to_ascii_lowercase().contains("content-type: application/json"), "{}", request.head);
        let record = f.recorded(1, |e| e.attempts == attempt).await;
        assert_eq!(record.status, NotificationStatus::Pending);
        assert!(record.last_error.contains("unexpected status code 50") && record.last_error.ends_with("sorry"), "{}", record.last_error);
        f.clock.advance(Duration::from_millis(u64::try_from(BACKOFF_MAX_MS).expect("positive")));
    }
    assert_eq!(number(&sink.next().await.body), 1);
    let record = f.recorded(1, |e| e.status == NotificationStatus::Sent).await;
    assert_eq!((record.attempts, record.last_error.as_str()), (3, ""));
    dispatcher.stop().await;
    assert!(sink.is_idle());
}

#[tokio::test]
async fn a_silent_receiver_times_out_and_a_newer_entry_replaces_the_old() {
    let f = Fixture::new().await;
    let mut sink = Sink::start(vec![Reply::Hang]).await;
    let dispatcher = f.dispatcher(&sink.url, vec![]);
    dispatcher.enqueue(vec![f.saved(1, "A").await]);
    assert_eq!(number(&sink.next().await.body), 1);
    dispatcher.enqueue(vec![f.saved(2, "A").await]);
    // Another group is not held up.
    dispatcher.enqueue(vec![f.saved(3, "B").await]);
    assert_eq!(number(&sink.next().await.body), 3);
    f.clock.advance(Duration::from_secs(10));
    let record = f.recorded(1, |e| e.attempts == 1).await;
    assert_eq!(record.status, NotificationStatus::Superseded);
    assert!(record.last_error.contains("no answer within 10 s"), "{}", record.last_error);
    assert_eq!(number(&sink.next().await.body), 2);
    f.recorded(2, |e| e.status == NotificationStatus::Sent).await;
    dispatcher.stop().await;
    assert!(sink.is_idle());
}

#[tokio::test]
async fn a_lasting_refusal_is_given_up_and_a_429_is_not() {
    let f = Fixture::new().await;
    let mut sink = Sink::start(vec![Reply::Answer("404 Not Found"), Reply::Answer("429 Too Many Requests\r\nRetry-After: 7")]).await;
    let dispatcher = f.dispatcher(&sink.url, vec![]);
    dispatcher.enqueue(vec![f.saved(1, "A").await]);
    sink.next().await;
    f.recorded(1, |e| e.status == NotificationStatus::Failed).await;
    dispatcher.enqueue(vec![f.saved(2, "A").await]);
    sink.next().await;
    f.recorded(2, |e| e.attempts == 1 && e.status == NotificationStatus::Pending).await;
    f.clock.advance(Duration::from_secs(7));
    sink.next().await;
    f.recorded(2, |e| e.status == NotificationStatus::Sent).await;
    dispatcher.stop().await;
}

#[tokio::test]
async fn an_unreachable_receiver_is_tried_until_the_entry_is_too_old() {
    let f = Fixture::new().await;
    let dispatcher = f.dispatcher("http://127.0.0.1:1/hook?token=secret", vec![]);
    dispatcher.enqueue(vec![f.saved(1, "A").await]);
    let record = f.recorded(1, |e| e.attempts == 1).await;
    assert!(!record.last_error.contains("secret"), "{}", record.last_error);
    f.clock.advance(Duration::from_millis(u64::try_from(AGE_MAX_MS).expect("positive") + 2));
    f.recorded(1, |e| e.status == NotificationStatus::Failed).await;
    dispatcher.stop().await;
}

#[tokio::test]
async fn what_was_pending_is_sent_after_a_restart() {
    let f = Fixture::new().await;
    let mut sink = Sink::start(vec![]).await;
    f.saved(1, "A").await;
    let pending = f.shared.store.outbox().await.expect("outbox");
    let dispatcher = f.dispatcher(&sink.url, pending);
    assert_eq!(number(&sink.next().await.body), 1);
    f.recorded(1, |e| e.status == NotificationStatus::Sent).await;
    dispatcher.stop().await;
}

#[tokio::test]
async fn what_does_not_fit_into_the_queue_waits_in_the_store() {
    let mut f = Fixture::new().await;
    f.shared.queue_max = 2;
    // All deliveries hang at first, so that the queue fills.
    let mut sink = Sink::start(vec![Reply::Hang; IN_FLIGHT_MAX]).await;
    let dispatcher = f.dispatcher(&sink.url, vec![]);
    for n in 1..=IN_FLIGHT_MAX {
        dispatcher.enqueue(vec![f.saved(u32::try_from(n).expect("small"), &format!("A{n}")).await]);
        sink.next().await;
    }
    for n in 11..=15 {
        dispatcher.enqueue(vec![f.saved(n, &format!("B{n}")).await]);
    }
    f.clock.advance(Duration::from_secs(10));
    for n in 1..=IN_FLIGHT_MAX {
        f.recorded(u32::try_from(n).expect("small"), |e| e.attempts == 1).await;
    }
    // Nothing is on its way when the clock moves, or it would time out.
    for n in [11, 12] {
        f.recorded(n, |e| e.status == NotificationStatus::Sent).await;
    }
    f.clock.advance(Duration::from_millis(u64::try_from(BACKOFF_MAX_MS).expect("positive")));
    for n in 11..=15 {
        f.recorded(n, |e| e.status == NotificationStatus::Sent).await;
    }
    dispatcher.stop().await;
}

#[test]
fn waits_double_are_bounded_and_respect_the_receiver() {
    let entry = |attempts: u32| OutboxEntry {
        id: Id(5),
        tenant: TenantId::default(),
        receiver: String::new(),
        alertname: String::new(),
        payload: String::new(),
        firing: vec![],
        resolved: vec![],
        status: NotificationStatus::Pending,
        created_ms: 0,
        finished_ms: None,
        attempts,
        last_error: String::new(),
    };
    let passing = NotifyError::passing("x");
    for attempts in [1, 2, 3, 5, 20, 64, u32::MAX] {
        let base = BACKOFF_MIN_MS.saturating_mul(1 << (attempts - 1).min(20)).min(BACKOFF_MAX_MS);
        let wait = wait_ms(&entry(attempts), &passing);
        assert!((base / 2..=base).contains(&wait), "attempt {attempts}: {wait}");
    }
    let asked = NotifyError { after: Some(Duration::from_secs(100)), ..passing };
    assert_eq!(wait_ms(&entry(1), &asked), 100_000);
}

#[tokio::test]
async fn an_entry_that_waited_too_long_is_not_sent() {
    let f = Fixture::new().await;
    let mut sink = Sink::start(vec![]).await;
    let old = f.saved(1, "A").await;
    f.clock.advance(Duration::from_millis(u64::try_from(AGE_MAX_MS).expect("positive") + 2));
    let dispatcher = f.dispatcher(&sink.url, vec![old]);
    let record = f.recorded(1, |e| e.status == NotificationStatus::Failed).await;
    assert_eq!(record.last_error, "waited for more than 24 h");
    dispatcher.stop().await;
    assert!(sink.is_idle());
}
