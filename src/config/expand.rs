//! `${NAME}` in a value becomes the text of an environment variable (contract section 2).
//!
//! Expansion happens after parsing, on one value at a time: what a variable holds is never read as YAML, and never
//! expanded again. `$${` stands for a literal `${`; a `$` that does not open a brace is an ordinary character, so most
//! passwords need no escape. Shell refinements such as `${NAME:-default}` are refused rather than half understood.

/// Why a value could not be expanded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unexpanded {
    /// The variable is not set.
    Unset(String),
    /// The variable holds bytes that are not UTF-8.
    NotUtf8(String),
    /// `${` without `}`, or something else than a variable name between them.
    Malformed,
}

/// What is known about a variable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup<'a> {
    /// It is not in the environment.
    Unset,
    /// It holds bytes that are not UTF-8.
    NotUtf8,
    /// It holds this text, possibly an empty one.
    Set(&'a str),
}

/// True where [`expand`] would look at more than the text itself.
#[must_use]
pub fn has_reference(text: &str) -> bool {
    text.contains("${")
}

/// Replaces every `${NAME}` with what `lookup` says.
///
/// # Errors
/// The first reference that cannot be replaced.
pub fn expand<'a>(text: &str, lookup: impl Fn(&str) -> Lookup<'a>) -> Result<String, Unexpanded> {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        if let Some(literal) = before.strip_suffix('$') {
            expanded.push_str(literal);
            expanded.push_str("${");
            rest = after;
            continue;
        }
        expanded.push_str(before);
        let (name, after) = after.split_once('}').ok_or(Unexpanded::Malformed)?;
        if !is_variable_name(name) {
            return Err(Unexpanded::Malformed);
        }
        match lookup(name) {
            Lookup::Set(value) => expanded.push_str(value),
            Lookup::Unset => return Err(Unexpanded::Unset(name.to_owned())),
            Lookup::NotUtf8 => return Err(Unexpanded::NotUtf8(name.to_owned())),
        }
        rest = after;
    }
    expanded.push_str(rest);
    Ok(expanded)
}

/// A portable variable name: letters, digits and underscores, not beginning with a digit (POSIX, chapter 8.1).
fn is_variable_name(name: &str) -> bool {
    !name.starts_with(|c: char| c.is_ascii_digit())
        && !name.is_empty()
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lookup(name: &str) -> Lookup<'static> {
        match name {
            "A" => Lookup::Set("one"),
            "EMPTY" => Lookup::Set(""),
            "NESTED" => Lookup::Set("${A}: [x]"),
            "BYTES" => Lookup::NotUtf8,
            _ => Lookup::Unset,
        }
    }

    #[test]
    fn references_are_replaced_and_everything_else_stays() {
        for (text, expected) in [
            ("plain", "plain"),
            ("${A}", "one"),
            ("x-${A}${A}-y", "x-oneone-y"),
            ("${EMPTY}", ""),
            ("$A $ $$ p$ss {A}", "$A $ $$ p$ss {A}"),
            ("$${A}", "${A}"),
            ("$$${A}", "$${A}"),
            ("$${A}${A}", "${A}one"),
            ("$${", "${"),
        ] {
            assert_eq!(expand(text, lookup).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_a_variable_holds_is_not_expanded_again() {
        assert_eq!(expand("${NESTED}", lookup).as_deref(), Ok("${A}: [x]"));
    }

    #[test]
    fn a_reference_that_cannot_be_replaced_says_why() {
        assert_eq!(expand("${NOPE}", lookup), Err(Unexpanded::Unset("NOPE".into())));
        assert_eq!(expand("${BYTES}", lookup), Err(Unexpanded::NotUtf8("BYTES".into())));
        for text in ["${", "${}", "${A", "${A:-x}", "${1A}", "${A B}", "${ü}", "${${A}}"] {
            assert_eq!(expand(text, lookup), Err(Unexpanded::Malformed), "{text}");
        }
    }
}
