//! The body of a webhook: Alertmanager's version 4 JSON.

use crate::go;
use crate::state::{Annotations, Id};
use fletch_schemas::{Labels, TenantId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Write;

/// Most alerts of one notification; the rest is counted in `truncatedAlerts`.
pub const ALERTS_MAX: usize = 1_000;
/// Largest sum of the alerts' sizes in one notification, in bytes; the rest is counted in `truncatedAlerts`.
pub const ALERTS_BYTES_MAX: usize = 4 << 20;

/// Which alerts travel together: those of one tenant with one `alertname`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId {
    /// Whose alerts.
    pub tenant: TenantId,
    /// Value of the `alertname` label.
    pub alertname: String,
}

impl GroupId {
    /// As Alertmanager writes it for a root route grouped by `alertname`.
    pub fn key(&self) -> String {
        format!("{{}}:{{alertname={}}}", fletch_promql::quote(&self.alertname))
    }
}

/// One alert as the notifier knows it.
#[derive(Debug, Clone, PartialEq)]
pub struct GroupAlert {
    /// Identity of the alert.
    pub id: Id,
    /// Rule it comes from.
    pub rule: Id,
    /// Labels, `alertname` included.
    pub labels: Labels,
    /// Annotations as last expanded.
    pub annotations: Annotations,
    /// When it began to fire, in milliseconds.
    pub fired_ms: i64,
    /// When it stopped, if it did, in milliseconds.
    pub resolved_ms: Option<i64>,
    /// Where its expression can be looked at.
    pub generator_url: String,
}

/// `firing` or `resolved`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// At least one alert fires.
    Firing,
    /// None does.
    Resolved,
}

/// One alert of a [`Notification`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NotifiedAlert {
    /// Whether it fires.
    pub status: Status,
    /// All labels.
    pub labels: BTreeMap<String, String>,
    /// All annotations.
    pub annotations: BTreeMap<String, String>,
    /// RFC 3339.
    pub starts_at: String,
    /// RFC 3339; year 1 while it fires.
    pub ends_at: String,
    /// Link to the expression.
    #[serde(rename = "generatorURL")]
    pub generator_url: String,
    /// [`fingerprint`] of the labels, 16 hex digits.
    pub fingerprint: String,
}

/// The body.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Notification {
    /// Name of the receiver.
    pub receiver: String,
    /// Firing when any alert fires.
    pub status: Status,
    /// The alerts, firing ones first, each kind by labels.
    pub alerts: Vec<NotifiedAlert>,
    /// Labels by which the group was formed.
    pub group_labels: BTreeMap<String, String>,
    /// Labels that all alerts share.
    pub common_labels: BTreeMap<String, String>,
    /// Annotations that all alerts share.
    pub common_annotations: BTreeMap<String, String>,
    /// Where users reach this server.
    #[serde(rename = "externalURL")]
    pub external_url: String,
    /// `4`.
    pub version: String,
    /// Identity of the group.
    pub group_key: String,
    /// Alerts that are not in the list because of [`ALERTS_MAX`] or [`ALERTS_BYTES_MAX`].
    pub truncated_alerts: usize,
}

impl Notification {
    /// The notification about these alerts of a group; two alerts with the same labels (of two rules) are one, firing wins.
    pub fn new(receiver: &str, group: &GroupId, alerts: &[&GroupAlert], external_url: &str) -> Self {
        let mut ordered: Vec<&GroupAlert> = alerts.to_vec();
        ordered.sort_by(|a, b| (&a.labels, a.resolved_ms.is_some()).cmp(&(&b.labels, b.resolved_ms.is_some())));
        ordered.dedup_by(|later, first| later.labels == first.labels);
        ordered.sort_by_key(|a| a.resolved_ms.is_some());
        let status = if ordered.first().is_some_and(|a| a.resolved_ms.is_none()) { Status::Firing } else { Status::Resolved };
        let kept = fitting(&ordered);
        Self {
            receiver: receiver.to_owned(),
            status,
            alerts: ordered[..kept].iter().map(|a| notified(a)).collect(),
            group_labels: BTreeMap::from([("alertname".to_owned(), group.alertname.clone())]),
            common_labels: common(ordered.iter().map(|a| label_map(&a.labels))),
            common_annotations: common(ordered.iter().map(|a| a.annotations.clone())),
            external_url: external_url.to_owned(),
            version: "4".to_owned(),
            group_key: group.key(),
            truncated_alerts: ordered.len() - kept,
        }
    }
}

fn fitting(alerts: &[&GroupAlert]) -> usize {
    let mut bytes = 0;
    for (i, alert) in alerts.iter().take(ALERTS_MAX).enumerate() {
        bytes += alert.labels.as_bytes().len() + alert.annotations.iter().map(|(n, v)| n.len() + v.len()).sum::<usize>();
        if bytes > ALERTS_BYTES_MAX {
            return i;
        }
    }
    alerts.len().min(ALERTS_MAX)
}

