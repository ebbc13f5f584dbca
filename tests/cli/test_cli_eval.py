"""`dgpo eval` on tiny random models: what it prints and writes, where, that it can be repeated and interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from dgpo.installation import hint
from dgpo.rewards import exact_match
from dgpo.tasks import Addition

BENCHMARKS = Path(__file__).parents[3] / "shared" / "benchmarks"
needs_benchmarks = pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="the benchmark files are not there")

CHAT_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}"
    "{% endif %}{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""Qwen2's way of writing a chat."""


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "generations.jsonl").read_text(encoding="utf-8").splitlines()]


def results_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "results.json").read_text()))


@pytest.fixture(scope="session")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen2 of 16 hidden units with a byte-level BPE tokenizer and Qwen2's chat template."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["Please reason step by step, and put your final answer within boxed."] * 9, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHAT_TEMPLATE
    )
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=4096,
        initializer_range=0.3,  # the usual 0.02 repeats the last token
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen2ForCausalLM(config)
    # servers decode greedily without do_sample, and top_k or a penalty here must not reach our samples
    model.generation_config = GenerationConfig(
        do_sample=True, eos_token_id=[tokenizer.eos_token_id, tokenizer.pad_token_id], pad_token_id=0
    )
    folder = tmp_path_factory.mktemp("tiny-qwen2")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_task(dgpo: Callable[..., Any], tiny: Path, output: Path) -> None:
    """The table and all files; only the first problems of the test split; greedy first, then the samples."""
    done = dgpo("eval", "--model", tiny, "--task", "addition", "--samples", 4, "--limit", 6, "--out", output)
    assert done.code == 0, done.err
    results = results_of(output)
    names = ["greedy", "avg@4", "pass@1", "pass@2", "pass@4", "best@4", "maj@4"]
    found = results["benchmarks"]["addition"]
    assert list(found["estimates"]) == names
    fields = {"value", "se", "low", "high", "detectable"}
    assert all(set(estimate) == fields for estimate in found["estimates"].values())
    assert (results["schema"], results["model"], found["problems"]) == ("dgpo.evaluation/1", str(tiny), 6)
    assert found["data"]["rows"] == 500
    assert found["data"]["evaluated"]["rows"] == 6
    assert results["sampling"] == {
        "samples": 4,
        "temperature": 1.0,
        "top_p": 1.0,
        "max_new_tokens": Addition.max_new_tokens,
        "seed": 0,
        "greedy": True,
    }
    assert results["prompt"]["name"] == "plain"
    assert set(results["versions"]) == {"dgpo", "python", "torch", "transformers"}
    assert sum(one["n"] for one in found["per_problem"]) == 24

    generations = rows(output)
    assert len(generations) == 6 * (1 + 4)
    problems = Addition().problems("test")[:6]
    assert [row["prompt"] for row in generations[::5]] == [problem["prompt"] for problem in problems]
    assert [row["kind"] for row in generations[:5]] == ["greedy"] + ["sample"] * 4
    graded = [Addition.grade(row["completion"], row["answer"]) for row in generations]
    assert [row["score"] for row in generations] == graded

    for name in ("6 problems", "95 % interval", "smallest detectable difference", *names):
        assert name in done.out
    assert done.out.splitlines()[-2:] == [str(output / "results.json"), str(output / "generations.jsonl")]
    assert "| addition | 6 |" in (output / "results.md").read_text()


def test_the_same_seed_gives_the_same_samples(dgpo: Callable[..., Any], tiny: Path, output: Path) -> None:
    base = ["eval", "--model", tiny, "--task", "addition", "--samples", 3, "--limit", 5]
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert dgpo(*base, "--seed", seed, "--out", output / name).code == 0
    first, again, other = (rows(output / name) for name in "abc")
    assert first == again
    assert first != other
    greedy = [[row for row in run if row["kind"] == "greedy"] for run in (first, other)]
    assert greedy[0] == greedy[1]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--samples", 0], {"greedy"}),
        (["--samples", 2, "--no-greedy", "--ks", 2], {"avg@2", "pass@2", "best@2", "maj@2"}),
        (["--samples", 1, "--greedy"], {"greedy", "avg@1", "pass@1", "best@1", "maj@1"}),
    ],
)
def test_greedy_and_samples(
    dgpo: Callable[..., Any], tiny: Path, output: Path, flags: list[Any], expected: set[str]
) -> None:
    done = dgpo("eval", "--model", tiny, "--task", "addition", "--limit", 3, "--out", output, *flags)
    assert done.code == 0, done.err
    assert set(results_of(output)["benchmarks"]["addition"]["estimates"]) == expected
    assert ("greedy only" in done.out) == (flags == ["--samples", 0])


