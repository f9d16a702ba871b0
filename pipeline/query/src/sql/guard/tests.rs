use super::*;
use crate::sql::SqlErrorKind;

fn check(sql: &str) -> Result<DFStatement, SqlError> {
    parse(sql, &Limits::default())
}

fn chain(term: &str, operator: &str, terms: usize) -> String {
    format!("SELECT {}", vec![term; terms].join(operator))
}

#[test]
fn statements_that_read_are_allowed() {
    for sql in [
        "SELECT 1",
        "select * from samples where metric = 'up';",
        r#"WITH a AS (SELECT 1 AS x) SELECT x FROM a UNION ALL SELECT 2 ORDER BY 1 LIMIT 5"#,
        "VALUES (1, 2), (3, 4)",
        "EXPLAIN SELECT 1",
        "EXPLAIN ANALYZE SELECT 1",
        "SHOW TABLES",
        "SHOW COLUMNS FROM samples",
        "SHOW ALL",
        "DESCRIBE samples",
        r#"SELECT host, tumble(time, INTERVAL '1m'), avg(value) FROM m."cpu_usage" GROUP BY 1, 2 HAVING avg(value) > 80"#,
    ] {
        assert!(check(sql).is_ok(), "{sql}: {:?}", check(sql));
    }
}

#[test]
fn statements_that_write_are_refused_by_name() {
    for (sql, name) in [
        ("CREATE EXTERNAL TABLE t STORED AS CSV LOCATION '/etc/passwd'", "CREATE EXTERNAL TABLE"),
        ("COPY (SELECT 1) TO '/tmp/x.csv'", "COPY"),
        ("COPY samples TO 's3://x/y'", "COPY"),
        ("CREATE TABLE t (a INT)", "CREATE TABLE"),
        ("CREATE VIEW v AS SELECT 1", "CREATE VIEW"),
        ("INSERT INTO samples VALUES (1)", "INSERT INTO"),
        ("WITH x AS (SELECT 1) INSERT INTO samples SELECT * FROM x", "INSERT INTO"),
        ("SELECT * INTO t FROM samples", "SELECT INTO"),
        ("DELETE FROM samples", "DELETE FROM"),
        ("UPDATE samples SET value = 1", "UPDATE"),
        ("DROP TABLE samples", "DROP TABLE"),
        ("SET datafusion.execution.batch_size = 1", "SET"),
        ("RESET ALL", "RESET"),
        ("EXPLAIN COPY samples TO '/tmp/x'", "COPY"),
        ("EXPLAIN EXPLAIN SELECT 1", "EXPLAIN of an EXPLAIN"),
        ("PREPARE p AS SELECT 1", "PREPARE"),
        ("BEGIN", "BEGIN"),
        ("TRUNCATE TABLE samples", "TRUNCATE TABLE"),
        ("SELECT * FROM samples FOR UPDATE", "SELECT FOR UPDATE"),
    ] {
        let error = check(sql).expect_err(sql);
        assert_eq!(error.kind, SqlErrorKind::BadData, "{sql}");
        assert!(error.message.starts_with(name) && error.message.contains("not allowed"), "{sql}: {error}");
    }
}

#[test]
fn one_statement_per_request() {
    assert!(check("SELECT 1; SELECT 2").is_err_and(|e| e.message.contains("one statement")));
    assert!(check(" ; -- nothing").is_err_and(|e| e.message.contains("no statement")));
}

#[test]
fn syntax_errors_have_a_place() {
    let error = check("SELECT 1\nFROM t GROUP 5").expect_err("no BY");
    assert_eq!(error.position.map(|p| p.line), Some(2), "{error:?}");
    assert!(check("SELECT 'abc").is_err_and(|e| e.position.is_some()));
}

#[test]
fn shapes_that_cost_too_much_are_refused_before_the_parser() {
    let deep = |open: &str, middle: &str, close: &str, n: usize| format!("SELECT {}{middle}{}", open.repeat(n), close.repeat(n));
    for sql in [
        chain("1", "+", 5_000),
        chain("a = 0", " OR ", 2_000),
        chain("a", " = ", 2_000),
        chain("1", " - - ", 300),
        chain("SELECT 1", " UNION ALL ", 2_000),
        chain("'a'", "||", 300),
        deep("(", "1", ")", 2_000),
        deep("abs(", "1", ")", 2_000),
        deep("[", "1", "]", 2_000),
        deep("CASE WHEN ", "1", " THEN 1 END", 2_000),
        deep("NOT ", "true", "", 5_000),
        deep("-", "1", "", 5_000),
        deep("INTERVAL ", "'1'", "", 5_000),
        deep("", "1", "::int", 5_000),
        deep("", "a", " IS NULL", 5_000),
        deep("", "a", "[1]", 0) + &"->1".repeat(3_000),
        deep("(SELECT ", "1", ")", 500),
        "EXPLAIN ".repeat(5_000) + "SELECT 1",
        format!("SELECT {}", vec![format!("({})", vec!["1"; 150].join("+")); 100].join("+")),
        format!("SELECT * FROM a {}", "JOIN b ON true ".repeat(500)),
        format!("SELECT 1 WHERE x IN ({})", "(".repeat(3_000)),
    ] {
        let error = check(&sql).expect_err(&sql[..60]);
        assert!(matches!(error.kind, SqlErrorKind::BadData | SqlErrorKind::Limit), "{}: {error}", &sql[..60]);
    }
}

#[test]
fn long_lists_are_not_chains() {
    let list = (0..5_000).map(|n| n.to_string()).collect::<Vec<_>>().join(", ");
    assert!(check(&format!("SELECT * FROM samples WHERE series_id IN ({list})")).is_ok());
    let ids = (0..5_000).map(|n| format!("-{n}")).collect::<Vec<_>>().join(", ");
    assert!(check(&format!("SELECT * FROM samples WHERE series_id IN ({ids})")).is_ok());
    assert!(check(&chain("a = 0", " OR ", 150)).is_ok());
    assert!(check(&chain("1", "+", 200)).is_ok());
}

#[test]
fn long_statements_are_refused() {
    let error = check(&format!("SELECT '{}'", "x".repeat(70_000))).expect_err("too long");
    assert_eq!(error.kind, SqlErrorKind::Limit);
    assert!(error.message.contains("65536"), "{error}");
}

#[test]
fn question_marks_are_numbered_from_the_left() {
    let numbered = check("SELECT ? FROM t WHERE a = ? AND b IN (?, '?')").map(|s| s.to_string());
    assert_eq!(numbered.as_deref(), Ok("SELECT $1 FROM t WHERE a = $2 AND b IN ($3, '?')"));
    assert!(check("SELECT $1, ?").is_err_and(|e| e.message.contains("not both")));
}
