//! Results as Prometheus' HTTP API writes them: the value of `data`, straight into a byte buffer.
//!
//! ```text
//!  {"resultType":"matrix","result":[{"metric":{"job":"x"},"values":[[1435781430.781,"1"],…]}]}
//! ```
//!
//! Times are formatted once per query, not once per value.

use super::matrix::Matrix;
use super::number::write_api;
use super::{QueryResult, Value};
use fletch_schemas::{Labels, SeriesSet};

/// Writes `{"resultType":…,"result":…}`.
pub fn write_data(out: &mut Vec<u8>, result: &QueryResult) {
    write_value(out, &result.value);
}

/// Writes `{"resultType":…,"result":…}`.
pub fn write_value(out: &mut Vec<u8>, value: &Value) {
    out.extend_from_slice(b"{\"resultType\":\"");
    out.extend_from_slice(value.type_name().as_bytes());
    out.extend_from_slice(b"\",\"result\":");
    match value {
        Value::Scalar { time_ms, value } => {
            out.push(b'[');
            write_time(out, *time_ms);
            out.extend_from_slice(b",\"");
            write_api(out, *value);
            out.extend_from_slice(b"\"]");
        }
        Value::Text { time_ms, value } => {
            out.push(b'[');
            write_time(out, *time_ms);
            out.push(b',');
            write_text(out, value);
            out.push(b']');
        }
        Value::Vector(matrix) => write_vector(out, matrix),
        Value::Matrix(matrix) => write_matrix(out, matrix),
        Value::Samples(set) => write_samples(out, set),
    }
    out.push(b'}');
}

impl Value {
    /// The value of `resultType`.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Scalar { .. } => "scalar",
            Self::Text { .. } => "string",
            Self::Vector(_) => "vector",
            Self::Matrix(_) | Self::Samples(_) => "matrix",
        }
    }
}

/// Bytes that one value takes on average, with its time: room that is reserved at once.
const BYTES_PER_VALUE: usize = 32;

fn write_vector(out: &mut Vec<u8>, matrix: &Matrix) {
    let times = TimeTable::of(matrix);
    write_rows(out, matrix.rows(), |out, row| {
        write_metric(out, matrix.labels(row));
        out.extend_from_slice(b",\"value\":");
        times.write_value(out, 0, matrix.values(row)[0]);
    });
}

fn write_matrix(out: &mut Vec<u8>, matrix: &Matrix) {
    let times = TimeTable::of(matrix);
    out.reserve(matrix.cells() * BYTES_PER_VALUE);
    write_rows(out, matrix.rows(), |out, row| {
        write_metric(out, matrix.labels(row));
        out.extend_from_slice(b",\"values\":[");
        let values = matrix.values(row);
        matrix.mask(row).for_each(values.len(), |s| {
            times.write_value(out, s, values[s]);
            out.push(b',');
        });
        end_list(out);
    });
}

fn write_samples(out: &mut Vec<u8>, set: &SeriesSet) {
    out.reserve(set.samples() * BYTES_PER_VALUE);
    write_rows(out, set.len(), |out, i| {
        write_metric(out, &set.labels[i]);
        out.extend_from_slice(b",\"values\":[");
        for (time, value) in set.times(i).iter().zip(set.values(i)) {
            out.push(b'[');
            write_time(out, *time);
            out.extend_from_slice(b",\"");
            write_api(out, *value);
            out.extend_from_slice(b"\"],");
        }
        end_list(out);
    });
}

fn write_rows(out: &mut Vec<u8>, rows: usize, mut row: impl FnMut(&mut Vec<u8>, usize)) {
    out.push(b'[');
    for i in 0..rows {
        out.extend_from_slice(b"{\"metric\":");
        row(out, i);
        out.extend_from_slice(b"},");
    }
    end_list(out);
}

/// Turns the comma after the last element into the closing bracket.
fn end_list(out: &mut Vec<u8>) {
    match out.last_mut() {
        Some(last @ b',') => *last = b']',
        _ => out.push(b']'),
    }
}

/// `[time,"` for every step.
struct TimeTable {
    bytes: Vec<u8>,
    ends: Vec<u32>,
}

impl TimeTable {
    fn of(matrix: &Matrix) -> Self {
        let mut table = Self { bytes: Vec::new(), ends: Vec::with_capacity(matrix.steps()) };
        for step in 0..matrix.steps() {
            table.bytes.push(b'[');
            write_time(&mut table.bytes, matrix.grid.time(step));
            table.bytes.extend_from_slice(b",\"");
            table.ends.push(table.bytes.len() as u32);
        }
        table
    }

