//! The command line as a person or a script meets it: output, exit codes, refusals.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use reverie::EMBEDDED;
use reverie::rooms::files::safetensors::SafeTensors;
use reverie::rooms::files::{FileBytes, Quantisation, Weights};
use reverie::rooms::tensor::quant::QUANTS;

use crate::fixtures::root;

fn reverie(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_reverie")).args(args).stdin(Stdio::null()).output().expect("runs")
}

fn with_input(args: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_reverie"))
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    child.stdin.take().expect("stdin").write_all(input.as_bytes()).expect("writes");
    child.wait_with_output().expect("ends")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn fixture(name: &str) -> String {
    root().join(name).display().to_string()
}

/// A refusal: exit code, one paragraph on stderr with all of `words`, nothing on stdout.
fn refused(args: &[&str], code: i32, words: &[&str]) {
    let out = reverie(args);
    let err = text(&out.stderr);
    assert_eq!(out.status.code(), Some(code), "{args:?}: {err}");
    for word in words {
        assert!(err.contains(word), "{args:?} does not say '{word}': {err}");
    }
    assert!(!err.contains("panicked"), "{args:?}: {err}");
    assert!(out.stdout.is_empty(), "{args:?} wrote {}", text(&out.stdout));
}

/// A copy of a fixture that can be spoilt.
fn copy(name: &str) -> tempfile::TempDir {
    let to = tempfile::tempdir().expect("tempdir");
    for file in std::fs::read_dir(root().join(name)).expect("fixture").filter_map(Result::ok) {
        std::fs::copy(file.path(), to.path().join(file.file_name())).expect("copy");
    }
    to
}

fn edit_config(folder: &Path, edit: impl Fn(&mut serde_json::Map<String, serde_json::Value>)) -> String {
    let path = folder.join("config.json");
    let mut value: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).expect("read")).expect("json");
    edit(value.as_object_mut().expect("object"));
    std::fs::write(&path, value.to_string()).expect("write");
    folder.display().to_string()
}

#[test]
fn the_embedded_model_answers_a_pipe() {
    let out = with_input(&["chat", "--temperature", "0"], "What does Vec::push do?\n/stats\n");
    let said = text(&out.stdout);
    assert!(out.status.success(), "{}", text(&out.stderr));
    assert!(said.to_lowercase().contains("push") || said.to_lowercase().contains("element"), "{said}");
    assert!(said.contains("tok/s") && said.contains("reused"), "{said}");
}

#[test]
fn a_reader_that_leaves_is_not_an_error() {
    let folder = fixture("llama");
    let verbs: [&[&str]; 4] = [&["list"], &["doctor"], &["inspect", &folder], &["inspect", &folder, "--json"]];
    for args in verbs {
        let mut verb = Command::new(env!("CARGO_BIN_EXE_reverie"));
        let mut child = verb.args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
        drop(child.stdout.take());
        let out = child.wait_with_output().expect("ends");
        assert!(out.status.success() && out.stderr.is_empty(), "{args:?}: {}", text(&out.stderr));
    }
}

#[test]
fn it_recalls_what_it_was_told_two_turns_ago() {
    let out = with_input(&["chat", "--temperature", "0"], "The code for Zoe is 4711.\nWhat is the code for Zoe?\n");
    assert!(text(&out.stdout).contains("4711"), "{}", text(&out.stdout));
}

#[test]
fn the_same_seed_gives_the_same_text() {
    let model = fixture("qwen3");
    let go = |seed| reverie(&["generate", &model, "-p", "hello", "-n", "12", "--seed", seed]).stdout;
    assert_eq!(go("7"), go("7"));
    assert_ne!(go("7"), go("8"));
}

