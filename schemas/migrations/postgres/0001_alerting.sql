-- Alerting: what must survive a restart. Times are milliseconds since the Unix epoch (UTC). Values are the 64 bits of the float,
-- so that a NaN stays what it was. Labels, annotations and payloads are JSON. Ids are hex digits.

-- One row per alert that is pending, firing, or resolved less than 15 minutes ago.
CREATE TABLE alert_instances (
    alert_id      TEXT   NOT NULL PRIMARY KEY,
    tenant        TEXT   NOT NULL,
    rule_id       TEXT   NOT NULL,
    rule_name     TEXT   NOT NULL,
    labels        TEXT   NOT NULL,
    annotations   TEXT   NOT NULL,
    value_bits    BIGINT NOT NULL,
    state         TEXT   NOT NULL CHECK (state IN ('pending', 'firing', 'resolved')),
    active_at     BIGINT NOT NULL,
    fired_at      BIGINT,
    kept_since    BIGINT,
    resolved_at   BIGINT,
    last_sent     BIGINT
);
CREATE INDEX alert_instances_by_rule ON alert_instances (rule_id);

-- The history: append-only. Ids are functions of (alert, kind, time), so writing a transition twice is harmless.
CREATE TABLE alert_transitions (
    transition_id TEXT   NOT NULL PRIMARY KEY,
    alert_id      TEXT   NOT NULL,
    tenant        TEXT   NOT NULL,
    rule_id       TEXT   NOT NULL,
    rule_name     TEXT   NOT NULL,
    kind          TEXT   NOT NULL CHECK (kind IN ('pending', 'firing', 'resolved', 'inactive')),
    at            BIGINT NOT NULL,
    labels        TEXT   NOT NULL,
    annotations   TEXT   NOT NULL,
    value_bits    BIGINT NOT NULL
);
CREATE INDEX alert_transitions_by_time ON alert_transitions (tenant, at);

-- The outbox, and the record of what was sent. At most one row per (tenant, receiver, alertname) is pending.
CREATE TABLE notifications (
    notification_id TEXT   NOT NULL PRIMARY KEY,
    tenant          TEXT   NOT NULL,
    receiver        TEXT   NOT NULL,
    alertname       TEXT   NOT NULL,
    payload         TEXT   NOT NULL,
    firing          TEXT   NOT NULL,
    resolved        TEXT   NOT NULL,
    status          TEXT   NOT NULL CHECK (status IN ('pending', 'sent', 'failed', 'superseded')),
    created_at      BIGINT NOT NULL,
    finished_at     BIGINT,
    attempts        BIGINT NOT NULL,
    last_error      TEXT   NOT NULL
);
CREATE INDEX notifications_by_status ON notifications (status, created_at);
CREATE INDEX notifications_by_group ON notifications (tenant, receiver, alertname, created_at);

-- Positions of stream evaluation (cursors, watermarks, where a rule began), written in the transaction of the instances they explain.
CREATE TABLE alerting_marks (
    name  TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
);
