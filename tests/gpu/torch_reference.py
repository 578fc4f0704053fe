#!/usr/bin/env python3
"""What others reach on the same GPU: Llama-3-8B's shape in transformers with a static cache and torch.compile, batch 1, and
the rate of torch's products (cuBLASLt, bf16 out) in the matrices of a prompt of 4096 tokens.

usage: torch_reference.py [--tiny] [--device cuda]

Random weights, made on the device. One JSON object per line: {"torch": ..., "products": {...}}, then {"decode_tok_s": ...};
the second takes a minute, most of it compilation. --tiny: a model of two small layers, to see that the script works, on any
device. Needs torch and transformers (4.50 and later, 5); without them it says so and ends with 77.
"""
import argparse
import inspect
import json
import statistics
import sys
import time

try:
    import torch
    import transformers
    from transformers import LlamaConfig, LlamaForCausalLM, StaticCache
except ImportError as error:
    print(f"SKIPPED: {error}", file=sys.stderr)
    sys.exit(77)

# As in tests/kernels/llama_8b.h: outputs, inputs.
SHAPES = {"QKV": (6144, 4096), "attention output": (4096, 4096), "gate and up": (28672, 4096), "down": (4096, 14336),
          "head": (128256, 4096)}


def synchronize(device):
    if device == "cuda":
        torch.cuda.synchronize()


def product_rates(device, tokens, divisor):
    """T/s by matrix; medians of 9."""
    rates = {}
    for name, (outputs, inputs) in SHAPES.items():
        outputs, inputs = outputs // divisor, inputs // divisor
        x = torch.randn(tokens, inputs, device=device, dtype=torch.bfloat16)
        w = torch.randn(outputs, inputs, device=device, dtype=torch.bfloat16)
        times = []
        for _ in range(12):
            synchronize(device)
            begin = time.perf_counter()
            for _ in range(4):
                torch.nn.functional.linear(x, w)
            synchronize(device)
            times.append((time.perf_counter() - begin) / 4)
        rates[name] = round(2 * tokens * inputs * outputs / statistics.median(times[3:]) * 1e-12, 4)
        del x, w
    return rates


def decode_rate(device, config, steps):
    """Tokens per second: the median step of the last half."""
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = LlamaForCausalLM(config).eval()
    cache = StaticCache(config=config, max_batch_size=1, max_cache_len=1024, device=device, dtype=torch.bfloat16)
    takes_position = "cache_position" in inspect.signature(LlamaForCausalLM.forward).parameters  # not in 5.x any more
    compiled = torch.compile(model.forward, mode="reduce-overhead", fullgraph=True)
    token = torch.ones(1, 1, dtype=torch.long, device=device)
    times = []
    with torch.inference_mode():
        for index in range(steps):
            # The first step is not compiled: it allocates the cache at addresses that the compiled ones keep.
            forward = compiled if index > 0 else model
            position = {"cache_position": torch.tensor([index], device=device)} if takes_position else {}
            synchronize(device)
            begin = time.perf_counter()
            logits = forward(input_ids=token, past_key_values=cache, use_cache=True, **position).logits
            token = logits[:, -1:].argmax(-1).clone()
            synchronize(device)
            times.append(time.perf_counter() - begin)
    return 1 / statistics.median(times[steps // 2:])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--device", default="cuda")
    arguments = parser.parse_args()
    config = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
              "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 8192}
    if arguments.tiny:
        config.update({"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
                       "num_key_value_heads": 2, "vocab_size": 256})
    rates = product_rates(arguments.device, 16 if arguments.tiny else 4096, 32 if arguments.tiny else 1)
    print(json.dumps({"torch": torch.__version__, "products": rates}), flush=True)
    rate = decode_rate(arguments.device, LlamaConfig(**config), 8 if arguments.tiny else 160)
    print(json.dumps({"transformers": transformers.__version__, "decode_tok_s": round(rate, 2)}), flush=True)


if __name__ == "__main__":
    main()
