"""The command line: help, mistakes, exit codes, prompts, json."""
import json
import re
import subprocess

import pytest
from weft_cli import BUSY, CONFIG, FAILED, GOLDEN, PROMPT, ROOT, WEFT, answer, model_folder, one_error_line, weft

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return model_folder("llama2", tmp_path_factory.mktemp("llama2"))


def test_help_names_every_command():
    done = weft("--help")
    assert done.returncode == 0
    for name in ("run", "serve", "info", "doctor", "bench"):
        assert re.search(rf"^  {name}\b", done.stdout, re.M)
        assert weft("help", name).stdout == weft(name, "--help").stdout


@pytest.mark.parametrize("command, options", [
    ("run", "model prompt prompt-file max-tokens temperature top-k top-p min-p repetition-penalty presence-penalty "
            "frequency-penalty seed stop ignore-eos ranks threads shares weights leaves prefill-chunk cpu-level comm interface "
            "kv-dtype quantize memory context timeout rank leader secret-file output quiet"),
    ("serve", "model grpc drain sequences queue ranks threads shares memory context"),
    ("info", "model ranks shares leaves memory quantize output"),
    ("bench", "model batch prompt-tokens max-tokens rounds ranks threads shares weights quantize memory device output"),
])
def test_help_of_a_command(command, options):
    text = weft(command, "--help").stdout
    for option in options.split():
        assert re.search(rf"--{option}\b", text), option
    assert "Examples:" in text and "default:" in text
    assert max(map(len, text.splitlines())) <= 100


def test_without_arguments():
    done = weft()
    assert done.returncode == 2
    assert "usage: weft COMMAND" in done.stderr


def test_version():
    assert re.fullmatch(r"weft \d+\.\d+\.\d+\n", weft("--version").stdout)


@pytest.mark.parametrize("arguments, message", [
    (["rnu"], 'weft: unknown command "rnu"; did you mean run?'),
    (["frobnicate"], 'weft: unknown command "frobnicate" (weft --help lists all)'),
    (["run", "--promt", "x"], "weft run: unknown option --promt; did you mean --prompt?"),
    (["run", "--max-token=3", "x"], "weft run: unknown option --max-token; did you mean --max-tokens?"),
    (["run", "--zzzzzz"], "weft run: unknown option --zzzzzz (weft run --help lists all)"),
    (["run", "-y"], "weft run: unknown option -y (weft run --help lists all)"),
    (["run", "--grpc", "x"], "weft run: --grpc is not an option of weft run (weft run --help lists all)"),
    (["run", "--max-tokens"], "weft run: --max-tokens needs a value: --max-tokens N"),
    (["run", "--max-tokens", "-3"], 'weft run: --max-tokens: expected an integer from 1 to 4294967295, found "-3"'),
    (["run", "--max-tokens", "1e99"], 'weft run: --max-tokens: expected an integer from 1 to 4294967295, found "1e99"'),
    (["run", "--temperature", "nan"], 'weft run: --temperature: expected a number from 0 to 100, found "nan"'),
    (["run", "--top-p", "2"], 'weft run: --top-p: expected a number from 1e-06 to 1, found "2"'),
    (["run", "--shares", "3,,1"], 'weft run: --shares: expected auto, or whole numbers from 1 such as 3,1, found "3,,1"'),
    (["bench", "--batch", "auto"],
     'weft bench: --batch: expected whole numbers from 1 such as 1,8,32, found "auto"'),
    (["bench", "--rounds", "0"], 'weft bench: --rounds: expected an integer from 1 to 1000, found "0"'),
    (["info", "--shares", "auto"],
     "weft info: --shares auto: measured when ranks meet, and info starts none; give numbers"),
    (["run", "--weights", "nfs"], 'weft run: --weights: expected local|stream, found "nfs"'),
    (["run", "--quantize", "q5"], 'weft run: --quantize: expected none|bf16|q8_0|q4_0, found "q5"'),
    (["run", "--shares", "0,1"], 'weft run: --shares: expected auto, or whole numbers from 1 such as 3,1, found "0,1"'),
    (["run", "--memory", "4 elephants"],
     'weft run: --memory: expected a size such as 4GiB or 512MiB, found "4 elephants"'),
    (["run", "--timeout", "soon"], 'weft run: --timeout: expected a time such as 30s, 500ms or 2m, found "soon"'),
    (["run", "--cpu-level", "sse9"], 'weft run: --cpu-level: expected ref|avx2|avx512|avx512vnni, found "sse9"'),
    (["run", "--quiet=1"], "weft run: --quiet takes no value"),
    (["run", "--seed", "18446744073709551616"],
     'weft run: --seed: expected an integer from 0 to 18446744073709551615, found "18446744073709551616"'),
    (["run", "one", "two"], 'weft run: unexpected argument "two" (weft run --help)'),
    (["serve", "x"], 'weft serve: unexpected argument "x" (weft serve --help)'),
    (["run", "--rank", "1", "x"], "weft run: --rank needs --leader HOST:PORT"),
    (["run", "--leader", "a:1", "--rank", "2", "--ranks", "2", "x"],
     "weft run: --rank: expected a rank below --ranks, which is 2, found 2"),
    (["run", "--leader", "a:1", "--ranks", "2", "x"],
     "weft run: --leader needs --rank R and --ranks N, or a launcher that gives them"),
    (["doctor", "--local-ranks", "2"],
     "weft doctor: --local-ranks needs --leader or a launcher; --ranks N starts N ranks on this host"),
    (["serve", "--model", "x", "--grpc", "here"],
     'weft: serve: address "here": expected HOST:PORT, for example 127.0.0.1:50051'),
])
def test_usage_mistakes(arguments, message):
    assert one_error_line(weft(*arguments), 2) == message


