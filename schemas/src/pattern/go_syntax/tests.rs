use super::translate;

fn matches(pattern: &str, text: &str) -> bool {
    let translated = translate(pattern).unwrap_or_else(|error| panic!("`{pattern}`: {error}"));
    let anchored = format!("^(?s:{})$", translated.pattern);
    let regex = regex::Regex::new(&anchored).unwrap_or_else(|error| panic!("`{pattern}` became `{anchored}`: {error}"));
    assert_eq!(translated.matches_empty, regex.is_match(""), "`{pattern}` and the empty string");
    regex.is_match(text)
}

#[test]
fn patterns_mean_what_they_mean_in_go() {
    let cases = [
        ("a|b", "b", true),
        ("a|b", "ab", false),
        ("foo.*", "foo\nbar", true),
        ("foo{bar}", "foo{bar}", true),
        ("a{,2}", "a{,2}", true),
        ("a{01}", "a{01}", true),
        ("{", "{", true),
        ("}]", "}]", true),
        ("a{2}", "aa", true),
        ("a{2,}?", "aaa", true),
        ("\\d+", "12", true),
        ("\\d", "٣", false),
        ("\\w", "é", false),
        ("\\W", "é", true),
        ("[\\d\\-x]", "-", true),
        ("[^\\d]", "5", false),
        ("[\\D]", "5", false),
        ("[\\Wa]", "a", true),
        ("[a&&b]", "&", true),
        ("[a~~b]", "~", true),
        ("[[a]", "[", true),
        ("[]a]", "]", true),
        ("[^]a]", "]", false),
        ("[a-]", "-", true),
        ("[-a]", "-", true),
        ("[+--]", ",", true),
        ("[[:alpha:]_]", "_", true),
        ("[[:^alpha:]]", "1", true),
        ("[a[:digit:]]", "7", true),
        ("\\<a\\>", "<a>", true),
        ("\\_", "_", true),
        ("\\Qa.b*\\E+", "a.b**", true),
        ("\\Qa.b", "a.b", true),
        ("\\pL\\p{Greek}\\P{^Lu}", "aαA", true),
        ("\\x41\\x{42}\\103", "ABC", true),
        ("\\0", "\0", true),
        ("(?i)abc", "ABC", true),
        ("(?i-i)abc", "ABC", false),
        ("(?)a", "a", true),
        ("(?-s).", "\n", false),
        ("(?i:a)b", "Ab", true),
        ("(?P<x>a)(?<y>b)", "ab", true),
        ("a\\b.\\Bx", "a-x", false),
        ("a\\b-x", "a-x", true),
        ("é\\bx", "éx", true),
        ("^a$", "a", true),
        ("\\Aa\\z", "a", true),
        ("(a|)b?", "", true),
        ("(?:a*)(b|)$", "", true),
        ("x||y", "", true),
        ("a#b c", "a#b c", true),
        ("^*", "", true),
        ("", "", true),
        ("(a{2}){500}", "a", false),
    ];
    for (pattern, text, expected) in cases {
        assert_eq!(matches(pattern, text), expected, "`{pattern}` on `{text}`");
    }
}

#[test]
fn errors_are_those_of_go() {
    let cases = [
        ("(a", "missing closing ): `(a`"),
        ("a)", "unexpected ): `a)`"),
        ("[a", "missing closing ]: `[a`"),
        ("x[]", "missing closing ]: `[]`"),
        ("*", "missing argument to repetition operator: `*`"),
        ("a|+?", "missing argument to repetition operator: `+?`"),
        ("(?i)*", "missing argument to repetition operator: `*`"),
        ("a**", "invalid nested repetition operator: `**`"),
        ("a+?{2}", "invalid nested repetition operator: `+?{2}`"),
        ("a{1001}", "invalid repeat count: `{1001}`"),
        ("a{3,2}", "invalid repeat count: `{3,2}`"),
        ("(a{100}){11}", "invalid repeat count: `{11}`"),
        ("[z-a]", "invalid character class range: `z-a`"),
        ("[[:nope:]]", "invalid character class range: `[:nope:]`"),
        ("\\p{Greek", "invalid character class range: `\\p{Greek`"),
        ("\\pX", "invalid character class range: `\\pX`"),
        ("\\q", "invalid escape sequence: `\\q`"),
        ("\\1", "invalid escape sequence: `\\1`"),
        ("\\xg0", "invalid escape sequence: `\\xg0`"),
        ("\\x{110000}", "invalid escape sequence: `\\x{110000`"),
        ("[\\C]", "invalid escape sequence: `\\C`"),
        ("\\", "trailing backslash at end of expression: ``"),
        ("(?z)", "invalid or unsupported Perl syntax: `(?z`"),
        ("(?=a)", "invalid or unsupported Perl syntax: `(?=`"),
        ("(?i-)", "invalid or unsupported Perl syntax: `(?i-)`"),
        ("(?P<n", "invalid named capture: `(?P<n`"),
        ("(?P<n m>a)", "invalid named capture: `(?P<n m>`"),
    ];
    for (pattern, message) in cases {
        let error = translate(pattern).expect_err(pattern).to_string();
        assert_eq!(error, format!("error parsing regexp: {message}"), "`{pattern}`");
    }
    let deep = "(".repeat(5000) + &")".repeat(5000);
    assert!(translate(&deep).expect_err("too deep").to_string().starts_with("error parsing regexp: expression nests too deeply"));
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { failure_persistence: None, ..Default::default() })]

    #[test]
    fn any_pattern_gives_an_answer(pattern in "[a-c.*+?(){}\\[\\]|^$\\\\0-9,:<>&~Qdwbx-]{0,16}") {
        if let Ok(translated) = translate(&pattern) {
            let anchored = format!("^(?s:{})$", translated.pattern);
            // The compiler refuses some that are too large, and names of groups that begin with a digit.
            if let Ok(regex) = regex::Regex::new(&anchored) {
                proptest::prop_assert_eq!(translated.matches_empty, regex.is_match(""), "{} became {}", pattern, anchored);
            } else {
                proptest::prop_assert!(pattern.contains("(?") || pattern.len() > 8, "{} became {}", pattern, anchored);
            }
        }
    }
}
