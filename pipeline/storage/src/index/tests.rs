use super::*;
use fletch_ingest::{SeriesRef, SeriesRegistry};
use fletch_schemas::{Labels, MatchOp, Matcher, TenantId};
use proptest::prelude::*;
use std::sync::Arc;

fn labels(pairs: &[(&str, &str)]) -> Labels {
    Labels::from_pairs(pairs.iter().copied()).expect("valid")
}

fn select(index: &LabelIndex, matchers: &[Matcher]) -> Vec<u32> {
    index.select(&PatternCache::default().conditions(matchers, 4_096).expect("valid matchers"))
}

#[test]
fn absent_labels_are_empty_values() {
    let mut index = LabelIndex::default();
    index.insert(SeriesRef(0), &labels(&[("__name__", "up"), ("env", "prod")]));
    index.insert(SeriesRef(1), &labels(&[("__name__", "up"), ("env", "dev")]));
    index.insert(SeriesRef(2), &labels(&[("__name__", "up")]));
    index.insert(SeriesRef(2), &labels(&[("__name__", "up")]));
    for (op, value, expected) in [
        (MatchOp::Equal, "prod", vec![0]),
        (MatchOp::Equal, "", vec![2]),
        (MatchOp::NotEqual, "prod", vec![1, 2]),
        (MatchOp::NotEqual, "", vec![0, 1]),
        (MatchOp::Regex, ".*", vec![0, 1, 2]),
        (MatchOp::Regex, ".+", vec![0, 1]),
        (MatchOp::Regex, "prod|", vec![0, 2]),
        (MatchOp::Regex, "p.*", vec![0]),
        (MatchOp::Regex, "(p.*)?", vec![0, 2]),
        (MatchOp::NotRegex, ".*", vec![]),
        (MatchOp::NotRegex, ".+", vec![2]),
        (MatchOp::NotRegex, "p.*", vec![1, 2]),
        (MatchOp::NotRegex, "(p.*)?", vec![1]),
        (MatchOp::NotRegex, "prod|", vec![1]),
        (MatchOp::Equal, "nope", vec![]),
    ] {
        let matchers = [Matcher::equal("__name__", "up"), Matcher::new("env", op, value)];
        assert_eq!(select(&index, &matchers), expected, "{op:?} {value:?}");
    }
    assert_eq!(select(&index, &[]), [0, 1, 2]);
    assert_eq!(select(&index, &[Matcher::equal("nope", "")]), [0, 1, 2]);
}

const NAMES: [&str; 3] = ["__name__", "env", "host"];
const VALUES: [&str; 6] = ["", "a", "ab", "b", "ba", "c\nd"];
const PATTERNS: [&str; 12] = ["", ".*", ".+", "a|b", "a.*", ".*a", "(a|c).*", "a?", "[ab]+", "c.d", "b|", "x"];

fn series() -> impl Strategy<Value = Vec<Labels>> {
    let one = proptest::collection::vec(0..VALUES.len(), NAMES.len());
    let one = one.prop_map(|values| Labels::from_pairs(NAMES.iter().zip(values).map(|(n, v)| (*n, VALUES[v]))).expect("valid"));
    proptest::collection::vec(one, 0..700)
}

fn matcher() -> impl Strategy<Value = Matcher> {
    (0..4_usize, 0..4_usize, 0..PATTERNS.len()).prop_map(|(name, op, value)| {
        let op = [MatchOp::Equal, MatchOp::NotEqual, MatchOp::Regex, MatchOp::NotRegex][op];
        let regex = matches!(op, MatchOp::Regex | MatchOp::NotRegex);
        let value = if regex { PATTERNS[value] } else { VALUES[value % VALUES.len()] };
        Matcher::new(*NAMES.get(name).unwrap_or(&"absent"), op, value)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn the_index_answers_as_a_scan_of_all_series(
        all in series(),
        sets in proptest::collection::vec(proptest::collection::vec(matcher(), 0..4), 6),
        reversed: bool,
    ) {
        let mut index = LabelIndex::default();
        let mut order: Vec<usize> = (0..all.len()).collect();
        if reversed {
            order.reverse();
        }
        for i in order {
            index.insert(SeriesRef(u32::try_from(i).expect("small")), &all[i]);
        }
        for matchers in &sets {
            let conditions = PatternCache::default().conditions(matchers, 4_096).expect("valid");
            let passes = |l: &Labels| conditions.iter().all(|c| c.matches(l.get(&c.name).unwrap_or("")));
            let expected: Vec<u32> = (0_u32..).zip(&all).filter(|(_, l)| passes(l)).map(|(i, _)| i).collect();
            prop_assert_eq!(index.select(&conditions), expected, "{:?}", matchers);
        }
        let everything = (0..u32::try_from(all.len()).expect("small")).collect();
        for name in NAMES {
            prop_assert_eq!(index.values(name, None), index.values(name, Some(&everything)));
        }
    }
}

/// Ids of two values only, so that nearly everything collides.
fn two_ids(labels: &Labels, probe: u32) -> i64 {
    let own = i64::try_from(labels.get("host").map_or(0, str::len)).expect("short");
    if probe == 0 { own % 2 } else { own % 2 + 10 * i64::from(probe) }
}

#[test]
fn colliding_ids_are_probed_and_found_again() {
    let registry = Arc::new(SeriesRegistry::new());
    let tenant = Tenant::with_ids(TenantId::default(), registry.clone(), two_ids);
    let refs: Vec<SeriesRef> =
        ["x", "xxx", "xxxxx"].iter().map(|host| registry.resolve(tenant.id(), &labels(&[("__name__", "up"), ("host", host)]))).collect();
    let other = registry.resolve(tenant.id(), &labels(&[("__name__", "down"), ("host", "x")]));
    tenant.note(7, &refs);
    tenant.note(7, &[other]);
    let ids = tenant.ids(7, &refs);
    assert_eq!(ids, [1, 11, 21]);
    assert_eq!(tenant.ids(7, &[other]), [1], "another metric may have the same id");
    let keys = ids.iter().map(|&id| ("up", id)).chain([("down", 1), ("up", 99)]);
    let expected: Vec<Option<SeriesRef>> = refs.iter().copied().map(Some).chain([Some(other), None]).collect();
    assert_eq!(tenant.resolve(7, keys), expected);
    assert_eq!(tenant.resolve(8, [("up", 1)].into_iter()), [None], "ids are per date");
}

#[test]
fn a_stored_row_keeps_its_id_and_the_live_one_gives_way() {
    let registry = Arc::new(SeriesRegistry::new());
    let tenant = Tenant::with_ids(TenantId::default(), registry.clone(), two_ids);
    let live = registry.resolve(tenant.id(), &labels(&[("__name__", "up"), ("host", "x")]));
    let stored = registry.resolve(tenant.id(), &labels(&[("__name__", "up"), ("host", "xxx")]));
    tenant.note(7, &[live]);
    assert_eq!(tenant.missing(7, ["f"].into_iter()), ["f"]);
    tenant.load(7, "f", &[(stored, 0)]);
    assert!(tenant.missing(7, ["f"].into_iter()).is_empty());
    assert_eq!(tenant.settle(7, &[live, stored]), [(live, 11, 1)]);
    assert_eq!(tenant.resolve(7, [("up", 1), ("up", 11)].into_iter()), [Some(stored), Some(live)]);
    tenant.retain_live(7, &roaring::RoaringBitmap::new());
    assert_eq!(tenant.resolve(7, [("up", 11)].into_iter()), [None]);
    assert_eq!(tenant.read().known_on(7..=7).iter().collect::<Vec<_>>(), [stored.0]);
}