def test_environment_stands_in_and_is_named_in_errors(model):
    assert answer("--prompt", PROMPT, "--max-tokens", 3, environment={"WEFT_MODEL": str(model), "WEFT_RANKS": "2"})
    done = weft("run", "--prompt", "x", environment={"WEFT_RANKS": "many"})
    assert one_error_line(done, 2) == 'weft run: WEFT_RANKS: expected an integer from 1 to 1024, found "many"'
    # An option wins over the environment.
    assert answer("--prompt", PROMPT, "--max-tokens", 3, "--model", model, environment={"WEFT_MODEL": "/nowhere"})


@pytest.mark.parametrize("arguments, code, words", [
    (["--model", "/nowhere"], CONFIG, ["/nowhere: no such model folder"]),
    (["--model", str(GOLDEN)], CONFIG, ["config.json"]),
    (["--prompt-file", "/nowhere.txt"], FAILED, ["/nowhere.txt", "No such file"]),
    (["--secret-file", "/nowhere.txt"], CONFIG, ["/nowhere.txt", "No such file"]),
    (["--ranks", "9"], CONFIG, ["9", "leaves"]),
    (["--ranks", "2", "--shares", "1,1,1"], CONFIG, ["shares"]),
    (["--memory", "1KiB"], BUSY, ["memory"]),
])
def test_failures(model, arguments, code, words):
    if "--prompt-file" not in arguments:
        arguments = ["--prompt", PROMPT, *arguments]
    if "--model" not in arguments:
        arguments = ["--model", str(model), *arguments]
    done = weft("run", "--quiet", *arguments)
    line = one_error_line(done, code)
    assert line.startswith("weft")
    for word in words:
        assert word in line


def truncate(path):
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:len(content) // 2])


def overwrite(path, content):
    path.unlink()
    path.write_bytes(content)


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("file, damage", [
    ("model.safetensors", truncate),
    ("model.safetensors", lambda path: overwrite(path, b"\xff" * 64)),
    ("model.safetensors", lambda path: path.unlink()),
    ("config.json", lambda path: overwrite(path, b"{")),
    ("config.json", lambda path: overwrite(path, b'{"architectures": ["NobodyForCausalLM"], "model_type": "nobody"}')),
    ("tokenizer.json", truncate),
])
def test_damaged_folders(tmp_path, ranks, file, damage):
    folder = model_folder("llama2", tmp_path)
    damage(folder / file)
    line = one_error_line(weft("run", "--quiet", "--model", folder, "--prompt", "x", "--ranks", ranks), CONFIG)
    assert file.split(".")[0] in line, line


