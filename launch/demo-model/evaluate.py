#!/usr/bin/env python3
"""Accuracy of the demo model on held-out prompts, from the bf16 checkpoint, greedy, computed in f32.

    /tmp/demo-venv/bin/python launch/demo-model/evaluate.py [--model FOLDER] [--count 200] [--show 3]

Needs what train.py needs. Prints the table of README.md: raw is the prompt alone, as `weft run --prompt` sends it; chat
is the same prompt inside the chat template.
"""
import argparse
import os

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

import tasks
from train import FOLDER, Llama

END = (0, 2)  # <|endoftext|>, <|im_end|>


def load(folder):
    model = Llama()
    tensors = {name: tensor.float() for name, tensor in load_file(os.path.join(folder, "model.safetensors")).items()}
    model.load_state_dict(tensors)
    return model.eval(), Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))


@torch.no_grad()
def answers(model, tokenizer, prompts, token_max=96):
    """Greedy answers; the whole batch is computed again for every token, which is fast enough at this size."""
    rows = [piece.ids for piece in tokenizer.encode_batch(prompts)]
    starts = [len(row) for row in rows]
    live = set(range(len(rows)))
    for _ in range(token_max):
        if not live:
            break
        order = sorted(live)
        width = max(len(rows[i]) for i in order)
        ids = torch.tensor([rows[i] + [0] * (width - len(rows[i])) for i in order])
        wanted = torch.zeros(ids.shape, dtype=torch.bool)
        for row, i in enumerate(order):
            wanted[row, len(rows[i]) - 1] = True
        for i, token in zip(order, model(ids, wanted).argmax(-1).tolist()):
            rows[i].append(token)
            if token in END:
                live.discard(i)
    return [tokenizer.decode(row[start:]) for row, start in zip(rows, starts)]


def score(model, tokenizer, samples, form, show):
    outputs = []
    for first in range(0, len(samples), 50):
        prompts = [sample.prompt for sample in samples[first : first + 50]]
        if form == "chat":
            prompts = [tasks.chat([("user", prompt)]) for prompt in prompts]
        outputs += answers(model, tokenizer, prompts)
    wrong = [(s, o) for s, o in zip(samples, outputs) if not tasks.is_right(s, o)]
    for sample, output in wrong[:show]:
        print(f"    {sample.prompt[-90:]!r} -> {output!r}, right: {sample.answer!r}")
    return 100 * (1 - len(wrong) / len(samples))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=FOLDER)
    parser.add_argument("--count", type=int, default=200, help="held-out prompts per task")
    parser.add_argument("--show", type=int, default=0, help="wrong answers to print per task")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, tokenizer = load(args.model)
    print("| task | prompts | raw | chat |\n|---|---|---|---|")
    for task in tasks.MAKERS:
        samples = tasks.held_out_samples(task, args.count)
        raw, chat = (score(model, tokenizer, samples, form, args.show) for form in ("raw", "chat"))
        print(f"| {task} | {len(samples)} | {raw:.1f} % | {chat:.1f} % |", flush=True)


if __name__ == "__main__":
    main()
