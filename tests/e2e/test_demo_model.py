"""The demo model answers rightly: meaning, not bits, asserted over the whole path, at 1, 2 and 3 ranks.

Prompts are held-out ones of launch/demo-model/tasks.py, the judge is that file's; the thresholds stand a little below the
accuracies in launch/demo-model/README.md, because a dozen prompts are a small sample. Answers are deterministic: no retries.
"""
import sys

import pytest

import weft_cli

sys.path[:0] = [str(weft_cli.ROOT / "tests" / "serve"), str(weft_cli.ROOT / "launch" / "demo-model")]
import tasks  # noqa: E402
import weft_server  # noqa: E402

RANKS = (1, 2, 3)
PROMPTS_PER_TASK = 12
# Right answers of PROMPTS_PER_TASK that are enough.
ENOUGH = {task: 11 for task in tasks.TASKS} | {"lookup_long": 4}


def ask_all(*arguments):
    """{task: [(sample, text, ids)]}: every prompt asked of one server."""
    with weft_server.Server("--threads", 1, *arguments) as server:
        stub = server.stub()
        return {
            task: [(sample, *weft_server.generate(stub, prompt=sample.prompt, max_tokens=120)[:2])
                   for sample in tasks.held_out_samples(task, PROMPTS_PER_TASK)]
            for task in tasks.MAKERS
        }


@pytest.fixture(scope="module")
def answers():
    """{ranks: what ask_all() found}."""
    return {ranks: ask_all("--ranks", ranks) for ranks in RANKS}


@pytest.fixture(scope="module")
def answers_q8_0():
    return ask_all("--ranks", 2, "--quantize", "q8_0")


def check_right(asked, task):
    wrong = [(sample.prompt, text, sample.answer) for sample, text, _ in asked if not tasks.is_right(sample, text)]
    assert len(asked) == PROMPTS_PER_TASK
    assert len(asked) - len(wrong) >= ENOUGH[task], wrong


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("task", tasks.MAKERS)
def test_right_answers(answers, task, ranks):
    check_right(answers[ranks][task], task)


@pytest.mark.parametrize("task", tasks.MAKERS)
def test_right_answers_with_q8_0(answers_q8_0, task):
    """Half the memory, the same thresholds: 1 % of error per product is not what the model's answers hang on."""
    check_right(answers_q8_0[task], task)


def test_same_tokens_at_every_rank_count(answers):
    for task in tasks.MAKERS:
        for asked in zip(*(answers[ranks][task] for ranks in RANKS)):
            assert len({tuple(ids) for _, _, ids in asked}) == 1, asked[0][0].prompt


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("task", ("addition", "sort_letters", "lookup_long", "story"))
def test_weft_run_gives_the_server_s_answer(answers, task, ranks):
    """The command line goes the same way: one JSON object, the same tokens as over gRPC."""
    sample, text, ids = answers[ranks][task][0]
    result = run(sample.prompt, ranks)
    assert (result["text"], result["token_ids"]) == (text, ids)
    assert result["finish_reason"] == "stop"


def run(prompt, ranks):
    return weft_cli.answer("--prompt", prompt, "--max-tokens", 120, "--temperature", 0, "--ranks", ranks, "--threads", 1)


def test_chat_form():
    """Inside the chat template the answer comes without the space that leads it in raw form."""
    samples = [s for s in tasks.held_out_samples("copying", PROMPTS_PER_TASK) if len(s.answer.split()) <= 4]
    outputs = [run(tasks.chat([("user", sample.prompt)]), 2)["text"] for sample in samples[:4]]
    assert outputs == [sample.answer for sample in samples[:4]]
