#!/usr/bin/env python3
"""What others reach on the same GPU: Llama-3-8B's shape in transformers with a static cache and torch.compile, batch 1, and
cuBLASLt's rate (through torch) on the matrices of a prefill of 4096 tokens. Random weights, made on the GPU. Last line:
the result. Needs torch and transformers."""
import statistics
import sys
import time

try:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, StaticCache
except ImportError as error:
    sys.exit(f"skipped: {error}")

SHAPES = [(4096, 6144), (4096, 4096), (4096, 28672), (14336, 4096)]


def cublas_rate(tokens):
    """TFLOP/s over one layer's four matrix products."""
    flops, seconds = 0, 0.0
    for inputs, outputs in SHAPES:
        x = torch.randn(tokens, inputs, device="cuda", dtype=torch.bfloat16)
        w = torch.randn(outputs, inputs, device="cuda", dtype=torch.bfloat16)
        times = []
        for _ in range(12):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            torch.nn.functional.linear(x, w)
            end.record()
            torch.cuda.synchronize()
            times.append(begin.elapsed_time(end) / 1e3)
        seconds += statistics.median(times[2:])
        flops += 2 * tokens * inputs * outputs
    return flops / seconds * 1e-12


def decode_rate():
    config = LlamaConfig(hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
                         num_key_value_heads=8, vocab_size=128256, max_position_embeddings=8192)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = LlamaForCausalLM(config).eval()
    cache = StaticCache(config=config, max_batch_size=1, max_cache_len=1024, device="cuda", dtype=torch.bfloat16)
    step = torch.compile(model.forward, mode="reduce-overhead", fullgraph=True)
    token = torch.zeros(1, 1, dtype=torch.long, device="cuda")
    times = []
    with torch.inference_mode():
        for position in range(160):
            begin = time.perf_counter()
            logits = step(token, past_key_values=cache, use_cache=True,
                          cache_position=torch.tensor([position], device="cuda")).logits
            token = logits[:, -1:].argmax(-1).clone()
            torch.cuda.synchronize()
            times.append(time.perf_counter() - begin)
    return 1 / statistics.median(times[64:])


def main():
    cublas = cublas_rate(4096)
    print(f"cuBLASLt {cublas:.0f} TFLOP/s", flush=True)
    print(f"transformers {decode_rate():.0f} tok/s; cuBLASLt {cublas:.0f} TFLOP/s at 4096 tokens (torch "
          f"{torch.__version__})")


if __name__ == "__main__":
    main()
