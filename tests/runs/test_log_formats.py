"""Logs in every format that frameworks and loggers write: the same history comes back."""

from __future__ import annotations

import json
import math
import random
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from log_formats import FORMATS, VERL, Row, as_console, as_jsonl, as_trainer_state, as_wandb, with_quirks

from dgpo.runs.log import Log
from dgpo.runs.reading import Reading, read_log

QUANTITIES = {"loss": "loss", "grad_norm": "grad_norm", "reward": "reward", "kl": "kl_reference", "entropy": "entropy"}
"""Name in the history -> quantity."""

number = st.floats(-1e6, 1e6, allow_nan=False).map(lambda value: float(f"{value:.6g}")) | st.sampled_from(
    [0.0, 1e-12, math.nan, math.inf, -math.inf]
)
histories = st.integers(2, 6).flatmap(
    lambda rows: st.lists(
        st.fixed_dictionaries(dict.fromkeys(QUANTITIES, number)),
        min_size=rows,
        max_size=rows,
    )
)


def reading_of(content: bytes | str) -> Reading:
    with TemporaryDirectory() as folder:
        file = Path(folder) / "a log"
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        return read_log(file)


def log_of(content: bytes | str) -> Log:
    return Log.of(reading_of(content).lines)


def log_or_error(content: bytes | str) -> Log | str:
    try:
        return log_of(content)
    except ValueError as error:
        return str(error)


def same(log: Log, history: list[Row], *, verl: bool) -> None:
    for name, quantity in QUANTITIES.items():
        series = log[quantity]
        expected = {step: row[name] for step, row in enumerate(history, 1)}
        assert series.at == {step: value for step, value in expected.items() if math.isfinite(value)}, (name, series)
        # verl's file logger has no word for them but null
        assert series.broken == tuple(step for step, value in expected.items() if not math.isfinite(value))
        assert (series.empty, series.unreadable) == ((), ())
    assert [step for step, _ in log.rows] == list(range(1, len(history) + 1))
    if not verl:
        assert log.repeated == ()


@settings(max_examples=8)
@pytest.mark.parametrize("form", FORMATS)
@given(history=histories, seed=st.integers(0, 2**32))
def test_every_format_is_the_same_history(form: str, history: list[Row], seed: int) -> None:
    text = FORMATS[form](history)
    same(log_of(with_quirks(text, random.Random(seed))), history, verl=form in VERL)


HISTORY: list[Row] = [
    {"loss": 0.5 / step, "grad_norm": 1.25, "reward": 0.1 * step, "kl": 1e-05 * step, "entropy": 0.75}
    for step in range(1, 6)
]


@pytest.mark.parametrize("form", FORMATS)
def test_every_prefix_is_read_up_to_where_it_breaks(form: str) -> None:
    """Or refused with one line; what was read is what stands there."""
    text = FORMATS[form](HISTORY)
    whole = dict(log_of(text).rows)
    for end in range(0, len(text), 7):
        log = log_or_error(text[:end])
        if isinstance(log, str):
            assert "a log" in log
            assert "\n" not in log
            continue
        for step, row in log.rows[:-1]:
            assert row.items() <= whole[step].items(), (end, step)
        # the last number of a line may be cut where nothing closes it
        step, row = log.rows[-1]
        assert row.keys() <= whole[step].keys()
        assert sum(row[name] != whole[step][name] for name in row) <= 1


@pytest.mark.parametrize("indent", [None, 1])
def test_a_document_that_breaks_off_says_where(indent: int | None) -> None:
    text = as_trainer_state(HISTORY, indent)
    reading = reading_of(text[: text.rindex("grad_norm")])
    assert len(reading.lines) == 4
    assert len(reading.remarks) == 1
    assert "breaks off" in reading.remarks[0]
    assert "the 4 entries before that" in reading.remarks[0]
    assert reading.settings == {"max_steps": 999}


