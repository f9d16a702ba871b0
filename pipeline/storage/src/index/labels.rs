//! Postings and their evaluation.
//!
//! A condition that an absent label passes (`a!="x"`, `a=~".*"`) takes series away, any other one brings them: the shortest set that
//! brings series is walked or intersected, whichever is cheaper. A single equality is a copy of its sorted list.

use fletch_ingest::SeriesRef;
use fletch_schemas::Labels;
use fletch_schemas::pattern::{Condition, Test};
use roaring::RoaringBitmap;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Bound;

/// From this length on a list of postings has a bitmap beside it.
const BITMAP_LEN_MIN: usize = 64;
/// Up to this length candidates are tested one by one; above, bitmaps are intersected.
const WALK_LEN_MAX: usize = 512;

/// Series with one label.
#[derive(Debug, Default)]
struct Postings {
    /// Ascending.
    list: Vec<u32>,
    /// The same, once it is long.
    set: Option<RoaringBitmap>,
}

impl Postings {
    fn insert(&mut self, series: u32) {
        match self.list.last() {
            Some(&last) if last >= series => match self.list.binary_search(&series) {
                Ok(_) => return,
                Err(at) => self.list.insert(at, series),
            },
            _ => self.list.push(series),
        }
        match &mut self.set {
            Some(set) => {
                set.insert(series);
            }
            None if self.list.len() >= BITMAP_LEN_MIN => self.set = Some(self.list.iter().copied().collect()),
            None => {}
        }
    }

    fn contains(&self, series: u32) -> bool {
        match &self.set {
            Some(set) => set.contains(series),
            None => self.list.binary_search(&series).is_ok(),
        }
    }

    fn bitmap(&self) -> Cow<'_, RoaringBitmap> {
        match &self.set {
            Some(set) => Cow::Borrowed(set),
            None => Cow::Owned(self.list.iter().copied().collect()),
        }
    }

    fn touches(&self, other: &RoaringBitmap) -> bool {
        match &self.set {
            Some(set) => !set.is_disjoint(other),
            None => self.list.iter().any(|&s| other.contains(s)),
        }
    }
}

/// All values of one label name.
#[derive(Debug, Default)]
struct Name {
    values: BTreeMap<Box<str>, Postings>,
    any: RoaringBitmap,
}

/// A set of series during one evaluation.
#[derive(Debug)]
enum Set<'a> {
    Nothing,
    One(&'a Postings),
    Bits(Cow<'a, RoaringBitmap>),
}

impl Set<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Nothing => 0,
            Self::One(p) => p.list.len(),
            Self::Bits(b) => usize::try_from(b.len()).unwrap_or(usize::MAX),
        }
    }

    fn contains(&self, series: u32) -> bool {
        match self {
            Self::Nothing => false,
            Self::One(p) => p.contains(series),
            Self::Bits(b) => b.contains(series),
        }
    }

    fn bitmap(&self) -> Cow<'_, RoaringBitmap> {
        match self {
            Self::Nothing => Cow::Owned(RoaringBitmap::new()),
            Self::One(p) => p.bitmap(),
            Self::Bits(b) => Cow::Borrowed(b.as_ref()),
        }
    }

    fn to_list(&self) -> Vec<u32> {
        match self {
            Self::Nothing => Vec::new(),
            Self::One(p) => p.list.clone(),
            Self::Bits(b) => b.iter().collect(),
        }
    }
}

/// Inverted index from labels to series.
#[derive(Debug, Default)]
pub struct LabelIndex {
    names: BTreeMap<Box<str>, Name>,
    all: Postings,
}

impl LabelIndex {
    /// Adds a series; a second time changes nothing.
    pub fn insert(&mut self, series: SeriesRef, labels: &Labels) {
        if self.all.contains(series.0) {
            return;
        }
        self.all.insert(series.0);
        for (name, value) in labels.iter() {
            if !self.names.contains_key(name) {
                self.names.insert(name.into(), Name::default());
            }
            let Some(entry) = self.names.get_mut(name) else { continue };
            entry.any.insert(series.0);
            match entry.values.get_mut(value) {
                Some(postings) => postings.insert(series.0),
                None => entry.values.entry(value.into()).or_default().insert(series.0),
            }
        }
    }

    /// Whether a series is in.
    pub fn contains(&self, series: SeriesRef) -> bool {
        self.all.contains(series.0)
    }

    /// Number of series.
    pub fn len(&self) -> usize {
        self.all.list.len()
    }

    /// Whether there are no series.
    pub fn is_empty(&self) -> bool {
        self.all.list.is_empty()
    }