    #[inline]
    fn write_value(&self, out: &mut Vec<u8>, step: usize, value: f64) {
        let start = if step == 0 { 0 } else { self.ends[step - 1] };
        out.extend_from_slice(&self.bytes[start as usize..self.ends[step] as usize]);
        write_api(out, value);
        out.extend_from_slice(b"\"]");
    }
}

/// Milliseconds as seconds, with three decimals unless they are whole.
pub fn write_time(out: &mut Vec<u8>, time_ms: i64) {
    let mut digits = itoa::Buffer::new();
    if time_ms < 0 {
        out.push(b'-');
    }
    let magnitude = time_ms.unsigned_abs();
    out.extend_from_slice(digits.format(magnitude / 1000).as_bytes());
    let ms = magnitude % 1000;
    if ms != 0 {
        out.extend_from_slice(&[b'.', b'0' + (ms / 100) as u8, b'0' + (ms / 10 % 10) as u8, b'0' + (ms % 10) as u8]);
    }
}

/// A label set as an object.
pub fn write_metric(out: &mut Vec<u8>, labels: &Labels) {
    out.push(b'{');
    for (i, (name, value)) in labels.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        write_text(out, name);
        out.push(b':');
        write_text(out, value);
    }
    out.push(b'}');
}

/// A text with JSON's escapes.
pub fn write_text(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    let bytes = text.as_bytes();
    let mut plain = 0;
    for (i, &byte) in bytes.iter().enumerate() {
        if byte >= 0x20 && byte != b'"' && byte != b'\\' {
            continue;
        }
        out.extend_from_slice(&bytes[plain..i]);
        plain = i + 1;
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            control => {
                const HEX: &[u8; 16] = b"0123456789abcdef";
                out.extend_from_slice(b"\\u00");
                out.extend_from_slice(&[HEX[usize::from(control >> 4)], HEX[usize::from(control & 15)]]);
            }
        }
    }
    out.extend_from_slice(&bytes[plain..]);
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::super::matrix::{Grid, RowMask};
    use super::*;

    fn written(value: &Value) -> String {
        let mut out = Vec::new();
        write_value(&mut out, value);
        String::from_utf8(out).expect("UTF-8")
    }

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        Labels::from_pairs(pairs.iter().copied()).expect("valid")
    }

    #[test]
    fn every_type_looks_like_prometheus() {
        assert_eq!(
            written(&Value::Scalar { time_ms: 1_435_781_430_781, value: f64::INFINITY }),
            r#"{"resultType":"scalar","result":[1435781430.781,"+Inf"]}"#
        );
        assert_eq!(
            written(&Value::Text { time_ms: -1_500, value: "a\"\n\u{1}é".to_owned() }),
            r#"{"resultType":"string","result":[-1.500,"a\"\n\u0001é"]}"#
        );
        assert_eq!(written(&Value::Vector(Matrix::empty(Grid::instant(0)))), r#"{"resultType":"vector","result":[]}"#);
        let mut vector = Matrix::empty(Grid::instant(1_000));
        vector.push(labels(&[("__name__", "up"), ("job", "x")]), false, &[0.5], RowMask::Full);
        vector.push(labels(&[]), false, &[f64::NAN], RowMask::Full);
        assert_eq!(
            written(&Value::Vector(vector)),
            r#"{"resultType":"vector","result":[{"metric":{"__name__":"up","job":"x"},"value":[1,"0.5"]},{"metric":{},"value":[1,"NaN"]}]}"#
        );
        let mut matrix = Matrix::empty(Grid::range(0, 2_500, 1_250).expect("valid"));
        matrix.push(labels(&[("a", "b")]), false, &[1.0, 2.0, 3e21], RowMask::Words(&[5]));
        assert_eq!(
            written(&Value::Matrix(matrix)),
            r#"{"resultType":"matrix","result":[{"metric":{"a":"b"},"values":[[0,"1"],[2.500,"3e+21"]]}]}"#
        );
        let mut set = SeriesSet::default();
        set.push(labels(&[("a", "b")]), vec![1, 2_000], vec![1.0, -0.25]);
        assert_eq!(
            written(&Value::Samples(set)),
            r#"{"resultType":"matrix","result":[{"metric":{"a":"b"},"values":[[0.001,"1"],[2,"-0.25"]]}]}"#
        );
    }
}