def test_without_out_the_files_are_next_to_the_model(dgpo: Callable[..., Any], tiny: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    AutoModelForCausalLM.from_pretrained(tiny).save_pretrained(model)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(model)
    assert dgpo("eval", "--model", model, "--task", "addition", "--samples", 0, "--limit", 2).code == 0
    assert (model / "eval-addition-first2" / "results.json").is_file()
    # and the folder still is that model
    assert dgpo("eval", "--model", model, "--task", "addition", "--samples", 0, "--limit", 2).code == 0


def test_a_hub_model_does_not_get_a_folder_of_its_name(
    dgpo: Callable[..., Any], tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`Qwen/Qwen2.5-0.5B/eval-...` here would be taken for the model the next time."""
    from dgpo.cli import eval as command
    from dgpo.cli.models import load_model, load_tokenizer

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "load_model", lambda name, dtype: load_model(str(tiny), dtype))
    monkeypatch.setattr(command, "load_tokenizer", lambda name: load_tokenizer(str(tiny)))
    words = ["eval", "--model", "somebody/some-model", "--task", "addition", "--samples", 0, "--limit", 2]
    done = dgpo(*words)
    assert done.code == 0, done.err
    assert not Path("somebody").exists()
    assert results_of(Path("outputs/some-model/eval-addition-first2"))["model"] == "somebody/some-model"


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_data_file(dgpo: Callable[..., Any], tiny: Path, tmp_path: Path, output: Path, suffix: str) -> None:
    """Graded by its final answer, as text or as a number; the budget and the template are the flags'."""
    from datasets import Dataset

    data = Dataset.from_list([{"problem": f"{a}+{a}=", "answer": 2 * a} for a in range(5)])
    file = tmp_path / f"sums{suffix}"
    data.to_json(file) if suffix == ".jsonl" else data.to_parquet(file)
    flags = ["--samples", 2, "--max_new_tokens", 3, "--prompt_template", "Q: {prompt}", "--limit", 4]
    done = dgpo("eval", "--model", tiny, "--dataset", file, "--out", output, *flags)
    assert done.code == 0, done.err
    results = results_of(output)
    assert list(results["benchmarks"]) == ["sums"]
    assert results["benchmarks"]["sums"]["problems"] == 4
    assert results["sampling"]["max_new_tokens"] == 3
    assert (results["prompt"]["name"], results["prompt"]["template"]) == ("custom", "Q: {prompt}")
    generations = rows(output)
    assert generations[-1]["prompt"] == "Q: 3+3="
    assert generations[-1]["answer"] == "6"
    assert all(row["tokens"] <= 3 for row in generations)
    assert [row["score"] for row in generations] == [
        exact_match(row["completion"], row["answer"]) for row in generations
    ]


def test_a_yaml_file(dgpo: Callable[..., Any], tiny: Path, tmp_path: Path, output: Path) -> None:
    """A required argument may stand in the file."""
    file = tmp_path / "eval.yaml"
    file.write_text(f"model: {tiny}\ntask: addition\nsamples: 2\nlimit: 3\nout: {output}\ntemperature: 7e-1\n")
    done = dgpo("eval", "--config", file, "--samples", 0)
    assert done.code == 0, done.err
    sampling = results_of(output)["sampling"]
    assert (sampling["samples"], sampling["temperature"]) == (0, 0.7)


@needs_benchmarks
def test_benchmarks_with_a_chat_template(dgpo: Callable[..., Any], qwen: Path, output: Path) -> None:
    """The papers' settings by default; every prompt a chat, told in full in the results. No answer can be right."""
    words = ["eval", "--model", qwen, "--benchmarks", "math500", "aime24", "--data-dir", BENCHMARKS, "--limit", 3]
    done = dgpo(*words, "--samples", 2, "--max-new-tokens", 6, "--out", output)
    assert done.code == 0, done.err
    results = results_of(output)
    sampling = {"samples": 2, "temperature": 0.6, "top_p": 0.95, "max_new_tokens": 6, "seed": 0, "greedy": False}
    assert results["sampling"] == sampling
    prompt = results["prompt"]
    assert (prompt["name"], prompt["chat"], prompt["chat_template"]["present"]) == ("boxed", True, True)
    assert "\\boxed{}" in prompt["template"]
    assert list(results["benchmarks"]) == ["math500", "aime24"]
    for found in results["benchmarks"].values():
        assert found["data"]["checked"] == "content"
        assert found["grader"].startswith("dgpo MathGrader")
        assert found["estimates"]["avg@2"]["value"] == 0
        assert found["rates"]["no_answer"] == 1
    assert results["average"]["avg@2"] == {"value": 0, "se": 0}
    generations = rows(output)
    assert len(generations) == 12
    (message,) = generations[0]["prompt"]
    assert message["role"] == "user"
    assert message["content"].startswith("Convert the point")
    assert message["content"].endswith("within \\boxed{}.")
    assert {row["reason"] for row in generations} == {"no_answer"}
    lines = [line.split() for line in done.out.splitlines()]
    assert {line[0] for line in lines if line} >= {"math500", "aime24", "average"}

    # one of them alone, as plain text, greedily
    plain = dgpo(
        *words[:4], "aime24", *words[6:], "--no-chat", "--samples", 0, "--max-new-tokens", 2, "--out", output / "p"
    )
    assert plain.code == 0, plain.err
    assert isinstance(rows(output / "p")[0]["prompt"], str)
    assert list(results_of(output / "p")["benchmarks"]["aime24"]["estimates"]) == ["greedy"]


@needs_benchmarks
def test_grading_only(dgpo: Callable[..., Any], tmp_path: Path) -> None:
    """What somebody else generated: all of AIME24, three answers each."""
    problems = [json.loads(line) for line in (BENCHMARKS / "aime24.jsonl").read_text().splitlines()]
    file = tmp_path / "gens.jsonl"
    good = [f"<think>hm</think> so $\\boxed{{{problem['answer']}}}$" for problem in problems]
    written = [
        {"id": problem["id"], "completions": [text, "\\boxed{-5}", "no idea"]}
        for problem, text in zip(problems, good, strict=True)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in written))
    words = ["eval", "--benchmarks", "aime24", "--data-dir", BENCHMARKS]
    done = dgpo(*words, "--generations", file, "--ks", 1, 3)
    assert done.code == 0, done.err
    found = results_of(tmp_path / "eval-aime24-gens")["benchmarks"]["aime24"]
    values = {name: estimate["value"] for name, estimate in found["estimates"].items()}
    assert values["avg@3"] == pytest.approx(1 / 3)
    assert values["pass@3"] == 1
    assert values["best@3"] == pytest.approx(1 - (2 / 3) ** 3)
    assert found["rates"]["no_answer"] == pytest.approx(1 / 3)
    assert "how they were drawn is not known" in done.out

    # what it wrote is graded again, to the same estimates
    again = dgpo(
        *words, "--generations", tmp_path / "eval-aime24-gens" / "generations.jsonl", "--out", tmp_path / "again"
    )
    assert again.code == 0, again.err
    assert results_of(tmp_path / "again")["benchmarks"]["aime24"]["per_problem"] == found["per_problem"]

    file.write_text("".join(json.dumps(row) + "\n" for row in written[:-1]))
    dgpo(*words, "--generations", file).one_error("gens.jsonl", f"no completion for problem {problems[-1]['id']!r}")
    file.write_text(json.dumps({"id": "aime99", "completion": "1"}) + "\n")
    dgpo(*words, "--generations", file).one_error("line 1", "'aime99'", "no problem")


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--task", "addition", "--benchmarks", "aime24"], ["--task or --dataset or --benchmarks", "['aime24']"]),
        (["--benchmarks", "aime42"], ["unknown task 'aime42'", "did you mean 'aime24'?"]),
        (["--task", "addition", "--data-dir", "x"], ["data_dir = 'x' has no meaning here", "addition"]),
        (["--task", "addition", "--prompt", "boxed"], ["prompt = 'boxed' has no meaning here"]),
        (["--task", "addition", "--no-chat"], ["no_chat = True has no meaning here"]),
        (["--dataset", "x.jsonl", "--prompt", "boxed"], ["prompt = 'boxed' has no meaning here", "benchmarks"]),
        (["--task", "addition", "--grader", "math"], ["grader = 'math' has no meaning here", "--dataset"]),
        (
            ["--benchmarks", "aime24", "--prompt", "boxed", "--prompt_template", "{prompt}!"],
            ["prompt = 'boxed' and prompt_template = '{prompt}!' exclude each other"],
        ),
        (["--benchmarks", "aime24", "--prompt_template", "Q"], ["does not contain '{problem}'"]),
        (["--benchmarks", "aime24", "--chat", "--no-chat"], ["chat and no_chat contradict"]),
        (["--task", "addition", "--greedy", "--no-greedy"], ["greedy and no_greedy contradict"]),
        (["--task", "addition", "--samples", "0", "--no-greedy"], ["leaves nothing to generate"]),
        (["--task", "addition", "--top-p", "0"], ["top_p = 0.0 is not allowed; expected a number in (0, 1]"]),
        (["--task", "addition", "--ks", "1", "9"], ["ks = [1, 9]", "samples = 8"]),
        (["--task", "addition", "--base-url", "http://x/v1"], ["base_url = 'http://x/v1'", "--backend openai"]),
        (["--task", "addition", "--backend", "openai"], ["needs the server's address", "--base-url"]),
        (["--dataset", "https://me:password@127.0.0.1:9/x.jsonl"], ["https://***@127.0.0.1:9/x.jsonl"]),
        (["--task", "addition", "--timeout", "5"], ["timeout = 5.0", "--backend openai"]),
        (
            ["--task", "addition", "--backend", "openai", "--base-url", "http://x/v1", "--timeout", "0"],
            ["timeout = 0.0 is not allowed; expected a number in (0, inf)"],
        ),
        (["--task", "addition", "--backend", "openai", "--base-url", "x"], ["base_url = 'x'", "http://127.0.0.1:8000"]),
        (["--task", "addition", "--generations", "g.jsonl"], ["model = ", "--generations grades existing completions"]),
    ],
    ids=lambda value: " ".join(value)[:60] if value and value[0].startswith("--") else "",
)
def test_flags_that_do_not_fit(
    dgpo: Callable[..., Any], tiny: Path, output: Path, flags: list[str], parts: list[str]
) -> None:
    """Found before a model is loaded or a folder made."""
    dgpo("eval", "--model", tiny, "--out", output, *flags).one_error(*parts)
    assert not output.exists()


