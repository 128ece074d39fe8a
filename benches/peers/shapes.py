#!/usr/bin/env python3
"""A GGUF file of a published model's shape with random weights, made by llama.cpp's own converter and quantiser, so that both
programs read what a user would have. The weights come from transformers' own classes; RWKV-7's are written as flash-linear-attention
names them.

    pip install torch transformers safetensors gguf
    python shapes.py mamba2-370m OUT --llama LLAMA_CPP_DIR [--type Q4_0]       # OUT/mamba2-370m-q4_0.gguf

The tokenizer has one token a byte; the rest of the vocabulary, as long as the published one, is never met.
"""
import argparse, json, os, shutil, subprocess, sys

FIXTURES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "fixtures")
TOKENIZER = os.path.join(FIXTURES, "qwen3")
IDS = dict(pad_token_id=256, bos_token_id=257, eos_token_id=258)
ROPE = lambda theta, **kw: dict(rope_type="default", rope_theta=theta, **kw)
SHAPES = {  # name: (config class, model class, fields)
    "qwen3.5-0.8b": ("Qwen3_5TextConfig", "Qwen3_5ForCausalLM", dict(
        hidden_size=1024, intermediate_size=3584, num_hidden_layers=24, num_attention_heads=8, num_key_value_heads=2, head_dim=256,
        vocab_size=248320, max_position_embeddings=262144, tie_word_embeddings=True, rope_parameters=ROPE(1e7, partial_rotary_factor=0.25),
        linear_num_key_heads=16, linear_num_value_heads=16, linear_key_head_dim=128, linear_value_head_dim=128)),
    "mamba2-370m": ("Mamba2Config", "Mamba2ForCausalLM", dict(
        hidden_size=1024, num_hidden_layers=48, num_heads=32, head_dim=64, state_size=128, n_groups=1, expand=2, vocab_size=50288,
        tie_word_embeddings=True)),
    "lfm2-350m": ("Lfm2Config", "Lfm2ForCausalLM", dict(
        hidden_size=1024, intermediate_size=4608, block_auto_adjust_ff_dim=False, num_hidden_layers=16, num_attention_heads=16,
        num_key_value_heads=8, vocab_size=65536, max_position_embeddings=128000, rope_parameters=ROPE(1e6), tie_word_embeddings=True,
        layer_types=["full_attention" if i in (2, 5, 8, 10, 12, 14) else "conv" for i in range(16)])),
    "gemma3-1b": ("Gemma3TextConfig", "Gemma3ForCausalLM", dict(
        hidden_size=1152, intermediate_size=6912, num_hidden_layers=26, num_attention_heads=4, num_key_value_heads=1, head_dim=256,
        vocab_size=262144, sliding_window=512, max_position_embeddings=32768)),
    # The published model has 16 layers: 7 B parameters that nobody needs to write to a disk for a ratio.
    "olmoe-6-layers": ("OlmoeConfig", "OlmoeForCausalLM", dict(
        hidden_size=2048, intermediate_size=1024, num_hidden_layers=6, num_attention_heads=16, num_key_value_heads=16, num_experts=64,
        num_experts_per_tok=8, vocab_size=50304, max_position_embeddings=4096)),
    "rwkv7-0.4b": (None, "RWKV7ForCausalLM", dict(
        model_type="rwkv7", hidden_size=1024, num_hidden_layers=24, head_dim=64, num_heads=16, intermediate_size=4096, vocab_size=65536,
        decay_low_rank_dim=64, a_low_rank_dim=64, v_low_rank_dim=32, gate_low_rank_dim=128, norm_eps=1e-5, norm_bias=True,
        norm_first=True, hidden_act="sqrelu", tie_word_embeddings=False, max_position_embeddings=4096, value_dim=[1024] * 24)),
}


def fill(tensor, vector_mean=None):
    """Matrices ~ N(0, 1/fan_in); vectors get N(0, 0.1) added."""
    if tensor.dim() >= 2:
        tensor.normal_(0, tensor.shape[-1] ** -0.5)
    else:
        if vector_mean is not None:
            tensor.fill_(vector_mean)
        tensor.add_(tensor.clone().normal_(0, 0.1))


