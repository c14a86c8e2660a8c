//! Names that the platform can live with (protocol 2.6).
//!
//! The platform accepts nearly any agent name when it joins, and then fails to list *all* agents because of one name
//! that its own pattern does not match. So the pattern is enforced here.

/// Longest name of an agent or a resource.
const MAX_NAME: usize = 63;

/// `^[a-z][a-z0-9-]{0,62}$`, the pattern of the platform's agent listing.
#[must_use]
pub fn is_agent_name(name: &str) -> bool {
    name.len() <= MAX_NAME
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
}

/// "The host name made valid (lower case, `[a-z0-9-]`, begins with a letter, at most 63)": other characters become
/// dashes, and a name that begins with none gets `agent-` in front. `None` where no letter or digit is left.
#[must_use]
pub fn agent_name_from_host(host_name: &str) -> Option<String> {
    let mapped: String = host_name
        .to_lowercase()
        .chars()
        .map(|c| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '-' })
        .collect();
    let core = mapped.trim_matches('-');
    let begins_with_letter = core.chars().next()?.is_ascii_lowercase();
    let mut name = if begins_with_letter { core.to_owned() } else { format!("agent-{core}") };
    name.truncate(MAX_NAME);
    Some(name.trim_end_matches('-').to_owned())
}

/// How good a resource's name is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResourceName {
    /// Matches the documented pattern: lower-case letters, digits, dots, dashes.
    Good,
    /// Outside the pattern, but nothing breaks: upper case, `_`, `~`, or a dash or dot in front.
    Odd,
    /// Cannot be connected to (too long), or breaks addresses that contain it.
    Unusable,
}

/// Judges a resource's name.
///
/// Only what cannot work is refused: machines that come from the Go agent have names like `my_db` that work.
#[must_use]
pub fn judge_resource_name(name: &str) -> ResourceName {
    // RFC 3986, 2.3: the unreserved characters mean themselves everywhere in an address; `.` and `..` as a whole do not.
    let unreserved = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | '~');
    if name.is_empty() || name.len() > MAX_NAME || name == "." || name == ".." || !name.chars().all(unreserved) {
        return ResourceName::Unusable;
    }
    let documented = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
    if name.chars().all(documented) && !name.starts_with(['-', '.']) { ResourceName::Good } else { ResourceName::Odd }
}

/// Whether a target could be meant: a host name or an address, no scheme, no path, no port.
#[must_use]
pub fn is_host(text: &str) -> bool {
    if text.parse::<std::net::IpAddr>().is_ok() {
        return true;
    }
    // Underscores are no host name characters, and common in the service names of compose files.
    let allowed = |c: char| c.is_alphanumeric() || matches!(c, '-' | '.' | '_');
    !text.is_empty() && text.len() <= 253 && text.chars().all(allowed)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn host_names_become_valid_agent_names() {
        for (host, name) in [
            ("web01", Some("web01")),
            ("Web01.Example.COM", Some("web01-example-com")),
            ("10-0-0-1", Some("agent-10-0-0-1")),
            ("my_host", Some("my-host")),
            ("-x-", Some("x")),
            ("büro", Some("b-ro")),
            ("", None),
            ("---", None),
            ("日本", None),
        ] {
            assert_eq!(agent_name_from_host(host).as_deref(), name, "{host}");
        }
        assert_eq!(agent_name_from_host(&"a".repeat(100)).unwrap().len(), 63);
    }

    #[test]
    fn agent_names_follow_the_pattern_of_the_platform() {
        for (name, valid) in [
            ("a", true),
            ("web-01-", true),
            ("", false),
            ("1a", false),
            ("-a", false),
            ("A", false),
            ("a.b", false),
            ("a_b", false),
            ("a b", false),
            ("ä", false),
        ] {
            assert_eq!(is_agent_name(name), valid, "{name}");
        }
        assert!(is_agent_name(&"a".repeat(63)));
        assert!(!is_agent_name(&"a".repeat(64)));
    }

    #[test]
    fn resource_names_are_refused_only_where_they_cannot_work() {
        use ResourceName::{Good, Odd, Unusable};
        for (name, judged) in [
            ("db", Good),
            ("db.internal", Good),
            ("10.0.0.5", Good),
            ("my_db", Odd),
            ("Wiki", Odd),
            ("-x", Odd),
            (".x", Odd),
            ("..", Unusable),
            ("", Unusable),
            ("a/b", Unusable),
            ("a?b", Unusable),
            ("a b", Unusable),
            ("ä", Unusable),
            ("::1", Unusable),
        ] {
            assert_eq!(judge_resource_name(name), judged, "{name}");
        }
        assert_eq!(judge_resource_name(&"a".repeat(63)), Good);
        assert_eq!(judge_resource_name(&"a".repeat(64)), Unusable);
    }

    #[test]
    fn a_target_is_a_host_and_no_address() {
        for (text, valid) in [
            ("db.internal", true),
            ("10.0.0.1", true),
            ("::1", true),
            ("fe80::1", true),
            ("my_db", true),
            ("http://wiki", false),
            ("wiki:80", false),
            ("wiki/", false),
            ("a b", false),
            ("", false),
        ] {
            assert_eq!(is_host(text), valid, "{text}");
        }
    }

    proptest! {
        #[test]
        fn every_made_name_is_valid(host in "\\PC{0,80}") {
            if let Some(name) = agent_name_from_host(&host) {
                prop_assert!(is_agent_name(&name), "{}", name);
            }
        }
    }
}
