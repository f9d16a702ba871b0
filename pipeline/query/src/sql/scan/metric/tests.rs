use super::*;
use datafusion::prelude::{col, lit};
use fletch_schemas::{Labels, SeriesSet};

fn names(labels: &[&str]) -> Vec<String> {
    let labels: Vec<String> = labels.iter().map(|l| (*l).to_owned()).collect();
    schema_of(&labels).fields().iter().map(|f| f.name().clone()).collect()
}

#[test]
fn labels_that_collide_are_renamed() {
    assert_eq!(names(&["a", "time", "z"]), ["time", "value", "a", "label_time", "z"]);
    assert_eq!(names(&["label_value", "value"]), ["time", "value", "label_value", "label_label_value"]);
    assert_eq!(names(&[]), ["time", "value"]);
}

#[test]
fn conditions_on_labels_choose_series() {
    let cases = [
        (col("host").eq(lit("a")), Some((MatchOp::Equal, "a", true))),
        (lit("a").eq(col("host")), Some((MatchOp::Equal, "a", true))),
        (col("host").eq(lit("")), Some((MatchOp::Equal, "", false))),
        (col("host").in_list(vec![lit("a.b"), lit("c")], false), Some((MatchOp::Regex, r"a\.b|c", true))),
        (col("host").not_eq(lit("a")), Some((MatchOp::NotEqual, "a", false))),
        (col("host").is_null(), Some((MatchOp::Equal, "", true))),
        (col("host").is_not_null(), Some((MatchOp::NotEqual, "", true))),
        (col("host").like(lit("web-%.x_")), Some((MatchOp::Regex, r"web\-.*\.x.?", false))),
        (col("host").not_like(lit("web%")), None),
        (col("host").gt(lit("a")), None),
        (col("other").eq(lit("a")), None),
        (col("host").eq(lit("a")).or(col("value").gt(lit(1.0))), None),
    ];
    for (filter, expected) in cases {
        let expected = expected.map(|(op, value, exact): (MatchOp, &str, bool)| (op, value.to_owned(), exact));
        assert_eq!(label_condition(&filter, "host"), expected, "{filter}");
    }
}

#[test]
fn every_sample_of_a_stretch_is_laid_out_once_however_it_is_cut() {
    let mut set = SeriesSet::default();
    for (series, samples) in [5_usize, 0, 1, 12, 3].into_iter().enumerate() {
        let labels = Labels::from_pairs([("n", series.to_string())]).expect("valid labels");
        set.push(labels, (0..samples as i64).collect(), vec![0.0; samples]);
    }
    for (parts, batch_rows) in [(1, 1), (1, 4), (1, 100), (2, 3), (3, 5), (7, 2)] {
        let mut rows: Vec<(usize, i64)> =
            (0..parts).flat_map(|part| batches::testing::rows(set.clone(), (1, 9), part, parts, batch_rows)).collect();
        rows.sort_unstable();
        let expected: Vec<(usize, i64)> = (0..set.len())
            .flat_map(|s| set.times(s).iter().filter(|t| (1..=9).contains(*t)).map(move |&t| (s, t)).collect::<Vec<_>>())
            .collect();
        assert_eq!(rows, expected, "{parts} parts, batches of {batch_rows}");
    }
}
