//! Who knows what: decides, per receiver and group, whether a notification is due. Pure: `now` is an argument.
//!
//! ```text
//!  alerts of a rule ──update──▶ group ──plan──▶ OutboxEntry per receiver ──▶ store, then dispatcher
//!                                 ▲                                                       │
//!                                 └────────────────── complete ◀──────────────────────────┘
//! ```
//!
//! A receiver *knows* the alerts that the last delivered notification, or one that may be on its way, said to be firing. A resolved alert is
//! told once, to those who know it. A new plan replaces one that has not been delivered and says everything that one said.
//!
//! # Not here
//! Routing, silences, group intervals: one group per tenant and `alertname`, notified at once.

use super::payload::{GroupAlert, GroupId, Notification};
use crate::state::{Alert, AlertState, Id};
use crate::store::{NotificationStatus, OutboxEntry};
use std::collections::{BTreeMap, BTreeSet};

/// A receiver as the ledger sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceiverPolicy {
    /// Its name; part of what is stored.
    pub name: String,
    /// How often a group that still fires is told again, in milliseconds.
    pub repeat_ms: i64,
}

/// Why a notification is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// An alert fires that the receiver does not know.
    Firing,
    /// An alert that the receiver knows no longer fires.
    Resolved,
    /// It still fires and the repeat interval is over.
    Repeat,
    /// What waits to be delivered is out of date.
    Changed,
}

/// What a rule's alerts have in common for the notifier.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// The rule.
    pub rule: Id,
    /// Where its expression can be looked at.
    pub generator_url: &'a str,
}

#[derive(Debug, Default, Clone)]
struct Known {
    firing: BTreeSet<Id>,
    at_ms: i64,
    pending: Option<Pending>,
}

#[derive(Debug, Clone)]
struct Pending {
    id: Id,
    firing: BTreeSet<Id>,
    resolved: BTreeSet<Id>,
}

impl Known {
    fn knows(&self, id: Id) -> bool {
        self.firing.contains(&id) || self.pending.as_ref().is_some_and(|p| p.firing.contains(&id) || p.resolved.contains(&id))
    }
}

#[derive(Debug, Default)]
struct Group {
    alerts: BTreeMap<Id, GroupAlert>,
    known: BTreeMap<String, Known>,
}

/// All groups.
#[derive(Debug)]
pub struct Ledger {
    receivers: Vec<ReceiverPolicy>,
    external_url: String,
    groups: BTreeMap<GroupId, Group>,
}

impl Ledger {
    /// An empty ledger.
    pub fn new(receivers: Vec<ReceiverPolicy>, external_url: String) -> Self {
        Self { receivers, external_url, groups: BTreeMap::new() }
    }

    /// Takes back what the store says about the outbox: entries that wait, and the last finished ones of groups that fired. What receivers knew that
    /// are no longer there is of no use: nobody would ever tell them the end.
    pub fn restore(&mut self, entries: &[OutboxEntry]) {
        for entry in entries {
            if !self.receivers.iter().any(|r| r.name == entry.receiver) {
                continue;
            }
            let group = GroupId { tenant: entry.tenant.clone(), alertname: entry.alertname.clone() };
            let known = self.groups.entry(group).or_default().known.entry(entry.receiver.clone()).or_default();
            let firing = entry.firing.iter().copied().collect();
            if entry.status == NotificationStatus::Pending {
                known.pending = Some(Pending { id: entry.id, firing, resolved: entry.resolved.iter().copied().collect() });
            } else {
                known.firing = firing;
                known.at_ms = entry.finished_ms.unwrap_or(entry.created_ms);
            }
        }
    }

