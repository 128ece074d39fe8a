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
        Clock::System => Timestamp::now().to_zoned(TimeZone::system()),
        Clock::Fixed { unix_seconds } => Timestamp::from_second(unix_seconds)
            .map_err(|e| Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {e}")))?
            .to_zoned(TimeZone::UTC),
    };
    strtime::format(format, &now)
        .map_err(|e| Error::new(ErrorKind::InvalidOperation, format!("strftime_now({format:?}): {e}")))
}