@pytest.mark.parametrize(
    ("text", "remark", "rows"),
    [
        ('{"step": 1, "loss": 1}\n{"step": \n{"step": 3, "loss": 1}\n', "line 2 is not a JSON object", [1, 3]),
        ('{"step": 1, "loss": 1}\n[1]\n{"step": 3, "loss": 1}\n', "line 2 is not a JSON object", [1, 3]),
        ('{"step": 1, "loss": 1}\n{"step": 2, "lo', "line 2, the last, is incomplete", [1]),
        ('{"step": 1, "loss": 1}\n{"loss": 2}\n', "entry 2 without a step was left out", [1]),
        ('{"step": 1.5, "loss": 1}\n{"step": 2, "loss": 1}\n', "entry 1 without a step was left out", [2]),
        ('[{"step": 1, "loss": 1}, 7, {"step": 2, "loss": 1}]', "entry 2 is not a JSON object", [1, 2]),
        ("step,loss\n1,0.5\n2,0.5,9\n3,0.5\n4,0.5\n", "another number of columns", [1, 3, 4]),
        ("{'loss': 1.0, 'reward': 0.5}\n{'loss': 1.0, 'rew", "line 2, which breaks off", [1]),
        ("step:1 - actor/lr:1.0 - actor/pg_loss:2.0\nstep:2 - actor/lr:1.0", "line 2, which breaks off", [1]),
    ],
)
def test_what_is_left_out_is_said(text: str, remark: str, rows: list[int]) -> None:
    reading = reading_of(text)
    assert any(remark in said for said in reading.remarks), reading.remarks
    assert [line["step"] for line in reading.lines] == rows


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"\n \n", "it is empty"),
        (b"Dear diary, today I trained a model.\n", "no line of metrics was found"),
        (b"a,b\nc,d\n", "no line of metrics"),
        (b"[1, 2, 3]", "no line of metrics"),
        (b"3", "no line of metrics"),
        (b'{"global_step": 1, "log_history": []}', "no line of metrics"),
        (b'{"train_runtime": 1.0, "train_loss": 2.0}', "the summary of a run and no line of its log"),
        (b"\x89PNG\r\n\x1a\n\0\0\0", "is not UTF-8 text"),
        (b"PK\x03\x04\0\0", "is not UTF-8 text"),
    ],
)
def test_what_is_no_log_is_refused_in_one_line(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        reading_of(content)
    assert "\n" not in str(error.value)


@given(st.binary(max_size=200) | st.text(alphabet="{}[]'\",:. -stepo01rewad\n", max_size=120))
def test_no_content_makes_a_traceback(content: bytes | str) -> None:
    assert log_or_error(content) != ""


FRAGMENTS = [
    "{'loss': 0.5, 'reward': 0.25, 'epoch': 0.1}",
    "{'loss': '0.5', 'grad_norm': 'nan'}",
    "{'eval_reward': 1.0}",
    "{'train_runtime': 1.0, 'reward': 2.0}",
    "{'temperature': 0.7, 'lr': [1, 2]}",
    '{"step": 3, "loss": 1.0, "data": {"a": null}}',
    '{"step": "3/9", "reward": {"mean": 1}}',
    '{"global_step/max_steps": "x/y", "loss": NaN}',
    '{"log_history": [{"step": 1}, 2, null',
    "step:4 - actor/pg_loss:np.float64(0.5) - actor/lr:1e-06",
    "step:-1 - x:",
    "Step 3 | 1.5s | Loss 0.25 | LR 1e-06",
    "Step 7:",
    "{",
    " 'loss': tensor(0.5, device='cuda:0'),",
    "}",
    " 20%|##  | 10/50 [00:01<00:09,  1.00s/it]",
    "100% 5/5 [00:01<00:00]",
    " 0/?? [",
    "Epoch:[1/1](5/9), reward: 1.0, loss: 2",
    "step,reward\n1,0.5",
    "2,nan,",
    "Total optimization steps = 1,0",
    "\x1b[36m(TaskRunner pid=1)\x1b[0m",
    "[",
    "]",
    ",",
    "\ufeff",
]


@settings(max_examples=150)
@given(st.lists(st.sampled_from(FRAGMENTS), max_size=12), st.sampled_from(["\n", "\r", " ", ""]), st.integers(0, 40))
def test_no_mixture_makes_a_traceback(parts: list[str], between: str, cut: int) -> None:
    """Pieces of every format in any order, and the end cut off."""
    text = between.join(parts)
    log = log_or_error(text[: max(0, len(text) - cut)])
    assert log != ""
    if isinstance(log, Log):
        assert all(isinstance(step, int) and len(row) > 0 for step, row in log.rows)
        assert log.names is not None
        assert log.offers is not None


def test_metrics_of_a_trainer_between_everything_else_it_prints() -> None:
    text = "\n".join(
        [
            "INFO loading {'a': 1}",
            "Num examples = 7,473",
            "  Total optimization steps = 1,868",
            "  Gradient Accumulation steps = 4",
            "GRPOConfig(",
            "beta=0.04,",
            "learning_rate=1e-06,",
            "num_generations=8,",
            "temperature=0.9,",
            ")",
            "{'reward': 1.0, 'answer': 'x'}",  # what a reward function prints for a response
            *(
                f"{{'loss': 0.{step}, 'grad_norm': tensor(0.5, device='cuda:0'), 'reward': [0.25], 'epoch': 0.1}}"
                for step in range(1, 4)
            ),
            "{'eval_reward': 0.5, 'eval_loss': 1.0, 'epoch': 0.1}",
            "{'loss': nan, 'grad_norm': np.float64(inf), 'reward': None, 'epoch': 0.1}",
            "Traceback (most recent call last):",
        ]
    )
    reading = reading_of(text)
    log = Log.of(reading.lines)
    assert reading.settings == {
        "max_steps": 1868,
        "gradient_accumulation_steps": 4,
        "beta": 0.04,
        "learning_rate": 1e-06,
        "num_generations": 8,
        "temperature": 0.9,
    }
    assert log["reward"].values == (0.25, 0.25, 0.25)
    assert log["reward"].empty == (4,)
    assert log["loss"].broken == log["grad_norm"].broken == (4,)
    assert log.rows[2][1]["eval_reward"] == 0.5
    assert any("counted" in remark for remark in reading.remarks)


def test_the_configuration_that_verl_prints() -> None:
    text = "\n".join(
        "(TaskRunner pid=1) " + line
        for line in [
            "{'actor_rollout_ref': {'actor': {'clip_ratio_high': 0.28,",
            "                                 'grad_clip': 1.0, 'kl_loss_coef': 0.001, 'use_kl_loss': False,",
            "                                 'optim': {'lr': 1e-06}},",
            "                       'rollout': {'n': 8, 'temperature': 0.6, 'top_p': 0.95}},",
            " 'data': {'max_response_length': 2048}}",
            "step:1 - actor/pg_loss:0.1 - critic/score/mean:0.5",
            "step:2 - actor/pg_loss:0.1 - critic/score/mean:0.5 [repeated 2x across cluster]",
        ]
    )
    reading = reading_of(text)
    assert reading.settings == {
        "epsilon_high": 0.28,
        "max_grad_norm": 1.0,
        "learning_rate": 1e-06,
        "num_generations": 8,
        "temperature": 0.6,
        "top_p": 0.95,
        "max_completion_length": 2048,
    }
    assert Log.of(reading.lines)["reward"].values == (0.5, 0.5)


ROWS = [{"loss": 0.5, "reward": step / 4, "kl": 0.01} for step in range(4)]


@pytest.mark.parametrize(
    ("document", "settings"),
    [
        (
            {"args": {"temperature": 0.1, "num_generations": 2}, "history": ROWS},
            {"temperature": 0.1, "num_generations": 2},
        ),
        ({"eval": [{"acc": 1}] * 9, "train": ROWS}, {}),
        ({"lr": 0.5, "history": {name: [row[name] for row in ROWS] for name in ROWS[0]}}, {"learning_rate": 0.5}),
        ({"epochs": 3, **{name: [row[name] for row in ROWS] for name in ROWS[0]}}, {}),
        ({"train": ROWS, "names": ["a", "b"]}, {}),
    ],
)
def test_documents_of_ones_own(document: dict[str, object], settings: dict[str, float]) -> None:
    reading = reading_of(json.dumps(document))
    assert Log.of(reading.lines)["reward"].values == (0.0, 0.25, 0.5, 0.75)
    assert reading.settings == settings


def test_settings_on_a_command_line() -> None:
    text = (
        "+ python -m verl.trainer.main_ppo actor_rollout_ref.rollout.n=4 actor_rollout_ref.actor.optim.lr=2e-6 "
        "data.max_response_length=1024\n"
        "swift rlhf --temperature 0.1 --num_generations 2 --beta '0.0'\n"
        "step:1 - actor/pg_loss:0.1\n"
    )
    assert reading_of(text).settings == {
        "num_generations": 4,
        "learning_rate": 2e-06,
        "max_completion_length": 1024,
        "temperature": 0.1,
        "beta": 0.0,
    }


@pytest.mark.parametrize("every", [1, 5, 10])
def test_steps_are_those_of_the_progress_bar(every: int) -> None:
    lines = []
    for step in range(1, 61):
        lines.append(f"\r {step:3d}%|#    | {step}/60 [00:01<00:09,  1.00s/it]")
        if step % every == 0:
            lines.append(f"{{'loss': 0.5, 'reward': {step}.0}}\n")
        lines.append("\rProcessed prompts: 100%|##| 8/8 [00:01<00:00]")
    log = log_of("".join(lines))
    assert log["reward"].at == {step: float(step) for step in range(every, 61, every)}


@pytest.mark.parametrize("every", [1, 20])
def test_a_bar_that_was_buffered_apart_from_the_output(every: int) -> None:
    """Standard error before standard output, as in a file that both were redirected to."""
    bars = "".join(f"\r {step}%|#    | {step}/95 [00:01<00:09,  1.00s/it]" for step in range(96))
    lines = "".join(f"{{'loss': 0.5, 'reward': {step}.0}}\n" for step in range(every, 96, every))
    log = log_of("Map: 100%|##| 1400/1400 [00:00<00:00]\n" + bars + "\n" + lines)
    assert log["reward"].at == {step: float(step) for step in range(every, 96, every)}


def test_a_bar_of_a_notebook_and_of_a_run_that_goes_on() -> None:
    lines = []
    for step in range(400, 500):
        lines.append(f" {step // 5}% {step}/500 [00:01<00:09,  1.00s/it]\n")
        if step % 10 == 9:
            lines.append(f"{{'loss': '0.5', 'reward': '{step + 1}'}}\n{{'eval_reward': '1'}}\n")
    lines.append("100% 500/500 [00:01<00:09,  1.00s/it]\n")
    log = log_of("".join(lines))
    assert log["reward"].at == {step: float(step) for step in range(410, 501, 10)}
    assert all("eval_reward" in row for _, row in log.rows)


def test_lines_of_prime_rl() -> None:
    """Trainer and orchestrator in one output; before and after the names lost their colons."""
    text = "".join(
        f"09:00:0{step} SUCCESS Step {step} | {step}.5s | Loss {step}.25 | Entropy 0.5 | Mismatch KL 0.001 | "
        f"Grad. Norm 0.125 | LR 1.00e-06 | Throughput 812 tokens/s\n"
        f"09:00:0{step} DEBUG Micro Step 1/2 | Loss 7.0 | Entropy 7.0\n"
        f"09:00:0{step} SUCCESS Step {step} | Time: 1.5s | Reward: 0.75 | Truncation 12.5%\n"
        for step in range(1, 4)
    )
    log = log_of(text)
    assert log["loss"].values == (1.25, 2.25, 3.25)
    assert log["reward"].values == (0.75,) * 3
    assert log["truncated"].values == (0.125,) * 3
    assert log["kl_sampler_and_old"].values == (0.001,) * 3
    assert log["learning_rate"].values == (1e-06,) * 3


def test_lines_of_minimind() -> None:
    text = "".join(
        f"Epoch:[1/2]({step}/900), Reward: {step}.5, KL_ref: -0.25, Adv Std: 1, Adv Mean: -0.0, Actor Loss: 0.5, "
        f"Avg Response Len: 120.50, Learning Rate: 0.00000030\n"
        for step in range(1, 4)
    )
    log = log_of(text)
    assert log["reward"].at == {1: 1.5, 2: 2.5, 3: 3.5}
    assert log["learning_rate"].values == (3e-07,) * 3
    assert (log["loss"].values, log["length"].values) == ((0.5,) * 3, (120.5,) * 3)
    # of the opposite sign, so that it is not taken for it
    assert log.offers == {"kl_reference": ("kl_ref",)}


def test_an_evaluation_that_is_logged_late_is_no_restart() -> None:
    lines: list[dict[str, float]] = [{"step": step, "reward": 1.0, "epoch": 1, "loss": 1.0} for step in range(1, 7)]
    lines += [{"step": 3, "eval_reward": 1.0, "epoch": 1, "percentage": 3}]
    reading = reading_of("".join(json.dumps(line) + "\n" for line in lines))
    assert reading.remarks == ()
    assert Log.of(reading.lines).repeated == ()


def test_steps_that_count_within_their_epoch() -> None:
    lines = [{"epoch": epoch, "step": step, "reward": 1.0} for epoch in (1, 2, 3) for step in range(1, 6)]
    reading = reading_of("".join(json.dumps(line) + "\n" for line in lines))
    assert [line["step"] for line in reading.lines] == list(range(1, 16))
    text = "".join(f"Epoch:[{line['epoch']}/3]({line['step']}/5), Reward: 1.0, LR: 0.5\n" for line in lines)
    assert [line["step"] for line in reading_of(text).lines] == list(range(1, 16))


def test_a_configuration_that_a_loop_logs_first() -> None:
    lines = [{"type": "config", "args": {"lr": 2e-05, "temperature": 0.5}}, {"step": 1, "reward": 1.0}]
    assert reading_of("".join(json.dumps(line) + "\n" for line in lines)).settings == {
        "learning_rate": 2e-05,
        "temperature": 0.5,
    }


def test_the_learning_rate_of_a_line_is_no_setting() -> None:
    text = "".join(f"[STEP {step}] loss=0.5  lr={step}e-07  r_mean=+0.00\n" for step in range(1, 4))
    reading = reading_of(text)
    assert reading.settings == {}
    assert Log.of(reading.lines)["learning_rate"].values == (1e-07, 2e-07, 3e-07)


def test_a_resumed_run_is_one_run() -> None:
    """The last of a step counts, and the checkpoint before it is where training went on."""
    before = [{"step": step, "reward": 0.0, "loss": 1.0} for step in range(1, 8)]
    after = [{"step": step, "reward": 1.0, "loss": 1.0} for step in range(5, 10)]
    reading = reading_of("".join(json.dumps(line) + "\n" for line in [*before, *after]))
    log = Log.of(reading.lines)
    assert log["reward"].values == (0.0,) * 4 + (1.0,) * 5
    assert log.resumed == (4,)
    assert "left out 3 lines logged again later" in reading.remarks[0]


def test_of_several_starts_in_one_file_the_last_counts() -> None:
    starts = [[{"step": step, "reward": float(run)} for step in range(1, 4 + run)] for run in range(3)]
    reading = reading_of("".join(json.dumps(line) + "\n" for start in starts for line in start))
    log = Log.of(reading.lines)
    assert set(log["reward"].values) == {2.0}
    assert (len(log.rows), log.resumed) == (5, ())
    assert "start again 2 times" in reading.remarks[0]


def test_two_files_of_one_run_joined_are_one_log() -> None:
    """prime-rl's trainer and orchestrator write the same steps, with other names."""
    trainer = [{"step": step, "loss/mean": 0.5} for step in range(4)]
    orchestrator = [{"step": step, "train/agg/all/policy/reward/mean": 0.25} for step in range(4)]
    log = log_of("".join(json.dumps(line) + "\n" for line in [*trainer, *orchestrator]))
    assert log["reward"].values == (0.25,) * 4
    assert log["loss"].values == (0.5,) * 4


def test_a_row_of_an_evaluation_is_not_training() -> None:
    lines = [{"step": 1, "reward": 1.0}, {"step": 1, "eval": True, "reward": 7.0}, {"step": 1, "split": "val", "kl": 9}]
    log = log_of("".join(json.dumps(line) + "\n" for line in lines))
    assert log["reward"].values == (1.0,)
    assert log["kl_reference"].values == ()
    assert log.rows[0][1]["eval/reward"] == 7.0


def test_a_table_of_several_runs_is_refused() -> None:
    text = as_wandb(HISTORY)
    other = "\n".join(line.replace("run-a", "run-b").partition(",")[2] for line in text.splitlines())
    both = "\n".join(f"{one},{two}" for one, two in zip(text.splitlines(), other.splitlines(), strict=True))
    with pytest.raises(ValueError, match="2 runs"):
        reading_of(both)


def test_the_step_of_a_framework_before_the_count_of_the_logger() -> None:
    lines = [{"_step": 10 * step, "train/global_step": step, "train/reward": 0.5} for step in range(1, 4)]
    assert [step for step, _ in log_of("".join(json.dumps(line) + "\n" for line in lines)).rows] == [1, 2, 3]


@pytest.mark.parametrize("form", ["jsonl", "console", "verl_console_of_numpy"])
def test_ten_thousand_steps_are_read_in_seconds(form: str) -> None:
    """Processor time: about 1, and 4.5 where `make coverage` follows every line. A quadratic reader needs minutes."""
    text = FORMATS[form]([*HISTORY] * 2000)
    began = time.process_time()
    log = log_of(text)
    assert len(log["reward"]) == 10_000
    assert time.process_time() - began < 15


def test_the_writers_are_not_all_the_same() -> None:
    texts = [write(HISTORY) for write in FORMATS.values()]
    assert len(set(texts)) == len(texts)
    assert as_jsonl(HISTORY) != as_console(HISTORY)
