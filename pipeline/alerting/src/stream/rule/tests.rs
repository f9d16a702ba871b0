use super::*;
use crate::stream::compile;
use fletch_schemas::stale_marker;

const SQL: &str = "SELECT host, avg(value) AS value FROM m.\"cpu\" WHERE env = 'prod' AND value < 1000 \
                   GROUP BY host, tumble(time, INTERVAL '10 seconds') HAVING avg(value) > 80";

struct World {
    rule: RuleWindows,
    labels: Vec<Labels>,
    groups: Vec<Subscription>,
    closed: Vec<ClosedWindow>,
    active: bool,
}

impl World {
    fn new(sql: &str, lateness_ms: i64, watermark_ms: i64) -> Self {
        let compiled = futures::executor::block_on(compile(sql)).expect("valid");
        let mut rule = RuleWindows::new(Arc::new(compiled), lateness_ms, watermark_ms);
        let set = |host: &str, env: &str| Labels::from_pairs([("__name__", "cpu"), ("host", host), ("env", env)]).expect("valid");
        let labels = vec![set("a", "prod"), set("b", "prod"), set("a", "test")];
        let groups = labels.iter().map(|l| rule.subscribe(l).expect("evaluates")).collect();
        Self { rule, labels, groups, closed: Vec::new(), active: false }
    }

    fn add(&mut self, samples: &[(usize, i64, f64)]) {
        let rows: Vec<_> = samples
            .iter()
            .filter_map(|&(i, time, value)| match self.groups[i] {
                Subscription::No => None,
                Subscription::Group(group) => Some((SeriesRef(i as u32), &self.labels[i], group, time, value)),
            })
            .collect();
        self.rule.add(&rows).expect("evaluates");
    }

    fn advance(&mut self, append_ms: i64) {
        self.rule.advance(append_ms);
        while let Some(window) = self.rule.next_closed(self.active) {
            self.closed.push(window.expect("evaluates"));
        }
    }

    fn verdicts(&self) -> Vec<(i64, String, f64)> {
        self.closed.iter().flat_map(|w| w.holds.iter().map(|(l, v)| (w.end_ms, l.get("host").unwrap_or("").to_owned(), *v))).collect()
    }
}

#[test]
fn windows_close_by_append_time_and_hold_what_where_lets_through() {
    let mut world = World::new(SQL, 2_000, 0);
    assert_eq!(world.groups[2], Subscription::No);
    // The edge belongs to the window that ends there; 5,000 fails WHERE; the stale marker is NULL.
    world.add(&[
        (0, 1_000, 90.0),
        (0, 10_000, 92.0),
        (0, 9_000, 5_000.0),
        (1, 2_000, 10.0),
        (2, 3_000, 99.0),
        (0, 10_001, 500.0),
        (0, 4_000, stale_marker()),
    ]);
    world.advance(11_999);
    assert!(world.closed.is_empty(), "lateness holds the window open");
    world.advance(12_000);
    assert_eq!(world.verdicts(), [(10_000, "a".to_owned(), 91.0)]);
}

#[test]
fn a_sample_counts_once_and_a_late_one_not_at_all() {
    let mut world = World::new(SQL, 0, 0);
    world.add(&[(0, 1_000, 100.0), (0, 1_000, 100.0), (0, 2_000, 70.0)]);
    world.add(&[(0, 2_000, 70.0)]);
    world.advance(10_000);
    assert_eq!(world.verdicts(), [(10_000, "a".to_owned(), 85.0)]);
    assert_eq!(world.rule.counted_before, 2);
    world.add(&[(0, 9_999, 1.0)]);
    assert_eq!(world.rule.late_dropped, 1);
}

#[test]
fn time_never_goes_back_and_judged_windows_stay_judged() {
    let mut world = World::new(SQL, 0, 20_000);
    world.add(&[(0, 15_000, 100.0), (0, 25_000, 100.0)]);
    assert_eq!(world.rule.late_dropped, 1, "the stored watermark is past that window");
    world.advance(10_000);
    world.advance(30_000);
    world.advance(29_000);
    assert_eq!(world.verdicts(), [(30_000, "a".to_owned(), 100.0)]);
}

#[test]
fn windows_without_samples_are_judged_only_while_alerts_are_active() {
    let mut world = World::new(SQL, 0, 0);
    world.advance(60_000);
    assert!(world.closed.is_empty());
    world.active = true;
    world.advance(80_000);
    assert_eq!(world.closed.iter().map(|w| w.end_ms).collect::<Vec<_>>(), [70_000, 80_000]);
}

#[test]
fn any_cut_into_batches_gives_the_same_windows() {
    let samples: Vec<(usize, i64, f64)> = (0..600).map(|i| ((i % 2) as usize, i * 100, 60.0 + ((i * 7919) % 50) as f64)).collect();
    let run = |cut: usize| {
        let mut world = World::new(SQL, 1_000, 0);
        for chunk in samples.chunks(cut) {
            world.add(chunk);
            world.advance(chunk[chunk.len() - 1].1);
        }
        world.advance(100_000);
        world.verdicts()
    };
    let whole = run(600);
    assert!(!whole.is_empty());
    for cut in [1, 7, 100] {
        assert_eq!(run(cut), whole, "cut {cut}");
    }
}

#[test]
fn aggregates_are_those_of_the_stored_table() {
    let sql = "SELECT count(*) AS n, count(value) AS c, sum(value) AS s, min(value) AS lo, max(value) AS hi, last_value(value ORDER BY time) AS value \
               FROM m.cpu GROUP BY tumble(time, INTERVAL '10 seconds') HAVING count(*) = 4 AND count(value) = 3 AND sum(value) = 6.0 AND min(value) = 1.0 AND max(value) = 3.0";
    let mut world = World::new(sql, 0, 0);
    world.add(&[(0, 1, 1.0), (1, 4, 3.0), (0, 3, 2.0), (2, 2, stale_marker())]);
    world.advance(10_000);
    assert_eq!(world.closed[0].holds, [(Labels::empty(), 3.0)]);
}
