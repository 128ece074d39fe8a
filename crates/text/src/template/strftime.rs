//! `strftime_now`: the date that some templates write into their system message.
//! It refuses to know locales: names of days and months are English.

use jiff::Timestamp;
use jiff::fmt::strtime;
use jiff::tz::TimeZone;
use minijinja::{Error, ErrorKind};

/// Where a template's "now" comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clock {
    /// The system's clock and time zone.
    System,
    /// A fixed instant, in seconds since 1970 UTC, shown in UTC: for reproducible prompts.
    Fixed {
        /// Seconds since 1970-01-01T00:00:00Z.
        unix_seconds: i64,
    },
}

pub(super) fn format(clock: Clock, format: &str) -> Result<String, Error> {
    let now = match clock {
        Clock::System => Timestamp::now().to_zoned_datetime(TimeZone::system()),
        Clock::Fixed { unix_seconds } => Timestamp::from_second(unix_seconds)
            .map_err(|e| Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {e}")))?
            .to_zoned_datetime(TimeZone::UTC),
    };
    strtime::format(c_locale(format), &now)
        .map_err(|e| Error::new(ErrorKind::InvalidOperation, format!("strftime_now({format:?}): {e}")))
}

/// The three directives that depend on a locale, written out as the C locale has them, in which Python runs.
fn c_locale(format: &str) -> String {
    let mut out = String::with_capacity(format.len());
    let mut rest = format.chars();
    while let Some(c) = rest.next() {
        let directive = if c == '%' { rest.next() } else { None };
        match directive {
            Some('c') => out.push_str("%a %b %e %H:%M:%S %Y"),
            Some('x') => out.push_str("%m/%d/%y"),
            Some('X') => out.push_str("%H:%M:%S"),
            directive => {
                out.push(c);
                out.extend(directive);
            }
        }
    }
    out
}
