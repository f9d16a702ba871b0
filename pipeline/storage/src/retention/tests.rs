//! What leaves and what must not, row by row.

use super::*;
use crate::delta::store::table_root;
use crate::delta::testing::FaultStore;
use crate::parquet_file::{SeriesRow, write_series};
use fletch_common::{Clock, ManualClock};
use fletch_schemas::{Labels, MetricKind, date_of_ms};
use proptest::prelude::*;

const NOW_MS: i64 = 1_700_000_000_000;

struct World {
    clock: Arc<ManualClock>,
    samples: DeltaTable,
    series: DeltaTable,
}

impl World {
    async fn new() -> Self {
        let (store, clock) = (FaultStore::new(), ManualClock::at(NOW_MS));
        let open = |table| DeltaTable::open_or_create(store.clone(), table_root(table), table, clock.clone());
        let (samples, series) = (open(Table::Samples).await.expect("memory"), open(Table::Series).await.expect("memory"));
        Self { clock, samples, series }
    }

    /// One file with one sample per metric.
    async fn file(&self, tenant: &str, metrics: &[&str], time_ms: i64, committed_ms: i64) -> i64 {
        let tenant = TenantId::new(tenant).expect("a name");
        let times = [time_ms];
        let slices = metrics.iter().map(|metric| SeriesSlice { metric, series_id: 1, times: &times, values: &[1.0] });
        let file = write_samples(slices, &FileIdentity::new(tenant, date_of_ms(time_ms), None, committed_ms)).expect("sorted");
        self.samples.upload(&file.entry, file.bytes).await.expect("memory");
        let commit = Commit { adds: vec![file.entry], ..Commit::new("WRITE") };
        self.samples.commit(&commit).await.expect("memory").version()
    }

    async fn day_of_series(&self, date: i32, committed_ms: i64) {
        let labels = Labels::from_pairs([("__name__", "m")]).expect("valid");
        let (kind, unit, help) = (MetricKind::Unknown, String::new(), String::new());
        let row = SeriesRow { series_id: 1, probe: 0, labels, kind, unit, help, first_seen_ms: None, last_seen_ms: None, samples: None };
        let file = write_series(&[row], &FileIdentity::new(TenantId::default(), date, None, committed_ms)).expect("rows");
        self.series.upload(&file.entry, file.bytes).await.expect("memory");
        self.series.commit(&Commit { adds: vec![file.entry], ..Commit::new("WRITE") }).await.expect("memory");
    }

    async fn rows(&self) -> BTreeSet<(String, String, i64)> {
        let mut rows = BTreeSet::new();
        for file in self.samples.snapshot().files() {
            let source = FileSource::object(self.samples.store().clone(), self.samples.object_path(&file.path).expect("ours"), file);
            let read = read_samples(&source).await.expect("whole");
            for series in &read.series {
                rows.extend(read.times[series.rows.clone()].iter().map(|t| (file.tenant.to_string(), series.metric.to_string(), *t)));
            }
        }
        rows
    }

    fn retention(&self, policy: Policy) -> Retention {
        Retention::new(policy, self.clock.clone())
    }
}

fn keep(days: i64) -> Keep {
    [(Table::Samples, days * DAY_MS)].into_iter().collect()
}

fn other(tenant: Option<&str>, metric: Option<&str>, days: i64) -> Override {
    Override {
        tenant: tenant.map(|t| TenantId::new(t).expect("a name")),
        metric: metric.map(|m| MetricPattern::new(m).expect("a pattern")),
        keep: keep(days),
    }
}

#[tokio::test]
async fn old_data_that_was_written_today_stays_a_day() {
    let world = World::new().await;
    world.file("a", &["m"], 0, NOW_MS).await;
    let retention = world.retention(Policy { defaults: keep(7), overrides: Vec::new() });
    assert_eq!(retention.samples(&world.samples, None).await.expect("runs").removed, 0);
    world.clock.set(NOW_MS + COMMITTED_MIN_MS - 1);
    assert_eq!(retention.samples(&world.samples, None).await.expect("runs").removed, 0);
    world.clock.set(NOW_MS + COMMITTED_MIN_MS);
    assert_eq!(retention.samples(&world.samples, None).await.expect("runs").removed, 1);
    assert!(world.rows().await.is_empty());
    assert_eq!(world.samples.snapshot().removed().count(), 1, "its bytes wait for the vacuum");
}

