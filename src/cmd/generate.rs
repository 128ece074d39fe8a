//! `generate`: continues a prompt on stdout.

use std::io::{Read, Write};

use reverie::{GenerateSpec, Reason};
use serde_json::json;

use super::UsageError;
use super::shared::{LoadArgs, SamplerArgs, progress_bar};

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
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Report log-probabilities of each token and its N best alternatives (with --json)
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "0", requires = "json")]
    logprobs: Option<usize>,
    /// One JSON object at the end instead of streamed text
    #[arg(long)]
    json: bool,
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
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text)?;
            text
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
    let mut session = model.session();
    let (ids, text) = if args.chat {
        let message = json!({"role": "user", "content": prompt});
        let text = model.voice().render(&[message], &[], &serde_json::Map::new())?;
        (model.voice().encode_rendered(&text)?, text)
    } else {
        (model.voice().encode_text(&prompt)?, String::new())
    };
    let bar = progress_bar(ids.len() as u64, "reading [{bar:30}] {pos}/{len} tokens");
    let mut generation = model.generate_ids(&mut session, (&ids, &text), spec, &mut |p| {
        bar.set_position(p.done as u64);
        reverie::Go::On
    })?;
    bar.finish_and_clear();
    let mut out = std::io::stdout().lock();
    let (mut answer, mut thinking, mut tokens) = (String::new(), String::new(), Vec::new());
    for delta in generation.by_ref() {
        let delta = delta?;
        if args.json {
            answer.push_str(&delta.text);
            thinking.push_str(&delta.thinking);
            if let Some(id) = delta.token {
                let one = |t: &reverie::rooms::engine::sample::TokenLogprob| json!({"id": t.id, "logprob": t.logprob});
                tokens.push(match &delta.logprobs {
                    Some(l) => {
                        json!({"id": id, "logprob": l.chosen.logprob, "top": l.top.iter().map(one).collect::<Vec<_>>()})
                    }
                    None => json!({"id": id}),
                });
            }
        } else {
            write!(out, "{}{}", delta.thinking, delta.text)?;
            out.flush()?;
        }
    }
    let finish = generation.finish();
    if args.json {
        let u = finish.usage;
        let value = json!({
            "text": answer,
            "thinking": thinking,
            "tokens": tokens,
            "finish": reason(&finish.reason),
            "prompt_tokens": u.prompt_tokens,
            "reused_tokens": u.reused_tokens,
            "answer_tokens": u.answer_tokens,
            "prefill_ms": u.prefill.as_secs_f64() * 1e3,
            "decode_ms": u.decode.as_secs_f64() * 1e3,
        });
        writeln!(out, "{}", serde_json::to_string_pretty(&value)?)?;
    } else {
        writeln!(out)?;
    }
    Ok(())
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
