#!/usr/bin/env python3
"""Writes small byte-level BPE tokenizers as vocab.json and merges.txt, and the ids that transformers makes with them.

    python testdata/make_bpe.py [--out testdata/bpe]

needs scripts/requirements/golden.txt. `opt` puts its BOS first and has its special tokens in front, as facebook/opt-*;
`gpt2` says nothing but its class; `added` has a blank put before texts and tokens beside the vocabulary. Each folder holds

    expected.json    texts, and for each the ids with and without special tokens and the text that the latter decode to
"""

import argparse
import json
import pathlib
import shutil

import tokenizers
import transformers

HERE = pathlib.Path(__file__).parent
SIZE = 340
TEXTS = [
    "", "a", " ", "The State of the Union", " the state  of the   union\n\n", "We've 1,234 reasons; don't they'll?", "naïve café — “déjà vu”",
    "漢字かな 🙂🙃 Привет", "line\r\nbreak\ttab", "</s>text</s>", "<s> <pad> <unk>", "<|endoftext|>x <|endoftext|>", "one <|user|> two<|user|>three <mask> four",
    "\u200bzero\u00a0width", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "x" * 3 + "'s" * 3,
]


def special(content, **more):
    return dict(content=content, **{**dict(lstrip=False, normalized=True, rstrip=False, single_word=False), **more})


def trained(front, back):
    """Returns vocabulary and merges of a tokenizer of SIZE tokens, with special tokens before and behind the others."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=SIZE, initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()), show_progress=False)
    tokenizer.train(sorted(str(path) for path in (HERE / "text" / "calibration").iterdir()), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    words = sorted(model["vocab"], key=model["vocab"].get)
    return {word: i for i, word in enumerate([*front, *words, *back])}, model["merges"]


def folders():
    """Yields name, special tokens before and behind the vocabulary, and the files beside it."""
    yield "opt", ["<s>", "<pad>", "</s>", "<unk>"], [], {"tokenizer_config.json": dict(
        errors="replace", unk_token=special("</s>", __type="AddedToken"), bos_token=special("</s>", __type="AddedToken"),
        eos_token=special("</s>", __type="AddedToken"), pad_token="<pad>",
        add_prefix_space=False, add_bos_token=True, tokenizer_class="GPT2Tokenizer")}
    yield "gpt2", [], ["<|endoftext|>"], {"tokenizer_config.json": dict(model_max_length=1024, tokenizer_class="GPT2Tokenizer")}
    yield "added", [], ["<|endoftext|>"], {
        "tokenizer_config.json": dict(add_prefix_space=True, tokenizer_class="GPT2Tokenizer"),
        "added_tokens.json": {"<|user|>": SIZE + 1, "<mask>": SIZE + 2},
        "special_tokens_map.json": dict(
            bos_token="<|endoftext|>", eos_token="<|endoftext|>", unk_token="<|endoftext|>", mask_token=special("<mask>", lstrip=True, normalized=False))}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "bpe")
    out = parser.parse_args().out
    for name, front, back, files in folders():
        folder = out / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        vocabulary, merges = trained(front, back)
        (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False) + "\n")
        (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
        for file, content in files.items():
            (folder / file).write_text(json.dumps(content, indent=2) + "\n")
        tokenizer = transformers.GPT2Tokenizer.from_pretrained(folder)
        cases = []
        for text in TEXTS:
            plain = tokenizer.encode(text, add_special_tokens=False)
            decoded = tokenizer.decode(plain, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            cases.append(dict(text=text, ids=tokenizer.encode(text), plain=plain, decoded=decoded))
        (folder / "expected.json").write_text(json.dumps(cases, ensure_ascii=False, indent=1) + "\n")
        print(f"{name:8} {len(vocabulary)} tokens, {len(merges)} merges, BOS {tokenizer.encode('a')[0] if tokenizer.add_bos_token else 'no'}")


if __name__ == "__main__":
    main()
