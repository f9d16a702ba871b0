//! Parameters of the Prometheus API: URL query and form body merged, times, durations, limits.
//!
//! A client may send parameters in the URL of a POST with an empty body of any content type (vmalert does); a body counts as a form only when its
//! content type says so. Errors are in Prometheus' words, because clients and tests look for them.

use crate::http::error::ApiError;
use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::header::CONTENT_TYPE;

/// Earliest and latest time, as Prometheus' API prints and accepts them.
const MIN_TIME: &str = "-292273086-05-16T16:47:06Z";
const MAX_TIME: &str = "292277025-08-18T07:12:54.999999999Z";

/// "No lower bound" and "no upper bound" in milliseconds; far outside what is accepted, but safe to add a year to.
pub(super) const TIME_MIN: i64 = i64::MIN / 4;
/// See [`TIME_MIN`].
pub(super) const TIME_MAX: i64 = i64::MAX / 4;

/// All parameters in the order they were given, URL first.
#[derive(Debug, Default)]
pub struct Params(Vec<(String, String)>);

impl<S: Send + Sync> FromRequest<S> for Params {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let mut pairs = decode(request.uri().query().unwrap_or("").as_bytes());
        let content_type = request.headers().get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("").to_ascii_lowercase();
        if request.method() == axum::http::Method::POST && content_type.starts_with("application/x-www-form-urlencoded") {
            let body = Bytes::from_request(request, state).await.map_err(|e| ApiError::bad_data(e.body_text()))?;
            pairs.extend(decode(&body));
        }
        Ok(Self(pairs))
    }
}

fn decode(bytes: &[u8]) -> Vec<(String, String)> {
    url::form_urlencoded::parse(bytes).into_owned().collect()
}

impl Params {
    /// Made from pairs (the JSON form of `/api/v1/query`).
    pub fn from_pairs(pairs: Vec<(String, String)>) -> Self {
        Self(pairs)
    }

    /// First value of `name`, `""` when absent.
    pub fn get(&self, name: &str) -> &str {
        self.0.iter().find(|(n, _)| n == name).map_or("", |(_, v)| v)
    }

    /// Every value of `name`.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// A time in milliseconds, `default` when absent.
    pub fn time(&self, name: &str, default: i64) -> Result<i64, ApiError> {
        match self.get(name) {
            "" => Ok(default),
            text => parse_time(text).map_err(|why| ApiError::parameter(name, why)),
        }
    }

    /// A time that must be given.
    pub fn required_time(&self, name: &str) -> Result<i64, ApiError> {
        parse_time(self.get(name)).map_err(|why| ApiError::parameter(name, why))
    }

    /// A duration in milliseconds, `None` when absent.
    pub fn duration(&self, name: &str) -> Result<Option<i64>, ApiError> {
        match self.get(name) {
            "" => Ok(None),
            text => parse_duration(text).map(Some).map_err(|why| ApiError::parameter(name, why)),
        }
    }

    /// `limit`: 0 and absent mean none.
    pub fn limit(&self) -> Result<usize, ApiError> {
        match self.get("limit") {
            "" => Ok(0),
            text => match text.parse::<i64>() {
                Ok(n) if n >= 0 => Ok(usize::try_from(n).unwrap_or(usize::MAX)),
                Ok(_) => Err(ApiError::parameter("limit", "limit must be non-negative")),
                Err(_) => Err(ApiError::parameter("limit", format!("cannot parse {text:?} to a number"))),
            },
        }
    }
}

/// Float seconds since the epoch (rounded to milliseconds) or RFC 3339.
pub fn parse_time(text: &str) -> Result<i64, String> {
    let why = || format!("cannot parse {text:?} to a valid timestamp");
    match text {
        MIN_TIME => return Ok(TIME_MIN),
        MAX_TIME => return Ok(TIME_MAX),
        _ => {}
    }
    if let Ok(seconds) = text.parse::<f64>() {
        return seconds_to_ms(seconds).ok_or_else(why);
    }
    chrono::DateTime::parse_from_rfc3339(text).map(|t| t.timestamp_millis()).map_err(|_| why())
}

/// Float seconds or a Prometheus duration, in milliseconds.
pub fn parse_duration(text: &str) -> Result<i64, String> {
    if let Ok(seconds) = text.parse::<f64>() {
        return seconds_to_ms(seconds).ok_or_else(|| format!("cannot parse {text:?} to a valid duration. It overflows int64"));
    }
    let ms = fletch_promql::parse_duration(text).map_err(|_| format!("cannot parse {text:?} to a valid duration"))?;
    Ok(ms)
}

fn seconds_to_ms(seconds: f64) -> Option<i64> {
    let ms = (seconds * 1000.0).round();
    // Beyond ±2^53 ms a float no longer holds every millisecond; such a time is an error of the caller.
    (ms.is_finite() && ms.abs() <= 9_007_199_254_740_992.0).then_some(ms as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_float_seconds_or_rfc_3339() {
        assert_eq!(parse_time("1.2345"), Ok(1235));
        assert_eq!(parse_time("-1"), Ok(-1000));
        assert_eq!(parse_time("2015-07-01T20:10:51.781Z"), Ok(1_435_781_451_781));
        assert_eq!(parse_time("2015-07-01T22:10:51+02:00"), Ok(1_435_781_451_000));
        assert_eq!(parse_time(MIN_TIME), Ok(TIME_MIN));
        for bad in ["", "x", "NaN", "1e300", "2015-07-01"] {
            assert_eq!(parse_time(bad), Err(format!("cannot parse {bad:?} to a valid timestamp")));
        }
    }

    #[test]
    fn url_and_form_are_merged_and_repeated_names_kept() {
        let params = Params(decode(b"match[]=a&match[]=b%20c&limit=-1&x=1+2"));
        assert_eq!(params.all("match[]").collect::<Vec<_>>(), ["a", "b c"]);
        assert_eq!(params.get("x"), "1 2");
        assert!(params.limit().expect_err("negative").message().contains("limit must be non-negative"));
    }
}
