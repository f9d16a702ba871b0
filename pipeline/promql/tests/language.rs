//! The language as data: queries with their canonical text and type, queries with their error, limits, random queries.
//!
//! `cases/valid.txt` and `cases/invalid.txt` say in their first lines how they are written.

use fletch_promql::ast::{AtModifier, BinaryOp, Duration, EdgeMode, Expr, Span};
use fletch_promql::{
    DEPTH_MAX, ParseLimits, ValueType, format_duration, has_non_empty_matcher, parse_duration, parse_expr, parse_selector, quote,
};
use fletch_schemas::{MatchOp, Matcher};
use proptest::prelude::*;

fn parse(query: &str) -> Result<Expr, String> {
    parse_expr(query, &ParseLimits::default()).map_err(|error| error.to_string())
}

fn valid(query: &str) -> Expr {
    parse(query).unwrap_or_else(|error| panic!("`{query}`: {error}"))
}

fn lines(text: &'static str) -> impl Iterator<Item = &'static str> {
    text.lines().skip_while(|line| line.starts_with("## "))
}

/// Printing gives a text that parses to the same tree and prints the same again.
fn assert_round_trip(query: &str, expr: &Expr) {
    let text = expr.to_string();
    let again = parse(&text).unwrap_or_else(|error| panic!("`{query}` prints as `{text}`: {error}"));
    assert_eq!(again.to_string(), text, "the canonical text of `{query}` is not stable");
    assert_eq!(again.value_type(), expr.value_type(), "`{query}`");
    assert_eq!(shape(&again), shape(expr), "`{query}` and `{text}` are different trees");
}

/// The kinds of all nodes in reading order.
fn shape(expr: &Expr) -> String {
    let mut shape = String::new();
    expr.walk(&mut |node| {
        shape.push_str(&match node {
            Expr::Number(e) => format!("n{}", e.value),
            Expr::String(e) => format!("s{}", e.value),
            Expr::Vector(e) => format!("v{}{:?}{:?}", e.matchers.len(), e.at, e.edges),
            Expr::Matrix(e) => format!("m{}{:?}{:?}", e.selector.matchers.len(), e.selector.at, e.selector.edges),
            Expr::Subquery(e) => format!("q{:?}{}", e.at, e.step.is_some()),
            Expr::Unary(e) => format!("u{:?}", e.op),
            Expr::Paren(_) => "p".to_owned(),
            Expr::Binary(e) => format!("b{:?}{}{:?}", e.op, e.return_bool, e.matching),
            Expr::Aggregate(e) => format!("a{:?}{:?}{}", e.op, e.grouping, e.without),
            Expr::Call(e) => format!("c{:?}{}", e.func.id, e.args.len()),
        });
    });
    shape
}

#[test]
fn valid_queries() {
    let lines: Vec<&str> = lines(include_str!("cases/valid.txt")).collect();
    for case in lines.chunks(3) {
        let [query, text, value_type] = case else { panic!("incomplete case {case:?}") };
        let query = query.replace('⏎', "\n");
        let expr = valid(&query);
        let text = text.strip_prefix("  =>").expect("`=>` comes second").trim();
        assert_eq!(expr.to_string(), if text.is_empty() { &query } else { text }, "`{query}`");
        assert_eq!(expr.value_type().as_str(), value_type.strip_prefix("   : ").expect("the type comes third"), "`{query}`");
        assert_round_trip(&query, &expr);
    }
    assert!(lines.len() > 500, "the cases are there");
}

#[test]
fn invalid_queries() {
    let lines: Vec<&str> = lines(include_str!("cases/invalid.txt")).collect();
    for case in lines.chunks(2) {
        let [query, error] = case else { panic!("incomplete case {case:?}") };
        let query = query.replace('⏎', "\n");
        let error = error.strip_prefix("  !! ").expect("the error comes second");
        assert_eq!(parse(&query).map(|expr| expr.to_string()), Err(error.to_owned()), "`{query}`");
    }
    assert!(lines.len() > 500, "the cases are there");
}

#[test]
fn bytes_that_are_no_text() {
    assert_eq!(valid(r#""a\xffb""#).to_string(), "\"a\u{fffd}b\"");
    assert_eq!(parse(r#"count_values("a\xc5z", foo)"#), Err(r#"invalid label name "a\xc5z""#.to_owned()));
    let message = r#"invalid destination label name in label_replace(): "\xff""#;
    assert_eq!(parse(r#"label_replace(foo, "\xff", "", "a", "b")"#), Err(message.to_owned()));
    assert!(parse(r#"label_replace(foo, "a", "\xff", "a", "b")"#).is_ok());
}

#[test]
fn positions() {
    let query = "sum by (a) (rate(foo{x=\"y\"}[5m] offset 1h))\n  > bool on (a) -bar";
    let mut found = Vec::new();
    valid(query).walk(&mut |node| {
        let Span { start, end } = node.span();
        found.push(&query[start as usize..end as usize]);
    });
    let wanted = [
        query,
        "sum by (a) (rate(foo{x=\"y\"}[5m] offset 1h))",
        "rate(foo{x=\"y\"}[5m] offset 1h)",
        "foo{x=\"y\"}[5m] offset 1h",
        "-bar",
        "bar",
    ];
    assert_eq!(found, wanted);
    let Expr::Binary(e) = valid(query) else { panic!("a comparison") };
    assert_eq!((e.op, &query[e.op_span.start as usize..e.op_span.end as usize]), (BinaryOp::Gt, ">"));
    assert_eq!((e.op_span.line_column(query), e.rhs.span().line_column(query)), ("2:3".to_owned(), "2:17".to_owned()));
}

#[test]
fn selector_fields() {
    let expr = valid("foo{a=\"b\"}[5m] anchored offset -1h @ 1.5");
    let Expr::Matrix(matrix) = &expr else { panic!("a range vector") };
    assert_eq!(matrix.range, Duration::Fixed(300_000));
    assert_eq!(matrix.selector.name(), Some("foo"));
    assert_eq!(matrix.selector.matchers, [Matcher::equal("__name__", "foo"), Matcher::equal("a", "b")]);
    assert_eq!((&matrix.selector.offset, matrix.selector.edges), (&Duration::Fixed(-3_600_000), EdgeMode::Anchored));
    assert_eq!(matrix.selector.at, Some(AtModifier::Timestamp(1500)));
    let expr = valid("a + on (x) sum_over_time(b[5m:]) / {c=\"d\"}");
    let names: Vec<Option<&str>> = expr.selectors().iter().map(|selector| selector.name()).collect();
    assert_eq!(names, [Some("a"), Some("b"), None]);
}

#[test]
fn match_parameters() {
    let limits = ParseLimits::default();
    let selector = |text: &str| parse_selector(text, &limits).map_err(|error| error.to_string());
    let matchers = [Matcher::equal("__name__", "up"), Matcher::new("job", MatchOp::NotRegex, "x.*")];
    assert_eq!(selector(" up{job!~\"x.*\"} "), Ok(matchers.to_vec()));
    assert_eq!(selector("{\"my.metric\"}"), Ok(vec![Matcher::equal("__name__", "my.metric")]));
    assert_eq!(selector("{}"), Ok(Vec::new()));
    assert_eq!(selector("up offset 5m"), Err("1:4: parse error: unexpected <offset>".to_owned()));
    assert_eq!(selector("up[5m]"), Err("1:3: parse error: unexpected \"[\"".to_owned()));
    assert_eq!(selector("rate(up)"), Err("1:5: parse error: unexpected \"(\"".to_owned()));
    assert_eq!(selector("1"), Err("1:1: parse error: unexpected number \"1\"".to_owned()));
    assert_eq!(selector(""), Err("unknown position: parse error: unexpected end of input".to_owned()));
    for (text, some) in [("{}", false), ("{a=~\".*\"}", false), ("{a!=\"\"}", true), ("{a=\"\",b=\"c\"}", true), ("{a!~\"b?\"}", true)] {
        assert_eq!(has_non_empty_matcher(&selector(text).expect("a selector")), some, "{text}");
    }
}

#[test]
fn durations_as_text() {
    let good = [("0", 0), ("0s", 0), ("5m", 300_000), ("1h30m", 5_400_000), ("1y2w3d4h5m6s7ms", 33_019_506_007), ("90s", 90_000)];
    for (text, ms) in good {
        assert_eq!(parse_duration(text), Ok(ms), "{text}");
    }
    let bad = [
        ("", "empty duration string"),
        ("5", "not a valid duration string: \"5\""),
        ("m", "not a valid duration string: \"m\""),
        ("-5m", "not a valid duration string: \"-5m\""),
        ("1m1h", "not a valid duration string: \"1m1h\""),
        ("1m1m", "not a valid duration string: \"1m1m\""),
        ("1x", "unknown unit \"x\" in duration \"1x\""),
        ("1.5h", "unknown unit \".\" in duration \"1.5h\""),
        ("293y", "duration out of range"),
        ("200y200y", "not a valid duration string: \"200y200y\""),
        ("292y53w", "duration out of range"),
        ("99999999999999999999s", "not a valid duration string: \"99999999999999999999s\""),
    ];
    for (text, error) in bad {
        assert_eq!(parse_duration(text).map_err(|error| error.to_string()), Err(error.to_owned()), "{text}");
    }
    let texts =
        [(0, "0s"), (1, "1ms"), (300_000, "5m"), (-5_400_000, "-1h30m"), (604_800_000, "1w"), (691_200_000, "8d"), (31_536_000_000, "1y")];
    for (ms, text) in texts {
        assert_eq!(format_duration(ms), text);
    }
}

#[test]
fn duration_expressions_have_values() {
    use fletch_promql::ast::DurationContext;
    let ctx = DurationContext { step_ms: 10_000, range_ms: 60_000 };
    let range = |text: &str| match valid(&format!("foo[{text}]")) {
        Expr::Matrix(e) => e.range.resolve_range_ms(ctx).map_err(|error| error.to_string()),
        other => panic!("{other}"),
    };
    for (text, ms) in [
        ("step()", 10_000),
        ("range()", 60_000),
        ("step()+1m", 70_000),
        ("2^3*1m", 480_000),
        ("max_of(step(), 1m)", 60_000),
        ("min_of(step(), 1m)", 10_000),
        ("-(-5m)", 300_000),
        ("4h%3h", 3_600_000),
        ("1h/2", 1_800_000),
        ("1.0005", 1000),
    ] {
        assert_eq!(range(text), Ok(ms), "{text}");
    }
    for (text, error) in [
        ("1m-range()", "4:14: duration must be greater than 0"),
        ("1m/(step()-10s)", "4:18: division by zero"),
        ("1m%(step()-10s)", "4:18: modulo by zero"),
        ("(0)", "4:7: duration must be greater than 0"),
        ("9e9*9e9", "4:11: duration is out of range"),
        ("(-1)^0.5", "4:12: duration is NaN or infinite"),
    ] {
        assert_eq!(range(text), Err(error.to_owned()), "{text}");
    }
    let Expr::Vector(e) = valid("foo offset (-step()*2)") else { panic!("a selector") };
    assert_eq!(e.offset.resolve_offset_ms(ctx), Ok(-20_000));
    assert_eq!(e.offset.fixed_ms(), None);
}

/// Runs on the smallest stack a worker thread has.
fn on_small_stack(test: impl FnOnce() + Send + 'static) {
    std::thread::Builder::new().stack_size(2 << 20).spawn(test).expect("a thread").join().expect("no panic");
}

/// Shapes that grow with `n`.
fn towers(n: usize) -> Vec<(&'static str, String)> {
    let nested = |open: &str, inner: &str, close: &str| format!("{}{inner}{}", open.repeat(n), close.repeat(n));
    vec![
        ("sum of ones", vec!["1"; n + 1].join("+")),
        ("or chain", vec!["a"; n + 1].join(" or ")),
        ("power chain", vec!["1"; n + 1].join("^")),
        ("parentheses", nested("(", "1", ")")),
        ("signs", nested("-", "a", "")),
        ("signs of a number", nested("-", "1", "")),
        ("calls", nested("abs(", "a", ")")),
        ("aggregations", nested("sum(", "a", ")")),
        ("right operands", nested("a+(", "1", ")")),
        ("subqueries", nested("sum_over_time(", "a", "[5m:1m])")),
        ("duration sum", format!("a[{}]", vec!["1m"; n + 1].join("+"))),
        ("duration power", format!("a[{}]", vec!["1"; n + 1].join("^"))),
        ("duration parentheses", format!("a[{}]", nested("(step()+", "1m", ")"))),
        ("duration signs", format!("a offset {}", nested("-(", "step()", ")"))),
        ("duration minima", format!("a[{}]", nested("min_of(1m,", "1m", ")"))),
    ]
}

#[test]
fn towers_are_refused_without_overflow() {
    on_small_stack(|| {
        let limits = ParseLimits { bytes_max: 1 << 20, depth_max: usize::MAX };
        for (name, query) in towers(5000) {
            let error = parse_expr(&query, &limits).expect_err(name).to_string();
            assert!(error.ends_with(&format!("nested or chained more than {DEPTH_MAX} levels deep; split it")), "{name}: {error}");
        }
    });
}

#[test]
fn highest_trees_fit_on_a_small_stack() {
    on_small_stack(|| {
        let limits = ParseLimits { bytes_max: 1 << 20, depth_max: DEPTH_MAX };
        // Some shapes grow by up to three levels a step: they must pass at a third of the limit, and may be refused right below it.
        for (steps, must_pass) in [(DEPTH_MAX / 3, true), (DEPTH_MAX - 2, false)] {
            for (name, query) in towers(steps) {
                let expr = match parse_expr(&query, &limits) {
                    Ok(expr) => expr,
                    Err(error) if must_pass => panic!("{name}: {error}"),
                    Err(_) => continue,
                };
                assert_eq!(expr.clone(), expr);
                let printed = expr.to_string();
                assert_eq!(parse_expr(&printed, &limits).map(|expr| expr.to_string()), Ok(printed), "{name}");
            }
        }
    });
}

#[test]
fn limits_are_exact() {
    let depth = |depth_max| ParseLimits { depth_max, ..ParseLimits::default() };
    assert!(parse_expr("1+2+3", &depth(3)).is_ok());
    let message = "1:4: parse error: expression is nested or chained more than 2 levels deep; split it";
    assert_eq!(parse_expr("1+2+3", &depth(2)).map_err(|error| error.to_string()), Err(message.to_owned()));
    let bytes = |bytes_max| ParseLimits { bytes_max, ..ParseLimits::default() };
    assert!(parse_expr("12345", &bytes(5)).is_ok());
    let message = "1:1: parse error: query is 5 bytes long, at most 4 are allowed";
    assert_eq!(parse_expr("12345", &bytes(4)).map_err(|error| error.to_string()), Err(message.to_owned()));
    assert_eq!(parse_selector("{}{}{}", &bytes(4)).map_err(|error| error.message), Err(message[18..].replace('5', "6")));
    let ones = |n: usize| parse(&vec!["1"; n].join("+"));
    assert!(ones(200).is_ok() && ones(201).is_err(), "200 operands are the default");
}

#[test]
fn functions_are_sorted_and_found() {
    use fletch_promql::functions::{FUNCTIONS, function};
    assert!(FUNCTIONS.windows(2).all(|pair| pair[0].name < pair[1].name));
    for (i, f) in FUNCTIONS.iter().enumerate() {
        assert_eq!(f.id as usize, i, "{}", f.name);
        assert_eq!(function(f.name), Some(f));
        assert_eq!(f.name.replace('_', ""), format!("{:?}", f.id).to_lowercase());
    }
    assert_eq!((function("Rate"), function("nope")), (None, None));
}

#[test]
fn quoting() {
    assert_eq!(quote("a\"b\\\n\t\u{7}\u{7f}\u{0}é☺\u{ad}\u{e0001}\u{301}"), "\"a\\\"b\\\\\\n\\t\\a\\x7f\\x00é☺\\u00ad\\U000e0001\u{301}\"");
}

/// Text of a duration: a literal or an expression.
fn duration_text() -> impl Strategy<Value = String> {
    let leaf = prop_oneof!["[1-9][0-9]{0,3}(ms|s|m|h|d)", "[1-9][0-9]{0,2}", Just("step()".to_owned()), Just("range()".to_owned())];
    leaf.prop_recursive(3, 8, 2, |inner| {
        prop_oneof![
            inner.clone().prop_map(|a| format!("({a})")),
            (inner.clone(), "[-+*^]", inner.clone()).prop_map(|(a, op, b)| format!("{a} {op} {b}")),
            ("min_of|max_of", inner.clone(), inner).prop_map(|(f, a, b)| format!("{f}({a}, {b})")),
        ]
    })
}

fn selector_text() -> impl Strategy<Value = String> {
    let name = prop_oneof!["[a-z_:][a-z0-9_:]{0,6}", Just("sum".to_owned()), Just("by".to_owned())];
    let value = proptest::string::string_regex("[^\\\\\u{fffd}]{0,6}").expect("a pattern");
    let matcher = ("[a-z_][a-z0-9_]{0,4}", "=|!=", value).prop_map(|(name, op, value)| format!("{name}{op}{}", quote(&value)));
    let matchers = proptest::collection::vec(matcher, 0..3).prop_map(|matchers| format!("{{{}}}", matchers.join(",")));
    (name, matchers)
        .prop_map(|(name, matchers)| name + &matchers)
        .prop_filter("a name that is no number", |text| !["inf{", "nan{", "on{", "bool{"].iter().any(|word| text.starts_with(word)))
}

fn modified_text() -> impl Strategy<Value = String> {
    let at = prop_oneof![Just(String::new()), "[0-9]{1,9}(\\.[0-9]{1,3})?".prop_map(|t| format!(" @ {t}")), Just(" @ end()".to_owned())];
    let offset = prop_oneof![Just(String::new()), duration_text().prop_map(|d| format!(" offset ({d})")), Just(" offset -5m".to_owned())];
    let edges = prop_oneof![Just(""), Just(" anchored"), Just(" smoothed")];
    (at, offset, edges).prop_map(|(at, offset, edges)| format!("{at}{offset}{edges}"))
}

/// Text of an instant vector.
fn vector_text() -> impl Strategy<Value = String> {
    // Parentheses around it, because operators go on behind `offset (…)`.
    let leaf = (selector_text(), modified_text()).prop_map(|(selector, modifiers)| format!("({selector}{modifiers})"));
    let labels = proptest::collection::vec("[a-z_]{1,3}|\"[a-z. ]{1,3}\"", 0..3).prop_map(|labels| labels.join(", "));
    leaf.prop_recursive(5, 32, 3, move |inner| {
        let range = (selector_text(), duration_text(), modified_text()).prop_map(|(s, d, m)| format!("{s}[{d}]{m}"));
        let subquery = (inner.clone(), duration_text()).prop_map(|(e, d)| format!("({e})[{d}:1m]"));
        let matrix = prop_oneof![range, subquery];
        let group = prop_oneof![Just(""), Just(" group_left ()"), Just(" group_right (zz)")];
        prop_oneof![
            inner.clone().prop_map(|e| format!("({e})")),
            inner.clone().prop_map(|e| format!("-{e}")),
            matrix.prop_map(|m| format!("rate({m})")),
            ("sum|avg|group", "by|without", labels.clone(), inner.clone()).prop_map(|(op, by, l, e)| format!("{op}({e}) {by} ({l})")),
            (any::<f64>(), inner.clone()).prop_map(|(k, e)| format!("topk({k}, {e})")),
            (inner.clone(), "[-+*/%^]|atan2|<|>=|</", "on|ignoring", labels.clone(), group, inner.clone())
                .prop_map(|(a, op, on, l, group, b)| format!("{a} {op} {on} (y{}{l}){group} {b}", if l.is_empty() { "" } else { ", " })),
            (inner.clone(), "and|or|unless|==|!=", inner.clone()).prop_map(|(a, op, b)| format!("{a} {op} {b}")),
            (inner.clone(), -1e9..1e9f64, inner).prop_map(|(a, v, b)| format!("{a} + fill_left({v}) {b}")),
        ]
    })
}

/// Pieces of queries in any order.
fn token_soup() -> impl Strategy<Value = String> {
    let token = proptest::sample::select(vec![
        "(",
        ")",
        "[",
        "]",
        "{",
        "}",
        ",",
        ":",
        "=",
        "=~",
        "!~",
        "==",
        "</",
        ">/",
        "+",
        "-",
        "^",
        "@",
        "1",
        "5m",
        "0x1",
        "1e",
        "Inf",
        "\"a\"",
        "'",
        "`",
        "\\",
        "foo",
        "a:b",
        "sum",
        "topk",
        "by",
        "on",
        "group_left",
        "fill",
        "bool",
        "offset",
        "anchored",
        "start",
        "step",
        "min_of",
        "and",
        "atan2",
        "rate",
        "info",
        "#",
        "\n",
        " ",
        "é",
        "\u{fffd}",
        "=~\"[\"",
        "[5m]",
        "{a=\"b\"}",
        "0s",
    ]);
    proptest::collection::vec(token, 0..24).prop_map(|tokens| tokens.join(" "))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text_gives_an_answer(text in "\\PC{0,60}") {
        if let Ok(expr) = parse(&text) {
            assert_round_trip(&text, &expr);
        }
    }

    #[test]
    fn any_tokens_give_an_answer(text in token_soup()) {
        if let Ok(expr) = parse(&text) {
            assert_round_trip(&text, &expr);
        }
        let _ = parse_selector(&text, &ParseLimits::default());
    }

    #[test]
    fn generated_trees_survive_printing(text in vector_text()) {
        let expr = valid(&text);
        prop_assert_eq!(expr.value_type(), ValueType::Vector);
        assert_round_trip(&text, &expr);
    }
}
