//! Checks that every `if`, `range`, `with`, `define` and `block` has its `end`: Go's parser does, `gotmpl`'s silently drops the rest.

const OPENERS: [&str; 5] = ["if", "range", "with", "define", "block"];

/// Checks a template text.
///
/// # Errors
/// `line: reason`.
pub(super) fn check(text: &str) -> Result<(), String> {
    let mut open: Vec<(&str, usize)> = Vec::new();
    let mut at = 0;
    while let Some(start) = text[at..].find("{{").map(|i| at + i) {
        let line = text[..start].matches('\n').count() + 1;
        let body = start + 2;
        let end = body + action_length(&text[body..]);
        let word = keyword(&text[body..end]);
        if OPENERS.contains(&word) {
            open.push((word, line));
        } else if word == "end" && open.pop().is_none() {
            return Err(format!("{line}: unexpected {{{{end}}}}"));
        } else if word == "else" && open.is_empty() {
            return Err(format!("{line}: unexpected {{{{else}}}}"));
        }
        at = end;
    }
    match open.pop() {
        Some((word, line)) => Err(format!("unexpected EOF: {{{{{word}}}}} of line {line} has no {{{{end}}}}")),
        None => Ok(()),
    }
}

/// The first word of an action, after a trim marker.
fn keyword(action: &str) -> &str {
    let action = action.strip_prefix('-').unwrap_or(action).trim_start();
    let end = action.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(action.len());
    &action[..end]
}

/// Bytes up to the closing delimiter; quotes and comments may contain it.
fn action_length(text: &str) -> usize {
    let trimmed = text.strip_prefix('-').unwrap_or(text).trim_start();
    if trimmed.starts_with("/*") {
        return text.find("*/").unwrap_or(text.len());
    }
    let bytes = text.as_bytes();
    let mut quote: Option<u8> = None;
    let mut i = 0;
    while i < bytes.len() {
        match (quote, bytes[i]) {
            (None, b'}') if bytes.get(i + 1) == Some(&b'}') => return i,
            (None, q @ (b'"' | b'`' | b'\'')) => quote = Some(q),
            (Some(b'"' | b'\''), b'\\') => i += 1,
            (Some(q), c) if q == c => quote = None,
            _ => {}
        }
        i += 1;
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::check;

    #[test]
    fn unbalanced_texts_are_refused_with_their_line() {
        for good in [
            "",
            "{{ if 1 }}a{{ else if 2 }}b{{ end }}",
            "{{- range . -}}{{- end -}}",
            "{{/* {{ if }} */}}",
            "{{ \"}} {{ end\" }}",
            "{{ `{{end` }}{{ 'x' }}",
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        assert_eq!(check("\n{{ end }}"), Err("2: unexpected {{end}}".to_owned()));
        assert_eq!(check("{{ else }}"), Err("1: unexpected {{else}}".to_owned()));
        assert_eq!(check("{{ if 1 }}{{ with 2 }}{{ end }}"), Err("unexpected EOF: {{if}} of line 1 has no {{end}}".to_owned()));
    }
}
