//! One suite, run on both databases.

use super::*;
use crate::state::{AlertState, Annotations, Policy, RuleAlerts, Verdict};
use fletch_schemas::Labels;

async fn sqlite() -> (tempfile::TempDir, Arc<dyn StateStore>) {
    let dir = tempfile::tempdir().expect("temp dir");
    let store = open(&format!("sqlite://{}/meta.db", dir.path().display())).await.expect("store");
    (dir, store)
}

fn verdict(host: &str, value: f64) -> Verdict {
    let labels = Labels::from_pairs([("alertname", "A"), ("host", host)]).expect("valid");
    Verdict { labels, annotations: Annotations::from([("summary".to_owned(), "nul \0 and ü".to_owned())]), value }
}

fn stored(tenant: &TenantId, alerts: &RuleAlerts) -> Vec<StoredAlert> {
    let row = |alert: &Alert| StoredAlert {
        tenant: tenant.clone(),
        rule: Id(9),
        rule_name: "A".to_owned(),
        alert: alert.clone(),
        last_sent_ms: None,
    };
    let mut rows: Vec<StoredAlert> = alerts.iter().map(row).collect();
    rows.sort_by_key(|r| r.alert.id);
    rows
}

fn entry(tenant: &TenantId, number: u128, created_ms: i64, firing: Vec<Id>) -> OutboxEntry {
    OutboxEntry {
        id: Id(number),
        tenant: tenant.clone(),
        receiver: "hook".to_owned(),
        alertname: "A".to_owned(),
        payload: "{}".to_owned(),
        firing,
        resolved: vec![],
        status: NotificationStatus::Pending,
        created_ms,
        finished_ms: None,
        attempts: 0,
        last_error: String::new(),
    }
}

async fn suite(store: &dyn StateStore, tenant: &TenantId) {
    alerts_and_history(store, tenant).await;
    outbox(store, tenant).await;
    marks_and_pruning(store, tenant).await;
}

async fn alerts_and_history(store: &dyn StateStore, tenant: &TenantId) {
    let mut alerts = RuleAlerts::new(tenant.clone(), Id(9));
    let policy = Policy { hold_ms: 10, keep_firing_ms: 10, limit: 0 };
    for (now, hosts) in [(0, vec!["a", "b", "c", "d"]), (10, vec!["a", "b", "c"]), (20, vec!["a", "b"]), (31, vec!["a", "e"])] {
        let verdicts = hosts.iter().map(|h| verdict(h, if *h == "a" { f64::from_bits(0x7ff8_0000_0000_0123) } else { 0.1 })).collect();
        let changes = alerts.evaluate(now, verdicts, policy).expect("no duplicate");
        let rows = stored(tenant, &alerts);
        let history = changes.transitions.into_iter();
        let history = history.map(|t| HistoryRow { tenant: tenant.clone(), rule: Id(9), rule_name: "A".to_owned(), transition: t });
        let batch = Batch {
            alerts: rows.into_iter().filter(|r| changes.changed.contains(&r.alert.id)).collect(),
            removed: changes.removed,
            history: history.collect(),
            ..Batch::default()
        };
        store.save(&batch).await.expect("save");
        store.save(&batch).await.expect("saving twice is the same as once");
    }
    let read: Vec<StoredAlert> = store.alerts().await.expect("alerts").into_iter().filter(|a| a.tenant == *tenant).collect();
    // Compared as text: a NaN does not equal itself, its bits must survive all the same.
    assert_eq!(format!("{read:?}"), format!("{:?}", stored(tenant, &alerts)));
    assert!(read.iter().any(|r| r.alert.value.to_bits() == 0x7ff8_0000_0000_0123));
    let states: Vec<&str> = read.iter().map(|r| r.alert.state.name()).collect();
    assert!(states.contains(&"pending") && states.contains(&"firing") && states.contains(&"resolved"), "{states:?}");
    assert!(read.iter().any(|r| matches!(r.alert.state, AlertState::Firing { kept_since_ms: Some(31), .. })));
    let history = store.history(tenant, 10, 31, 100).await.expect("history");
    let kinds: Vec<(i64, &str)> = history.iter().map(|h| (h.transition.at_ms, h.transition.kind.as_str())).collect();
    assert_eq!(kinds.iter().filter(|k| **k == (10, "firing")).count(), 3, "{kinds:?}");
    assert!(kinds.contains(&(10, "inactive")) && kinds.contains(&(31, "resolved")), "{kinds:?}");
    assert!(kinds.is_sorted_by(|a, b| a.0 >= b.0), "newest first");
    assert_eq!(store.history(tenant, 0, 100, 2).await.expect("history").len(), 2);
    assert!(store.history(&TenantId::new("nobody").expect("valid"), 0, 100, 2).await.expect("history").is_empty());
}

