//! Whether an update that no person asked for may begin: contract section 2, `update.auto` and `update.window`.
//!
//! A timer knows nothing of either, so it asks at every turn and is told here. Staying back is no failure: a timer that
//! fails every night until Saturday teaches its operator to ignore it.

use jiff::civil::Weekday;

use crate::config::UpdateConfig;
use crate::config::window::Window;

/// Why an unattended update waits at this local day and minute of the day; `None` where it may begin.
#[must_use]
pub fn stays_back(config: &UpdateConfig, (weekday, minute): (Weekday, u16)) -> Option<String> {
    if !config.auto {
        return Some("unattended updates are off (update.auto)".to_owned());
    }
    let window = &config.window;
    match Window::parse(window) {
        Ok(spans) if spans.contains(weekday, minute) => None,
        Ok(_) => Some(format!(
            "unattended updates begin within update.window, {window:?}, and it is {weekday:?} {:02}:{:02}",
            minute / 60,
            minute % 60
        )),
        // What is not understood opens nothing.
        Err(error) => Some(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Environment, Overrides, interpret};

    fn config(auto: bool, window: &str) -> UpdateConfig {
        let environment = Environment::from_pairs([("BAMF_PLATFORM_URL", "https://bamf.test")]);
        let loaded = interpret(None, &Overrides::default(), &environment).unwrap();
        UpdateConfig { auto, window: window.to_owned(), ..loaded.config.update }
    }

    #[test]
    fn it_begins_only_where_it_is_switched_on_and_within_the_window() {
        let saturday = "Sat..Sun 02:00-05:00";
        let off = Some("unattended updates are off (update.auto)");
        let outside = Some("update.window, \"Sat..Sun 02:00-05:00\", and it is ");
        let at = |hour: u16, minute: u16| hour * 60 + minute;
        let table = [
            (false, "", Weekday::Monday, at(12, 0), off),
            (false, saturday, Weekday::Saturday, at(3, 0), off),
            (true, "", Weekday::Monday, at(12, 0), None),
            (true, saturday, Weekday::Saturday, at(2, 0), None),
            (true, saturday, Weekday::Sunday, at(4, 59), None),
            (true, saturday, Weekday::Saturday, at(1, 59), outside),
            (true, saturday, Weekday::Sunday, at(5, 0), outside),
            (true, saturday, Weekday::Monday, at(3, 7), Some("and it is Monday 03:07")),
            (true, "Fri 23:00-01:00", Weekday::Saturday, at(0, 30), None),
            (true, "whenever", Weekday::Saturday, at(3, 0), Some("\"whenever\" is no update window")),
        ];
        for (auto, window, weekday, minute, expected) in table {
            let said = stays_back(&config(auto, window), (weekday, minute));
            let agrees = match (&said, expected) {
                (Some(said), Some(part)) => said.contains(part),
                (said, expected) => said.is_none() && expected.is_none(),
            };
            assert!(agrees, "{auto} {window:?} {weekday:?} {minute}: {said:?}");
        }
    }
}
