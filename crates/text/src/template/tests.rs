//! Against what Jinja2 renders (tests/golden/jinja.json), and against templates that mean harm.

use serde_json::{Map, Value as Json, json};

use super::*;

fn golden() -> Json {
    serde_json::from_str(include_str!("../../tests/golden/jinja.json")).unwrap()
}

/// 2024-07-26 08:05:09 UTC, as in the script that made the golden file.
const CLOCK: Clock = Clock::Fixed { unix_seconds: 1_721_981_109 };

fn compile(source: &str) -> Result<ChatTemplate> {
    let special = SpecialTokens::none().with("bos_token", "<s>").with("eos_token", "</s>");
    ChatTemplate::with_clock(source, special, CLOCK)
}

fn render(source: &str, messages: &[Json]) -> Result<String> {
    compile(source)?.render(&RenderRequest { messages, ..RenderRequest::default() })
}

#[test]
fn renders_as_jinja2_does() {
    let golden = golden();
    let mut n_texts = 0;
    for template in golden["templates"].as_array().unwrap() {
        let source = template["source"].as_str().unwrap();
        for run in template["runs"].as_array().unwrap() {
            let conversation = run["conversation"].as_u64().unwrap() as usize;
            let generation_prompt = match run["add_generation_prompt"].as_bool().unwrap() {
                true => GenerationPrompt::Add,
                false => GenerationPrompt::Omit,
            };
            let request = RenderRequest {
                messages: golden["conversations"][conversation].as_array().unwrap(),
                tools: if run["with_tools"] == true { golden["tools"].as_array().unwrap() } else { &[] },
                documents: &[],
                generation_prompt,
                arguments: run["arguments"].as_object(),
            };
            let ours = compile(source).and_then(|template| template.render(&request));
            match (run.get("text"), run.get("raised")) {
                (Some(text), _) => {
                    assert_eq!(ours.unwrap(), text.as_str().unwrap(), "{source}");
                    n_texts += 1;
                }
                (None, Some(raised)) => match ours {
                    Err(TextError::TemplateRaised { message }) => assert_eq!(message, raised.as_str().unwrap()),
                    other => panic!("{source}: {other:?}"),
                },
                (None, None) => assert!(ours.is_err(), "{source}: {ours:?}"),
            }
        }
    }
    assert!(n_texts > 100, "{n_texts}");
}

