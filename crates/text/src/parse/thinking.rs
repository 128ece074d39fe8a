//! Splits `<think>…</think>` from an answer while it streams. The line breaks that set the block off belong to neither part.
//! It refuses to know which model writes such marks.

use super::Part;

/// The marks around a thought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ThinkingMarks {
    /// Opens a thought.
    pub open: String,
    /// Closes it.
    pub close: String,
}

impl Default for ThinkingMarks {
    /// `<think>` and `</think>`.
    fn default() -> Self {
        Self { open: "<think>".into(), close: "</think>".into() }
    }
}

/// Streaming parser. Only a mark at the very beginning of the answer opens a thought: later ones are quotations.
#[derive(Debug, Clone)]
pub struct ThinkingParser {
    marks: ThinkingMarks,
    state: State,
    held: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// White space so far; a thought may still open.
    Before,
    /// Inside the thought, before its first character.
    ThoughtBegins,
    Thought,
    /// After the thought, before the first character of the text.
    TextBegins,
    Text,
}

impl ThinkingParser {
    /// A parser for an answer to this prompt: one that ends with the opening mark has already begun the thought.
    pub fn for_prompt(prompt: &str, marks: ThinkingMarks) -> Self {
        let thinking = !marks.open.is_empty() && prompt.trim_end().ends_with(&marks.open);
        let state = if thinking { State::ThoughtBegins } else { State::Before };
        Self { marks, state, held: String::new() }
    }

    /// Takes more text and returns what has become certain.
    pub fn push(&mut self, text: &str) -> Vec<Part> {
        self.held.push_str(text);
        let mut parts = Vec::new();
        loop {
            let before = (self.state, self.held.len());
            self.step(&mut parts);
            if (self.state, self.held.len()) == before {
                return parts;
            }
        }
    }

    /// Ends the answer: what was held back is part of it after all.
    pub fn finish(&mut self) -> Vec<Part> {
        let rest = std::mem::take(&mut self.held);
        let mut parts = Vec::new();
        match self.state {
            State::Before | State::Text => emit(&mut parts, Part::Text, &rest),
            State::TextBegins => emit(&mut parts, Part::Text, rest.trim_start_matches(LINE_BREAKS)),
            State::ThoughtBegins => emit(&mut parts, Part::Thinking, rest.trim_matches(LINE_BREAKS)),
            State::Thought => emit(&mut parts, Part::Thinking, rest.trim_end_matches(LINE_BREAKS)),
        }
        self.state = State::Text;
        parts
    }

    fn step(&mut self, parts: &mut Vec<Part>) {
        match self.state {
            State::Before => {
                let begun = self.held.trim_start();
                if begun.is_empty() {
                } else if !self.marks.open.is_empty() && begun.starts_with(&self.marks.open) {
                    self.held = begun[self.marks.open.len()..].to_owned();
                    self.state = State::ThoughtBegins;
                } else if !self.marks.open.starts_with(begun) {
                    self.state = State::Text;
                }
            }
            State::ThoughtBegins => {
                self.held = self.held.trim_start_matches(LINE_BREAKS).to_owned();
                if !self.held.is_empty() {
                    self.state = State::Thought;
                }
            }
            State::Thought => {
                if let Some((thought, after)) = self.held.split_once(self.marks.close.as_str()) {
                    emit(parts, Part::Thinking, thought.trim_end_matches(LINE_BREAKS));
                    self.held = after.to_owned();
                    self.state = State::TextBegins;
                } else {
                    let sure = self.held.len() - tail(&self.held, &self.marks.close);
                    let sure = self.held[..sure].trim_end_matches(LINE_BREAKS).len();
                    let rest = self.held.split_off(sure);
                    emit(parts, Part::Thinking, &std::mem::replace(&mut self.held, rest));
                }
            }
            State::TextBegins => {
                self.held = self.held.trim_start_matches(LINE_BREAKS).to_owned();
                if !self.held.is_empty() {
                    self.state = State::Text;
                }
            }
            State::Text => emit(parts, Part::Text, &std::mem::take(&mut self.held)),
        }
    }
}

const LINE_BREAKS: [char; 2] = ['\n', '\r'];

fn emit(parts: &mut Vec<Part>, kind: fn(String) -> Part, text: &str) {
    if !text.is_empty() {
        parts.push(kind(text.to_owned()));
    }
}

/// Length of the longest end of `text` that begins `mark`.
fn tail(text: &str, mark: &str) -> usize {
    let lengths = mark.char_indices().map(|(at, _)| at).rev();
    lengths.into_iter().find(|at| text.ends_with(&mark[..*at])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Parts of one kind joined.
    fn parse(prompt: &str, chunks: &[&str]) -> (String, String) {
        let mut parser = ThinkingParser::for_prompt(prompt, ThinkingMarks::default());
        let mut parts: Vec<Part> = chunks.iter().flat_map(|chunk| parser.push(chunk)).collect();
        parts.extend(parser.finish());
        let (mut thinking, mut text) = (String::new(), String::new());
        for part in parts {
            match part {
                Part::Thinking(t) => {
                    assert!(text.is_empty(), "a thought after text");
                    thinking.push_str(&t);
                }
                Part::Text(t) => text.push_str(&t),
            }
        }
        (thinking, text)
    }

    #[test]
    fn a_thought_and_an_answer() {
        let expected = ("12 + 30\nis 42".to_owned(), "It is 42.\n".to_owned());
        assert_eq!(parse("", &["<think>\n12 + 30\nis 42\n</think>\n\nIt is 42.\n"]), expected);
        assert_eq!(parse("", &["<th", "ink>", "\n12 + 30", "\nis 42\n</th", "ink>\n", "\nIt is 42.\n"]), expected);
        assert_eq!(parse("…<think>\n", &["12 + 30\nis 42\n</think>", "\n\nIt is 42.\n"]), expected);
    }

    #[test]
    fn text_without_a_thought_passes_untouched() {
        for answer in ["  Yes.\n", "\n", "<thin", "a <think> b </think> c", "</think>"] {
            assert_eq!(parse("", &[answer]), (String::new(), answer.to_owned()));
        }
    }

    #[test]
    fn an_unfinished_thought_is_a_thought() {
        assert_eq!(parse("", &["<think>\nhm </thi"]), ("hm </thi".to_owned(), String::new()));
        assert_eq!(parse("", &["<think>\n\n</think>\n\nYes"]), (String::new(), "Yes".to_owned()));
    }

    #[test]
    fn text_is_not_held_back_once_it_began() {
        let mut parser = ThinkingParser::for_prompt("", ThinkingMarks::default());
        assert_eq!(parser.push("Hello <"), [Part::Text("Hello <".into())]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn chunks_make_no_difference(
            pieces in prop::collection::vec(
                prop::sample::select(vec!["<", "<think>", "</think>", "</", "think", ">", "\n", " ", "é", "word"]), 0..12),
            cuts in prop::collection::vec(0_usize..40, 0..6),
        ) {
            let whole = pieces.concat();
            let mut places: Vec<usize> = cuts.into_iter().filter(|at| whole.is_char_boundary(*at)).collect();
            places.extend([0, whole.len()]);
            places.sort_unstable();
            let chunks: Vec<&str> = places.windows(2).map(|w| &whole[w[0]..w[1]]).collect();
            prop_assert_eq!(parse("", &chunks), parse("", &[&whole]));
        }
    }
}