#[tokio::test]
async fn nothing_leaves_that_a_tier_still_needs() {
    let world = World::new().await;
    let old = NOW_MS - 20 * DAY_MS;
    let first = world.file("a", &["m"], old, old).await;
    let second = world.file("a", &["m"], old + 1, old).await;
    let retention = world.retention(Policy { defaults: keep(7), overrides: Vec::new() });
    let run =
        async |version, until_ms| retention.samples(&world.samples, Some(Consumed { version, until_ms })).await.expect("runs").removed;
    assert_eq!(run(first - 1, NOW_MS).await, 0, "not consumed");
    assert_eq!(run(second, old - 1).await, 0, "its windows are open");
    assert_eq!(run(first, NOW_MS).await, 1, "the first one is consumed");
    assert_eq!(run(second, NOW_MS).await, 1);
}

#[tokio::test]
async fn what_is_gone_is_written_down_and_only_that() {
    let world = World::new().await;
    let (old, tenant) = (NOW_MS - 20 * DAY_MS, TenantId::new("a").expect("a name"));
    world.file("a", &["long", "m", "short"], old, old).await;
    let policy = Policy { defaults: keep(7), overrides: vec![other(None, Some("long"), 0), other(None, Some("sh.*"), 1)] };
    let report = world.retention(policy).samples(&world.samples, None).await.expect("runs");
    assert_eq!((report.removed, report.rewritten, report.rows), (1, 1, 2));
    let removed = Removed::of(&world.samples.snapshot(), &tenant);
    for (metric, lacks) in [("long", false), ("m", true), ("short", true), ("new", true)] {
        assert_eq!(removed.may_lack(metric, old - 1), lacks, "{metric}");
        assert!(!removed.may_lack(metric, old + 1));
    }
    assert!(Removed::of(&world.samples.snapshot(), &TenantId::default()).is_empty());
    assert_eq!(removed.horizon_ms(None).map(|ms| ms - old), Some(1));
}

#[tokio::test]
async fn a_file_that_is_too_large_to_be_written_again_waits() {
    let world = World::new().await;
    let old = NOW_MS - 3 * DAY_MS;
    world.file("a", &["a", "z"], old, old).await;
    let small = world.samples.snapshot().files().next().expect("one").clone();
    let file = FileEntry { rows: REWRITE_ROWS_MAX + 1, path: small.path.replace(".parquet", "0.parquet"), ..(*small).clone() };
    world.samples.commit(&Commit { adds: vec![file], removes: vec![small], ..Commit::new("WRITE") }).await.expect("memory");
    let retention = world.retention(Policy { defaults: keep(7), overrides: vec![other(None, Some("a"), 1)] });
    assert_eq!(retention.samples(&world.samples, None).await.expect("its bytes are not there").removed, 0);
    world.clock.set(NOW_MS + 7 * DAY_MS);
    assert_eq!(retention.samples(&world.samples, None).await.expect("runs").removed, 1);
}

#[tokio::test]
async fn a_file_is_looked_into_once() {
    let world = World::new().await;
    let old = NOW_MS - 3 * DAY_MS;
    world.file("a", &["a", "z"], old, old).await;
    let retention = world.retention(Policy { defaults: keep(7), overrides: vec![other(None, Some("m"), 1)] });
    for _ in 0..2 {
        assert_eq!(retention.samples(&world.samples, None).await.expect("runs").removed, 0);
        assert_eq!(retention.looked_at.lock().len(), 1);
    }
    world.clock.set(NOW_MS + 20 * DAY_MS);
    assert_eq!(retention.samples(&world.samples, None).await.expect("runs").removed, 1);
    retention.samples(&world.samples, None).await.expect("runs");
    assert!(retention.looked_at.lock().is_empty());
}