def rwkv7(c, out):
    """The tensors of a published RWKV-7 checkpoint in flash-linear-attention's names."""
    import torch
    from safetensors.torch import save_file
    w, n, inner, vocab = c["hidden_size"], c["num_hidden_layers"], c["intermediate_size"], c["vocab_size"]
    ranks = dict(w=c["decay_low_rank_dim"], a=c["a_low_rank_dim"], v=c["v_low_rank_dim"], g=c["gate_low_rank_dim"])
    shapes = {"model.embeddings.weight": (vocab, w), "lm_head.weight": (vocab, w), "model.norm.weight": (w,), "model.norm.bias": (w,)}
    for i in range(n):
        b = f"model.layers.{i}."
        norms = ["attn_norm", "ffn_norm", "attn.g_norm"] + (["pre_norm"] if i == 0 else [])
        shapes |= {f"{b}{x}.{part}": (w,) for x in norms for part in ("weight", "bias")}
        shapes |= {f"{b}attn.{x}_proj.weight": (w, w) for x in "rkvo"}
        for x, rank in ranks.items():
            if x == "v" and i == 0:
                continue
            shapes |= {f"{b}attn.{x}_lora.lora.0.weight": (rank, w), f"{b}attn.{x}_lora.lora.2.weight": (w, rank)}
            if x != "g":
                shapes[f"{b}attn.{x}_lora.lora.2.bias"] = (w,)
        shapes |= {f"{b}attn.x_{x}": (1, 1, w) for x in "rwkvag"}
        shapes |= {f"{b}attn.k_k": (w,), f"{b}attn.k_a": (w,), f"{b}attn.r_k": (c["num_heads"], c["head_dim"])}
        shapes |= {f"{b}ffn.x_k": (w,), f"{b}ffn.key.weight": (inner, w), f"{b}ffn.value.weight": (w, inner)}
    tensors = {}
    for name, shape in shapes.items():
        tensors[name] = torch.empty(shape, dtype=torch.bfloat16)
        fill(tensors[name], 1.0 if name.endswith("norm.weight") else 0.0)
    os.makedirs(out, exist_ok=True)
    save_file(tensors, os.path.join(out, "model.safetensors"), metadata=dict(format="pt"))
    json.dump(dict(c, architectures=["RWKV7ForCausalLM"], torch_dtype="bfloat16", **IDS), open(os.path.join(out, "config.json"), "w"), indent=1)


def checkpoint(name, out):
    import torch
    config, model, fields = SHAPES[name]
    torch.manual_seed(1)
    if config is None:
        rwkv7(fields, out)
    else:
        import transformers
        torch.set_default_dtype(torch.bfloat16)
        m = getattr(transformers, model)(getattr(transformers, config)(**IDS, **fields))
        with torch.no_grad():
            for p in m.parameters():
                fill(p)
        m.save_pretrained(out, max_shard_size="100GB")
    tokenizer = json.load(open(os.path.join(TOKENIZER, "tokenizer.json")))
    taken = set(tokenizer["model"]["vocab"].values()) | {t["id"] for t in tokenizer["added_tokens"]}
    tokenizer["model"]["vocab"] |= {f"<unused{i}>": i for i in range(fields["vocab_size"]) if i not in taken}
    json.dump(tokenizer, open(os.path.join(out, "tokenizer.json"), "w"))
    shutil.copy(os.path.join(TOKENIZER, "tokenizer_config.json"), out)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("shape", choices=SHAPES)
    ap.add_argument("out")
    ap.add_argument("--llama", required=True, help="llama.cpp's source folder, built")
    ap.add_argument("--type", default="Q4_0")
    ap.add_argument("--step", choices=["checkpoint", "convert"], help="only this one (each runs in a process of its own)")
    a = ap.parse_args()
    folder, f16 = os.path.join(a.out, a.shape), os.path.join(a.out, f"{a.shape}-f16.gguf")
    if a.step == "checkpoint":
        return checkpoint(a.shape, folder)
    if a.step == "convert":
        sys.path.append(os.path.join(FIXTURES, "scripts"))
        import oracle_gguf
        return oracle_gguf.convert(os.path.abspath(a.llama), folder, "f16", f16)
    for step in ("checkpoint", "convert"):
        subprocess.run([sys.executable, __file__, a.shape, a.out, "--llama", a.llama, "--step", step], check=True)
    to = os.path.join(a.out, f"{a.shape}-{a.type.lower()}.gguf")
    subprocess.run([os.path.join(a.llama, "build/bin/llama-quantize"), "--pure", f16, to, a.type, "2"], check=True)
    print(to)


if __name__ == "__main__":
    main()