@pytest.mark.parametrize("ranks", [1, 3])
def test_no_tokenizer(tmp_path, ranks):
    """Such a model can be served; only a prompt as text cannot be read."""
    folder = model_folder("llama2", tmp_path)
    (folder / "tokenizer.json").unlink()
    line = one_error_line(weft("run", "--quiet", "--model", folder, "--prompt", "x", "--ranks", ranks), FAILED)
    assert "tokenizer.json" in line


def test_prompt_longer_than_the_context(model):
    line = one_error_line(weft("run", "--quiet", "--model", model, "--prompt", "x" * 200), 1)
    assert "200" in line and "128" in line


def test_json(model):
    done = weft("run", "--model", model, "--prompt", PROMPT, "--max-tokens", "12", "--temperature", "0", "--seed", "7",
                "--ranks", "2", "--threads", "1", "--shares", "3,1", "--prefill-chunk", "5", "--output", "json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    result = json.loads(done.stdout)
    assert set(result) == {"token_ids", "text", "finish_reason", "prompt_token_count", "logits_sha256", "timings"}
    assert len(result["token_ids"]) <= 12 and all(isinstance(i, int) for i in result["token_ids"])
    assert result["finish_reason"] in ("stop", "length")
    assert result["prompt_token_count"] == len(PROMPT)
    assert re.fullmatch(r"[0-9a-f]{64}", result["logits_sha256"])
    assert result["timings"]["ttft_ms"] > 0
    assert result["timings"]["collectives"]["tree_sum"]["calls"] > 0


def test_text_goes_to_stdout_and_the_rest_to_stderr(model):
    arguments = ["--model", model, "--prompt", PROMPT, "--max-tokens", 12, "--ignore-eos"]
    done = weft("run", *arguments)
    assert done.returncode == 0
    assert done.stdout == answer(*arguments)["text"] + "\n"
    assert re.search(r"first token after [\d.]+ ms", done.stderr)
    assert re.search(r"12 tokens, [\d.]+ tokens/s", done.stderr)
    assert "rank" in done.stderr, "no memory table"
    quiet = weft("run", *arguments, "--quiet")
    assert (quiet.stdout, quiet.stderr) == (done.stdout, "")


def test_prompt_from_everywhere_is_the_same(model, tmp_path):
    file = tmp_path / "prompt.txt"
    file.write_text(PROMPT + "\n")
    common = ["--model", model, "--max-tokens", 8]
    wanted = answer(*common, "--prompt", PROMPT)
    assert wanted["prompt_token_count"] == len(PROMPT)
    for arguments, stdin in (([PROMPT], ""), (["--prompt-file", file], ""), ([], PROMPT + "\n"), ([], PROMPT),
                             (["--prompt-file", "-"], PROMPT), ([f"--prompt={PROMPT}"], ""), (["--", PROMPT], "")):
        got = answer(*common, *arguments, stdin=stdin)
        assert (got["token_ids"], got["logits_sha256"]) == (wanted["token_ids"], wanted["logits_sha256"])


def test_empty_prompt(model):
    line = one_error_line(weft("run", "--quiet", "--model", model, stdin=""), 1)
    assert "prompt" in line


def test_sampling_depends_on_the_seed_alone(model):
    common = ["--model", model, "--prompt", PROMPT, "--max-tokens", 24, "--temperature", "1.5", "--ignore-eos"]
    first = answer(*common, "--seed", 1)
    assert answer(*common, "--seed", 1, "--ranks", 3)["token_ids"] == first["token_ids"]
    assert answer(*common, "--seed", 2)["token_ids"] != first["token_ids"]
    assert answer(*common, "--seed", 1, "--top-k", 1)["token_ids"] == \
        answer(*common, "--temperature", 0)["token_ids"]


def test_stop_string_and_max_tokens(model):
    common = ["--model", model, "--prompt", PROMPT, "--ignore-eos", "--temperature", 2, "--seed", 3]
    long = answer(*common, "--max-tokens", 60)
    assert (long["finish_reason"], len(long["token_ids"])) == ("length", 60)
    text = long["text"]
    stop = next(text[i:i + 2] for i in range(8, 50) if "\ufffd" not in text[i:i + 2] and text.find(text[i:i + 2]) == i)
    short = answer(*common, "--max-tokens", 60, "--stop", "never-comes", "--stop", stop)
    assert short["finish_reason"] == "stop"
    assert short["text"] == text[:text.find(stop)]


def test_info(model):
    done = weft("info", model, "--ranks", 3, "--shares", "2,1,1")
    assert done.returncode == 0
    assert "LlamaForCausalLM" in done.stdout
    assert len(re.findall(r"^ +\d +\d-\d ", done.stdout, re.M)) == 3
    one = json.loads(weft("info", model, "--output", "json").stdout)
    three = json.loads(weft("info", model, "--ranks", 3, "--output", "json").stdout)
    assert one["architecture"] == "LlamaForCausalLM"
    assert len(one["ranks"]) == 1 and len(three["ranks"]) == 3
    assert three["ranks"][0]["leaves"][0] == 0 and three["ranks"][-1]["leaves"][1] == one["leaf_count"]
    for rank in three["ranks"]:
        assert rank["weight_bytes"] < one["ranks"][0]["weight_bytes"]
    assert "/nowhere" in one_error_line(weft("info", "/nowhere"), CONFIG)


def weight_bytes(model, *arguments, **keywords):
    return json.loads(weft("info", model, "--output", "json", *arguments, **keywords).stdout)["ranks"][0]["weight_bytes"]


def test_quantize_is_said_and_counted():
    """Of the demo model: what weights become, before they are loaded, in every command."""
    demo = str(ROOT / "launch" / "demo-model")
    said = "q4_0 (embedding and head q8_0), quantised while loading, from bf16"
    done = weft("run", "--quantize", "q4_0", "--prompt", "12+30=", "--threads", 1)
    assert done.returncode == 0 and done.stderr.splitlines()[0] == f"weights {said}", done.stderr
    assert "weights bf16" not in weft("run", "--prompt", "12+30=", "--threads", 1).stderr
    assert said in weft("info", demo, "--quantize", "q4_0").stdout
    assert json.loads(weft("info", demo, "--quantize", "q8_0", "--output", "json").stdout)["weight_dtype"] == "q8_0"
    stored, q8_0, q4_0 = (weight_bytes(demo, "--quantize", kind) for kind in ("none", "q8_0", "q4_0"))
    assert weight_bytes(demo, environment={"WEFT_QUANTIZE": "q8_0"}) == q8_0
    # 34 and 18 bytes for 32 weights of 2 bytes; the embedding, 9 % of this model, stays at 34; what is padded is little.
    assert 0.52 < q8_0 / stored < 0.56 and 0.28 < q4_0 / stored < 0.34
    report = weft("bench", "--quantize", "q8_0", "--prompt-tokens", 5, "--max-tokens", 4, "--rounds", 1, "--output", "json")
    assert json.loads(report.stdout)["weight_dtype"] == "q8_0"


def test_closed_stdout_ends_the_run(model):
    done = subprocess.run(f"{WEFT} run --quiet --model {model} --prompt x --max-tokens 100 --ignore-eos | head -c 1",
                          shell=True, capture_output=True, timeout=60)
    assert len(done.stdout) == 1
    assert done.stderr in (b"", b"weft run: standard output was closed\n")


def test_bench():
    done = weft("bench", "--ranks", 2, "--threads", 1, "--batch", "1,3", "--prompt-tokens", 20, "--max-tokens", 8,
                "--rounds", 2, "--output", "json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["ranks"] == 2 and report["rounds"] == 2
    assert [(r["batch"], r["prompt_tokens"], r["made_tokens"]) for r in report["results"]] == [(1, 20, 8), (3, 20, 8)]
    assert all(r["prefill_tokens_per_s"] > 0 and r["decode_tokens_per_s"] > 0 for r in report["results"])
    table = weft("bench", "--batch", "2", "--prompt-tokens", 5, "--max-tokens", 4, "--rounds", 1)
    assert table.returncode == 0, table.stderr
    assert re.search(r"^ +2 +5 +[0-9.]+ +[0-9.]+ % +4 +[0-9.]+ ", table.stdout, re.M), table.stdout


def test_bench_of_more_than_the_model_can():
    line = one_error_line(weft("bench", "--prompt-tokens", 100000, "--quiet"), CONFIG)
    assert "context" in line and "100064" in line