def test_vllm_that_is_not_installed(dgpo: Callable[..., Any], tiny: Path, output: Path) -> None:
    from importlib.util import find_spec

    if find_spec("vllm") is not None:
        pytest.skip("vLLM is installed")
    done = dgpo("eval", "--model", tiny, "--task", "addition", "--backend", "vllm", "--out", output)
    done.one_error(hint("vllm"))


def test_a_server_that_is_not_there(dgpo: Callable[..., Any], output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.setattr("openai._base_client.MAX_RETRY_DELAY", 0.01)
    words = ["--backend", "openai", "--base-url", "http://127.0.0.1:9/v1", "--limit", 1, "--out", output]
    dgpo("eval", "--model", "m", "--task", "addition", *words).one_error("http://127.0.0.1:9/v1", "Connection error")


def test_another_configuration_in_the_same_folder(dgpo: Callable[..., Any], tiny: Path, output: Path) -> None:
    words = ["eval", "--model", tiny, "--task", "addition", "--samples", 2, "--limit", 3, "--out", output]
    assert dgpo(*words).code == 0
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    done = dgpo(*words, "--temperature", 0.5, "--seed", 7)
    done.one_error("another configuration", "sampling.temperature: 1.0 -> 0.5", "sampling.seed: 0 -> 7")
    again = dgpo(*words)
    assert again.code == 0
    assert "avg@2" in again.out
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before


def wait_for_rows(file: Path, count: int, process: subprocess.Popen[bytes]) -> int:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        there = file.read_bytes().count(b"\n") if file.exists() else 0
        if there >= count:
            return there
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.005)
    raise AssertionError(f"{file} has fewer than {count} rows after two minutes")