#[test]
fn generate_reports_as_json() {
    let out = reverie(&[
        "generate",
        &fixture("llama"),
        "-p",
        "th",
        "-n",
        "3",
        "--temperature",
        "0",
        "--json",
        "--logprobs",
        "2",
    ]);
    let value: serde_json::Value = serde_json::from_slice(&out.stdout).expect("json");
    assert_eq!(value["tokens"].as_array().map(Vec::len), Some(3), "{value}");
    assert!(value["tokens"][0]["logprob"].as_f64().expect("logprob") <= 0.0);
    assert_eq!(value["tokens"][0]["top"].as_array().map(Vec::len), Some(2));
    assert_eq!(value["finish"], "length");
}

#[test]
fn experts_may_stay_in_the_file() {
    let run = |experts: &str| {
        let args = ["generate", &fixture("olmoe"), "-p", "th", "-n", "5", "--temperature", "0", "--json", "--experts"];
        let out = reverie(&[&args[..], &[experts]].concat());
        serde_json::from_slice::<serde_json::Value>(&out.stdout).expect("json")
    };
    let (resident, lazy) = (run("resident"), run("lazy"));
    assert_eq!(lazy["tokens"], resident["tokens"]);
    assert!(resident["experts"].is_null() && lazy["experts"]["misses"].as_u64().expect("misses") > 0, "{lazy}");
}

