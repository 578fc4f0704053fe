#!/usr/bin/env python3
"""Writes a model folder with random bf16 weights, of Llama-3.2-1B's shape (2.5 GB) or Llama-3-8B's (16 GB): for timing
only, never committed.

usage: random_model.py FOLDER [--shape 1b|8b|tiny] [--layers N] [--fp8 [blocks|rows]]

--fp8: the layers' matrices as E4M3 with a scale for each 128 x 128, as DeepSeek-V3 and Qwen3-FP8 have them; rows: with one
for each row, as compressed-tensors has them.
Needs numpy. Vocabulary ids have one token each ("t0", "t1", ...), so that any id the model picks has a text.
"""
import argparse
import concurrent.futures
import json
import os
import struct

import numpy

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "intermediate_size": 8192,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
    "bos_token_id": 0,
    "eos_token_id": 1,
}

SHAPES = {
    "1b": {},
    "8b": {
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "head_dim": 128,
        "intermediate_size": 14336,
        "rope_scaling": None,
        "tie_word_embeddings": False,
    },
    # Seconds on an emulated GPU: the kinds of tensors are those of 8b.
    "tiny": {
        "hidden_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "intermediate_size": 256,
        "vocab_size": 512,
        "rope_scaling": None,
        "tie_word_embeddings": False,
    },
}


def config_of(shape):
    return {k: v for k, v in {**CONFIG, **SHAPES[shape]}.items() if v is not None}


FP8 = {
    "blocks": {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]},
    "rows": {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "ignore": ["lm_head"],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "input_activations": None,
                "weights": {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel"},
            }
        },
    },
}


def tensors(config):
    """Names and shapes, in file order."""
    width, ffn, size = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * size, config["num_key_value_heads"] * size
    yield "model.embed_tokens.weight", (config["vocab_size"], width)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        yield prefix + "input_layernorm.weight", (width,)
        yield prefix + "self_attn.q_proj.weight", (queries, width)
        yield prefix + "self_attn.k_proj.weight", (keys, width)
        yield prefix + "self_attn.v_proj.weight", (keys, width)
        yield prefix + "self_attn.o_proj.weight", (width, queries)
        yield prefix + "post_attention_layernorm.weight", (width,)
        yield prefix + "mlp.gate_proj.weight", (ffn, width)
        yield prefix + "mlp.up_proj.weight", (ffn, width)
        yield prefix + "mlp.down_proj.weight", (width, ffn)
    yield "model.norm.weight", (width,)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", (config["vocab_size"], width)


def typed_tensors(config):
    """Names, shapes, element types and sizes, in file order."""
    for name, shape in tensors(config):
        if "quantization_config" in config and "_proj" in name:
            yield name, shape, "F8_E4M3", 1
            if "weight_block_size" in config["quantization_config"]:
                yield name + "_scale_inv", tuple(-(-side // 128) for side in shape), "BF16", 2
            else:
                yield name + "_scale", (shape[0], 1), "BF16", 2
        else:
            yield name, shape, "BF16", 2


def write_at(file, place, values):
    """Whole, or an OSError (no space left)."""
    data = memoryview(values).cast("B")
    while len(data) > 0:
        count = os.pwrite(file, data, place)
        data, place = data[count:], place + count
    return True


def write_weights(path, config):
    shapes = list(typed_tensors(config))
    header, offset = {}, 0
    for name, shape, dtype, element_size in shapes:
        size = element_size * int(numpy.prod(shape))
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    generator = numpy.random.default_rng(1)
    # One block of random values, started at a different place for every tensor: as good for timing, made in seconds.
    block = (generator.standard_normal(1 << 24, dtype=numpy.float32) * 0.02).view(numpy.uint32) >> 16
    block = numpy.concatenate([block, block]).astype("<u2")
    # Bytes from 1/4 up to 3.75, either sign; times their scales about as large as the others.
    fp8 = (generator.integers(0x28, 0x48, 1 << 24) | generator.integers(0, 2, 1 << 24) << 7).astype(numpy.uint8)
    fp8 = numpy.concatenate([fp8, fp8])
    one, fp8_scale = numpy.uint16(0x3F80), 0x3C00  # bf16; scales are this and up to twice as much

    def parts():
        """(place in the file, values), up to 32 MiB each."""
        place = 8 + len(text)
        for name, shape, dtype, _ in shapes:
            count = int(numpy.prod(shape))
            values = fp8 if dtype == "F8_E4M3" else block
            if len(shape) == 1 or "_scale" in name:
                scales = generator.integers(fp8_scale, fp8_scale + 128, count).astype("<u2")
                yield place, numpy.full(count, one) if len(shape) == 1 else scales
                place += 2 * count
                continue
            while count > 0:
                start = int(generator.integers(1 << 24))
                part = min(count, 1 << 24)
                yield place, values[start : start + part]
                place += part * values.itemsize
                count -= part

    # Threads, because most of it is the kernel finding pages.
    with open(path, "wb") as file, concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
        file.write(struct.pack("<Q", len(text)) + text)
        file.flush()
        for written in threads.map(lambda part: write_at(file.fileno(), *part), parts()):
            assert written


def write_tokenizer(path, vocab_size):
    tokenizer = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": {}, "merges": []},
    }
    vocab = {}
    for byte in list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256)):  # byte-level BPE's alphabet
        vocab[chr(byte)] = len(vocab)
    for extra in range(68):
        vocab[chr(256 + extra)] = len(vocab)
    while len(vocab) < vocab_size:
        vocab[f"t{len(vocab)}"] = len(vocab)
    tokenizer["model"]["vocab"] = vocab
    with open(path, "w") as file:
        json.dump(tokenizer, file)


def write_model(folder, config):
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "config.json"), "w") as file:
        json.dump(config, file, indent=2)
    write_tokenizer(os.path.join(folder, "tokenizer.json"), config["vocab_size"])
    write_weights(os.path.join(folder, "model.safetensors"), config)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder")
    parser.add_argument("--shape", choices=SHAPES, default="1b")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--fp8", choices=FP8, nargs="?", const="blocks")
    arguments = parser.parse_args()
    config = config_of(arguments.shape)
    config["num_hidden_layers"] = arguments.layers or config["num_hidden_layers"]
    if arguments.fp8:
        config["quantization_config"] = FP8[arguments.fp8]
    write_model(arguments.folder, config)


if __name__ == "__main__":
    main()
