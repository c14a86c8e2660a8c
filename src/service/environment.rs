//! Reads a file of `EnvironmentFile=` as systemd.exec(5) describes it. Pure: text in, variables out.
//!
//! One `NAME=value` a line; `#` and `;` begin a comment; a value may stand in single or double quotes, and a backslash at
//! the end of a line goes on in the next. A line that is none of this is skipped, as systemd does.

/// The variables of a file, in its order; a later one wins for whoever collects them in a map.
#[must_use]
pub fn parse(text: &str) -> Vec<(String, String)> {
    let joined = text.replace("\\\n", "");
    joined.lines().filter_map(variable).collect()
}

fn variable(line: &str) -> Option<(String, String)> {
    let line = line.trim();
    if line.starts_with(['#', ';']) {
        return None;
    }
    let (name, value) = line.split_once('=')?;
    let name = name.trim();
    let valid = !name.is_empty()
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        && !name.starts_with(|c: char| c.is_ascii_digit());
    valid.then(|| (name.to_owned(), unquoted(value.trim())))
}

fn unquoted(value: &str) -> String {
    let single = value.strip_prefix('\'').and_then(|rest| rest.strip_suffix('\''));
    if let Some(literal) = single {
        return literal.to_owned();
    }
    let inner = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(value);
    let mut clean = String::with_capacity(inner.len());
    let mut characters = inner.chars();
    while let Some(character) = characters.next() {
        // A backslash keeps the next character as it is.
        clean.extend(if character == '\\' { characters.next() } else { Some(character) });
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_values_quotes_comments_and_continued_lines_are_read_as_systemd_does() {
        let text = "# comment\n; comment\nA=1\n B = two words \nC='single $X'\nD=\"double \\\"q\\\"\"\nE=long\\\ner\nnoise\n\
            1X=no\nF=\nA=2\n";
        let pairs = parse(text);
        let expected = [
            ("A", "1"),
            ("B", "two words"),
            ("C", "single $X"),
            ("D", "double \"q\""),
            ("E", "longer"),
            ("F", ""),
            ("A", "2"),
        ];
        let expected: Vec<_> = expected.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        assert_eq!(pairs, expected);
    }
}