@pytest.mark.soak
def test_killed_three_times_and_continued(
    dgpo: Callable[..., Any], tiny: Path, tmp_path: Path, executable: Path
) -> None:
    """SIGKILL in the middle, three times: the final file is that of an uninterrupted run, byte for byte."""
    words = ["eval", "--model", tiny, "--task", "addition", "--samples", 7, "--limit", 40]
    words += ["--max-new-tokens", 48, "--batch-size", 4, "--out"]
    whole = dgpo(*words, tmp_path / "whole")
    assert whole.code == 0, whole.err
    content = (tmp_path / "whole" / "generations.jsonl").read_bytes()
    total = content.count(b"\n")
    assert total == 320

    out = tmp_path / "killed"
    file = out / "generations.jsonl"
    kept = 0
    for tear in (b"", b'{"benchmark": "addi', b'{"benchmark": "addition", "id": "1+1", "ind'):
        command = [str(word) for word in [executable, *words, out]]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        there = wait_for_rows(file, kept + 9, process)
        process.send_signal(signal.SIGKILL)
        assert process.wait(timeout=30) == -signal.SIGKILL
        kept = file.read_bytes().count(b"\n")
        assert there <= kept < total
        assert not (out / "results.json").exists()
        with open(file, "ab") as torn:  # a write that did not get to its end
            torn.write(tear)
    last = dgpo(*words, out)
    assert last.code == 0, last.err
    assert f"{kept}/{total}" in last.err  # the bar went on from there
    assert file.read_bytes() == content
    results = [results_of(tmp_path / name) for name in ("whole", "killed")]
    assert results[1].pop("timing")["completions"] == total - kept
    results[0].pop("timing")
    assert results[0] == results[1]


