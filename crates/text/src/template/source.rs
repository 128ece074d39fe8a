//! What is done to a template's source before it is compiled. `{% generation %}`, which marks for training what the assistant
//! wrote, becomes `{% with %}`, which has the same scope and prints nothing; sources that only an attacker would write are
//! refused. It refuses to know any other tag.

/// Longest source that is compiled; the longest in circulation have a quarter of it.
const MAX_BYTES: usize = 1 << 18;
/// Most lines, and most bytes in a line: the engine counts both in 16 bits.
const MAX_LINES: usize = 65_000;
/// Most `~` in one tag: the engine's time to compile them grows with the square.
const MAX_CONCATENATIONS: usize = 2_000;

/// Why a source is refused, and in which line.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) line: usize,
    pub(super) reason: String,
}

/// The source to compile; lines stay where they are.
pub(super) fn prepare(source: &str) -> Result<String, Refusal> {
    let refuse = |line, reason| Err(Refusal { line, reason });
    if source.len() > MAX_BYTES {
        return refuse(1, format!("{} bytes of template; expected at most {MAX_BYTES}", source.len()));
    }
    for (text, line) in source.split('\n').zip(1..) {
        if line > MAX_LINES || text.len() > MAX_LINES {
            return refuse(
                line,
                format!("a line of {} bytes; expected at most {MAX_LINES} bytes and lines", text.len()),
            );
        }
    }
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some((start, opener)) = next_opener(rest) {
        let (text, tag) = rest.split_at(start);
        out.push_str(text);
        let found = Tag::read(tag, opener);
        let (tag, after) = tag.split_at(found.len);
        if found.n_concatenations > MAX_CONCATENATIONS {
            let line = out.bytes().filter(|b| *b == b'\n').count() + 1;
            let n = found.n_concatenations;
            return refuse(line, format!("{n} concatenations in one tag; expected at most {MAX_CONCATENATIONS}"));
        }
        rest = after;
        match word(tag) {
            "generation" if opener == Opener::Block => out.push_str(&tag.replacen("generation", "with", 1)),
            "endgeneration" if opener == Opener::Block => out.push_str(&tag.replacen("endgeneration", "endwith", 1)),
            "raw" if opener == Opener::Block => {
                out.push_str(tag);
                let (raw, after) = after.split_at(end_of_raw(after));
                out.push_str(raw);
                rest = after;
            }
            _ => out.push_str(tag),
        }
    }
    out.push_str(rest);
    Ok(out)
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

/// First word of a tag.
fn word(tag: &str) -> &str {
    let inside = tag.get(2..).map_or("", |t| t.trim_start_matches(['-', '+']).trim_start());
    let end = inside.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(inside.len());
    inside.get(..end).unwrap_or_default()
}

/// Where raw text ends: at the tag that says so, or never.
fn end_of_raw(text: &str) -> usize {
    let mut tags = text.match_indices("{%").map(|(at, _)| at);
    tags.find(|at| text.get(*at..).is_some_and(|tag| word(tag) == "endraw")).unwrap_or(text.len())
}

struct Tag {
    len: usize,
    n_concatenations: usize,
}

impl Tag {
    /// Reads the tag that `text` begins with; closers inside quotes do not count.
    fn read(text: &str, opener: Opener) -> Self {
        let closer = match opener {
            Opener::Block => "%}",
            Opener::Comment => "#}",
            Opener::Expression => "}}",
        };
        if opener == Opener::Comment {
            let len = text.get(2..).and_then(|t| t.find(closer)).map_or(text.len(), |at| at + 2 + closer.len());
            return Self { len, n_concatenations: 0 };
        }
        let mut n_concatenations = 0;
        let mut quote: Option<char> = None;
        let mut escaped = false;
        for (at, c) in text.char_indices().skip(2) {
            match quote {
                _ if escaped => escaped = false,
                Some(_) if c == '\\' => escaped = true,
                Some(open) if c == open => quote = None,
                Some(_) => {}
                None if c == '"' || c == '\'' => quote = Some(c),
                None if c == '~' => n_concatenations += 1,
                None if text.get(at..).is_some_and(|t| t.starts_with(closer)) => {
                    return Self { len: at + closer.len(), n_concatenations };
                }
                None => {}
            }
        }
        Self { len: text.len(), n_concatenations }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_replaced_with_their_white_space_control() {
        let source = "{%- generation -%}\n{{ x }}\n{%+ endgeneration %}";
        assert_eq!(prepare(source).unwrap(), "{%- with -%}\n{{ x }}\n{%+ endwith %}");
        assert_eq!(prepare("{%generation%}{# {%#}{%endgeneration%}").unwrap(), "{%with%}{# {%#}{%endwith%}");
    }

    #[test]
    fn text_comments_strings_and_raw_stay() {
        for source in [
            "generation",
            "{# {% generation %} #}",
            "{# it's #}{# {% generation %} #}",
            "{{ '{% generation %}' }}",
            "{{ '\\'{% generation %}' }}",
            "{% set add_generation_prompt = generation %}",
            "{% raw %}{% generation %}{{ ' }}{% endraw %}",
            "{% generation2 %}{% generation_x %}",
            "{{'{% generation %}'}}",
            "{% if generation",
            "{% ",
            "{{ 'generation",
            "{",
            "{%",
        ] {
            assert_eq!(prepare(source).unwrap(), source);
        }
    }

    #[test]
    fn tags_after_raw_are_found() {
        let source = "{% raw %}{{ ' {%- endraw %}{% generation %}";
        assert_eq!(prepare(source).unwrap(), "{% raw %}{{ ' {%- endraw %}{% with %}");
    }

    #[test]
    fn what_only_an_attacker_writes_is_refused() {
        let long = format!("{}\n", " ".repeat(1023)).repeat(MAX_BYTES / 1024);
        assert!(prepare(&long).is_ok() && prepare(&format!("{long} ")).is_err());
        assert!(prepare(&"x".repeat(MAX_LINES)).is_ok() && prepare(&"x".repeat(MAX_LINES + 1)).is_err());
        assert!(prepare(&"\n".repeat(MAX_LINES - 1)).is_ok() && prepare(&"\n".repeat(MAX_LINES)).is_err());
        let many = format!("\n{{{{ 1{} }}}}", "~1".repeat(MAX_CONCATENATIONS + 1));
        assert_eq!(prepare(&many).unwrap_err().line, 2);
        assert!(prepare(&many.replacen("~1", "", 1)).is_ok());
        assert!(prepare(&format!("{{{{ '{}' }}}}", "~".repeat(MAX_CONCATENATIONS + 1))).is_ok());
    }
}
