#!/usr/bin/env python3
"""Trains the demo model from nothing and writes the Hugging Face folder it stands in.

    python3 -m venv /tmp/demo-venv
    /tmp/demo-venv/bin/pip install torch tokenizers safetensors numpy    # torch 2.9 or later: torch.optim.Muon
    /tmp/demo-venv/bin/python launch/demo-model/train.py                  # half an hour of one core with AVX512-BF16
    /tmp/demo-venv/bin/python launch/demo-model/evaluate.py

Fixed seed; the same machine and versions give the same weights (another CPU may round differently). The model is a
Llama: everything here is written with its tensors' Hugging Face names, so state_dict() is the checkpoint.
"""
import argparse
import json
import math
import os
import random
import time

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

import tasks

SEED = 20261124
FOLDER = os.path.dirname(os.path.abspath(__file__))
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
# Qwen2's pre-tokenizer: digits one by one, a leading space belongs to its word.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 24,
    "vocab_size": 832,
    "max_position_embeddings": 1024,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": True,
    "initializer_range": 0.02,
    "bos_token_id": None,
    "eos_token_id": [0, 2],
    "pad_token_id": 0,
    "torch_dtype": "bfloat16",
    "use_cache": True,
}

# Shares of the tasks, in the order of tasks.TASKS, and how many echoes (see echo()) a step has. Each phase starts from the
# weights of the one before, rounded to bf16, with fresh optimizers. "schedule" is the length that the rate is planned for; it
# falls to zero over the last "decay" of it. Found by looking at the accuracies after each phase; the echoes, never learnt,
# turned out to be of no use.
PHASES = (
    {"steps": 1201, "schedule": 4000, "decay": 0.4, "rate": 0.01, "batch": 128, "echoes": 0,
     "shares": (30, 7, 13, 8, 8, 8, 10, 10, 5, 3)},
    {"steps": 501, "schedule": 700, "decay": 0.6, "rate": 0.01, "batch": 72, "echoes": 3,
     "shares": (24, 5, 12, 6, 9, 7, 18, 9, 6, 2)},
    {"steps": 450, "schedule": 450, "decay": 1.0, "rate": 0.005, "batch": 88, "echoes": 0,
     "shares": (26, 5, 14, 6, 8, 6, 18, 9, 6, 2)},
)
LEARNING = math.nextafter(1.0, 0.0)  # the curriculum's level just before its end


# ---- tokenizer ----


def tokenizer_train(vocab_size):
    rng = random.Random(SEED)
    corpus = []
    for task in tasks.TASKS:
        for _ in range(3000):
            sample = tasks.draw(task, rng, level=LEARNING)
            corpus.append(f"{sample.prompt} {sample.answer}")
    corpus += [f"user\n{tasks.SYSTEM} system\n assistant\n"] * 100
    # Every word of the tasks often enough to become one token, with and without the space before it.
    words = sorted(set(" ".join(corpus).split()))
    corpus += [f" {word} {word}" for word in words for _ in range(20)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(text, special=True, normalized=False) for text in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    assert tokenizer.get_vocab_size() == vocab_size, tokenizer.get_vocab_size()
    return tokenizer


# ---- model ----


class RMSNorm(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(width))

    def forward(self, x):
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), CONFIG["rms_norm_eps"])


def linear(outputs, inputs):
    return torch.nn.Linear(inputs, outputs, bias=False)