@pytest.fixture
def server(qwen: Path, tmp_path: Path) -> Iterator[str]:
    """`transformers serve` with the Qwen2 model, which is not ours: the address of a real endpoint."""
    import socket
    from urllib.error import URLError
    from urllib.request import urlopen

    pytest.importorskip("fastapi", reason="transformers serve needs fastapi and uvicorn")
    pytest.importorskip("uvicorn", reason="transformers serve needs fastapi and uvicorn")
    program = Path(sysconfig.get_path("scripts"), "transformers")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "cache").mkdir()
    command = [program, "serve", qwen, "--device", "cpu", "--host", "127.0.0.1", "--port", port]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "cache")}
    log = tmp_path / "serve.log"
    with open(log, "wb") as output:
        process = subprocess.Popen([str(word) for word in command], stdout=output, stderr=output, env=environment)
        try:
            for _ in range(600):
                assert process.poll() is None, log.read_text()
                try:
                    with urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                        break
                except (URLError, ConnectionError):
                    time.sleep(0.2)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()
            process.wait(timeout=30)


@needs_benchmarks
def test_a_real_server(dgpo: Callable[..., Any], qwen: Path, server: str, output: Path) -> None:
    """Chats and texts through `transformers serve`; greedy completions are those of the model in this process."""
    common = ["--benchmarks", "aime24", "--data-dir", BENCHMARKS, "--limit", 2, "--max-new-tokens", 12]
    common += ["--samples", 2, "--greedy"]
    endpoint = ["--backend", "openai", "--base-url", server, "--batch-size", 2]
    for name, chat in (("chat", []), ("text", ["--no-chat"])):
        done = dgpo("eval", "--model", qwen, *common, *endpoint, *chat, "--out", output / name)
        assert done.code == 0, done.err
        local = dgpo("eval", "--model", qwen, *common, *chat, "--out", output / f"local-{name}")
        assert local.code == 0, local.err
        served, ours = rows(output / name), rows(output / f"local-{name}")
        assert len(served) == 6
        assert [row["prompt"] for row in served] == [row["prompt"] for row in ours]
        # this server leaves special tokens in its texts
        greedy = [
            [(row["completion"].replace("<|im_start|>", ""), row["tokens"]) for row in found if row["kind"] == "greedy"]
            for found in (served, ours)
        ]
        assert greedy[0] == greedy[1]
        assert all(text for text, _ in greedy[0])
        assert len({row["completion"] for row in served}) > 2  # samples are samples
        assert all(0 < row["tokens"] <= 12 for row in served)
        assert all(row["tokens"] == 12 for row in served if row["truncated"])
    results = results_of(output / "chat")
    assert (results["model"], results["backend"]["base_url"]) == (str(qwen), server)
    assert results["prompt"]["chat"] is True
    again = dgpo("eval", "--model", qwen, *common, *endpoint, "--out", output / "chat")
    assert again.code == 0, again.err
    assert results_of(output / "chat") == results