#[test]
fn logits_are_written_whole_and_the_same_for_any_chunk() {
    let folder = tempfile::tempdir().expect("tempdir");
    let write = |name: &str, more: &[&str]| -> (PathBuf, Output) {
        let path = folder.path().join(name);
        let shown = path.display().to_string();
        let model = fixture("qwen3_5_text");
        let mut args = vec!["logits", &model, "--ids", "5,4,3,2,1,9,8,7", "--hidden", "--exact", "--out", &shown];
        args.extend(more);
        let out = reverie(&args);
        (path, out)
    };
    let (a, out) = write("a.safetensors", &["--json"]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    let told: serde_json::Value = serde_json::from_slice(&out.stdout).expect("json");
    assert_eq!((&told["ids"][7], &told["tensors"]["logits"][0]), (&7.into(), &8.into()), "{told}");
    let (b, _) = write("b.safetensors", &["--chunk", "3", "--threads", "1"]);
    assert_eq!(std::fs::read(a).expect("a"), std::fs::read(b).expect("b"));
}

#[test]
fn exact_logits_are_those_of_the_reference() {
    let folder = tempfile::tempdir().expect("tempdir");
    let out = folder.path().join("logits.safetensors");
    for model in ["llama", "gemma3_text", "qwen3_mlx"] {
        let json: serde_json::Value =
            serde_json::from_slice(&std::fs::read(root().join(model).join("reference.json")).expect("reference"))
                .expect("json");
        let ids: Vec<String> = json["input_ids"].as_array().expect("ids").iter().map(ToString::to_string).collect();
        let path = root().join(model).join("reference.safetensors");
        let file = SafeTensors::files(vec![FileBytes::map(&path).expect("map")]).expect("reference tensors");
        let weights = Weights::from_safetensors(&path, file, Quantisation::default(), QUANTS);
        let (shape, logits) = weights.tensor_f32("logits").expect("logits");
        let want: Vec<f64> = logits[logits.len() - shape[1]..].iter().map(|&v| f64::from(v)).collect();
        let shown = out.display().to_string();
        let run = reverie(&["logits", &fixture(model), "--ids", &ids.join(","), "--exact", "--out", &shown]);
        assert!(run.status.success(), "{}", text(&run.stderr));
        let bytes = std::fs::read(&out).expect("written");
        let last = &bytes[bytes.len() - want.len() * 4..];
        let got = last.chunks(4).map(|b| f64::from(f32::from_le_bytes(b.try_into().expect("four"))));
        let top = want.iter().fold(0.0f64, |m, v| m.max(v.abs()));
        let worst = got.zip(&want).fold(0.0f64, |m, (g, w)| m.max((g - w).abs()));
        assert!(worst <= 2e-4 * top, "{model}: {worst:e} of {top}");
    }
}

#[test]
fn inspect_list_and_doctor_speak_json() {
    let model = fixture("gemma3_text");
    let mut told = serde_json::Value::Null;
    for args in [vec!["inspect", &model, "--json"], vec!["list", "--json"], vec!["doctor", "--json"]] {
        let out = reverie(&args);
        assert!(out.status.success(), "{}", text(&out.stderr));
        told = serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{args:?}: {e}"));
    }
    // Numbers are numbers, lists are lists.
    assert!(told["threads"].as_u64() >= Some(1) && told["instruction_sets"][0] == "portable", "{told}");
}

#[test]
fn inspect_tells_what_each_layer_holds() {
    let out = reverie(&["inspect", &fixture("qwen3_mlx"), "--json"]);
    let told: serde_json::Value = serde_json::from_slice(&out.stdout).expect("json");
    let layers = told["layers"].as_array().expect("layers");
    // 4 bits but 2 and 6 in one matrix each of the first layer, 3 bits and bf16 in one each of the second.
    let parameters: Vec<_> = layers.iter().map(|l| l["parameters"].as_u64().expect("parameters")).collect();
    assert_eq!(parameters, [43_200, 43_200]);
    let bits: Vec<_> = layers.iter().map(|l| l["bits_per_weight"].as_f64().expect("bits")).collect();
    assert!((4.0..6.0).contains(&bits[0]) && (6.0..8.0).contains(&bits[1]), "{bits:?}");
    let whole = told["parameters"].as_u64().expect("parameters");
    assert!(parameters.iter().sum::<u64>() < whole);
    // A tower's layers are nobody's.
    let out = reverie(&["inspect", &fixture("gemma3"), "--json"]);
    let told: serde_json::Value = serde_json::from_slice(&out.stdout).expect("json");
    assert!(told["layers"].as_array().expect("layers").iter().all(|l| l["parameters"] == 10_912), "{told}");
}

#[test]
fn usage_mistakes_exit_with_2() {
    for args in
        [vec!["generate"], vec!["fly"], vec!["chat", "--top-p", "7"], vec!["generate", "x", "--memory", "4 bananas"]]
    {
        let out = with_input(&args, "");
        assert_eq!(out.status.code(), Some(2), "{args:?}: {}", text(&out.stderr));
    }
}

#[test]
fn refusals_name_the_thing() {
    let llama = fixture("llama");
    refused(&["generate", "./no/such/model", "-p", "x"], 1, &["./no/such/model", "not found"]);
    refused(&["logits", &llama, "--ids", "1,999999", "--out", "/dev/null"], 1, &["999999", "272"]);
    let long = "a".repeat(4000);
    refused(&["generate", &llama, "-p", &long], 1, &["512"]);
    refused(&["generate", &llama, "-p", "hi", "--memory", "10KB"], 1, &["budget", "10000"]);
    refused(&["generate", &llama, "-p", "hi", "--kv", "f7"], 2, &["f7", "bf16"]);
    for flag in ["--threads", "--chunk", "--context"] {
        refused(&["generate", &llama, "-p", "hi", flag, "0"], 2, &[flag, "'0'", "1"]);
    }
    refused(&["inspect", &llama, "--batch", "0"], 2, &["--batch", "'0'"]);
    refused(&["generate", &llama, "-p", "hi", "--stop", ""], 2, &["--stop"]);
    refused(&["logits", &llama, "--ids", "1", "--out", "/no/such/folder/f"], 1, &["/no/such/folder/f", "No such file"]);
}

#[test]
fn a_pipe_that_is_no_text_is_refused_by_line_and_byte() {
    for (args, words) in [(vec!["chat"], "line 2 of the input"), (vec!["generate", EMBEDDED], "the prompt on stdin")] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_reverie"));
        let mut child = child.args(&args).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
        child.stdin.take().expect("stdin").write_all(b"/help\nab\xffc\n").expect("writes");
        let out = child.wait_with_output().expect("ends");
        let err = text(&out.stderr);
        assert!(out.status.code() == Some(1) && err.contains(words) && err.contains("0xff"), "{err}");
    }
}