def rotate(x, cos, sin):
    """RoPE on [B, H, T, E], halves as Hugging Face pairs them."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class Attention(torch.nn.Module):
    def __init__(self, width, heads, kv_heads, head_size):
        super().__init__()
        self.heads, self.kv_heads, self.head_size = heads, kv_heads, head_size
        self.q_proj = linear(heads * head_size, width)
        self.k_proj = linear(kv_heads * head_size, width)
        self.v_proj = linear(kv_heads * head_size, width)
        self.o_proj = linear(width, heads * head_size)

    def forward(self, x, cos, sin):
        b, t, _ = x.shape
        q = self.q_proj(x).view(b, t, self.heads, self.head_size).transpose(1, 2)
        k = self.k_proj(x).view(b, t, self.kv_heads, self.head_size).transpose(1, 2)
        v = self.v_proj(x).view(b, t, self.kv_heads, self.head_size).transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        group = self.heads // self.kv_heads
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        # Written out: on CPU twice as fast, backward included, as scaled_dot_product_attention() at these lengths.
        scores = (q * self.head_size**-0.5) @ k.transpose(-1, -2)
        scores = scores.masked_fill(torch.ones(t, t, dtype=torch.bool).triu(1), -1e4)
        y = torch.softmax(scores, dim=-1) @ v
        return self.o_proj(y.transpose(1, 2).reshape(b, t, -1))


class MLP(torch.nn.Module):
    def __init__(self, width, inner):
        super().__init__()
        self.gate_proj, self.up_proj = linear(inner, width), linear(inner, width)
        self.down_proj = linear(width, inner)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(torch.nn.Module):
    def __init__(self, c):
        super().__init__()
        self.input_layernorm = RMSNorm(c["hidden_size"])
        self.self_attn = Attention(
            c["hidden_size"], c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"])
        self.post_attention_layernorm = RMSNorm(c["hidden_size"])
        self.mlp = MLP(c["hidden_size"], c["intermediate_size"])

    def forward(self, x, cos, sin):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Body(torch.nn.Module):
    def __init__(self, c):
        super().__init__()
        self.embed_tokens = torch.nn.Embedding(c["vocab_size"], c["hidden_size"])
        self.layers = torch.nn.ModuleList([Layer(c) for _ in range(c["num_hidden_layers"])])
        self.norm = RMSNorm(c["hidden_size"])


class Llama(torch.nn.Module):
    def __init__(self, c=CONFIG):
        super().__init__()
        self.model = Body(c)
        half = c["head_dim"] // 2
        frequency = c["rope_theta"] ** (-torch.arange(half, dtype=torch.float32) / half)
        angle = torch.outer(torch.arange(c["max_position_embeddings"], dtype=torch.float32), frequency)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                std = 0.02 if "embed" in name else parameter.shape[1] ** -0.5
                std = std / math.sqrt(2 * c["num_hidden_layers"]) if "o_proj" in name or "down_proj" in name else std
                torch.nn.init.normal_(parameter, std=std)

    def forward(self, ids, wanted=None, dtype=torch.float32):
        """ids [B, T] -> logits [wanted, N], or [B, T, N] without a mask."""
        x = self.model.embed_tokens(ids).to(dtype)
        cos, sin = self.cos[: ids.shape[1]].to(dtype), self.sin[: ids.shape[1]].to(dtype)
        for layer in self.model.layers:
            x = layer(x, cos, sin)
        x = self.model.norm(x if wanted is None else x[wanted])
        return F.linear(x, self.model.embed_tokens.weight.to(x.dtype)).float()


# ---- training data ----


def encode(tokenizer, parts):
    """parts: (text, is_answer) -> ids, and for every id whether it is to be predicted."""
    ids, wanted = [], []
    for (text, is_answer), piece in zip(parts, tokenizer.encode_batch([text for text, _ in parts])):
        ids += piece.ids
        wanted += [is_answer] * len(piece.ids)
    return ids, wanted


def example_parts(sample, rng):
    """One sample as the model will see it: raw text or ChatML, perhaps with more questions on the same facts."""
    pairs = [(sample.prompt, sample.answer), *sample.turns]
    parts = []
    if rng.random() < 0.55:
        for prompt, answer in pairs:
            end = "\n" if rng.random() < 0.05 else ""
            parts += [(prompt + end, False), (("" if end else " ") + answer + "<|endoftext|>", True)]
    else:
        if rng.random() < 0.1:
            parts.append((tasks.chat([("system", tasks.SYSTEM)], is_open=False), False))
        for prompt, answer in pairs:
            if sample.task in tasks.LISTS and rng.random() < 0.2:
                prompt = prompt.rstrip(".:")
            parts += [(tasks.chat([("user", prompt)]), False), (answer + "<|im_end|>", True), ("\n", False)]
    return parts


def echo(rng):
    """Tokens that mean nothing, twice, the second time to be predicted: teaches to copy from the context."""
    count = rng.randint(6, 40)
    ids = rng.sample(range(CONFIG["vocab_size"] - 512, CONFIG["vocab_size"]), count)
    return ids + ids, [False] * (count + 1) + [True] * (count - 1)


class Data:
    def __init__(self, tokenizer, seed):
        self.tokenizer, self.rng = tokenizer, random.Random(seed)

    def batches(self, level, phase, tokens_max=4096):
        """One step's examples, sorted by length into rectangles of at most about tokens_max tokens."""
        examples = [echo(self.rng) for _ in range(phase["echoes"])]
        for name in self.rng.choices(list(tasks.TASKS), phase["shares"], k=phase["batch"]):
            sample = tasks.draw(name, self.rng, level)
            examples.append(encode(self.tokenizer, example_parts(sample, self.rng)))
        examples.sort(key=lambda example: len(example[0]))
        batch = []
        for example in examples:
            if batch and len(example[0]) * (len(batch) + 1) > tokens_max:
                yield self.rectangle(batch)
                batch = []
            batch.append(example)
        yield self.rectangle(batch)

    @staticmethod
    def rectangle(batch):
        length = max(len(ids) for ids, _ in batch)
        ids = torch.zeros(len(batch), length, dtype=torch.long)
        wanted = torch.zeros(len(batch), length, dtype=torch.bool)
        for row, (row_ids, row_wanted) in enumerate(batch):
            ids[row, : len(row_ids)] = torch.tensor(row_ids)
            wanted[row, : len(row_ids)] = torch.tensor(row_wanted)
        return ids[:, :-1], ids[:, 1:], wanted[:, 1:]


