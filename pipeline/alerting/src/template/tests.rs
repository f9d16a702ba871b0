//! Expected texts were taken from `promtool` where Prometheus has the function.

use super::*;
use async_trait::async_trait;
use parking_lot::Mutex;

#[derive(Default)]
struct Queries {
    asked: Mutex<Vec<String>>,
}

#[async_trait]
impl InstantQuery for Queries {
    async fn instant(&self, _tenant: &TenantId, promql: &str, _at_ms: i64) -> Result<Vec<(Labels, f64)>, String> {
        self.asked.lock().push(promql.to_owned());
        let row = |host: &str, v: f64| (Labels::from_pairs([("__name__", "up"), ("host", host), ("__value__", "s")]).expect("valid"), v);
        match promql {
            "up" => Ok(vec![row("b", 2.0), row("a", 1.0)]),
            "none" => Ok(vec![]),
            other => Err(format!("no such query: {other}")),
        }
    }
}

fn context(queries: &Arc<Queries>) -> Context {
    let external = Labels::from_pairs([("region", "eu")]).expect("valid");
    let queries: Arc<dyn InstantQuery> = Arc::clone(queries) as _;
    Context::new(TenantId::default(), 1_500, Arc::from("http://fletch:9090/prefix/"), external, queries)
}

fn run_with(queries: &Arc<Queries>, text: &str, value: f64) -> String {
    let labels = Labels::from_pairs([("__name__", "m"), ("host", "db-1.example.org:9100"), ("job", "node")]).expect("valid");
    let template = match Template::parse("__alert_A", text) {
        Ok(template) => template,
        Err(error) => return error.to_string(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
    runtime.block_on(template.expand(&labels, value, &context(queries)))
}

fn expand(text: &str, value: f64) -> String {
    run_with(&Arc::new(Queries::default()), text, value)
}

/// One line per case: template, value, text.
fn all(cases: &[(&str, f64, &str)]) {
    for (template, value, text) in cases {
        assert_eq!(expand(template, *value), *text, "{template} of {value}");
    }
}

#[test]
fn values_and_labels() {
    all(&[
        ("plain", 1.0, "plain"),
        ("{{ $value }}", 1e8, "1e+08"),
        ("{{ $value }}", 1_234_567.891, "1.234567891e+06"),
        ("{{ .Value }}", 0.5, "0.5"),
        ("{{ $labels.job }} {{ .Labels.job }} {{ $.Labels.job }}", 0.0, "node node node"),
        ("[{{ $labels.nosuch }}]", 0.0, "[]"),
        ("[{{ index $labels \"nosuch\" }}]", 0.0, "[]"),
        ("{{ $labels.__name__ }}", 0.0, "m"),
        ("{{ $labels }}", 0.0, "map[__name__:m host:db-1.example.org:9100 job:node]"),
        ("{{ $externalLabels.region }} {{ $externalURL }}", 0.0, "eu http://fletch:9090/prefix/"),
        ("{{ externalURL }} {{ pathPrefix }} {{ now }}", 0.0, "http://fletch:9090/prefix/ /prefix 1.5"),
        ("{{ if gt $value 1.5 }}high{{ else }}low{{ end }}", 2.0, "high"),
        ("{{ with $x := .Labels.job }}{{ $x }}{{ end }}", 0.0, "node"),
        ("{{ define \"t\" }}<{{ . }}>{{ end }}{{ template \"t\" .Value }}", 1e6, "<1e+06>"),
        ("{{ range $i, $v := args 1 \"b\" }}{{ $i }}={{ $v }} {{ end }}", 0.0, "arg0=1 arg1=b "),
        ("{{ (args $value).arg0 }}", 1e7, "1e+07"),
        ("{{ print $value }} {{ printf \"%v %s\" $value \"x\" }} {{ printf \"%.2f%%\" $value }}", 1e6, "1e+06 1e+06 x 1000000.00%"),
        ("{{ println $value 1 }}", 1e6, "1e+06 1\n"),
    ]);
}

#[test]
fn humanize_family() {
    all(&[
        ("{{ $value | humanize }}", 1_234_567.891, "1.235M"),
        ("{{ humanize $value }}", 0.0, "0"),
        ("{{ humanize $value }}", 0.001_234, "1.234m"),
        ("{{ humanize $value }}", f64::INFINITY, "+Inf"),
        ("{{ humanize $value }}", -1_500.0, "-1.5k"),
        ("{{ humanize \"2048\" }}", 0.0, "2.048k"),
        ("{{ $value | humanize1024 }}", 1_234_567.891, "1.177Mi"),
        ("{{ $value | humanize1024 }}", 1.0, "1"),
        ("{{ $value | humanizeDuration }}", 0.25, "250ms"),
        ("{{ $value | humanizeDuration }}", 0.0, "0s"),
        ("{{ $value | humanizeDuration }}", 59.5, "59.5s"),
        ("{{ $value | humanizeDuration }}", 61.0, "1m 1s"),
        ("{{ $value | humanizeDuration }}", -93_784.0, "-1d 2h 3m 4s"),
        ("{{ $value | humanizePercentage }}", 1e8, "1e+10%"),
        ("{{ $value | humanizePercentage }}", 0.123_45, "12.35%"),
        ("{{ $value | humanizeTimestamp }}", 1_435_065_584.128, "2015-06-23 13:19:44.128 +0000 UTC"),
        ("{{ $value | humanizeTimestamp }}", f64::NAN, "NaN"),
        ("{{ $value | toTime }}", 0.0, "1970-01-01 00:00:00 +0000 UTC"),
        ("{{ ($value | toTime).Format \"2006-01-02T15:04:05Z07:00\" }}", 60.0, "1970-01-01T00:01:00Z"),
        ("{{ (toTime $value).Year }} {{ (toTime $value).Month }}", 60.0, "1970 January"),
        ("{{ toDuration $value }} {{ humanizeDuration (toDuration $value) }}", 90.0, "1m30s 1m 30s"),
        ("{{ parseDuration \"1h30m\" }} {{ parseDuration \"-5m\" }}", 0.0, "5400 -300"),
        ("{{ humanize1024 2048.0 }}", 0.0, "2ki"),
    ]);
}

#[test]
fn texts_and_links() {
    all(&[
        ("{{ \"aa bb_c-d\" | title }} {{ toUpper \"x\" }} {{ toLower \"X\" }}", 0.0, "Aa Bb_c-D X x"),
        ("{{ title \"don't a.b x..y 1a db-1.example.org\" }}", 0.0, "Don't A.b X..Y 1A Db-1.Example.org"),
        ("{{ match \"^a.*\" \"abc\" }} {{ match \"x\" \"abc\" }}", 0.0, "true false"),
        ("{{ reReplaceAll \"(.*):.*\" \"$1\" .Labels.host }}", 0.0, "db-1.example.org"),
        ("{{ stripPort .Labels.host }} {{ stripDomain .Labels.host }}", 0.0, "db-1.example.org db-1:9100"),
        ("{{ stripPort \"[::1]:80\" }} {{ stripDomain \"127.0.0.1:80\" }} {{ stripPort \"plain\" }}", 0.0, "::1 127.0.0.1:80 plain"),
        ("{{ graphLink \"up > 1\" }}", 0.0, "/graph?g0.expr=up+%3E+1&g0.tab=0"),
        ("{{ tableLink \"up\" }}", 0.0, "/graph?g0.expr=up&g0.tab=1"),
        ("{{ safeHtml \"<b>\" }} {{ html \"<b>\" }} {{ urlQueryEscape \"a b\" }}", 0.0, "<b> &lt;b&gt; a+b"),
    ]);
}

#[test]
fn queries_are_asked_once_each_and_their_rows_have_labels_and_values() {
    let queries = Arc::new(Queries::default());
    let text = "{{ query \"up\" | first | value }} {{ range query \"up\" | sortByLabel \"host\" }}{{ .Labels.host }}={{ .Value }} {{ end }}\
                {{ query \"up\" | first | label \"host\" }} {{ query \"up\" | first | strvalue }}{{ if query \"none\" }}never{{ end }}";
    assert_eq!(run_with(&queries, text, 0.0), "2 a=1 b=2 b s");
    assert_eq!(*queries.asked.lock(), ["up", "none"]);
}

#[test]
fn a_failing_template_is_its_own_text() {
    for (text, part) in [
        ("{{ query \"bad\" }}", "no such query: bad"),
        ("{{ query \"none\" | first }}", "first() called on vector with no elements"),
        ("{{ $value.nope }}", "can't evaluate field nope in type float64"),
        ("{{ .Nope }}", "can't evaluate field Nope in type struct"),
        ("{{ humanize \"x\" }}", "invalid syntax"),
        ("{{ match \"(\" \"x\" }}", "error parsing regexp"),
        ("{{ if gt $value 1 }}x{{ end }}", "incompatible types for comparison"),
        ("{{ humanize 1 2 }}", "wrong number of args"),
    ] {
        let out = expand(text, 2.0);
        assert!(out.starts_with("<error expanding template: error executing template __alert_A: "), "{out}");
        assert!(out.contains(part) && out.ends_with('>'), "{out}");
    }
}

#[test]
fn wrong_templates_are_refused_when_parsed() {
    for (text, part) in [
        ("{{ nosuch 1 }}", "function \"nosuch\" not defined"),
        ("{{ $nosuch }}", "undefined variable \"$nosuch\""),
        ("{{ $value | nosuch }}", "function \"nosuch\" not defined"),
        ("{{ template \"x\" }}", "template \"x\" not defined"),
        ("{{ .Value", "unclosed action"),
        ("{{ if true }}x", "unexpected EOF"),
        ("a{{ end }}b", "unexpected {{end}}"),
        ("{{ define \"t\" }}{{ $value }}{{ end }}", "undefined variable \"$value\""),
    ] {
        let error = Template::parse("t", text).expect_err(text).to_string();
        assert!(error.starts_with("template: t:") && error.contains(part), "{text}: {error}");
    }
    assert!(matches!(Template::parse("t", &"x".repeat(TEMPLATE_BYTES_MAX + 1)), Err(TemplateError::TooLong { .. })));
}

#[test]
fn work_and_output_are_bounded() {
    let doubling: String = (0..40)
        .map(|i| format!("{{{{define \"t{i}\"}}}}{{{{template \"t{}\"}}}}{{{{template \"t{}\"}}}}{{{{end}}}}", i + 1, i + 1))
        .collect();
    for (text, part) in [
        ("{{ range $i := 1000000000 }}{{ end }}".to_owned(), "range"),
        ("{{ range $i := 90000 }}{{ printf \"%1000d\" 1 }}{{ end }}".to_owned(), "the output is longer than"),
        (format!("{doubling}{{{{define \"t40\"}}}}{{{{end}}}}{{{{template \"t0\"}}}}"), "steps"),
        ("{{ define \"r\" }}{{ template \"r\" }}{{ end }}{{ template \"r\" }}".to_owned(), "recursion limit"),
        (format!("{{{{ $x := \"0123456789\" }}}}{}", "{{ $x = print $x $x }}".repeat(40)), "the result is longer than"),
        ("{{ $x := printf \"%60000d\" 1 }}{{ reReplaceAll \"\" $x $x }}".to_owned(), "reReplaceAll"),
    ] {
        let out = expand(&text, 0.0);
        assert!(out.starts_with("<error expanding template") && out.contains(part), "{part}: {}", &out[..out.len().min(300)]);
    }
}