    /// Takes the present alerts of one rule into its group: all of them, at `now_ms`.
    pub fn update<'a>(&mut self, now_ms: i64, id: &GroupId, source: Source<'_>, alerts: impl Iterator<Item = &'a Alert>) {
        let mut alerts = alerts.peekable();
        if alerts.peek().is_none() && !self.groups.contains_key(id) {
            return;
        }
        let group = self.groups.entry(id.clone()).or_default();
        let mut firing = BTreeSet::new();
        let mut ends = BTreeMap::new();
        for alert in alerts {
            match alert.state {
                AlertState::Firing { fired_ms, .. } => {
                    firing.insert(alert.id);
                    group.alerts.insert(alert.id, group_alert(alert, source, fired_ms, None));
                }
                AlertState::Resolved { fired_ms, at_ms, .. } => {
                    ends.insert(alert.id, at_ms);
                    group.alerts.entry(alert.id).or_insert_with(|| group_alert(alert, source, fired_ms, Some(at_ms)));
                }
                AlertState::Pending { .. } => {}
            }
        }
        for alert in group.alerts.values_mut().filter(|a| a.rule == source.rule && !firing.contains(&a.id)) {
            alert.resolved_ms = alert.resolved_ms.or_else(|| Some(ends.get(&alert.id).copied().unwrap_or(now_ms)));
        }
        forget(group);
    }

    /// The notifications of one group that are due at `now_ms`, at most one per receiver; they count as on their way from here on.
    pub fn plan(&mut self, now_ms: i64, id: &GroupId) -> Vec<(Reason, OutboxEntry)> {
        let Some(group) = self.groups.get_mut(id) else { return Vec::new() };
        let mut due = Vec::new();
        for receiver in &self.receivers {
            let known = group.known.entry(receiver.name.clone()).or_default();
            let firing: BTreeSet<Id> = group.alerts.values().filter(|a| a.resolved_ms.is_none()).map(|a| a.id).collect();
            let resolved: BTreeSet<Id> =
                group.alerts.values().filter(|a| a.resolved_ms.is_some() && known.knows(a.id)).map(|a| a.id).collect();
            let Some(reason) = reason(known, &firing, &resolved, now_ms, receiver.repeat_ms) else { continue };
            let alerts: Vec<&GroupAlert> = firing.iter().chain(&resolved).filter_map(|id| group.alerts.get(id)).collect();
            let body = Notification::new(&receiver.name, id, &alerts, &self.external_url);
            let entry = entry(now_ms, id, &body, &firing, &resolved);
            known.pending = Some(Pending { id: entry.id, firing, resolved });
            due.push((reason, entry));
        }
        due
    }

    /// Every group, for a look at all of them.
    pub fn group_ids(&self) -> Vec<GroupId> {
        self.groups.keys().cloned().collect()
    }

    /// Notes that an entry became too old to be sent. The receiver knows what it knew before, so what is still true is planned again.
    pub fn abandon(&mut self, entry: &OutboxEntry) {
        let id = GroupId { tenant: entry.tenant.clone(), alertname: entry.alertname.clone() };
        let known = self.groups.get_mut(&id).and_then(|group| group.known.get_mut(&entry.receiver));
        if let Some(known) = known.filter(|k| k.pending.as_ref().is_some_and(|p| p.id == entry.id)) {
            known.pending = None;
        }
    }

    /// Notes that an entry was delivered, or refused for good, at `at_ms`: from now on this is what the receiver knows.
    pub fn complete(&mut self, at_ms: i64, entry: &OutboxEntry) {
        let id = GroupId { tenant: entry.tenant.clone(), alertname: entry.alertname.clone() };
        let Some(group) = self.groups.get_mut(&id) else { return };
        let Some(known) = group.known.get_mut(&entry.receiver) else { return };
        known.firing = entry.firing.iter().copied().collect();
        known.at_ms = at_ms;
        if known.pending.as_ref().is_some_and(|p| p.id == entry.id) {
            known.pending = None;
        }
        forget(group);
        if group.alerts.is_empty() && group.known.values().all(|k| k.pending.is_none() && k.firing.is_empty()) {
            self.groups.remove(&id);
        }
    }
}

/// Drops resolved alerts that nobody knows: there is nobody left to tell.
fn forget(group: &mut Group) {
    let known = &group.known;
    group.alerts.retain(|id, alert| alert.resolved_ms.is_none() || known.values().any(|k| k.knows(*id)));
}

