#!/usr/bin/env python3
"""Makes the golden models and values of this folder with PyTorch and transformers. Run by hand; the results are committed.

For every family a tiny random model is written as a Hugging Face folder, in one of the forms found in the wild, then
read back by transformers in f32. golden.safetensors beside it holds what transformers computed: `prompt` [T], `rows` [R]
and `logits` [R, N] of those prompt rows, and `tokens` [64], the greedy continuation. rope.json has RoPE frequencies for
many configurations. With ../shared the values of its story-model are made too (values only).

    make_golden.py [NAME...]
"""

import json
import pathlib
import shutil
import sys

import numpy
import torch
import transformers
from safetensors.torch import save_file

HERE = pathlib.Path(__file__).resolve().parent
OUT = HERE / "golden"
STORY = HERE.parents[2] / "shared" / "data" / "story-model"
PROMPT_COUNT = 40
LONG_COUNT = 290  # attention walks the cache in pieces of 256 positions: these prompts cross into the second
TOKEN_COUNT = 64
# Smallest allowed distance between the two best logits of a greedy step, relative to the row's largest magnitude: ten
# times what the test tolerates, so that rounding cannot change a decision.
GAP_MIN = 1e-3

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16


def config(architecture, **settings):
    base = {
        "architectures": [architecture],
        "model_type": architecture.removesuffix("ForCausalLM").lower(),
        "hidden_act": "silu",
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "vocab_size": 256,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    base.update(settings)
    return {key: value for key, value in base.items() if value is not ...}


# name: config, how the weights are stored
MODELS = {
    # As many KV heads as query heads; 160 = 5 blocks of 32 columns: with 8 leaves some are empty.
    "llama2": dict(
        config=config("LlamaForCausalLM", num_key_value_heads=8, torch_dtype="float32"), dtype=F32),
    # llama3 RoPE (old form), sharded, tied with only the embedding stored.
    "llama3": dict(
        config=config("LlamaForCausalLM", torch_dtype="bfloat16", tie_word_embeddings=True, rope_theta=500000.0,
                      rope_scaling={"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                    "original_max_position_embeddings": 64, "rope_type": "llama3"}),
        dtype=BF16, shards=3),
    # Window shorter than the prompt, fewer heads than leaves, FFN width that is no multiple of 32, vocabulary of 250.
    "mistral": dict(
        config=config("MistralForCausalLM", torch_dtype="float16", num_attention_heads=4, head_dim=16,
                      sliding_window=12, intermediate_size=144, vocab_size=250, eos_token_id=[2, 7]),
        dtype=F16, shards=2),
    # 14 heads over 2 KV heads, biases, tied with only lm_head stored, biases and norms in f32.
    "qwen2": dict(
        config=config("Qwen2ForCausalLM", torch_dtype="bfloat16", tie_word_embeddings=True, hidden_size=112,
                      num_attention_heads=14, intermediate_size=192, rope_theta=1000000.0, use_sliding_window=False,
                      sliding_window=32, max_window_layers=2),
        dtype=BF16, tied="head", vector_dtype=F32),
    # Window in the second layer only, a long prompt, and the names without "model.".
    "qwen2-window": dict(
        config=config("Qwen2ForCausalLM", dtype="float32", hidden_size=48, num_attention_heads=6,
                      num_key_value_heads=3, intermediate_size=96, tie_word_embeddings=True, use_sliding_window=True,
                      sliding_window=9, max_window_layers=1, max_position_embeddings=512),
        dtype=F32, prefix="", prompt=LONG_COUNT),
    # q/k norm, head_dim that is not D / H, H E is not D; q, k, v of different types.
    "qwen3": dict(
        config=config("Qwen3ForCausalLM", torch_dtype="bfloat16", num_attention_heads=6, num_key_value_heads=3,
                      head_dim=24, rope_theta=1000000.0),
        dtype=BF16, odd={"k_proj.weight": F16, "gate_proj.weight": F32, "lm_head.weight": F16}),
    # linear scaling (new form), a long prompt, every bias there is, tied flag with two different tensors stored.
    "linear": dict(
        config=config("LlamaForCausalLM", dtype="float32", attention_bias=True, mlp_bias=True, rope_theta=...,
                      num_key_value_heads=4, intermediate_size=96,
                      rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
                      tie_word_embeddings=True, max_position_embeddings=512),
        dtype=F32, tied="different", prompt=LONG_COUNT),
    # yarn (old form, "type"), tied with both tensors stored and equal.
    "yarn": dict(
        config=config("Qwen2ForCausalLM", torch_dtype="float16", tie_word_embeddings=True, intermediate_size=128,
                      rope_theta=1000000.0, max_position_embeddings=32,
                      rope_scaling={"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}),
        dtype=F16, tied="both"),
}


def random_weights(settings, spec, generator):
    """State dict of the family with values that make decided choices, rounded to the types they are stored in."""
    dtype = spec["dtype"]
    model = transformers.AutoModelForCausalLM.from_config(settings)
    state = {}
    for name, value in model.state_dict().items():
        noise = torch.randn(value.shape, generator=generator)
        if name.endswith("norm.weight"):
            noise = 1.0 + 0.3 * noise
        elif name.endswith("bias"):
            noise = 0.3 * noise
        elif name.endswith("embed_tokens.weight") or name == "lm_head.weight":
            noise = noise * 0.5
        else:
            noise = noise * 1.5 / value.shape[1] ** 0.5
        kind = spec.get("vector_dtype", dtype) if value.dim() == 1 else dtype
        for suffix, other in spec.get("odd", {}).items():
            kind = other if name.endswith(suffix) else kind
        state[name] = noise.to(kind)
    return state


def stored(state, spec):
    """The tensors as the form of this model has them in files."""
    embedding, head = "model.embed_tokens.weight", "lm_head.weight"
    if spec["config"]["tie_word_embeddings"]:
        form = spec.get("tied", "embedding")
        if form == "head":
            state[head] = state.pop(embedding)
        elif form == "both":
            state[head] = state[embedding].clone()
        elif form == "embedding":
            del state[head]
    return {name.replace("model.", spec.get("prefix", "model."), 1): value for name, value in state.items()}


def write_folder(folder, spec, state):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(spec["config"], indent=2) + "\n")
    shards = spec.get("shards", 1)
    if shards == 1:
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        return
    names = list(state)
    weight_map = {}
    for i in range(shards):
        part = names[i * len(names) // shards:(i + 1) * len(names) // shards]
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        save_file({name: state[name] for name in part}, folder / file, metadata={"format": "pt"})
        weight_map.update({name: file for name in part})
    size = sum(value.numel() * value.element_size() for value in state.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=0) + "\n")


def load(folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=F32, attn_implementation="eager")
    return model.eval()


@torch.no_grad()
def golden(model, prompt, rows):
    """Values of one model, and the smallest relative distance of a greedy decision."""
    ids = torch.tensor([prompt])
    values = {"prompt": numpy.array(prompt, numpy.int32), "rows": numpy.array(rows, numpy.int32),
              "logits": model(ids).logits[0, rows].float().contiguous()}
    gap = float("inf")
    for _ in range(TOKEN_COUNT):
        row = model(ids).logits[0, -1].float()
        best = torch.topk(row, 2)
        gap = min(gap, ((best.values[0] - best.values[1]) / row.abs().max()).item())
        ids = torch.cat([ids, best.indices[:1].reshape(1, 1)], dim=1)
    values["tokens"] = ids[0, len(prompt):].to(torch.int32)
    return {name: torch.as_tensor(value) for name, value in values.items()}, gap


def make_model(name):
    spec = MODELS[name]
    folder = OUT / name
    for seed in range(1, 200):
        generator = torch.Generator().manual_seed(seed)
        settings = transformers.AutoConfig.for_model(**spec["config"])
        write_folder(folder, spec, stored(random_weights(settings, spec, generator), spec))
        count = spec.get("prompt", PROMPT_COUNT)
        prompt = torch.randint(0, spec["config"]["vocab_size"], (count,), generator=generator).tolist()
        rows = [*range(0, count, count // 10), count - 1]
        values, gap = golden(load(folder), prompt, rows)
        distinct = len(set(values["tokens"].tolist()))
        if gap > GAP_MIN and distinct > 12:
            save_file(values, folder / "golden.safetensors")
            print(f"{name}: seed {seed}, smallest gap {gap:.2e}, {distinct} distinct tokens")
            return
    raise SystemExit(f"{name}: no seed with decided choices")


def make_story():
    if not STORY.is_dir():
        print("story-model: skipped, ../shared is not there")
        return
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(STORY / "tokenizer.json"))
    text = ("Once upon a time, there was a little girl named Lily. She loved to play outside in the park with her dog. "
            "One day her mother said: take the big red ball with you, and come home before it is dark.")
    prompt = tokenizer(text)["input_ids"]
    values, gap = golden(load(STORY), prompt, list(range(0, len(prompt), 4)))
    (OUT / "story-model").mkdir(exist_ok=True)
    save_file(values, OUT / "story-model" / "golden.safetensors")
    print(f"story-model: {len(prompt)} tokens, smallest gap {gap:.2e}:", tokenizer.decode(values["tokens"].tolist()))


def rope_configs():
    """Configurations whose frequencies are compared: every type, both forms, odd head widths."""
    llama3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    yarn = {"factor": 4.0, "original_max_position_embeddings": 32768}
    for size in (8, 80, 128):
        for theta in (10000.0, 500000.0, 1000000):
            shape = dict(hidden_size=size * 8, rope_theta=theta, max_position_embeddings=32768)
            new = dict(hidden_size=size * 8, rope_theta=..., max_position_embeddings=32768)
            yield config("LlamaForCausalLM", **shape)
            yield config("LlamaForCausalLM", rope_scaling={"type": "linear", "factor": 2.5}, **shape)
            yield config("LlamaForCausalLM", rope_scaling=dict(llama3, rope_type="llama3"), **shape)
            yield config("LlamaForCausalLM", rope_parameters=dict(llama3, rope_type="llama3", rope_theta=theta, factor=32.0), **new)
            yield config("Qwen2ForCausalLM", rope_scaling=dict(yarn, type="yarn"), **shape)
            yield config("Qwen2ForCausalLM", rope_parameters=dict(yarn, rope_type="yarn", rope_theta=theta, truncate=False), **new)
            yield config("Qwen2ForCausalLM", rope_scaling=dict(yarn, rope_type="yarn", attention_factor=1.25), **shape)
            yield config("LlamaForCausalLM", rope_scaling=dict(yarn, rope_type="yarn", factor=40.0, mscale=0.707,
                                                               mscale_all_dim=1.0, beta_fast=16, beta_slow=2), **shape)
            yield config("LlamaForCausalLM", rope_scaling={"rope_type": "yarn", "factor": 0.5}, **shape)


def make_rope():
    entries = []
    for settings in rope_configs():
        # explicitly: transformers' yarn does not derive it for every family
        settings = dict(settings, num_hidden_layers=1, head_dim=settings["hidden_size"] // 8)
        model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**settings))
        rotary = model.model.rotary_emb
        bits = rotary.inv_freq.numpy().view(numpy.uint32).tolist()
        scale = float(numpy.float32(rotary.attention_scaling))
        entries.append({"config": settings, "inv_freq_bits": bits, "scale": scale})
    lines = ",\n".join(json.dumps(entry, separators=(",", ":")) for entry in entries)
    (OUT / "rope.json").write_text(f"[\n{lines}\n]\n")
    print(f"rope.json: {len(entries)} configurations")


def main():
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    wanted = sys.argv[1:] or [*MODELS, "story-model", "rope"]
    for name in wanted:
        {"story-model": make_story, "rope": make_rope}.get(name, lambda: make_model(name))()


if __name__ == "__main__":
    main()
