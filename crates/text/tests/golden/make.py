"""Makes the golden files of this folder: what Jinja2 renders, what SentencePiece, `tokenizers` and the `regex` module cut.

Needs: jinja2, sentencepiece, tokenizers, regex (from PyPI). Run in this folder: python make.py
Jinja2 is set up as transformers sets it up for chat templates (utils/chat_template_utils.py): immutable sandbox,
trim_blocks, lstrip_blocks, loop controls, tojson by json.dumps.
"""

import datetime
import json
import os
import tempfile

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox
import regex
import sentencepiece
import tokenizers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

VERSIONS = {m.__name__: m.__version__ for m in (jinja2, sentencepiece, tokenizers, regex)}


def save(name, content):
    with open(name, "w", encoding="utf-8") as f:
        json.dump({"versions": VERSIONS, **content}, f, ensure_ascii=False, indent=1)
        f.write("\n")


# ---------------------------------------------------------------- templates


class Generation(jinja2.ext.Extension):
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller):
        return caller()


def environment():
    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def strftime_now(form):
        return datetime.datetime(2024, 7, 26, 8, 5, 9).strftime(form)

    env = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = strftime_now
    return env


CHATML = """{%- if tools %}
{{- '<|im_start|>system\\n' }}
{%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
{{- "# Tools\\n<tools>" }}
{%- for tool in tools %}
{{- "\\n" }}{{- tool | tojson }}
{%- endfor %}
{{- "\\n</tools><|im_end|>\\n" }}
{%- endif %}
{%- set ns = namespace(last=-1) %}
{%- for message in messages[::-1] %}
{%- if message.role == 'user' and ns.last == -1 %}{%- set ns.last = messages|length - loop.index %}{%- endif %}
{%- endfor %}
{%- for message in messages %}
{%- if message.content is string %}{%- set content = message.content %}{%- else %}{%- set content = '' %}{%- endif %}
{%- if message.role == 'assistant' %}
{%- set thought = '' %}
{%- if message.reasoning_content is string %}{%- set thought = message.reasoning_content %}
{%- elif '</think>' in content %}
{%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
{%- set content = content.split('</think>')[-1].lstrip('\\n') %}
{%- endif %}
{{- '<|im_start|>assistant\\n' }}
{%- if loop.index0 > ns.last and thought %}{{- '<think>\\n' ~ thought.strip('\\n') ~ '\\n</think>\\n\\n' }}{%- endif %}
{{- content }}
{%- for call in message.tool_calls or [] %}
{%- set call = call.function or call %}
{{- '\\n<tool_call>\\n{"name": "' ~ call.name ~ '", "arguments": ' }}
{{- call.arguments if call.arguments is string else call.arguments | tojson }}{{- '}\\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- elif message.role == 'tool' %}
{%- if loop.first or loop.previtem.role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}
{{- '\\n<tool_response>\\n' + content + '\\n</tool_response>' }}
{%- if loop.last or loop.nextitem.role != 'tool' %}{{- '<|im_end|>\\n' }}{%- endif %}
{%- elif not (tools and loop.first and message.role == 'system') %}
{{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""

INST = """{%- if messages and messages[0]['role'] == 'system' %}
  {%- set system = messages[0]['content'] | trim %}
  {%- set rest = messages[1:] %}
{%- else %}
  {%- set rest = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in rest %}
  {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
    {{- raise_exception('roles must alternate user/assistant/user/assistant') }}
  {%- endif %}
  {%- if message['role'] == 'user' %}
    {%- if loop.first and system is defined %}
      {{- '[INST] <<SYS>>\\n' ~ system ~ '\\n<</SYS>>\\n\\n' ~ message['content'] ~ ' [/INST]' }}
    {%- else %}
      {{- '[INST] ' + message['content'] + ' [/INST]' }}
    {%- endif %}
  {%- else %}
    {% generation %}
    {{- ' ' ~ message['content'] ~ eos_token }}
    {% endgeneration %}
  {%- endif %}
{%- endfor %}"""

HEADERS = """{{ bos_token }}
{%- macro header(role) -%}
<|start|>{{ role }}<|end|>

{% endmacro %}
{%- set date = strftime_now("%d %b %Y") if strftime_now is defined else "?" %}
{{ header('system') }}Today is {{ date }}.
{% if documents is not none %}
Documents: {{ documents | length }}
{% endif %}
{% for message in messages %}
    {% if message.content is iterable and message.content is not string %}
{{ header(message.role) }}
        {%- for part in message.content | selectattr('type', 'equalto', 'text') %}
{{- part.text }}{% if not loop.last %} | {% endif %}
        {% endfor %}
    {% elif message.content is none %}
        {% continue %}
    {% else %}
{{ header(message.role) }}{{ message.content | trim }}<|eot|>
    {% endif %}
{% endfor %}
{% for tool in tools or [] %}
{%- set f = tool.function %}
## {{ f.name }}: {{ f.description | default('nothing') }}
{% for name, p in f.parameters.properties.items() %}
- {{ name }}{{ '?' if name not in f.parameters.required | default([]) }}: {{ p.type | upper }} {{ p | tojson(indent=2) }}
{% endfor %}
{% endfor %}
{% if add_generation_prompt %}{{ header('assistant') }}{% endif %}
"""

EXPRESSIONS = """{{ messages is iterable }} {{ none is iterable }} {{ 'a' is iterable }} {{ {} is iterable }} {{ undef is iterable }} {{ 1 is iterable }}
{{ messages is sequence }} {{ none is sequence }} {{ 'a' is sequence }} {{ {} is sequence }} {{ 1 is sequence }} {{ {} is mapping }}
{{ 'a' is string }} {{ 1 is number }} {{ 1.0 is float }} {{ true is boolean }} {{ none is none }} {{ true is true }} {{ 1 is true }}
{{ undef is defined }} {{ not undef }} {{ undef == none }} {{ undef | length }} {{ undef | default('d') }} {{ none | default('d', true) }}|{{ undef | trim }}|{{ 'x' in undef }}
{{ undef.foo }}
{{ messages[0].nope.foo }}
{{ messages[0].nope }}|{{ messages[9] }}|
{{ undef + 'a' }}
{{ 'a' ~ undef ~ none ~ true ~ 1 ~ 1.5 }}
{{ [1, 'a', "it's", none, true, 1.0, 'é\\n'] }} {{ {'a': 1, 'b': [1, 2]} }} {{ (1, 2) }} {{ (1,) }} {{ [] }} {{ {} }}
{{ 'abc'[0] }} {{ 'abc'[-1] }} {{ 'abc'[1:] }} {{ 'abc'[::-1] }} {{ 'héé'[1] }} {% for c in 'abc' %}{{ c }},{% endfor %}
{{ 'a' * 3 }} {{ [1] * 2 }} {{ [1] + [2] }} {{ 'a' 'b' }}
{{ 7 // 2 }} {{ -7 // 2 }} {{ 4 / 2 }} {{ -7 % 3 }} {{ 2 ** 10 }} {{ 1.0 }} {{ 1e20 }} {{ 1e-7 }} {{ 1e20 | string }} {{ 0.1 + 0.2 }}
{{ 'xxaxx'.strip('x') }} {{ 'a,b,c'.split(',') }} {{ 'a b  c'.split() }} {{ 'a,b,c'.split(',', 1) }} {{ 'a,b,c'.rsplit(',', 1) }} {{ ''.split(',') }} {{ ''.split() }} {{ 'a,b,c'.split(',', maxsplit=1) }} {{ ' a b '.split(none, 1) }} {{ ' a b c '.rsplit(none, 1) }}
{{ 'abc'.partition('b') }} {{ 'abcb'.rpartition('b') }} {{ 'abc'.partition('x') }} {{ 'abc'.rpartition('x') }} {{ 'abc'.removeprefix('a') }} {{ 'abc'.removesuffix('c') }}
{{ 'abc'.startswith(('x', 'a')) }} {{ 'abc'.endswith('c') }} {{ 'abcb'.find('b') }} {{ 'abcb'.rfind('b') }} {{ 'abc'.find('z') }} {{ 'abcb'.index('b') }} {{ 'abcb'.count('b') }}
{{ "it's a dog".title() }} {{ 'hELLO'.capitalize() }} {{ 'aB'.swapcase() }} {{ '-x'.zfill(4) }} {{ 'x'.center(4) }}|{{ 'xy'.center(5) }}|{{ 'x'.ljust(3) }}|{{ 'x'.rjust(3, '.') }} {{ 'Ab Cd'.istitle() }} {{ '12'.isdecimal() }}
{{ 'a\\nb\\r\\nc\\x0bd'.splitlines() }} {{ 'a\\nb\\n'.splitlines(true) }} {{ ''.splitlines() }}
{{ ', '.join(['a', 'b']) }} {{ 'aaa'.replace('a', 'b', 1) }} {{ '{} {}'.format(1, 'b') }}
{% set d = {'b': 1, 'a': 2} %}{{ d.items() | list }} {{ d.keys() | list }} {{ d.get('z') }} {{ d.get('z', 5) }} {{ d | dictsort }} {{ 'b' in d }}
{% set d = {'items': [1], 'get': 2} %}{{ d.items() | list }} {{ d['items'] }}
{% set l = [1] %}{{ l.append(2) }}
{% set d = {} %}{{ d.update({'b': 2}) }}
{% for i in range(5) %}{% if i == 1 %}{% continue %}{% endif %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}
{% for i in [1, 2, 3] %}{{ loop.index }}{{ loop.first }}{{ loop.last }}{{ loop.revindex }}{{ loop.previtem }}{{ loop.nextitem }};{% endfor %}
{% macro f(a, b='x', c=none) %}{{ a }}{{ b }}{{ c }}{% endmacro %}{{ f(1) }} {{ f(1, c=2) }}
{% macro f() %}{{ caller() }}!{% endmacro %}{% call f() %}x{% endcall %}{% filter upper %}abc{% endfilter %}
{{ [3, 1, 2] | sort }} {{ [1, 1, 2] | unique | list }} {{ [1, 2] | sum }} {{ messages | map(attribute='role') | join(',') }} {{ messages | rejectattr('role', 'equalto', 'user') | list | length }}
{{ '12' | int }} {{ 'x' | int }} {{ 'x' | int(5) }} {{ '1.5' | float }} {{ 'x' | float }} {{ 1.9 | int }} {{ true | string }} {{ none | string }} {{ [1, 2] | string }}
{{ [1, {'a': 'é<>&\\'"\\n'}, none, true, 1.0, 1e20] | tojson }}
{{ {'b': 1, 'a': [1, {'c': []}], 'e': {}} | tojson(indent=2) }}
{{ {'b': 1, 'a': 2} | tojson(sort_keys=true) }} {{ 'é😀' | tojson(ensure_ascii=true) }} {{ {'a': [1, 2]} | tojson(separators=(',', ':')) }} {{ (1, 2) | tojson }} {{ {1: 2, none: 3} | tojson }} {{ [] | tojson(indent=4) }} {{ {'a': 1} | tojson(2) }} {{ {'a': '\\u2028 \\x7f \\x01'} | tojson }}
{{ undef | tojson }}
{{ raise_exception('boo') }}
{{ strftime_now('%d %b %Y %Y-%m-%d %H:%M:%S %A %B %j %-d') }}
{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}
{% set x = 1 %}{% if true %}{% set x = 2 %}{% endif %}{{ x }}{% for i in [1] %}{% set x = 3 %}{% endfor %}{{ x }}
{{ none.foo }}|{{ messages.foo }}|{{ 'a'.foo }}
{{ 1 / 0 }}
{{ 'a' + 1 }}
{{ 'a' | nosuch }}
{{ nosuch() }}
{{ 'a'.nosuch() }}
{% if %}
{{ 'open""".split("\n") + [
    '{%- set x = "a" -%}   {{ x }}   {%- if true %}   y   {%- endif +%}\n  {% if true %}\n  indented\n  {% endif %}\ndone\n',
    "a\n\n",
    "{% if true %}\na\n{% endif %}\n\nb",
    "  {%+ if true %}\nx{% endif %}",
    "  {# c #}\nx",
    "\t{%- if true -%}\n\n x \n{%- endif -%}\n\n z",
    '{{ "line1\nline2" }}',
]

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Weather of a city: \"now\" & <later>, 漢字 é",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string"},
                    "tags": {"type": "array", "items": {"type": "string"}},
                    "limit": {"type": "number", "minimum": 0.5, "maximum": 1e20, "default": 1e-7},
                },
                "required": ["city"],
            },
        },
    },
    {"type": "function", "function": {"name": "noop", "parameters": {"type": "object", "properties": {}}}},
]


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


CALL = {"id": "abc", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Zürich", "limit": 2.5}}}
TEXT_CALL = {"type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Zürich"}'}}
CONVERSATIONS = [
    [user("Hello")],
    [{"role": "system", "content": "Be \"kind\" & short.\n"}, user("Hello"), assistant("Hi"), user("  More?\n")],
    [user("q"), assistant("<think>\nhm\n</think>\n\nanswer"), user("more")],
    [user("q"), assistant("a", reasoning_content="because")],
    [user([{"type": "text", "text": "one"}, {"type": "image"}, {"type": "text", "text": "two"}])],
    [user("w?"), assistant("", tool_calls=[CALL, TEXT_CALL]), {"role": "tool", "content": "{}"}, {"role": "tool", "content": "1"}],
    [user("w?"), assistant(None, tool_calls=[TEXT_CALL]), {"role": "tool", "content": "21"}, assistant("21"), user("ok")],
    [assistant("first")],
    [],
]


def templates():
    env = environment()

    def run(source, conversation, with_tools=False, add_generation_prompt=True, arguments=None):
        case = {"conversation": conversation, "with_tools": with_tools, "add_generation_prompt": add_generation_prompt}
        case["arguments"] = arguments or {}
        try:
            case["text"] = env.from_string(source).render(
                messages=CONVERSATIONS[conversation], tools=TOOLS if with_tools else None, documents=None,
                add_generation_prompt=add_generation_prompt, bos_token="<s>", eos_token="</s>", **case["arguments"],
            )
        except (jinja2.exceptions.TemplateError, jinja2.exceptions.SecurityError, TypeError, ZeroDivisionError) as e:
            case["error"] = type(e).__name__
            if type(e) is jinja2.exceptions.TemplateError:
                case["raised"] = str(e)
        return case

    templates = [{"source": source, "runs": [run(source, 1)]} for source in EXPRESSIONS]
    for source in (CHATML, INST, HEADERS):
        runs = []
        for conversation in range(len(CONVERSATIONS)):
            runs.append(run(source, conversation))
            runs.append(run(source, conversation, with_tools=True, arguments={"enable_thinking": False}))
            runs.append(run(source, conversation, add_generation_prompt=False, arguments={"enable_thinking": True}))
        templates.append({"source": source, "runs": runs})
    save("jinja.json", {"conversations": CONVERSATIONS, "tools": TOOLS, "templates": templates})


# ---------------------------------------------------------------- words

TEXTS = [
    "", " ", "  ", "\n", "\n\n \n", "\t\tx", "Hello world", " Hello  world ", "I'm we'll IT'S don't", "x = 3.14159; y=1234567",
    "été à la plage, über straße", "漢字かなカナ 한국어 ไทย", "नमस्ते दुनिया", "a_b-c+d == e != f", "http://example.org/path?x=1&y=2",
    "fn main() {\n    println!(\"{}\", 42);\n}\n", "emoji 🦀👩‍👩‍👧 done", "tab\there  \r\nnew\r\n\r\nline", "e\u0301 combining", "..., --- !!!\n\n next",
    "CamelCaseWord XMLHttp ABCdef", "1,234.56 ٣٤٥ ½", "trailing spaces   \n   leading", "null\u0000byte \u200bzero\ufeff",
]

PRES = {
    "gpt-2": [r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"],
    "starcoder": [r"\p{N}", r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"],
    "llama-bpe": [r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"],
    "qwen2": [r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"],
    "qwen35": [r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"],
    "tekken": [r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"],
    "deepseek-v3": [r"\p{N}{1,3}", "[一-龥\u3040-ゟ゠-ヿ]+", r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"],
}


def cut(text, expressions):
    words = [text] if text else []
    for expression in expressions:
        finer = []
        for word in words:
            end = 0
            for match in regex.finditer(expression, word):
                if match.start() > end:
                    finer.append(word[end:match.start()])
                if match.end() > match.start():
                    finer.append(match.group())
                end = match.end()
            if end < len(word):
                finer.append(word[end:])
        words = finer
    return words


def words():
    cases = [{"pre": pre, "text": text, "words": cut(text, expressions)} for pre, expressions in PRES.items() for text in TEXTS]
    save("words.json", {"cases": cases})


# ---------------------------------------------------------------- vocabularies

CORPUS = [
    "The quick brown fox jumps over the lazy dog, and the dog does not mind at all.",
    "A tokenizer cuts text into pieces; the pieces are numbered; the numbers are what a model reads.",
    "fn main() { let total: u32 = values.iter().sum(); println!(\"{total}\"); }",
    "In the beginning there was the word, and the word was long, so it was cut into words and words into pieces.",
    "été, naïve, straße, 漢字 and 😀 are text as well as ascii is text.",
    "    indented      with     many          spaces and aaaaaaaaaaaa runs of bbbbbbb letters",
] * 4

ROUND = TEXTS + CORPUS[:6] + ["aaaaaaaaaaaaaaaaaaaaa", "                       ", "a" * 50 + " " * 9 + "b", "<s>x</s>", "[TOOL] call[TOOL]"]


def sentencepieces():
    with tempfile.TemporaryDirectory() as folder:
        prefix = os.path.join(folder, "m")
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(CORPUS), model_prefix=prefix, vocab_size=480, model_type="bpe", byte_fallback=True,
            character_coverage=0.99, normalization_rule_name="identity", remove_extra_whitespaces=False,
            user_defined_symbols=["[TOOL]"], split_by_whitespace=False, max_sentencepiece_length=12, minloglevel=2,
        )
        model = sentencepiece.SentencePieceProcessor(model_file=prefix + ".model")
    pieces = []
    for i in range(model.get_piece_size()):
        kind = 2 if model.is_unknown(i) else 3 if model.is_control(i) else 5 if model.is_unused(i) else 6 if model.is_byte(i) else 1
        piece = model.id_to_piece(i)
        pieces.append([piece, model.get_score(i), 4 if piece == "[TOOL]" else kind])
    cases = []
    for text in ROUND:
        # SentencePiece knows neither text in special tokens nor a second word start after a user-defined piece.
        if text and "<s>" not in text and "[TOOL]" not in text and "\u0000" not in text:
            ids = model.encode(text)
            cases.append({"text": text, "ids": ids, "decoded": model.decode(ids)})
    save("sentencepiece.json", {"pieces": pieces, "bos": model.bos_id(), "eos": model.eos_id(), "unk": model.unk_id(), "cases": cases})


def hub():
    cl = PRES["qwen2"][0]
    byte_level = Tokenizer(models.BPE())
    byte_level.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(tokenizers.Regex(cl), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    byte_level.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    byte_level.train_from_iterator(CORPUS, trainer)
    byte_level.add_special_tokens(["<s>", "</s>"])
    byte_level.add_tokens([AddedToken("[TOOL]", normalized=False)])
    byte_level.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", byte_level.token_to_id("<s>"))])

    fallback = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    fallback.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    fallback.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=480, special_tokens=special, show_progress=False, max_token_length=12)
    fallback.train_from_iterator(CORPUS, trainer)
    # Byte pieces were only declared to get their places; they are no special tokens.
    parsed = json.loads(fallback.to_str())
    parsed["added_tokens"] = [t for t in parsed["added_tokens"] if not t["content"].startswith("<0x")]
    fallback = Tokenizer.from_str(json.dumps(parsed))
    fallback.add_tokens([AddedToken("[TOOL]", normalized=False)])

    models_ = []
    for name, tokenizer in (("byte_level", byte_level), ("byte_fallback", fallback)):
        cases = []
        for text in ROUND:
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            framed = tokenizer.encode(text).ids
            cases.append({"text": text, "ids": ids, "framed": framed, "shown": tokenizer.decode(ids, skip_special_tokens=False),
                          "skipped": tokenizer.decode(framed)})
        models_.append({"name": name, "tokenizer": json.loads(tokenizer.to_str()), "cases": cases})
    save("hub.json", {"models": models_})


templates()
words()
sentencepieces()
hub()