async fn outbox(store: &dyn StateStore, tenant: &TenantId) {
    let mine = async || -> Vec<OutboxEntry> { store.outbox().await.expect("outbox").into_iter().filter(|e| e.tenant == *tenant).collect() };
    let alert = store.alerts().await.expect("alerts").into_iter().find(|a| a.tenant == *tenant).expect("one").alert.id;
    let base = Id::of(&[tenant.as_str().as_bytes()]).0;
    let mut first = entry(tenant, base ^ 1, 100, vec![alert]);
    let mut second = entry(tenant, base ^ 2, 200, vec![alert]);
    store.save(&Batch { outbox: vec![first.clone()], ..Batch::default() }).await.expect("save");
    assert_eq!(mine().await, [first.clone()]);
    store.save(&Batch { outbox: vec![second.clone()], ..Batch::default() }).await.expect("save");
    assert_eq!(mine().await, [second.clone()], "the newer entry supersedes the older");

    (second.attempts, second.last_error) = (1, "500".to_owned());
    store.record_attempt(&second).await.expect("record");
    assert_eq!(mine().await, [second.clone()]);
    // The old one fails while the new one waits: it stays superseded.
    (first.attempts, first.last_error) = (3, "late".to_owned());
    store.record_attempt(&first).await.expect("record");
    assert_eq!(mine().await, [second.clone()]);

    (second.status, second.finished_ms, second.attempts) = (NotificationStatus::Sent, Some(250), 2);
    second.last_error.clear();
    store.record_attempt(&second).await.expect("record");
    assert_eq!(mine().await, [second.clone()], "the last one sent says what the receiver knows");
    let sent: Vec<_> = store.alerts().await.expect("alerts").into_iter().filter(|a| a.alert.id == alert).collect();
    assert_eq!(sent[0].last_sent_ms, Some(250));
    // Another evaluation does not lose it.
    store.save(&Batch { alerts: sent, ..Batch::default() }).await.expect("save");
    assert!(store.alerts().await.expect("alerts").iter().any(|a| a.alert.id == alert && a.last_sent_ms == Some(250)));

    let mut third = entry(tenant, base ^ 3, 300, vec![]);
    third.resolved = vec![alert];
    store.save(&Batch { outbox: vec![third.clone()], ..Batch::default() }).await.expect("save");
    (third.status, third.finished_ms) = (NotificationStatus::Sent, Some(300));
    store.record_attempt(&third).await.expect("record");
    assert!(mine().await.is_empty(), "a resolved group needs no memory");
    let all = store.notifications(tenant, 10).await.expect("notifications");
    let statuses: Vec<&str> = all.iter().map(|e| e.status.as_str()).collect();
    assert_eq!(statuses, ["sent", "sent", "superseded"]);
}

async fn marks_and_pruning(store: &dyn StateStore, tenant: &TenantId) {
    let mark = |name: &str, value: &str| Mark { name: format!("{tenant}/{name}"), value: value.to_owned() };
    let prefix = format!("{tenant}/cursor/");
    store.save(&Batch { marks: vec![mark("cursor/1", "5"), mark("other", "x")], ..Batch::default() }).await.expect("save");
    store.save(&Batch { marks: vec![mark("cursor/1", "6")], ..Batch::default() }).await.expect("save");
    assert_eq!(store.marks(&prefix).await.expect("marks"), [mark("cursor/1", "6")]);
    assert!(store.prune(11, 201).await.expect("prune") >= 2);
    let oldest = store.history(tenant, 0, 1_000, 100).await.expect("history").iter().map(|h| h.transition.at_ms).min();
    assert!(oldest >= Some(11));
}

#[tokio::test]
async fn sqlite_keeps_everything() {
    let (_dir, store) = sqlite().await;
    suite(store.as_ref(), &TenantId::default()).await;
}

#[tokio::test]
async fn sqlite_opens_again_with_what_it_had() {
    let (dir, store) = sqlite().await;
    store.save(&Batch { marks: vec![Mark { name: "a".into(), value: "b".into() }], ..Batch::default() }).await.expect("save");
    store.close().await;
    let again = open(&format!("sqlite://{}/meta.db", dir.path().display())).await.expect("store");
    assert_eq!(again.marks("").await.expect("marks").len(), 1);
}

#[tokio::test]
async fn postgres_keeps_everything() {
    let Ok(url) = std::env::var("FLETCH_TEST_POSTGRES") else {
        eprintln!("SKIPPED: the PostgreSQL suite of the metadata store; set FLETCH_TEST_POSTGRES=postgres://user@host/database");
        return;
    };
    let store = open(&url).await.expect("store");
    // A tenant of its own, so that the suite passes on a database that was used before.
    let tenant = TenantId::new(&format!("t{}", std::process::id())).expect("valid");
    suite(store.as_ref(), &tenant).await;
}

#[tokio::test]
async fn a_wrong_address_is_named_without_its_password() {
    let error = open("mysql://u:secret@h/db").await.err().expect("refused").to_string();
    assert!(error.contains("mysql://") && !error.contains("secret"), "{error}");
    let error = open("postgres://u:secret@127.0.0.1:1/db?sslmode=nonsense").await.err().expect("refused").to_string();
    assert!(!error.contains("secret"), "{error}");
}

#[tokio::test]
async fn a_copy_holds_what_was_committed_while_the_store_stays_open() {
    let (dir, store) = sqlite().await;
    let mark = |value: &str| Batch { marks: vec![Mark { name: "m".to_owned(), value: value.to_owned() }], ..Batch::default() };
    store.save(&mark("one")).await.expect("saves");
    let url = format!("sqlite://{}/meta.db", dir.path().display());
    let from = sqlite_file(&url).expect("an address").expect("a file");
    assert_eq!(from, dir.path().join("meta.db"));
    let to = dir.path().join("copy.db");
    copy_sqlite(&from, &to).await.expect("copies beside the open store");
    store.save(&mark("two")).await.expect("saves");
    copy_sqlite(&from, &to).await.expect_err("never over another file");
    copy_sqlite(&dir.path().join("nothing.db"), &dir.path().join("x.db")).await.expect_err("nothing to copy");
    let copy = open(&format!("sqlite://{}", to.display())).await.expect("is a store");
    assert_eq!(copy.marks("").await.expect("reads")[0].value, "one");
    assert_eq!(store.marks("").await.expect("reads")[0].value, "two");
    for other in ["postgres://host/db", "sqlite::memory:"] {
        assert_eq!(sqlite_file(other).expect("an address"), None, "{other}");
    }
}