#[tokio::test]
async fn rows_of_series_outlive_every_row_that_needs_them() {
    let world = World::new().await;
    let today = date_of_ms(NOW_MS);
    for date in [0, today - 30, today - 9, today - 8, today] {
        world.day_of_series(date, NOW_MS - 2 * DAY_MS).await;
    }
    let run = async |policy: Policy| world.retention(policy).series(&world.series, &[&world.samples]).await.expect("runs").removed;
    assert_eq!(run(Policy { defaults: keep(0), overrides: Vec::new() }).await, 0);
    assert_eq!(run(Policy { defaults: keep(7), overrides: vec![other(Some("anonymous"), None, 0), other(None, Some("x"), 400)] }).await, 1);
    // A sample that is still there keeps its day, and the day before.
    world.file("default", &["m"], NOW_MS - 30 * DAY_MS, NOW_MS).await;
    assert_eq!(run(Policy { defaults: keep(7), overrides: Vec::new() }).await, 0);
    let old = world.samples.snapshot().files().next().expect("one").clone();
    world.samples.commit(&Commit { removes: vec![old], ..Commit::new("DELETE") }).await.expect("memory");
    assert_eq!(run(Policy { defaults: keep(7), overrides: Vec::new() }).await, 2);
    assert_eq!(world.series.snapshot().dates(&TenantId::default()).collect::<Vec<_>>(), [today - 8, today]);
}

const METRICS: [&str; 4] = ["cpu", "disk", "disk_io", "up"];
const PATTERNS: [&str; 4] = ["disk.*", "up", "cpu|up", "none"];

fn overrides() -> impl Strategy<Value = Vec<Override>> {
    let one = (0_usize..3, 0_usize..5, 0_i64..40)
        .prop_map(|(tenant, pattern, days)| other(["a", "b"].get(tenant).copied(), PATTERNS.get(pattern).copied(), days));
    prop::collection::vec(one, 0..4)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_row_leaves_if_and_only_if_its_time_is_over(
        default_days in 0_i64..40,
        overrides in overrides(),
        files in prop::collection::vec((0_usize..2, 1_usize..16, 0_i64..60, 0_i64..4), 1..10),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            let world = World::new().await;
            let mut stay = BTreeSet::new();
            for (tenant, metrics, age_days, committed_days) in files {
                let tenant = ["a", "b"][tenant];
                let metrics: Vec<&str> = METRICS.iter().enumerate().filter(|(i, _)| metrics >> i & 1 == 1).map(|(_, m)| *m).collect();
                // Half a day off the edges, where a millisecond would decide.
                let time_ms = NOW_MS - age_days * DAY_MS - DAY_MS / 2;
                let committed_ms = NOW_MS - committed_days * DAY_MS - 1;
                world.file(tenant, &metrics, time_ms, committed_ms).await;
                for metric in metrics {
                    let named = |o: &&Override| o.tenant.as_ref().is_none_or(|t| t.as_str() == tenant)
                        && o.metric.as_ref().is_none_or(|m| names(m.as_str(), metric));
                    let keep_ms = overrides.iter().find(named).map_or(default_days * DAY_MS, |o| o.keep[&Table::Samples]);
                    let over = keep_ms > 0 && time_ms + keep_ms < NOW_MS && committed_days >= 1;
                    if !over {
                        stay.insert((tenant.to_owned(), metric.to_owned(), time_ms));
                    }
                }
            }
            let retention = world.retention(Policy { defaults: keep(default_days), overrides });
            for _ in 0..2 {
                retention.samples(&world.samples, None).await.expect("runs");
            }
            assert_eq!(world.rows().await, stay);
            assert!(world.clock.now_ms() == NOW_MS);
        });
    }
}

/// What the patterns of this test name, spelt out.
fn names(pattern: &str, metric: &str) -> bool {
    match pattern {
        "disk.*" => metric.starts_with("disk"),
        "up" => metric == "up",
        "cpu|up" => metric == "cpu" || metric == "up",
        _ => false,
    }
}