fn notified(alert: &GroupAlert) -> NotifiedAlert {
    NotifiedAlert {
        status: if alert.resolved_ms.is_some() { Status::Resolved } else { Status::Firing },
        labels: label_map(&alert.labels),
        annotations: alert.annotations.clone(),
        starts_at: go::rfc3339(alert.fired_ms),
        ends_at: alert.resolved_ms.map_or_else(|| go::ZERO_TIME.to_owned(), go::rfc3339),
        generator_url: alert.generator_url.clone(),
        fingerprint: fingerprint(&alert.labels),
    }
}

/// Labels as JSON objects have them.
pub(crate) fn label_map(labels: &Labels) -> BTreeMap<String, String> {
    labels.iter().map(|(n, v)| (n.to_owned(), v.to_owned())).collect()
}

fn common(mut maps: impl Iterator<Item = BTreeMap<String, String>>) -> BTreeMap<String, String> {
    let mut shared = maps.next().unwrap_or_default();
    for map in maps {
        shared.retain(|name, value| map.get(name) == Some(value));
    }
    shared
}

/// Alertmanager's fingerprint: FNV-1a (64 bits) over `name 0xff value 0xff`, names ascending, which is our canonical form; 16 hex digits.
pub fn fingerprint(labels: &Labels) -> String {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0100_0000_01b3;
    let hash = labels.as_bytes().iter().fold(OFFSET, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(PRIME));
    let mut out = String::with_capacity(16);
    let _ = write!(out, "{hash:016x}");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alert(name: &str, resolved_ms: Option<i64>) -> GroupAlert {
        let labels = Labels::from_pairs([("alertname", "foo"), ("host", name), ("severity", "page")]).expect("valid");
        let annotations = BTreeMap::from([("summary".to_owned(), "same".to_owned()), ("host".to_owned(), name.to_owned())]);
        GroupAlert { id: Id(1), rule: Id(2), labels, annotations, fired_ms: 60_000, resolved_ms, generator_url: "u".to_owned() }
    }

    fn group() -> GroupId {
        GroupId { tenant: TenantId::default(), alertname: "foo".to_owned() }
    }

    #[test]
    fn fingerprints_are_alertmanagers() {
        let labels = Labels::from_pairs([("alertname", "foo"), ("severity", "page")]).expect("valid");
        assert_eq!(fingerprint(&labels), "dfa770e00642e20e");
    }

    #[test]
    fn the_body_is_version_4() {
        let (a, b) = (alert("a", Some(90_000)), alert("b", None));
        let body = serde_json::to_value(Notification::new("hook", &group(), &[&a, &b], "http://f")).expect("json");
        let expected = serde_json::json!({
            "receiver": "hook", "status": "firing", "version": "4", "groupKey": "{}:{alertname=\"foo\"}", "truncatedAlerts": 0,
            "groupLabels": {"alertname": "foo"}, "commonLabels": {"alertname": "foo", "severity": "page"},
            "commonAnnotations": {"summary": "same"}, "externalURL": "http://f",
            "alerts": [
                {"status": "firing", "labels": {"alertname": "foo", "host": "b", "severity": "page"}, "annotations": {"summary": "same", "host": "b"},
                 "startsAt": "1970-01-01T00:01:00Z", "endsAt": "0001-01-01T00:00:00Z", "generatorURL": "u", "fingerprint": fingerprint(&b.labels)},
                {"status": "resolved", "labels": {"alertname": "foo", "host": "a", "severity": "page"}, "annotations": {"summary": "same", "host": "a"},
                 "startsAt": "1970-01-01T00:01:00Z", "endsAt": "1970-01-01T00:01:30Z", "generatorURL": "u", "fingerprint": fingerprint(&a.labels)}
            ]
        });
        assert_eq!(body, expected);
    }

    #[test]
    fn equal_labels_are_one_alert_and_firing_wins() {
        let (a, b) = (alert("a", Some(90_000)), alert("a", None));
        let body = Notification::new("hook", &group(), &[&a, &b], "");
        assert_eq!(body.alerts.len(), 1);
        assert_eq!(body.status, Status::Firing);
    }

    #[test]
    fn too_many_alerts_are_cut_and_counted() {
        let alerts: Vec<GroupAlert> = (0..ALERTS_MAX + 7).map(|i| alert(&format!("{i:05}"), None)).collect();
        let body = Notification::new("hook", &group(), &alerts.iter().collect::<Vec<_>>(), "");
        assert_eq!((body.alerts.len(), body.truncated_alerts), (ALERTS_MAX, 7));
        let big: Vec<GroupAlert> = (0..5)
            .map(|i| {
                let mut a = alert(&i.to_string(), None);
                a.annotations.insert("text".to_owned(), "x".repeat(1 << 20));
                a
            })
            .collect();
        let body = Notification::new("hook", &group(), &big.iter().collect::<Vec<_>>(), "");
        assert_eq!((body.alerts.len(), body.truncated_alerts), (3, 2));
    }
}
