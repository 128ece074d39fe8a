//! `generate`: continues a prompt on stdout.

use std::io::{Read, Write};

use clap::builder::NonEmptyStringValueParser;
use reverie::rooms::engine::sample::TokenLogprob;
use reverie::rooms::text::Specials;
use reverie::{Delta, Finish, GenerateSpec, LoadedModel, Reason, Session};
use serde_json::{Value, json};

use super::UsageError;
use super::remember::{Remembered, StateArgs, follow};
use super::shared::{LoadArgs, SamplerArgs, experts_json, progress_bar, utf8};

/// Arguments of `generate`.
#[derive(clap::Args)]
pub struct Args {
    /// Folder, .gguf file, the embedded model's name, or hub id owner/name
    model: String,
    /// The prompt; without it, stdin
    #[arg(short, long)]
    prompt: Option<String>,
    /// Put the prompt through the chat template as a user's message
    #[arg(long)]
    chat: bool,
    /// Most new tokens
    #[arg(short = 'n', long, value_name = "N", default_value_t = 256)]
    max_tokens: usize,
    /// Text that ends the answer; may be given several times
    #[arg(long, value_name = "TEXT", value_parser = NonEmptyStringValueParser::new())]
    stop: Vec<String>,
    /// Report log-probabilities of each token and its N best alternatives (with --json)
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "0", requires = "json")]
    logprobs: Option<usize>,
    /// One JSON object at the end instead of streamed text
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    state: StateArgs,
    #[command(flatten)]
    load: LoadArgs,
    #[command(flatten)]
    sampler: SamplerArgs,
}

/// Streams the continuation.
pub fn run(args: Args) -> anyhow::Result<()> {
    let prompt = match args.prompt {
        Some(p) => p,
        None => {
            let mut bytes = Vec::new();
            std::io::stdin().read_to_end(&mut bytes)?;
            utf8(bytes, "the prompt on stdin")?
        }
    };
    if prompt.is_empty() {
        return Err(UsageError("found an empty prompt, expected text by -p or on stdin".into()).into());
    }
    let model = args.load.load(&args.model)?;
    let spec = GenerateSpec {
        sampler: args.sampler.over(model.voice().sampler_defaults())?,
        max_tokens: Some(args.max_tokens),
        stops: args.stop,
        logprobs: args.logprobs,
        ..GenerateSpec::default()
    };
    let remembered = args.state.wake(&model)?;
    let mut out = Out { json: args.json, ..Out::default() };
    let conversation = args.chat || remembered.as_ref().is_some_and(Remembered::is_conversation);
    let finish = match remembered {
        Some(remembered) if conversation => {
            let mut conversation = remembered.conversation(&model)?;
            let bar = progress_bar(0, READING);
            let mut broken = None;
            let finish = conversation.ask(model.voice(), &prompt, spec, &mut |p| follow(&bar, p), &mut |delta| {
                bar.finish_and_clear();
                broken = broken.take().or(out.hear(delta).err());
            })?;
            broken.map_or(Ok(()), Err)?;
            if conversation.name().is_some() {
                conversation.sleep()?;
            }
            finish
        }
        Some(mut remembered) => {
            let (mut ids, mut text) = remembered.plain(&model)?;
            // A text that goes on is not framed a second time.
            let specials = if ids.is_empty() { Specials::ParseAndFrame } else { Specials::Parse };
            ids.extend(model.voice().tokenizer.encode(&prompt, specials)?);
            text.push_str(&prompt);
            let spec = GenerateSpec { follows: remembered.generator()?, ..spec };
            let mut session = std::mem::replace(&mut remembered.session, model.session());
            let (finish, chosen) = stream(&model, &mut session, (&ids, ""), spec, &mut out)?;
            // The last token of an answer that was cut short is read too: it is part of the text.
            ids.extend(&out.ids);
            session.sync(&ids, &mut |_| reverie::Go::On)?;
            text.push_str(&model.voice().decode(&out.ids)?);
            remembered.sleep_plain(&mut session, text, chosen)?;
            finish
        }
        None if args.chat => {
            let message = json!({"role": "user", "content": prompt});
            let text = model.voice().render(&[message], &[], &serde_json::Map::new())?;
            let ids = model.voice().encode_rendered(&text)?;
            stream(&model, &mut model.session(), (&ids, &text), spec, &mut out)?.0
        }
        None => {
            let ids = model.voice().encode_text(&prompt)?;
            stream(&model, &mut model.session(), (&ids, ""), spec, &mut out)?.0
        }
    };
    out.end(&finish, experts_json(model.engine().model()))
}

const READING: &str = "reading [{bar:30}] {pos}/{len} tokens";

/// Reads `ids`, then hands every piece of the answer to `out`. Gives its end, and how it was chosen.
fn stream(
    model: &LoadedModel,
    session: &mut Session,
    (ids, text): (&[u32], &str),
    spec: GenerateSpec,
    out: &mut Out,
) -> anyhow::Result<(Finish, Value)> {
    let bar = progress_bar(ids.len() as u64, READING);
    let mut generation = model.generate_ids(session, (ids, text), spec, &mut |p| follow(&bar, p))?;
    bar.finish_and_clear();
    for delta in generation.by_ref() {
        out.hear(&delta?)?;
    }
    Ok((generation.finish(), generation.chosen()?))
}

/// The answer on its way to stdout: streamed, or gathered for one JSON object.
#[derive(Default)]
struct Out {
    json: bool,
    ids: Vec<u32>,
    answer: String,
    thinking: String,
    tokens: Vec<Value>,
}

impl Out {
    fn hear(&mut self, delta: &Delta) -> anyhow::Result<()> {
        self.ids.extend(delta.token);
        if !self.json {
            let mut out = std::io::stdout().lock();
            write!(out, "{}{}", delta.thinking, delta.text)?;
            out.flush()?;
            return Ok(());
        }
        self.answer.push_str(&delta.text);
        self.thinking.push_str(&delta.thinking);
        if let Some(id) = delta.token {
            let one = |t: &TokenLogprob| json!({"id": t.id, "logprob": t.logprob});
            self.tokens.push(match &delta.logprobs {
                Some(l) => {
                    json!({"id": id, "logprob": l.chosen.logprob, "top": l.top.iter().map(one).collect::<Vec<_>>()})
                }
                None => json!({"id": id}),
            });
        }
        Ok(())
    }

    fn end(self, finish: &Finish, experts: Value) -> anyhow::Result<()> {
        if !self.json {
            say!()?;
            return Ok(());
        }
        let u = finish.usage;
        let value = json!({
            "text": self.answer,
            "thinking": self.thinking,
            "tokens": self.tokens,
            "finish": reason(&finish.reason),
            "prompt_tokens": u.prompt_tokens,
            "reused_tokens": u.reused_tokens,
            "answer_tokens": u.answer_tokens,
            "prefill_ms": u.prefill.as_secs_f64() * 1e3,
            "decode_ms": u.decode.as_secs_f64() * 1e3,
            "experts": experts,
        });
        say!("{}", serde_json::to_string_pretty(&value)?)?;
        Ok(())
    }
}

/// The word for why an answer ended.
pub fn reason(r: &Reason) -> String {
    match r {
        Reason::End => "end".into(),
        Reason::Stop(s) => format!("stop: {s}"),
        Reason::Length => "length".into(),
        Reason::Context => "context".into(),
        Reason::Cancelled => "cancelled".into(),
    }
}
