use super::*;

fn compiled(sql: &str) -> Result<Compiled, CompileError> {
    futures::executor::block_on(compile(sql))
}

#[test]
fn the_shape_is_taken_apart() {
    let c = compiled(
        "SELECT host, avg(value) AS value FROM m.\"cpu_usage\" WHERE env = 'prod' AND value > 0 \
         GROUP BY host, tumble(time, INTERVAL '1m') HAVING avg(value) > 80 AND count(*) > 2",
    )
    .expect("the documented shape");
    assert_eq!((c.metric.as_str(), c.size_ms), ("cpu_usage", 60_000));
    assert_eq!(c.groups, [Group::Label("host".into()), Group::WindowEnd]);
    assert_eq!(c.aggregates, [Aggregate::Avg, Aggregate::CountRows]);
    assert!(c.series_filter.is_some() && c.row_filter.is_some() && c.having.is_some());
    assert_eq!(c.labels, [("host".to_owned(), 0)]);
}

#[test]
fn every_aggregate_is_known_and_labels_may_be_renamed() {
    let c = compiled(
        "SELECT \"Host\" AS node, count(value), sum(value), min(value), max(value), last_value(value ORDER BY time) AS value FROM m.x t \
         GROUP BY \"Host\", tumble(time, INTERVAL '10 seconds')",
    )
    .expect("valid");
    assert_eq!(c.labels, [("node".to_owned(), 0)]);
    assert_eq!(c.aggregates, [Aggregate::Count, Aggregate::Sum, Aggregate::Min, Aggregate::Max, Aggregate::Last]);
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let group = "GROUP BY host, tumble(time, INTERVAL '1m')";
    for (sql, word) in [
        (format!("SELECT host, avg(value) FROM m.x {group} ORDER BY host"), "ORDER BY"),
        (format!("SELECT host, avg(value) FROM m.x {group} LIMIT 1"), "LIMIT"),
        (format!("SELECT DISTINCT host, avg(value) FROM m.x {group}"), "DISTINCT"),
        (format!("SELECT host, median(value) AS value FROM m.x {group}"), "median()"),
        (format!("SELECT host, avg(value * 2) AS value FROM m.x {group}"), "avg() of anything but"),
        (format!("SELECT host, count(DISTINCT value) AS value FROM m.x {group}"), "DISTINCT in count()"),
        (format!("SELECT host, sum(value) FILTER (WHERE value > 1) AS value FROM m.x {group}"), "FILTER"),
        ("SELECT host, avg(value) FROM m.x GROUP BY host".into(), "without tumble"),
        ("SELECT host, value FROM m.x".into(), "without GROUP BY"),
        ("SELECT avg(value) FROM m.x GROUP BY host, tumble(time, INTERVAL '1m')".into(), "GROUP BY host without it"),
        (format!("SELECT host, avg(value) AS a, max(value) AS b FROM m.x {group}"), "called `value`"),
        (format!("SELECT host FROM m.x {group}"), "without an aggregate"),
        (format!("SELECT host, avg(value) FROM samples {group}"), "table `samples`"),
        ("SELECT 1".into(), "one table"),
        ("SELECT a.host, avg(a.value) FROM m.x a JOIN m.y b ON a.host = b.host GROUP BY a.host".into(), "one table"),
        ("SELECT host, avg(value) FROM m.x GROUP BY host, hop(time, INTERVAL '10s', INTERVAL '1m')".into(), "hop"),
        ("SELECT host, avg(value) FROM m.x GROUP BY host, tumble(time, INTERVAL '1 month')".into(), "months"),
        ("SELECT value AS host, avg(value) AS value FROM m.x GROUP BY value, tumble(time, INTERVAL '1m')".into(), "GROUP BY value"),
        ("DROP TABLE x".into(), "`DROP`"),
        ("SELEC 1".into(), "SELEC"),
        (format!("SELECT host, avg(value) FROM m.x WHERE {} {group}", vec!["value > 1"; 3_000].join(" OR ")), "at most"),
    ] {
        let error = compiled(&sql).expect_err(&sql).to_string();
        assert!(error.contains(word), "{sql}\n  gave: {error}\n  without: {word}");
    }
}
