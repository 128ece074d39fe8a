#!/usr/bin/env python3
"""Save and restore of one sequence in llama.cpp beside sleep and wake in Reverie: the same GGUF file, the same number of tokens, one
after the other; seconds and bytes on disk. `wake`: the call, after which Reverie hashes behind the caller's back; `proved`: every byte hashed
in Reverie, never in llama.cpp; `logits`: waking until the next token's logits are there (from the last row in Reverie, by reading
one token in llama.cpp); `decode`: waking and reading one token in both.

    LLAMA_CPP_LIB_PATH=.../build/bin PYTHONPATH=.../llama_cpp_python-SRC python3 asleep.py MODEL.gguf [--reverie target/release/reverie]
                                                                                 [--threads 2] [--tokens 8192] [--rounds 3]

Needs numpy and the ctypes layer of llama-cpp-python's source package (`diskcache` may be left out: only its llama_cpp.py is used).
"""
import argparse, ctypes, importlib.util, json, os, statistics, subprocess, sys, tempfile, time


def ctypes_layer():
    """llama_cpp.llama_cpp without the package's own imports."""
    for place in sys.path:
        folder = os.path.join(place, "llama_cpp")
        if os.path.exists(os.path.join(folder, "llama_cpp.py")):
            break
    else:
        sys.exit("no llama_cpp/llama_cpp.py on PYTHONPATH")
    package = importlib.util.module_from_spec(importlib.util.spec_from_loader("llama_cpp", loader=None, is_package=True))
    package.__path__ = [folder]
    sys.modules["llama_cpp"] = package
    import llama_cpp.llama_cpp as layer
    return layer


def llama(a):
    L = ctypes_layer()
    L.llama_backend_init()
    quiet = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
    L.llama_log_set(quiet, None)
    model = L.llama_model_load_from_file(a.model.encode(), L.llama_model_default_params())
    params = L.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_threads, params.n_threads_batch = a.tokens + 256, 512, a.threads, a.threads
    context = L.llama_init_from_model(model, params)
    vocab = L.llama_vocab_n_tokens(L.llama_model_get_vocab(model))
    ids = [(i * 2654435761) % vocab for i in range(a.tokens)]
    t = time.perf_counter()
    for at in range(0, a.tokens, 512):
        part = (ctypes.c_int32 * len(ids[at:at + 512]))(*ids[at:at + 512])
        if L.llama_decode(context, L.llama_batch_get_one(part, len(part))):
            sys.exit("llama_decode failed")
    read = time.perf_counter() - t
    tokens = (ctypes.c_int32 * a.tokens)(*ids)
    saves, loads, ready = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "state").encode()
        for _ in range(a.rounds):
            t = time.perf_counter()
            size = L.llama_state_seq_save_file(context, path, 0, tokens, a.tokens)
            saves.append(time.perf_counter() - t)
            L.llama_memory_clear(L.llama_get_memory(context), True)
            back, n = (ctypes.c_int32 * a.tokens)(), ctypes.c_size_t()
            t = time.perf_counter()
            if not L.llama_state_seq_load_file(context, path, 0, back, a.tokens, ctypes.byref(n)):
                sys.exit("llama_state_seq_load_file failed")
            loads.append(time.perf_counter() - t)
            # A restored sequence has no logits: one token is read.
            if L.llama_decode(context, L.llama_batch_get_one((ctypes.c_int32 * 1)(ids[0]), 1)):
                sys.exit("llama_decode failed")
            L.llama_get_logits_ith(context, -1)
            ready.append(time.perf_counter() - t)
            L.llama_memory_seq_rm(L.llama_get_memory(context), 0, a.tokens, -1)
    return dict(read=read, sleep=statistics.median(saves), wake=statistics.median(loads), proved=statistics.median(loads), logits=statistics.median(ready),
                decode=statistics.median(ready), bytes=size)


def reverie(a):
    out = subprocess.run([a.reverie, "bench", a.model, "--asleep", str(a.tokens), "--runs", str(a.rounds), "--threads", str(a.threads), "--json"],
                         capture_output=True, text=True)
    if out.returncode:
        sys.exit(out.stderr[-500:])
    r = json.loads(out.stdout)
    return dict(read=r["read_ms"] / 1e3, sleep=r["sleep_ms"] / 1e3, wake=r["wake_ms"] / 1e3, proved=r["wake_proved_ms"] / 1e3,
                logits=r["wake_logits_ms"] / 1e3, decode=r["wake_decode_ms"] / 1e3, bytes=r["disk_bytes"])


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("model")
    ap.add_argument("--reverie", default="target/release/reverie")
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--tokens", type=int, default=8192)
    ap.add_argument("--rounds", type=int, default=3)
    a = ap.parse_args()
    ours, theirs = reverie(a), llama(a)
    print(f"{'':8} {'reverie':>12} {'llama.cpp':>12} {'ratio':>7}")
    for field in ("read", "sleep", "wake", "proved", "logits", "decode", "bytes"):
        o, t = ours[field], theirs[field]
        show = (lambda v: f"{v / 2**20:9.1f} MiB") if field == "bytes" else (lambda v: f"{v:10.3f} s")
        print(f"{field:8} {show(o):>12} {show(t):>12} {t / o:7.2f}")


main()