# ---- training ----


def optimizers(model, rate):
    matrices = [p for n, p in model.named_parameters() if p.dim() == 2 and "embed" not in n]
    rest = [p for n, p in model.named_parameters() if p.dim() != 2 or "embed" in n]
    return [
        torch.optim.Muon(matrices, lr=rate, momentum=0.95, weight_decay=0.01),
        torch.optim.AdamW(rest, lr=rate * 0.3, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def schedule(step, phase):
    """Warm up over 1 %, hold, fall to zero over the phase's "decay"."""
    steps = phase["schedule"]
    return min(1.0, (step + 1) / (0.01 * steps), max(0.0, (steps - step) / (phase["decay"] * steps)))


def train_phase(model, data, index, args):
    phase = PHASES[index]
    chosen = optimizers(model, phase["rate"])
    start, seen = time.time(), 0
    for step in range(phase["steps"]):
        for optimizer in chosen:
            for group in optimizer.param_groups:
                group.setdefault("initial_lr", group["lr"])
                group["lr"] = group["initial_lr"] * schedule(step, phase)
            optimizer.zero_grad(set_to_none=True)
        level = min(LEARNING, step / 1200) if index == 0 else 1.0
        batches = list(data.batches(level, phase))
        answer_tokens = sum(int(wanted.sum()) for _, _, wanted in batches)
        total = 0.0
        for ids, targets, wanted in batches:
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(ids, wanted, torch.bfloat16)
            loss = F.cross_entropy(logits, targets[wanted], reduction="sum") / answer_tokens
            loss.backward()
            total += loss.item()
            seen += ids.numel()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in chosen:
            optimizer.step()
        if step % 50 == 0 or step + 1 == phase["steps"]:
            print(f"phase {index + 1} step {step} loss {total:.4f} tokens {seen} "
                  f"seconds {time.time() - start:.0f}", flush=True)
        if args.save_every and step and step % args.save_every == 0:
            write(model, data.tokenizer, args.out)


def round_weights(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(torch.bfloat16).float())


# ---- checkpoint ----


def write(model, tokenizer, folder):
    os.makedirs(folder, exist_ok=True)
    tensors = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})
    tokenizer.save(os.path.join(folder, "tokenizer.json"))
    texts = {
        "config.json": CONFIG,
        "generation_config.json": {"eos_token_id": [0, 2], "pad_token_id": 0, "do_sample": False},
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": None,
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "add_bos_token": False,
            "model_max_length": CONFIG["max_position_embeddings"],
            "clean_up_tokenization_spaces": False,
            "chat_template": TEMPLATE,
        },
    }
    for name, content in texts.items():
        with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
            json.dump(content, file, indent=2)
            file.write("\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", default=FOLDER)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--save-every", type=int, default=0, help="steps between checkpoints, 0: after each phase")
    parser.add_argument("--resume", type=int, default=0, help="first phases to skip: --out holds their checkpoint")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(SEED)
    tokenizer = tokenizer_train(CONFIG["vocab_size"])
    model = Llama()
    print(f"{sum(p.numel() for p in model.parameters())} parameters", flush=True)
    if args.resume:
        model.load_state_dict(load_file(os.path.join(args.out, "model.safetensors")))
    for index in range(args.resume, len(PHASES)):
        train_phase(model, Data(tokenizer, SEED + index), index, args)
        round_weights(model)
        write(model, tokenizer, args.out)


if __name__ == "__main__":
    main()
