//! Stop strings in a stream: text that may be the beginning of one is held back until it is certain.
//! It refuses to know tokens.

use crate::error::{Result, TextError};

/// What one push lets through.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Released {
    /// Text that is certain to stand before any stop string.
    pub text: String,
    /// Index of the stop string that was reached; nothing comes after it.
    pub stopped: Option<usize>,
}

/// Holds back what may become a stop string. The first stop string to be complete wins; of two that end together, the
/// longer. The result does not depend on how the text was cut into pushes.
#[derive(Debug, Clone)]
pub struct StopBuffer {
    stops: Vec<String>,
    held: String,
    stopped: Option<usize>,
}

impl StopBuffer {
    /// A buffer for these stop strings; with none, everything passes at once.
    pub fn new(stops: impl IntoIterator<Item = impl Into<String>>) -> Result<Self> {
        let stops: Vec<String> = stops.into_iter().map(Into::into).collect();
        if let Some(index) = stops.iter().position(String::is_empty) {
            return Err(TextError::EmptyStop { index });
        }
        Ok(Self { stops, held: String::new(), stopped: None })
    }

    /// Takes more text. After a stop everything is swallowed.
    pub fn push(&mut self, text: &str) -> Released {
        if self.stopped.is_some() {
            return Released { text: String::new(), stopped: self.stopped };
        }
        for c in text.chars() {
            self.held.push(c);
            if let Some((index, stop)) = self.complete() {
                self.held.truncate(self.held.len() - stop);
                self.stopped = Some(index);
                return Released { text: std::mem::take(&mut self.held), stopped: self.stopped };
            }
        }
        let waiting = self.waiting();
        let rest = self.held.split_off(self.held.len() - waiting);
        Released { text: std::mem::replace(&mut self.held, rest), stopped: None }
    }

    /// Ends the stream: what was held back was no stop string after all.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Index and length of the longest stop string that the held text ends with.
    fn complete(&self) -> Option<(usize, usize)> {
        let ending = self.stops.iter().enumerate().filter(|(_, stop)| self.held.ends_with(stop.as_str()));
        ending.map(|(index, stop)| (index, stop.len())).max_by_key(|(index, len)| (*len, std::cmp::Reverse(*index)))
    }

    /// Length of the longest end of the held text that begins a stop string.
    fn waiting(&self) -> usize {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0).saturating_sub(1);
        let earliest = self.held.len().saturating_sub(longest);
        let mut tails = self.held.char_indices().map(|(at, _)| at).filter(|at| *at >= earliest);
        tails
            .find(|at| self.stops.iter().any(|stop| stop.starts_with(&self.held[*at..])))
            .map_or(0, |at| self.held.len() - at)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Walks the whole text character by character and looks for every stop string at every end.
    fn naive(text: &str, stops: &[String]) -> (String, Option<usize>) {
        for (at, c) in text.char_indices() {
            let end = at + c.len_utf8();
            let mut best: Option<(usize, usize)> = None;
            for (index, stop) in stops.iter().enumerate() {
                let longer = best.is_none_or(|(_, len)| stop.len() > len);
                if longer && text[..end].ends_with(stop.as_str()) {
                    best = Some((index, stop.len()));
                }
            }
            if let Some((index, len)) = best {
                return (text[..end - len].to_owned(), Some(index));
            }
        }
        (text.to_owned(), None)
    }

    fn stream(chunks: &[String], stops: &[String]) -> (String, Option<usize>) {
        let mut buffer = StopBuffer::new(stops.iter().cloned()).unwrap();
        let mut out = String::new();
        let mut stopped = None;
        for chunk in chunks {
            let released = buffer.push(chunk);
            out.push_str(&released.text);
            stopped = released.stopped;
        }
        out.push_str(&buffer.finish());
        (out, stopped)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn streaming_is_searching_the_whole(
            chunks in prop::collection::vec("[abé]{0,4}", 0..8),
            stops in prop::collection::vec("[abé]{1,5}", 0..4),
        ) {
            let whole: String = chunks.concat();
            prop_assert_eq!(stream(&chunks, &stops), naive(&whole, &stops));
        }

        #[test]
        fn nothing_is_held_that_cannot_become_a_stop(text in "[abc]{0,12}", stop in "[ab]{1,4}") {
            let mut buffer = StopBuffer::new([stop.clone()]).unwrap();
            let released = buffer.push(&text);
            let held = buffer.finish();
            prop_assert!(released.stopped.is_some() || stop.starts_with(&held));
        }
    }

    #[test]
    fn half_a_stop_is_held_and_given_back() {
        let mut buffer = StopBuffer::new(["</end>"]).unwrap();
        assert_eq!(buffer.push("one </e").text, "one ");
        assert_eq!(buffer.push("at").text, "</eat");
        assert_eq!(buffer.push("</"), Released::default());
        assert_eq!(buffer.finish(), "</");
    }

    #[test]
    fn the_first_to_be_complete_wins() {
        let mut buffer = StopBuffer::new(["bcdef", "cd"]).unwrap();
        assert_eq!(buffer.push("abcdef"), Released { text: "ab".into(), stopped: Some(1) });
        assert_eq!(buffer.push("more"), Released { text: String::new(), stopped: Some(1) });
    }

    #[test]
    fn an_empty_stop_is_refused() {
        assert!(matches!(StopBuffer::new(["a", ""]), Err(TextError::EmptyStop { index: 1 })));
    }
}