#[test]
fn questions_without_room_are_told_and_counted() {
    let long = format!("{}\n/stats\n", "word ".repeat(5000));
    let out = with_input(&["chat"], &long);
    assert_eq!(out.status.code(), Some(1));
    assert!(text(&out.stdout).contains("the context holds 4096"), "{}", text(&out.stdout));
    assert!(text(&out.stderr).contains("were not asked: 1"), "{}", text(&out.stderr));
}

#[test]
fn quantise_refuses_what_it_could_not_honour() {
    let folder = tempfile::tempdir().expect("tempdir");
    let target = folder.path().join("q").display().to_string();
    let llama = fixture("llama");
    for (flag, value, code, word) in [
        ("--bits", "7", 2, "2 or 3 or 4 or 5 or 6 or 8"),
        ("--group", "48", 2, "32 or 64 or 128"),
        ("--override", "down_proj", 2, "PATTERN=BITS"),
        ("--override", "down_proj=6", 1, "no module"),
    ] {
        refused(&["quantize", &llama, &target, flag, value], code, &[value.split('=').next().expect("a word"), word]);
    }
    assert!(!Path::new(&target).exists(), "nothing is written");
}

#[test]
fn what_fits_no_budget_is_refused_before_it_starts() {
    let prompt = "the ".repeat(40);
    let (mut refused, mut fits) = (1_000_000u64, 256_000_000u64);
    // Closer and closer to the least budget that does: none that is let in may fail half-way.
    while fits - refused > 20_000 {
        let budget = fits.midpoint(refused).to_string();
        let out =
            reverie(&["generate", &fixture("llama"), "-p", &prompt, "-n", "16", "--seed", "1", "--memory", &budget]);
        match out.status.success() {
            true => fits = fits.midpoint(refused),
            false => {
                assert!(text(&out.stderr).contains("tokens of context would take"), "{budget}: {}", text(&out.stderr));
                refused = fits.midpoint(refused);
            }
        }
    }
}

#[test]
fn broken_checkpoints_are_refused_by_name() {
    let spoil = |name: &str, change: &dyn Fn(&Path) -> String, words: &[&str]| {
        let folder = copy(name);
        let model = change(folder.path());
        refused(&["generate", &model, "-p", "x"], 1, words);
    };
    let path = |p: &Path| p.display().to_string();
    spoil(
        "llama",
        &|p| edit_config(p, |c| drop(c.insert("model_type".into(), "warp_drive".into()))),
        &["warp_drive", "llama"],
    );
    spoil("llama", &|p| edit_config(p, |c| drop(c.remove("hidden_size"))), &["hidden_size", "config.json"]);
    spoil(
        "llama",
        &|p| edit_config(p, |c| drop(c.insert("num_key_value_heads".into(), 3.into()))),
        &["num_key_value_heads", "3"],
    );
    spoil(
        "llama",
        &|p| edit_config(p, |c| drop(c.insert("intermediate_size".into(), 100.into()))),
        &["gate_proj", "48", "100"],
    );
    spoil("llama", &|p| edit_config(p, |c| c["hidden_act"] = "relu".into()), &["hidden_act", "relu", "silu"]);
    spoil("qwen3_5_text", &|p| edit_config(p, |c| c["layer_types"][1] = "telepathy".into()), &["telepathy"]);
    spoil("llama", &|p| edit_config(p, |c| c["rope_parameters"]["rope_type"] = "spiral".into()), &["spiral", "yarn"]);
    spoil(
        "llama",
        &|p| {
            std::fs::remove_file(p.join("tokenizer.json")).expect("remove");
            path(p)
        },
        &["tokenizer"],
    );
    for (name, content, field) in [
        ("tokenizer.json", "{}", "model"),
        ("tokenizer.json", "{\"model\":", "line 1"),
        ("generation_config.json", "{\"temperature\": -3}", "temperature"),
    ] {
        spoil(
            "llama",
            &|p| {
                std::fs::write(p.join(name), content).expect("write");
                path(p)
            },
            &[name, field, &std::env::temp_dir().display().to_string()],
        );
    }
    spoil(
        "llama",
        &|p| {
            let file = p.join("model.safetensors");
            let bytes = std::fs::read(&file).expect("read");
            std::fs::write(&file, &bytes[..bytes.len() / 2]).expect("write");
            path(p)
        },
        &["model.safetensors"],
    );
    spoil(
        "qwen3_sharded",
        &|p| {
            let shard = std::fs::read_dir(p)
                .expect("folder")
                .filter_map(Result::ok)
                .find(|e| e.file_name().to_string_lossy().contains("-00002-"))
                .expect("second shard");
            std::fs::remove_file(shard.path()).expect("remove");
            path(p)
        },
        &["-00002-"],
    );
    spoil(
        "llama",
        &|p| {
            let file = p.join("model.gguf");
            let bytes = std::fs::read(&file).expect("read");
            std::fs::write(&file, &bytes[..bytes.len() - 64]).expect("write");
            file.display().to_string()
        },
        &["model.gguf"],
    );
}

