#!/usr/bin/env python3
"""A tiny model as FP8, and beside it the bf16 model that must give the same answers.

usage: fp8_model.py MODEL-FOLDER FP8-FOLDER BF16-FOLDER [--block 64]

The layers' matrices become E4M3 with a scale per row, or for each block of --block x --block; the rest stays as it is.
The bf16 model holds byte times scale, rounded to f32, then to bf16. Folders must exist; needs the standard library only.
"""
import argparse
import array
import bisect
import json
import pathlib
import struct

VALUES = [(k % 8) * 2.0**-9 if k < 8 else (8 + k % 8) * 2.0 ** (k // 8 - 10) for k in range(127)]
FORMS = {"rows": {"quant_method": "fbgemm_fp8"}, "blocks": {"quant_method": "fp8", "activation_scheme": "dynamic"}}


def f32(x):
    return struct.unpack("<f", struct.pack("<f", x))[0]


def to_bf16(x):
    bits = struct.unpack("<I", struct.pack("<f", x))[0]
    return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16


def nearest(x):
    """The E4M3 byte of a number of at most 448."""
    i = min(bisect.bisect_left(VALUES, abs(x)), 126)
    if i > 0 and abs(x) - VALUES[i - 1] <= VALUES[i] - abs(x):
        i -= 1
    return i | (0x80 if x < 0 else 0)


def read(path):
    """{name: (type, shape, bytes)}"""
    data = path.read_bytes()
    begin = 8 + struct.unpack("<Q", data[:8])[0]
    return {name: (t["dtype"], t["shape"], data[begin + t["data_offsets"][0]:begin + t["data_offsets"][1]])
            for name, t in json.loads(data[8:begin]).items() if name != "__metadata__"}


def write(path, tensors):
    header, body = {}, b""
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def floats(dtype, data):
    if dtype == "BF16":
        return [struct.unpack("<f", struct.pack("<I", half << 16))[0] for half in array.array("H", data)]
    return struct.unpack(f"<{len(data) // 4}f" if dtype == "F32" else f"<{len(data) // 2}e", data)


def convert(values, rows, cols, block):
    """Bytes, scales in rows of blocks, and bf16 of one matrix; block None: a scale per row."""
    block_rows, block_cols = (1, cols) if block is None else (block, block)
    places = [(i // cols // block_rows, i % cols // block_cols) for i in range(rows * cols)]
    most = {}
    for place, value in zip(places, values):
        most[place] = max(most.get(place, 0), abs(value))
    scales = {place: f32(max(size, 2.0**-20) / 448) for place, size in most.items()}
    codes = bytearray(nearest(value / scales[place]) for place, value in zip(places, values))
    halves = [to_bf16(f32((-1 if code & 0x80 else 1) * VALUES[code & 0x7F] * scales[place]))
              for place, code in zip(places, codes)]
    return bytes(codes), [scales[place] for place in sorted(scales)], array.array("H", halves).tobytes()


def make(model, fp8, bf16, block=None):
    tensors, plain = {}, {}
    for name, (dtype, shape, data) in read(model / "model.safetensors").items():
        if not name.endswith("_proj.weight"):
            tensors[name] = plain[name] = (dtype, shape, data)
            continue
        codes, scales, halves = convert(floats(dtype, data), *shape, block)
        counts = [shape[0]] if block is None else [-(-size // block) for size in shape]
        tensors[name] = ("F8_E4M3", shape, codes)
        tensors[name + ("_scale" if block is None else "_scale_inv")] = (
            "F32", counts, struct.pack(f"<{len(scales)}f", *scales))
        plain[name] = ("BF16", shape, halves)
    config = json.loads((model / "config.json").read_text())
    form = FORMS["rows"] if block is None else {**FORMS["blocks"], "weight_block_size": [block, block]}
    for folder, content, more in (fp8, tensors, {"quantization_config": form}), (bf16, plain, {}):
        write(folder / "model.safetensors", content)
        (folder / "config.json").write_text(json.dumps({**config, **more}))
        for file in model.iterdir():
            if not (folder / file.name).exists():
                (folder / file.name).write_bytes(file.read_bytes())


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for folder in ("model", "fp8", "bf16"):
        parser.add_argument(folder, type=pathlib.Path)
    parser.add_argument("--block", type=int)
    arguments = parser.parse_args()
    make(arguments.model, arguments.fp8, arguments.bf16, arguments.block)


if __name__ == "__main__":
    main()