#[test]
fn keys_keep_their_order_and_numbers_their_kind() {
    let message: Json = serde_json::from_str(r#"{"z":1,"a":{"y":2.0,"b":18446744073709551615},"m":-0.0}"#).unwrap();
    let text = render("{{ messages[0] | tojson }}", &[message]).unwrap();
    assert_eq!(text, r#"{"z": 1, "a": {"y": 2.0, "b": 18446744073709551615}, "m": -0.0}"#);
}

#[test]
fn arguments_reach_the_template_and_cannot_replace_the_conversation() {
    let template = compile("{{ bos_token }}{{ flavour }}").unwrap();
    let arguments: Map<String, Json> =
        [("flavour".to_owned(), json!("mint")), ("bos_token".to_owned(), json!("B"))].into_iter().collect();
    let request = RenderRequest { arguments: Some(&arguments), ..RenderRequest::default() };
    assert_eq!(template.render(&request).unwrap(), "Bmint");
    let arguments: Map<String, Json> = [("messages".to_owned(), json!([]))].into_iter().collect();
    let request = RenderRequest { arguments: Some(&arguments), ..RenderRequest::default() };
    assert!(template.render(&request).unwrap_err().to_string().contains("messages"));
}

/// The field that a message brings is read by every name that templates give it.
#[test]
fn thoughts_are_found_under_all_their_names() {
    for name in ["reasoning_content", "thinking", "reasoning"] {
        let message = json!({"role": "assistant", name: "hm"});
        let text = render("{{ messages[0].reasoning_content }} {{ messages[0].thinking }}", &[message]).unwrap();
        assert_eq!(text, "hm hm", "{name}");
    }
}

/// Expected values: Jinja2 3.1, and json.dumps.
#[test]
fn rarer_filters_and_methods_are_those_of_python() {
    for (source, want) in [
        ("{{ 'a\n\nb\n' | indent }}", "a\n\n    b\n"),
        ("{{ 'a\n\nb' | indent(2, true) }}", "  a\n\n  b"),
        ("{{ 'a\n\nb' | indent(width=1, first=false, blank=true) }}", "a\n \n b"),
        ("{{ 'a\nb' | indent('> ', first=true) }}", "> a\n> b"),
        ("{{ 'a\nb' | indent(-1) }}", "a\nb"),
        ("{{ [1] | tojson(indent='--') }}", "[\n--1\n]"),
        ("{{ [1] | tojson(indent=-1) }}", "[\n1\n]"),
        ("{{ [1e308 * 10, -1e308 * 10] | tojson }}", "[Infinity, -Infinity]"),
        ("{{ 9007199254740993 | int }}", "9007199254740993"),
        ("{{ '1a'.isdecimal() }} {{ ''.isdecimal() }}", "False False"),
        ("{{ 'one  two '.rsplit() }}", "['one', 'two']"),
        ("{{ 'one two three'.rsplit(none, 1) }}", "['one two', 'three']"),
        ("{{ '+5'.zfill(4) }} {{ '5'.zfill(1) }}", "+005 5"),
    ] {
        assert_eq!(render(source, &[]).unwrap(), want, "{source}");
    }
}

#[test]
fn widths_end_where_they_should() {
    for (call, most) in [("[1] | tojson(indent=N)", 64), ("'a' | indent(N)", 256), ("'a'.ljust(N)", 4096)] {
        let with = |n: usize| render(&format!("{{{{ {} }}}}", call.replace('N', &n.to_string())), &[]);
        with(most).unwrap();
        let refused = with(most + 1).unwrap_err().to_string();
        assert!(refused.contains(&format!("at most {most}")), "{refused}");
    }
    assert!(render("{{ 'a' | indent(depth=3) }}", &[]).is_err(), "an argument that nobody reads");
}

#[test]
fn errors_name_the_line() {
    match compile("one\ntwo {% if %}") {
        Err(TextError::TemplateSyntax { line: 2, .. }) => {}
        other => panic!("{other:?}"),
    }
    match render("one\n\n{{ messages.nope.nope }}", &[]) {
        Err(TextError::TemplateRender { line: Some(3), .. }) => {}
        other => panic!("{other:?}"),
    }
    match render("{% macro f() %}\n\n{{ 1 + 'a' }}{% endmacro %}\n{{ f() }}", &[]) {
        Err(TextError::TemplateRender { line: Some(3), .. }) => {}
        other => panic!("{other:?}"),
    }
    match render("{%- macro f() %}{{ raise_exception('no ' ~ 'way') }}{% endmacro %}{{ f() }}", &[]) {
        Err(TextError::TemplateRaised { message }) => assert_eq!(message, "no way"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_system_clock_tells_a_year() {
    let template = ChatTemplate::new("{{ strftime_now('%Y') }}", SpecialTokens::none()).unwrap();
    let year: u32 = template.render(&RenderRequest::default()).unwrap().parse().unwrap();
    assert!(year >= 2024, "{year}");
}

/// Templates that would take for ever, fill the memory or exhaust the stack end with an error, soon.
#[test]
fn hostile_templates_are_stopped() {
    let deep_call = format!("{}1{}", "(".repeat(20_000), ")".repeat(20_000));
    let deep_list = "[".repeat(20_000);
    let deep_if = "{% if true %}".repeat(5_000);
    // As long as a line may be, and no longer.
    let long = 64_900;
    let chains = [
        format!("{{{{ {}1 }}}}", "not ".repeat(long / 4)),
        format!("{{{{ {}1 }}}}", "-".repeat(long)),
        format!("{{{{ x{} }}}}", ".a".repeat(long / 2)),
        format!("{{{{ x{} }}}}", "|e".repeat(long / 2)),
        format!("{{{{ x{} }}}}", "()".repeat(long / 2)),
        format!("{{{{ 1{} }}}}", "+1".repeat(long / 2)),
        format!("{{{{ 1{} }}}}", "~1".repeat(2_000)),
        format!("{{{{ {}1 }}}}", "-\n".repeat(64_000)),
        "{% raw %}{{".repeat(long / 11),
        format!("{{{{ 1{} }}}}", "**1".repeat(long / 3)),
        format!("{{{{ 1{} }}}}", " if 1 else 1".repeat(long / 12)),
        format!("{{% if 1 %}}{}{{% endif %}}", "{% elif 1 %}".repeat(long / 14)),
    ];
    let sources = [
        "{% for i in range(100000) %}{% for j in range(100000) %}x{% endfor %}{% endfor %}".to_owned(),
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}".to_owned(),
        "{% macro f(n) %}{% for i in range(9) %}{{ f(n) }}{% endfor %}{% endmacro %}{{ f(1) }}".to_owned(),
        "{% set ns = namespace(x='aaaaaaaaaaaaaaaa') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}".to_owned(),
        "{{ 'x' * 9999999999 }}".to_owned(),
        "{{ 'x'.ljust(9999999999) }}".to_owned(),
        "{{ range(99999999999) | list }}".to_owned(),
        "{{ [1] * 99999999999 }}".to_owned(),
        "{{ [1] | tojson(indent=999999999) }}".to_owned(),
        "{{ '%999999999d' | format(1) }}".to_owned(),
        "{{ '{:999999999}'.format(1) }}".to_owned(),
        "{% set ns = namespace(x=[]) %}{% for i in range(99999) %}{% set ns.x = [[[[ns.x]]]] %}{% endfor %}{{ ns.x | tojson }}".to_owned(),
        "{% for x in [[1]] recursive %}{{ loop([x]) }}{% endfor %}".to_owned(),
        format!("{{{{ {deep_call} }}}}"),
        format!("{{{{ {deep_list} }}}}"),
        deep_if,
        "{% generation %}".repeat(3_000),
        "{{ \u{0} }}".to_owned(),
        "{{ '\\ud800' }}".to_owned(),
        "{{ strftime_now('%Q%!') }}".to_owned(),
    ];
    for source in sources {
        let result = render(&source, &[]);
        assert!(result.is_err(), "{:.60}: {:.60}", source, result.unwrap());
    }
    // These may be allowed or refused, but they must come to an end.
    for source in chains {
        let _ = render(&source, &[]);
    }
}

#[test]
fn broken_sources_never_panic() {
    let golden = golden();
    for template in golden["templates"].as_array().unwrap().iter().rev().take(3) {
        let source = template["source"].as_str().unwrap();
        let boundaries: Vec<usize> = source.char_indices().map(|(at, _)| at).step_by(7).collect();
        for (n, at) in boundaries.iter().enumerate() {
            let _ = render(&source[..*at], &[json!({"role": "user", "content": "x"})]);
            let mut bytes: Vec<char> = source.chars().collect();
            let swap = (n * 31 + 5) % bytes.len();
            bytes.swap(n, swap);
            let _ = render(&bytes.into_iter().collect::<String>(), &[json!({"role": "user", "content": null})]);
        }
    }
}

#[test]
fn what_lies_inside_a_value_prints_as_in_python() {
    let message = json!({"role": "user", "content": ["a\u{2028}b", 1e20, null]});
    let source = "{{ messages[0] }} {{ messages[0] | string | length }}";
    let want = r"{'role': 'user', 'content': ['a\u2028b', 1e+20, None]} 54";
    assert_eq!(render(source, &[message]).unwrap(), want);
}

#[test]
fn dates_print_as_in_the_c_locale() {
    let source = "{{ strftime_now('%x %X %c %-d%%x') }}";
    assert_eq!(render(source, &[]).unwrap(), "07/26/24 08:05:09 Fri Jul 26 08:05:09 2024 26%x");
}