#[test]
fn a_template_that_raises_says_so() {
    let folder = tempfile::tempdir().expect("tempdir");
    let template = folder.path().join("t.jinja");
    std::fs::write(&template, "{{ raise_exception('only haiku, please') }}").expect("write");
    let shown = template.display().to_string();
    let out = with_input(&["chat", "--template", &shown], "hello\n");
    assert_eq!(out.status.code(), Some(1));
    assert!(text(&out.stderr).contains("only haiku, please"), "{}", text(&out.stderr));
}

#[test]
fn a_hub_id_is_fetched_once_and_kept() {
    let folder = root().join("qwen3");
    let files: Vec<(String, Vec<u8>)> =
        ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
            .iter()
            .map(|name| ((*name).to_owned(), std::fs::read(folder.join(name)).expect("fixture")))
            .collect();
    let listed: Vec<(&str, Vec<u8>)> = files.iter().map(|(n, b)| (n.as_str(), b.clone())).collect();
    let hub = crate::stand_in::StandIn::start(&listed);
    let cache = tempfile::tempdir().expect("tempdir");
    let go = |offline: &str| {
        Command::new(env!("CARGO_BIN_EXE_reverie"))
            .args(["generate", "o/n", "-p", "hello", "-n", "4", "--temperature", "0"])
            .env("HF_ENDPOINT", &hub.endpoint)
            .env("HF_HUB_CACHE", cache.path())
            .env("HF_HUB_OFFLINE", offline)
            .env_remove("HF_TOKEN")
            .output()
            .expect("runs")
    };
    let first = go("0");
    assert!(first.status.success(), "{}", text(&first.stderr));
    let local = reverie(&["generate", &fixture("qwen3"), "-p", "hello", "-n", "4", "--temperature", "0"]);
    assert_eq!(first.stdout, local.stdout);
    assert!(cache.path().join("models--o--n/refs/main").exists());
    assert_eq!(go("1").stdout, local.stdout, "from the cache, offline");
}

#[test]
fn what_is_neither_here_nor_at_the_hub_is_called_both() {
    let cache = tempfile::tempdir().expect("tempdir");
    let mut verb = Command::new(env!("CARGO_BIN_EXE_reverie"));
    verb.args(["generate", "models/llama", "-p", "x"]).env("HF_HUB_CACHE", cache.path()).env("HF_HUB_OFFLINE", "1");
    let err = text(&verb.output().expect("runs").stderr);
    assert!(err.contains("`models/llama` is not whole in the cache"), "{err}");
    assert!(err.contains("nor is there a folder or file 'models/llama' here"), "{err}");
}
