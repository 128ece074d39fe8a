#!/usr/bin/env python3
"""Reads reverie stores and export files, from docs/STATE-FORMAT.md alone and with the standard library alone.

    state_reader.py STORE_FOLDER | EXPORT_FILE

Verifies every hash, seal and bound, and prints what it found as JSON. Exit code 1 if anything is wrong. Objects compressed
with zstd need Python 3.14; elsewhere they are reported as unread, which counts as wrong.
"""
import json
import os
import re
import struct
import sys
import zlib

# --- BLAKE3, unkeyed, 32 bytes -------------------------------------------------------------------------------------------------------
IV = (0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19)
ORDER = (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)
LANES = ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15), (0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14))
CHUNK_START, CHUNK_END, PARENT, ROOT = 1, 2, 4, 8
MASK = 0xFFFFFFFF


def compress(cv, words, counter, length, flags):
    v = list(cv) + list(IV[:4]) + [counter & MASK, counter >> 32, length, flags]
    m = list(words)
    for _ in range(7):
        for i, (a, b, c, d) in enumerate(LANES):
            for word, (r, s) in ((m[2 * i], (16, 12)), (m[2 * i + 1], (8, 7))):
                v[a] = (v[a] + v[b] + word) & MASK
                x = v[d] ^ v[a]
                v[d] = (x >> r | x << (32 - r)) & MASK
                v[c] = (v[c] + v[d]) & MASK
                x = v[b] ^ v[c]
                v[b] = (x >> s | x << (32 - s)) & MASK
        m = [m[i] for i in ORDER]
    return [v[i] ^ v[i + 8] for i in range(8)]


