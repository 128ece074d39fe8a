//! Chat templates: Jinja as `transformers` runs it, so that a conversation becomes exactly the prompt a model was trained on.
//! Hostile templates run out of fuel instead of memory or time. It refuses to know tokens, models and what a message means.

mod json;
mod python;
mod repr;
mod source;
mod strftime;

use std::thread;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, ErrorKind, UndefinedBehavior, Value};
use serde_json::{Map, Value as Json};

use crate::config::SpecialTokens;
use crate::error::{Result, TextError};

pub use strftime::Clock;

/// Budget of one rendering, in `minijinja` fuel: one instruction or 64 bytes of data each. A message takes 50 to 200.
const FUEL: u64 = 4_000_000;
/// Address space for the stack of one compilation or rendering. Expressions can be nested as deep as the source is long, and
/// the compiler takes about 500 bytes a level; values can be nested as deep as the fuel reaches, and taking them apart
/// needs about 80 bytes a level, printing them 480; the fuel buys about two million levels. Only what is used is ever backed
/// by memory.
const STACK_BYTES: usize = 1 << 30;
/// Deepest nesting of calls and loops; the engine's own limit, kept here because it guards the stack.
const RECURSION_LIMIT: usize = 300;
const NAME: &str = "chat";

/// Whether the prompt ends with the opening of the assistant's turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum GenerationPrompt {
    /// The model is to answer.
    #[default]
    Add,
    /// The conversation as it is.
    Omit,
}

/// What a template is given.
#[derive(Debug, Clone, Copy, Default)]
pub struct RenderRequest<'a> {
    /// Messages as JSON objects: `role`, `content` (string or list of parts), `tool_calls` and what else the template reads.
    pub messages: &'a [Json],
    /// Tools as JSON schema objects; empty is "no tools", which a template sees as none.
    pub tools: &'a [Json],
    /// Documents to answer from; empty is none.
    pub documents: &'a [Json],
    /// Whether the assistant's turn is opened.
    pub generation_prompt: GenerationPrompt,
    /// Further variables of the template, such as `enable_thinking`.
    pub arguments: Option<&'a Map<String, Json>>,
}

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    special: SpecialTokens,
    source: String,
}

impl ChatTemplate {
    /// Compiles the Jinja source; the special tokens become variables such as `bos_token`.
    pub fn new(source: &str, special: SpecialTokens) -> Result<Self> {
        Self::with_clock(source, special, Clock::System)
    }

    /// As [`ChatTemplate::new`], with the time that `strftime_now` tells.
    pub fn with_clock(source: &str, special: SpecialTokens, clock: Clock) -> Result<Self> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|e| syntax_error(&e))?);
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_recursion_limit(RECURSION_LIMIT);
        environment.set_fuel(Some(FUEL));
        environment.set_debug(true);
        python::install(&mut environment);
        environment.add_filter("tojson", json::tojson);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", move |format: &str| strftime::format(clock, format));
        let prepared = source::prepare(source)
            .map_err(|refusal| TextError::TemplateSyntax { line: refusal.line, reason: refusal.reason })?;
        on_deep_stack(|| environment.add_template_owned(NAME, prepared).map_err(|e| syntax_error(&e)))?;
        Ok(Self { environment, special, source: source.to_owned() })
    }

    /// The Jinja source.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Renders a conversation to the text of a prompt.
    pub fn render(&self, request: &RenderRequest<'_>) -> Result<String> {
        on_deep_stack(|| self.render_here(request))
    }

    fn render_here(&self, request: &RenderRequest<'_>) -> Result<String> {
        let mut variables: Vec<(&str, Value)> =
            self.special.iter().map(|(name, token)| (name, Value::from(token))).collect();
        for (name, argument) in request.arguments.into_iter().flatten() {
            variables.retain(|(other, _)| other != name);
            variables.push((name, json::to_value(argument)));
        }
        let own = [
            ("messages", request.messages.iter().map(message).collect()),
            ("tools", none_if_empty(request.tools)),
            ("documents", none_if_empty(request.documents)),
            ("add_generation_prompt", Value::from(request.generation_prompt == GenerationPrompt::Add)),
        ];
        for (name, value) in own {
            if variables.iter().any(|(other, _)| *other == name) {
                let reason = format!("the argument {name:?} is not free to set; the conversation sets it");
                return Err(TextError::TemplateRender { line: None, reason });
            }
            variables.push((name, value));
        }
        let template = self.environment.get_template(NAME).map_err(|e| render_error(&e))?;
        template.render(Value::from_pairs(variables)).map_err(|e| render_error(&e))
    }
}

/// Runs the template engine where deep nesting has room. A thread of its own, because a stack cannot grow.
fn on_deep_stack<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let broken = |reason: String| TextError::TemplateRender { line: None, reason };
    thread::scope(|scope| {
        let builder = thread::Builder::new().name("chat-template".into()).stack_size(STACK_BYTES);
        let handle = builder
            .spawn_scoped(scope, work)
            .map_err(|e| broken(format!("cannot reserve {STACK_BYTES} bytes of address space for a stack: {e}")))?;
        handle.join().unwrap_or_else(|_| Err(broken("the template engine gave up".into())))
    })
}

/// A message with its thoughts under every name that templates read them by, as `transformers` hands it over
/// (`_alias_reasoning_fields` in utils/chat_template_utils.py).
fn message(message: &Json) -> Value {
    let thoughts = ["reasoning_content", "thinking", "reasoning"]
        .into_iter()
        .find_map(|name| message.get(name).filter(|v| !v.is_null()));
    let (Some(thoughts), Some(members)) = (thoughts, message.as_object()) else { return json::to_value(message) };
    let mut aliased = Map::from_iter([("thinking".to_owned(), thoughts.clone())]);
    aliased.extend(members.iter().map(|(name, member)| (name.clone(), member.clone())));
    aliased.insert("reasoning_content".into(), thoughts.clone());
    json::to_value(&Json::Object(aliased))
}

fn none_if_empty(list: &[Json]) -> Value {
    if list.is_empty() { Value::from(()) } else { json::list(list) }
}

/// Carries the words of `raise_exception` through the template engine's own error.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

fn raise_exception(message: String) -> Result<Value, minijinja::Error> {
    let error = minijinja::Error::new(ErrorKind::InvalidOperation, "raise_exception");
    Err(error.with_source(Raised(message)))
}

fn syntax_error(error: &minijinja::Error) -> TextError {
    TextError::TemplateSyntax { line: error.line().unwrap_or(1), reason: describe(error) }
}

fn render_error(error: &minijinja::Error) -> TextError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    let mut deepest = error;
    while let Some(inner) = cause {
        if let Some(Raised(message)) = inner.downcast_ref() {
            return TextError::TemplateRaised { message: message.clone() };
        }
        if let Some(inner) = inner.downcast_ref::<minijinja::Error>() {
            deepest = inner;
        }
        cause = inner.source();
    }
    let reason = match deepest.kind() {
        ErrorKind::OutOfFuel => format!("the template did too much work (more than {FUEL} steps) and was stopped"),
        _ => describe(deepest),
    };
    TextError::TemplateRender { line: deepest.line().or(error.line()), reason }
}

fn describe(error: &minijinja::Error) -> String {
    match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    }
}

#[cfg(test)]
mod tests;