fn reason(known: &Known, firing: &BTreeSet<Id>, resolved: &BTreeSet<Id>, now_ms: i64, repeat_ms: i64) -> Option<Reason> {
    if let Some(pending) = &known.pending {
        return (pending.firing != *firing || pending.resolved != *resolved).then_some(Reason::Changed);
    }
    if !firing.is_subset(&known.firing) {
        return Some(Reason::Firing);
    }
    if !resolved.is_empty() {
        return Some(Reason::Resolved);
    }
    let again = !firing.is_empty() && now_ms.saturating_sub(known.at_ms) >= repeat_ms;
    again.then_some(Reason::Repeat)
}

fn group_alert(alert: &Alert, source: Source<'_>, fired_ms: i64, resolved_ms: Option<i64>) -> GroupAlert {
    GroupAlert {
        id: alert.id,
        rule: source.rule,
        labels: alert.labels.clone(),
        annotations: alert.annotations.clone(),
        fired_ms,
        resolved_ms,
        generator_url: source.generator_url.to_owned(),
    }
}

fn entry(now_ms: i64, group: &GroupId, body: &Notification, firing: &BTreeSet<Id>, resolved: &BTreeSet<Id>) -> OutboxEntry {
    let payload = serde_json::to_string(body).expect("text keys and text values always serialise");
    let parts: [&[u8]; 5] =
        [group.tenant.as_str().as_bytes(), body.receiver.as_bytes(), body.group_key.as_bytes(), &now_ms.to_be_bytes(), payload.as_bytes()];
    OutboxEntry {
        id: Id::of(&parts),
        tenant: group.tenant.clone(),
        receiver: body.receiver.clone(),
        alertname: group.alertname.clone(),
        payload,
        firing: firing.iter().copied().collect(),
        resolved: resolved.iter().copied().collect(),
        status: NotificationStatus::Pending,
        created_ms: now_ms,
        finished_ms: None,
        attempts: 0,
        last_error: String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{Policy, RuleAlerts, Verdict};
    use fletch_schemas::{Labels, TenantId};

    const REPEAT: i64 = 100;

    struct Fixture {
        ledger: Ledger,
        alerts: RuleAlerts,
        policy: Policy,
        last: Option<OutboxEntry>,
    }

    impl Fixture {
        fn new() -> Self {
            let receivers = vec![ReceiverPolicy { name: "hook".to_owned(), repeat_ms: REPEAT }];
            Self {
                ledger: Ledger::new(receivers, String::new()),
                alerts: RuleAlerts::new(TenantId::default(), Id(1)),
                policy: Policy::default(),
                last: None,
            }
        }

        /// One evaluation; the answer is `reason: firing hosts / resolved hosts`, or nothing.
        fn step(&mut self, now_ms: i64, hosts: &[&str]) -> String {
            let verdict = |host: &&str| Verdict {
                labels: Labels::from_pairs([("alertname", "A"), ("host", host)]).expect("valid"),
                annotations: Default::default(),
                value: 1.0,
            };
            self.alerts.evaluate(now_ms, hosts.iter().map(verdict).collect(), self.policy).expect("no duplicate");
            let group = GroupId { tenant: TenantId::default(), alertname: "A".to_owned() };
            self.ledger.update(now_ms, &group, Source { rule: Id(1), generator_url: "" }, self.alerts.iter());
            let mut due = self.ledger.plan(now_ms, &group);
            assert!(due.len() <= 1);
            let Some((reason, entry)) = due.pop() else { return String::new() };
            let body: Notification = serde_json::from_str(&entry.payload).expect("json");
            let hosts = |firing: bool| -> String {
                let of = |a: &&crate::notify::payload::NotifiedAlert| (a.ends_at == crate::go::ZERO_TIME) == firing;
                body.alerts.iter().filter(of).map(|a| a.labels["host"].as_str()).collect()
            };
            let text = format!("{reason:?}: {} / {}", hosts(true), hosts(false));
            self.last = Some(entry);
            text
        }

        fn delivered(&mut self, at_ms: i64) {
            let entry = self.last.take().expect("something was sent");
            self.ledger.complete(at_ms, &entry);
        }
    }

    #[test]
    fn fires_once_repeats_and_resolves_once() {
        let mut f = Fixture::new();
        assert_eq!(f.step(0, &[]), "");
        assert_eq!(f.step(10, &["a"]), "Firing: a / ");
        f.delivered(10);
        assert_eq!(f.step(20, &["a"]), "");
        assert_eq!(f.step(30, &["a", "b"]), "Firing: ab / ");
        f.delivered(30);
        assert_eq!(f.step(129, &["a", "b"]), "");
        assert_eq!(f.step(130, &["a", "b"]), "Repeat: ab / ");
        f.delivered(130);
        assert_eq!(f.step(140, &["b"]), "Resolved: b / a");
        f.delivered(140);
        assert_eq!(f.step(150, &["b"]), "");
        assert_eq!(f.step(160, &[]), "Resolved:  / b");
        f.delivered(160);
        assert_eq!(f.step(170, &[]), "");
        assert!(f.ledger.group_ids().is_empty() || f.ledger.groups.values().all(|g| g.alerts.is_empty()));
        assert_eq!(f.step(180, &["a"]), "Firing: a / ");
    }

    #[test]
    fn an_undelivered_notification_is_replaced_by_one_that_says_all_of_it() {
        let mut f = Fixture::new();
        assert_eq!(f.step(0, &["a"]), "Firing: a / ");
        assert_eq!(f.step(10, &["a"]), "");
        // `a` may have been told: its end is told too.
        assert_eq!(f.step(20, &["b"]), "Changed: b / a");
        assert_eq!(f.step(30, &["c"]), "Changed: c / ab");
        assert_eq!(f.step(40, &["c"]), "");
        f.delivered(50);
        assert_eq!(f.step(60, &["c"]), "");
    }

    #[test]
    fn firing_again_before_the_end_was_told_is_told() {
        let mut f = Fixture::new();
        f.step(0, &["a"]);
        f.delivered(0);
        assert_eq!(f.step(10, &[]), "Resolved:  / a");
        assert_eq!(f.step(20, &["a"]), "Changed: a / ");
        f.delivered(20);
        assert_eq!(f.step(30, &["a"]), "");
    }

    #[test]
    fn back_to_pending_counts_as_resolved_for_the_receiver() {
        let mut f = Fixture::new();
        f.step(0, &["a"]);
        f.delivered(0);
        f.policy.hold_ms = 50;
        assert_eq!(f.step(10, &["a"]), "Resolved:  / a");
        f.delivered(10);
        assert_eq!(f.step(60, &["a"]), "Firing: a / ");
    }

    #[test]
    fn what_became_too_old_is_planned_again_if_it_is_still_true() {
        let mut f = Fixture::new();
        assert_eq!(f.step(0, &["a"]), "Firing: a / ");
        let entry = f.last.take().expect("planned");
        f.ledger.abandon(&entry);
        assert_eq!(f.step(10, &["a"]), "Firing: a / ");
        f.ledger.abandon(&entry);
        assert_eq!(f.step(20, &["a"]), "", "the old entry no longer matters");
    }

    #[test]
    fn a_receiver_that_is_gone_holds_nothing_up() {
        let mut f = Fixture::new();
        f.step(0, &["a"]);
        let mut sent = f.last.clone().expect("sent");
        (sent.status, sent.finished_ms, sent.receiver) = (NotificationStatus::Sent, Some(5), "gone".to_owned());
        f.ledger = Ledger::new(f.ledger.receivers.clone(), String::new());
        f.ledger.restore(&[sent]);
        assert!(f.ledger.group_ids().is_empty());
    }

    #[test]
    fn a_restored_ledger_goes_on() {
        let mut f = Fixture::new();
        f.step(0, &["a"]);
        let mut sent = f.last.clone().expect("sent");
        sent.status = NotificationStatus::Sent;
        sent.finished_ms = Some(5);
        let mut ledger = Ledger::new(f.ledger.receivers.clone(), String::new());
        ledger.restore(&[sent]);
        f.ledger = ledger;
        assert_eq!(f.step(50, &["a"]), "");
        assert_eq!(f.step(60, &[]), "Resolved:  / a");
    }
}