def blake3(data):
    """A node is (chaining value, words, counter, length, flags): compressed once more it gives its value, with ROOT the hash."""

    def chunk(start, counter):
        cv, end = IV, min(start + 1024, len(data))
        at = start
        while True:
            block = data[at:min(at + 64, end)]
            flags = (CHUNK_START if at == start else 0) | (CHUNK_END if at + 64 >= end else 0)
            node = (cv, struct.unpack("<16I", block.ljust(64, b"\0")), counter, len(block), flags)
            if flags & CHUNK_END:
                return node
            cv, at = compress(*node), at + 64

    def tree(start, end, counter):
        if end - start <= 1024:
            return chunk(start, counter)
        left = 1024
        while left * 2 < end - start:
            left *= 2
        a = compress(*tree(start, start + left, counter))
        b = compress(*tree(start + left, end, counter + left // 1024))
        return (IV, tuple(a + b), 0, 64, PARENT)

    cv, words, counter, length, flags = tree(0, len(data), 0)
    return struct.pack("<8I", *compress(cv, words, counter, length, flags | ROOT))


# --- the format ----------------------------------------------------------------------------------------------------------------------
class Bad(Exception):
    pass


def need(condition, what):
    if not condition:
        raise Bad(what)


HASH = re.compile(r"[0-9a-f]{64}\Z")
FIELDS = ["created_ms", "extra", "forked_from", "identity", "last", "page_tokens", "pages", "parent", "sampler", "snapshots", "text", "tokens",
          "turns", "version"]


def check_name(name):
    parts = name.split("/")
    need(len(name) <= 100 and all(re.match(r"[A-Za-z0-9_-][A-Za-z0-9._-]*\Z", p) for p in parts), f"name {name!r}")


def content(name, file):
    """The content of an object file, and whether it calls itself a manifest."""
    need(len(file) >= 64 and not any(file[24:64]), "a header of 64 bytes")
    magic, version, codec, kind, zero, length, seal = struct.unpack("<4s4BQ8s", file[:24])
    need((magic, zero) == (b"RVOB", 0) and version == 2 and codec in (0, 1, 2) and kind in (0, 1) and length <= 1 << 30, "header")
    need(kind == 0 or codec == 2, "a manifest has codec 2")
    body = file[64:]
    need(blake3(file[:16] + (body if codec else b""))[:8] == seal, "seal")
    if codec == 1:
        try:
            from compression import zstd
        except ImportError:
            raise Bad("zstd needs Python 3.14") from None
        body = zstd.decompress(body)
    if codec == 2:
        inflate = zlib.decompressobj()
        body = inflate.decompress(body, length + 1)
        need(inflate.eof and not inflate.unused_data, "zlib stream")
    need(len(body) == length, "length")
    need(blake3(body).hex() == name, "hash")
    return body, kind == 1


def is_count(n, least=0, most=1 << 63):
    return type(n) is int and least <= n <= most


def manifest(raw):
    m = json.loads(raw.decode("utf-8"))
    fields = FIELDS + ["windows"] if type(m) is dict and m.get("windows") else FIELDS
    need(type(m) is dict and sorted(m) == fields and m["version"] == 2, "fields of a manifest")
    need(list(m) == fields, "ascending keys")
    if m["extra"] is None and m["sampler"] is None:  # numbers of the writer's own have more than one spelling elsewhere
        need(json.dumps(m, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode() == raw, "canonical JSON")
    n = len(m["tokens"])
    need(all(is_count(t, 0, MASK) for t in m["tokens"]), "tokens")
    need(is_count(m["page_tokens"], 1, 1 << 20), "page_tokens")
    pages = -(-n // m["page_tokens"])
    ends = m["snapshots"] and m["snapshots"][-1]["position"] == n
    windows = m.get("windows", [])
    need(len(m["pages"]) == pages or (not m["pages"] and (ends or len(windows) == pages)), "pages")
    last = -1
    for w in windows:
        need(sorted(w) == ["object", "page", "tokens"] and is_count(w["page"], last + 1, pages - 1), "windows")
        last = w["page"]
        need(is_count(w["tokens"], 1, min(m["page_tokens"], n - last * m["page_tokens"])), "tokens of a window")
    last = 0
    for s in m["snapshots"]:
        need(sorted(s) == ["object", "position"] and is_count(s["position"], last + 1, n), "snapshots")
        last = s["position"]
    text, last, end = m["text"].encode("utf-8"), 0, 0
    for t in m["turns"]:
        need(sorted(t) == ["role", "text_end", "tokens"] and is_count(t["tokens"], last + 1, n), "turns")
        need(is_count(t["text_end"], end, len(text)), "text_end")
        text[:t["text_end"]].decode("utf-8")
        last, end = t["tokens"], t["text_end"]
    need(all(type(v) is str for v in m["identity"].values()), "identity")
    for h in objects(m) + [h for h in (m["parent"], m["forked_from"]) if h is not None]:
        need(type(h) is str and HASH.match(h), "hashes")
    return m


def objects(m):
    return m["pages"] + [x["object"] for x in m["snapshots"] + m.get("windows", [])] + ([m["last"]] if m["last"] is not None else [])


def sealed(name, file, first, keys):
    lines = file.decode("ascii").split("\n")
    need(len(lines) == len(keys) + 3 and lines[0] == first and lines[-1] == "", f"lines of {name}")
    values = []
    for key, line in zip(keys + ["seal"], lines[1:]):
        need(line.startswith(key + " "), key)
        values.append(line[len(key) + 1:])
    body = "\n".join(lines[:-2]) + "\n"
    need(blake3(f"{name}\n{body}".encode())[:8].hex() == values.pop(), f"seal of {name}")
    need(HASH.match(values[0]), f"hash in {name}")
    return values


def brief(h, m):
    said = m["text"].encode("utf-8")
    turns, start = [], 0
    for t in m["turns"]:
        turns.append({"role": t["role"], "tokens": t["tokens"], "text": said[start:t["text_end"]].decode("utf-8")})
        start = t["text_end"]
    return {"hash": h, "tokens": m["tokens"], "turns": turns, "pages": len(m["pages"]), "snapshots": [s["position"] for s in m["snapshots"]],
            "text": m["text"], "identity": m["identity"]}


class Reader:
    def __init__(self):
        self.wrong = []
        self.sizes = {}
        self.manifests = {}

    def take(self, name, file):
        try:
            raw, is_manifest = content(name, file)
            self.sizes[name] = len(raw)
            if is_manifest:
                self.manifests[name] = manifest(raw)
        except (Bad, ValueError, KeyError, TypeError, zlib.error) as e:
            self.wrong.append(f"object {name}: {e}")

    def chain(self, head, shallow):
        """Commits from the newest; says what is missing."""
        commits, at, child = [], head, None
        while at is not None:
            m = self.manifests.get(at)
            if m is None:
                if child is None or child not in shallow:
                    self.wrong.append(f"manifest {at} is missing")
                break
            self.wrong += [f"commit {at}: object {o} is missing" for o in objects(m) if o not in self.sizes]
            commits.append(brief(at, m))
            at, child = (None if at in shallow else m["parent"]), at
        return commits


def below(folder):
    for root, _, files in os.walk(folder):
        for file in sorted(files):
            path = os.path.join(root, file)
            with open(path, "rb") as f:
                yield os.path.relpath(path, folder).replace(os.sep, "/"), f.read()


def read_store(place):
    r = Reader()
    with open(os.path.join(place, "format"), "rb") as f:
        need(f.read() == b"reverie-store 2\n", "format")
    for path, file in below(os.path.join(place, "objects")):
        r.take(path.replace("/", ""), file)
    shallow = {path for path, _ in below(os.path.join(place, "shallow"))}
    states, tags = {}, {}
    for folder, found in (("refs", states), ("tags", tags)):
        for name, file in below(os.path.join(place, folder)):
            try:
                check_name(name)
                if folder == "refs":
                    (head,) = sealed(name, file, "reverie-ref 1", ["head"])
                    found[name] = r.chain(head, shallow)
                else:
                    head, tokens = sealed(name, file, "reverie-tag 1", ["manifest", "tokens"])
                    r.chain(head, shallow)
                    found[name] = {"manifest": head, "tokens": int(tokens)}
            except (Bad, ValueError) as e:
                r.wrong.append(f"{folder}/{name}: {e}")
    return r, {"states": states, "tags": tags}


def read_export(path):
    r = Reader()
    with open(path, "rb") as f:
        data = f.read()
    need(len(data) > 44 and data[:8] == b"RVSTATE1", "magic")
    need(blake3(data[:-32]) == data[-32:], "the hash at the end")
    (length,) = struct.unpack("<I", data[8:12])
    need(length <= 1 << 20, "header length")
    header = json.loads(data[12:12 + length])
    need((sorted(header), header["version"]) == (["head", "manifests", "name", "objects", "tags", "version"], 3), "header")
    check_name(header["name"])
    at, order = 12 + length, []
    for _ in range(header["objects"]):
        need(at + 40 <= len(data) - 32, "entries")
        name, size = data[at:at + 32].hex(), struct.unpack("<Q", data[at + 32:at + 40])[0]
        need(size <= len(data) - 32 - at - 40, "length of an entry")
        r.take(name, data[at + 40:at + 40 + size])
        order.append(name)
        at += 40 + size
    need(at == len(data) - 32, "bytes after the last entry")
    chain, at = order[:header["manifests"]], header["head"]
    for name in chain:
        need(name == at and name in r.manifests, "the chain of manifests")
        at = r.manifests[name]["parent"]
    wanted = {o for name in chain for o in objects(r.manifests[name])}
    need(wanted == set(order[header["manifests"]:]) and len(order) == len(set(order)), "exactly the objects that the manifests name")
    tags, last = {}, ""
    for tag in header.get("tags", []):
        check_name(tag["label"])
        need(sorted(tag) == ["label", "manifest", "tokens"] and tag["label"] > last and tag["manifest"] in chain, "tags")
        need(is_count(tag["tokens"], 0, len(r.manifests[tag["manifest"]]["tokens"])), "tags")
        last = tag["label"]
        tags[last] = {"manifest": tag["manifest"], "tokens": tag["tokens"]}
    return r, {"states": {header["name"]: r.chain(header["head"], {chain[-1]})}, "tags": tags}


def main():
    place = sys.argv[1]
    try:
        r, out = read_store(place) if os.path.isdir(place) else read_export(place)
        out.update(objects=len(r.sizes), bytes=sum(r.sizes.values()), wrong=r.wrong)
    except (Bad, OSError, ValueError, KeyError, IndexError) as e:
        out = {"wrong": [f"{type(e).__name__}: {e}"]}
    json.dump(out, sys.stdout)
    sys.exit(1 if out["wrong"] else 0)


if __name__ == "__main__":
    main()
