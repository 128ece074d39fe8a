#!/usr/bin/env python3
"""The same GGUF file in llama.cpp and in Reverie, in turn; medians and ratios. Standard library only.

    LLAMA_BENCH=.../llama-bench python3 compare.py MODEL.gguf [--reverie target/release/reverie] [--threads 2] [--rounds 3]
                                                   [--depth 0,4096] [--pp 512] [--tg 32]

A measurement during which other processes used more than 0.15 of a core is marked with '!' and left out of the medians.
"""
import argparse, json, os, resource, statistics, subprocess, sys, time


def busy():
    """Seconds that all processors have worked since boot."""
    with open("/proc/stat") as f:
        v = [int(x) for x in f.readline().split()[1:]]
    return (sum(v) - v[3] - v[4]) / os.sysconf("SC_CLK_TCK")


def run(command):
    """Output of a command, and the cores that other work took meanwhile."""
    t, b, c = time.time(), busy(), resource.getrusage(resource.RUSAGE_CHILDREN)
    out = subprocess.run(command, capture_output=True, text=True)
    if out.returncode:
        sys.exit(f"{command[0]}: {out.stderr[-500:]}")
    d = resource.getrusage(resource.RUSAGE_CHILDREN)
    own = d.ru_utime + d.ru_stime - c.ru_utime - c.ru_stime
    return out.stdout, (busy() - b - own) / (time.time() - t)


def reverie(a, kind, depth):
    pp, tg = (a.pp, 0) if kind == "pp" else (0, a.tg)
    out, noise = run([a.reverie, "bench", a.model, "--pp", str(pp), "--tg", str(tg), "--depth", str(depth), "--runs", "1",
                      "--threads", str(a.threads), "--json"])
    return json.loads(out)["rows"][0]["tokens_per_s"], noise


def llama(a, kind, depth, fa):
    pp, tg = (a.pp, 0) if kind == "pp" else (0, a.tg)
    out, noise = run([os.environ.get("LLAMA_BENCH", "llama-bench"), "-m", a.model, "-t", str(a.threads), "-p", str(pp), "-n", str(tg),
                      "-d", str(depth), "-r", "1", "-fa", str(fa), "-o", "json"])
    return json.loads(out)[0]["avg_ts"], noise


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("model")
    ap.add_argument("--reverie", default="target/release/reverie")
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--rounds", type=int, default=3)
    ap.add_argument("--depth", default="0,4096")
    ap.add_argument("--pp", type=int, default=512)
    ap.add_argument("--tg", type=int, default=32)
    a = ap.parse_args()
    print(f"{'test':12} {'reverie':>9} {'llama.cpp':>9} {'ratio':>6}   runs ('!': other work above 0.15 core)")
    for depth in [int(d) for d in a.depth.split(",")]:
        for kind in ("pp", "tg"):
            ours, theirs = [], {0: [], 1: []}
            for _ in range(a.rounds):
                ours.append(reverie(a, kind, depth))
                for fa in theirs:
                    theirs[fa].append(llama(a, kind, depth, fa))
            quiet = lambda runs: [s for s, n in runs if n < 0.15] or [s for s, _ in runs]
            median = lambda runs: statistics.median(quiet(runs))
            best = max(theirs, key=lambda fa: median(theirs[fa]))
            show = lambda runs: " ".join(f"{s:.1f}{'!' if n >= 0.15 else ''}" for s, n in runs)
            r, l = median(ours), median(theirs[best])
            print(f"{kind}{a.pp if kind == 'pp' else a.tg}@{depth:<6} {r:9.1f} {l:9.1f} {r / l:6.2f}   {show(ours)} | fa={best} {show(theirs[best])}", flush=True)


if __name__ == "__main__":
    main()