    /// Series that pass all conditions, ascending. No condition: all series.
    pub fn select(&self, conditions: &[Condition]) -> Vec<u32> {
        let (mut brings, mut takes) = (Vec::with_capacity(conditions.len()), Vec::new());
        for condition in conditions {
            let keeps_absent = condition.matches("");
            let set = self.set(condition, condition.negated == keeps_absent);
            if keeps_absent {
                takes.push(set);
            } else if set.len() == 0 {
                return Vec::new();
            } else {
                brings.push(set);
            }
        }
        takes.retain(|s| s.len() > 0);
        if brings.is_empty() {
            brings.push(Set::One(&self.all));
        }
        brings.sort_by_key(Set::len);
        combine(&brings, &takes)
    }

    /// Series that have the label with a value that passes the test (`hit`), or with a value that does not.
    fn set(&self, condition: &Condition, hit: bool) -> Set<'_> {
        let Some(name) = self.names.get(condition.name.as_str()) else { return Set::Nothing };
        let hits = name.hits(&condition.test);
        if hit {
            return hits;
        }
        match hits {
            Set::Nothing => Set::Bits(Cow::Borrowed(&name.any)),
            other => Set::Bits(Cow::Owned(&name.any - other.bitmap().as_ref())),
        }
    }

    /// Calls back for every value of a label, ascending: value, ascending series, and the same as a bitmap once there are many.
    pub(super) fn each_postings(&self, name: &str, mut each: impl FnMut(&str, &[u32], Option<&RoaringBitmap>)) {
        let values = self.names.get(name).into_iter().flat_map(|n| &n.values);
        values.for_each(|(value, postings)| each(value, &postings.list, postings.set.as_ref()));
    }

    /// Label names that any series of `among` has (`None`: any series at all), sorted.
    pub fn names(&self, among: Option<&RoaringBitmap>) -> Vec<String> {
        let live = self.names.iter().filter(|(_, n)| among.is_none_or(|set| !n.any.is_disjoint(set)));
        live.map(|(name, _)| name.to_string()).collect()
    }

    /// Values of a label over the series of `among` (`None`: all series), sorted.
    pub fn values(&self, name: &str, among: Option<&RoaringBitmap>) -> Vec<String> {
        let Some(name) = self.names.get(name) else { return Vec::new() };
        let live = name.values.iter().filter(|(_, p)| among.is_none_or(|set| p.touches(set)));
        live.map(|(value, _)| value.to_string()).collect()
    }
}

impl Name {
    /// Series whose value passes; values are never empty.
    fn hits<'a>(&'a self, test: &Test) -> Set<'a> {
        match test {
            Test::Everything | Test::NonEmpty => Set::Bits(Cow::Borrowed(&self.any)),
            Test::Literals(all) => union(all.iter().filter_map(|v| self.values.get(v.as_str()))),
            Test::Regex { regex, prefixes } if prefixes.is_empty() => {
                union(self.values.iter().filter(|(v, _)| regex.is_match(v)).map(|(_, p)| p))
            }
            Test::Regex { regex, prefixes } => {
                let begun = prefixes.iter().flat_map(|prefix| self.beginning_with(prefix));
                union(begun.filter(|(v, _)| regex.is_match(v)).map(|(_, p)| p))
            }
        }
    }

    fn beginning_with<'a, 'p>(&'a self, prefix: &'p str) -> impl Iterator<Item = (&'a str, &'a Postings)> + use<'a, 'p> {
        let from = (Bound::Included(prefix), Bound::Unbounded);
        self.values.range::<str, _>(from).take_while(move |(v, _)| v.starts_with(prefix)).map(|(v, p)| (v.as_ref(), p))
    }
}

fn union<'a>(mut sets: impl Iterator<Item = &'a Postings>) -> Set<'a> {
    let Some(first) = sets.next() else { return Set::Nothing };
    let Some(second) = sets.next() else { return Set::One(first) };
    let mut short: Vec<u32> = Vec::new();
    let mut bits = RoaringBitmap::new();
    for postings in [first, second].into_iter().chain(sets) {
        match &postings.set {
            Some(set) => bits |= set,
            None => short.extend_from_slice(&postings.list),
        }
    }
    short.sort_unstable();
    short.dedup();
    bits |= RoaringBitmap::from_sorted_iter(short).unwrap_or_default();
    Set::Bits(Cow::Owned(bits))
}

/// `brings` is ascending by length and not empty.
fn combine(brings: &[Set<'_>], takes: &[Set<'_>]) -> Vec<u32> {
    let (first, others) = (&brings[0], &brings[1..]);
    if others.is_empty() && takes.is_empty() {
        return first.to_list();
    }
    if first.len() <= WALK_LEN_MAX {
        let mut list = first.to_list();
        list.retain(|&s| others.iter().all(|o| o.contains(s)) && !takes.iter().any(|t| t.contains(s)));
        return list;
    }
    let mut bits = first.bitmap().into_owned();
    for other in others {
        bits &= other.bitmap().as_ref();
    }
    for taken in takes {
        bits -= taken.bitmap().as_ref();
    }
    bits.iter().collect()
}
