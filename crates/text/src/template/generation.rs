//! `{% generation %}` marks, for training, which text the assistant wrote. Here they only have to be tolerated: they become
//! `{% with %}`, which has the same scope and prints nothing. It refuses to know any other tag.

use std::borrow::Cow;

/// The source with every generation block as a plain scope; lines stay where they are.
pub(super) fn as_scopes(source: &str) -> Cow<'_, str> {
    if !source.contains("generation") {
        return Cow::Borrowed(source);
    }
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    let mut raw = false;
    while let Some((start, opener)) = next_opener(rest) {
        let (text, tag) = rest.split_at(start);
        out.push_str(text);
        let end = tag_end(tag, opener);
        let (tag, after) = tag.split_at(end);
        let word = tag.get(2..).map_or("", |t| t.trim_start_matches(['-', '+']).trim_start());
        let word = word.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default();
        let replacement = match (opener, word) {
            (Opener::Block, "endraw") => {
                raw = false;
                None
            }
            _ if raw => None,
            (Opener::Block, "raw") => {
                raw = true;
                None
            }
            (Opener::Block, "generation") => Some("with"),
            (Opener::Block, "endgeneration") => Some("endwith"),
            _ => None,
        };
        match replacement {
            Some(new) => out.push_str(&tag.replacen(word, new, 1)),
            None if raw && opener != Opener::Block => {
                // Inside raw text nothing but its end counts, so only the opener is stepped over.
                let (head, tail) = rest.split_at(start + 2);
                out.push_str(head.get(start..).unwrap_or_default());
                rest = tail;
                continue;
            }
            None => out.push_str(tag),
        }
        rest = after;
    }
    out.push_str(rest);
    Cow::Owned(out)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Opener {
    Block,
    Comment,
    Expression,
}

fn next_opener(text: &str) -> Option<(usize, Opener)> {
    text.match_indices('{').find_map(|(at, _)| match text.as_bytes().get(at + 1) {
        Some(b'%') => Some((at, Opener::Block)),
        Some(b'#') => Some((at, Opener::Comment)),
        Some(b'{') => Some((at, Opener::Expression)),
        _ => None,
    })
}

/// Length of the tag that `text` begins with, quotes respected.
fn tag_end(text: &str, opener: Opener) -> usize {
    let closer = match opener {
        Opener::Block => "%}",
        Opener::Comment => "#}",
        Opener::Expression => "}}",
    };
    let mut quote: Option<char> = None;
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(2) {
        match quote {
            _ if escaped => escaped = false,
            Some(_) if c == '\\' => escaped = true,
            Some(open) if c == open => quote = None,
            Some(_) => {}
            None if opener != Opener::Comment && (c == '"' || c == '\'') => quote = Some(c),
            None if text.get(at..).is_some_and(|t| t.starts_with(closer)) => return at + closer.len(),
            None => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::as_scopes;

    #[test]
    fn tags_are_replaced_with_their_white_space_control() {
        let source = "{%- generation -%}\n{{ x }}\n{%+ endgeneration %}";
        assert_eq!(as_scopes(source), "{%- with -%}\n{{ x }}\n{%+ endwith %}");
    }

    #[test]
    fn text_comments_strings_and_raw_stay() {
        for source in [
            "generation",
            "{# {% generation %} #}",
            "{{ '{% generation %}' }}",
            "{% set add_generation_prompt = generation %}",
            "{% raw %}{% generation %}{{ ' }}{% endraw %}",
            "{% if generation",
            "{% ",
            "{{ 'generation",
        ] {
            assert_eq!(as_scopes(source), source);
        }
    }

    #[test]
    fn tags_after_raw_are_found() {
        assert_eq!(as_scopes("{% raw %}{{ ' {% endraw %}{% generation %}"), "{% raw %}{{ ' {% endraw %}{% with %}");
    }
}
