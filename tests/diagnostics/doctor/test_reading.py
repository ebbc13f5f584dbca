"""Every form of a log: ours, TRL's, verl's and prime-rl's; and files that are none."""

from __future__ import annotations

import json
import shutil
import warnings

import pytest
from broken_runs import QUICK, high_digits
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from dgpo.cli.doctor import run as dgpo_doctor
from dgpo.cli.errors import UserError
from dgpo.diagnostics import load
from dgpo.diagnostics.doctor import Case, covered, diagnose, seen
from dgpo.runs.log import KEYS, Log
from dgpo.tasks import Addition


def names(source):
    return [finding.rule for finding in diagnose(source)]


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows_of(folder):
    return [row for row in load(folder).metrics if "event" not in row and "loss" in row]


@pytest.mark.parametrize("options", [{"steps_per_generation": 4}, {"steps_per_generation": 1}])
def test_a_trainer_state_of_trl(taught, tmp_path, options):
    """TRL's own trainer: its clip fraction tells whether the run was on-policy, with less certainty."""
    options = {**QUICK, "loss_type": "dapo", "max_steps": 12, **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = GRPOTrainer(
            AutoModelForCausalLM.from_pretrained(taught),
            high_digits,
            GRPOConfig(output_dir=str(tmp_path / "run"), **options),
            train_dataset=Addition().dataset("train").select(range(500)),
            processing_class=AutoTokenizer.from_pretrained(taught),
        )
    trainer.train()
    trainer.state.save_to_json(tmp_path / "trainer_state.json")
    findings = diagnose(tmp_path / "trainer_state.json")
    assert diagnose(tmp_path) == findings  # the checkpoint that it lies in
    if options["steps_per_generation"] == 1:
        assert [(f.rule, f.severity) for f in findings if f.rule != "zero_loss"] == [("on_policy", "note")]
    else:
        assert [f for f in findings if f.severity != "note"] == []


def as_verl(rows, rewards=(0.0, 1.0)):
    """The same run in the words of verl's FileLogger (utils/tracking.py), one line per step."""
    for row in rows:
        low, high = rewards
        data = {
            "actor/entropy": row["entropy"],
            "actor/grad_norm": row["grad_norm"],
            "actor/pg_loss": row["loss"],
            "actor/lr": row["learning_rate"],
            "actor/ppo_kl": row["objective/kl/old"],
            "training/global_step": row["step"],
        }
        if row["objective/fraction/left"] is None:  # our trainer looked at no response of this step, verl does at all
            data = {key: value for key, value in data.items() if value is not None}
        else:
            data["actor/pg_clipfrac"] = row["objective/fraction/left"] + row["objective/fraction/right"]
        if "reward" in row:
            spread = row["frac_reward_zero_std"] < 1
            data |= {
                "critic/score/mean": row["reward"],
                "critic/score/max": high,
                "critic/score/min": low,
                "critic/advantages/max": 1.2 * spread,
                "critic/advantages/min": -1.2 * spread,
                "response_length/clip_ratio": row["completions/clipped_ratio"],
            }
        if "objective/kl/sampler" in row:
            data["rollout_corr/k3_kl"] = row["objective/kl/sampler"]
            data["rollout_corr/kl"] = row["objective/kl/sampler_k1"]
        yield {"step": row["step"], "data": data}


VERL = {
    "healthy": [],
    "healthy_sampler": [],
    "on_policy": ["on_policy"],
    "constant_reward": ["constant_reward"],
    "zero_reward": ["zero_reward"],
    "zero_variance": ["zero_variance"],
    "truncated": ["truncated"],
    "drift": ["drift"],
    "sampler_stale": ["sampler_stale"],
    "sampler_mismatch": ["sampler_mismatch"],
    "sampler_truncation": ["sampler_truncation"],
}


@pytest.mark.parametrize("name", VERL)
def test_the_words_of_verl(run_of, tmp_path, name):
    constant = {"constant_reward": (1.0, 1.0), "zero_reward": (0.0, 0.0)}
    lines = as_verl(rows_of(run_of(name)), constant.get(name, (0.0, 1.0)))
    assert names(jsonl(tmp_path / "verl.jsonl", lines)) == VERL[name]


def test_null_is_what_verl_writes_for_nan(run_of, tmp_path):
    lines = list(as_verl(rows_of(run_of("healthy"))))
    lines[7]["data"]["actor/grad_norm"] = None
    (found,) = diagnose(jsonl(tmp_path / "verl.jsonl", lines))
    assert (found.rule, found.step) == ("not_finite", 8)
    assert "actor/grad_norm" in found.evidence[0]


def as_prime(rows):
    """The same run in the words of prime-rl: several lines per step, of trainer and orchestrator."""
    for row in rows:
        step = row["step"]
        yield {"step": step, "time": 0.0, "optim/lr": row["learning_rate"], "optim/grad_norm": row["grad_norm"]}
        yield {
            "step": step,
            "loss/mean": row["loss"],
            "entropy/all/mean": row["entropy"],
            "mismatch_kl/all/mean": 0.001,
        }
        if "reward" in row:
            yield {
                "step": step,
                "train/agg/all/policy/reward/mean": row["reward"],
                "train/agg/all/policy/reward/max": row["reward"] + row["reward_std"],
                "train/agg/all/policy/reward/min": row["reward"] - row["reward_std"],
                "train/agg/all/policy/solved_some": 1 - row["frac_reward_zero_std"],
                "train/agg/all/policy/stop_condition/generation_truncated": row["completions/clipped_ratio"],
            }


@pytest.mark.parametrize("name", ["healthy", "zero_reward", "constant_reward", "zero_variance", "truncated"])
def test_the_words_of_prime_rl(run_of, tmp_path, name):
    found = names(jsonl(tmp_path / "metrics.jsonl", as_prime(rows_of(run_of(name)))))
    assert found == ([] if name == "healthy" else [name])


def test_mismatch_that_prime_rl_does_not_separate(tmp_path):
    rows = [{"step": i, "mismatch_kl/all/mean": 0.08} for i in range(9)]
    (found,) = diagnose(jsonl(tmp_path / "metrics.jsonl", rows))
    assert found.rule == "sampler_mismatch"
    assert "does not tell" in found.title


@pytest.mark.parametrize("key", ["sampling/sampling_logp_difference/mean", "training/rollout_probs_diff_mean"])
def test_stale_weights_in_other_words(tmp_path, key):
    """The values of trl issue 5312: 0.015 until the sampler was woken up with old weights, then 0.2."""
    rows = [{"step": i, key: 0.015 if i < 6 else 0.2, "actor/ppo_kl": 0.01} for i in range(1, 13)]
    (found,) = diagnose(jsonl(tmp_path / "metrics.jsonl", rows))
    assert (found.rule, found.step) == ("sampler_stale", 6)
    assert diagnose(jsonl(tmp_path / "metrics.jsonl", rows[:5])) == []


def test_the_statistics_of_our_plug_in_for_verl(run_of, tmp_path):
    """Beside verl's own; they tell more than its clip fraction."""
    rows = rows_of(run_of("reverse_right"))
    ours = [{f"actor/{key}": value for key, value in row.items() if key.startswith("objective/")} for row in rows]
    lines = [{**line, "data": line["data"] | more} for line, more in zip(as_verl(rows), ours, strict=True)]
    assert names(jsonl(tmp_path / "verl.jsonl", lines)) == ["reverse_right"]
    assert names(jsonl(tmp_path / "verl.jsonl", as_verl(rows))) == ["drift"]


@pytest.mark.parametrize(("drift", "rules"), [(0.0, [("on_policy", "note")]), (1e-5, [("on_policy", "note")])])
def test_on_policy_in_verl(tmp_path, drift, rules):
    """log π_old of verl may come from a pass of its own, which differs by rounding."""
    rows = [{"step": i, "data": {"actor/ppo_kl": drift, "actor/pg_clipfrac": 0.0}} for i in range(5)]
    assert [(f.rule, f.severity) for f in diagnose(jsonl(tmp_path / "metrics.jsonl", rows))] == rules


def test_what_is_no_log(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"does not exist; expected a run folder"):
        diagnose(tmp_path / "nothing")
    with pytest.raises(ValueError, match="nothing was recorded there"):
        diagnose(tmp_path)
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\xff\xfe\x00")
    with pytest.raises(ValueError, match="is not UTF-8 text"):
        diagnose(tmp_path / "picture.png")


@pytest.mark.parametrize("content", ['{"step": 1, "weather": 0.0}\n', '{"step": 1, "reward": 0.5}\n'])
def test_no_verdict_without_evidence(tmp_path, capsys, content):
    """Neither "nothing found" nor exit code 0 for what holds nothing that a rule reads."""
    path = tmp_path / "metrics.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match="cannot tell"):
        dgpo_doctor([str(path)])
    assert "nothing found" not in capsys.readouterr().out
    with pytest.raises(UserError, match="cannot tell"):
        dgpo_doctor([str(path), "--json"])
    assert json.loads(capsys.readouterr().out) == {str(path): []}


def test_names_that_look_like_a_quantity_are_offered_and_can_be_mapped(tmp_path, capsys):
    """The words of a loop of one's own: without a reward the doctor cannot tell, and says how it could."""
    rows = [{"iter": step, "reward_mean": 0.0, "reward_std": 0.0, "clip_frac": 0.1} for step in range(9)]
    path = jsonl(tmp_path / "own.jsonl", rows)
    dgpo_doctor([str(path)])
    assert "--map reward=reward_mean, --map clipped=clip_frac" in capsys.readouterr().out
    assert dgpo_doctor([str(path), "--map", "reward=reward_mean"]) == 1
    printed = capsys.readouterr().out
    assert "zero_reward" in printed
    assert "--map reward" not in printed
    with pytest.raises(UserError, match="has no 'reward_men', which reward is mapped to; did you mean 'reward_mean'"):
        dgpo_doctor([str(path), "--map", "reward=reward_men"])
    with pytest.raises(UserError, match="'rewards' is not a quantity of a log; expected one of reward, "):
        dgpo_doctor([str(path), "--map", "rewards=reward_mean"])
    with pytest.raises(UserError, match="is not of the form NAME=VALUE"):
        dgpo_doctor([str(path), "--map", "reward"])


def test_what_was_left_out_is_said(tmp_path, capsys):
    path = tmp_path / "trainer_state.json"
    whole = json.dumps({"log_history": [{"step": step, "reward": 0.0, "reward_std": 0.0} for step in range(1, 9)]})
    path.write_text(whole[:-30])
    assert dgpo_doctor([str(tmp_path)]) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "read from trainer_state.json" in printed
    assert "the file breaks off or is damaged in line 1; read the 7 entries before that" in printed


def test_what_was_read_is_said(run_of, tmp_path, capsys):
    folder = run_of("healthy")
    read = seen(folder)
    assert read == seen(load(folder)) == seen(Case.of(folder))
    assert (read["reward"], read["entropy"], read["tokens"]) == (6, 24, 24)
    assert "kl_sampler" not in read
    assert covered(read).endswith("; not there: KL to the reference, sampler mismatch")
    assert dgpo_doctor([str(folder)]) == 0
    said = f"read: {len(read) - 1} quantities of the log and the tokens of 24 updates; --verbose lists them"
    assert capsys.readouterr().out.splitlines()[-1] == said
    assert dgpo_doctor([str(folder), "--verbose"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[1].startswith("nothing found")
    at = next(number for number, line in enumerate(printed) if line.startswith("read: "))
    assert "  whether the sampler is the policy: no comparison with the sampler's log-probs in the log" in printed[:at]
    assert " ".join(line.strip() for line in printed[at:]) == covered(read)
    alone = seen(jsonl(tmp_path / "metrics.jsonl", [{"_step": i, "entropy": 0.5} for i in range(4)]))
    assert alone == {"entropy": 4}
    assert covered(alone) == "cannot tell: no reward in this log; read: entropy (4 points)"


def with_objective(folder, tmp_path, **objective):
    """A real run, as one with another objective would have recorded it."""
    copy = tmp_path / "record"
    shutil.copytree(folder, copy)
    info = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps({**info, "objective": objective}))
    return copy


@pytest.mark.parametrize("name", ["healthy", "concentration", "truncated"])
def test_an_objective_of_the_users_own(run_of, tmp_path, name):
    """Its weights are not known, so that nothing is said of them; all else is."""
    folder = with_objective(run_of(name), tmp_path, name="mine", strength=2.0)
    case = Case.of(folder)
    assert case.objective is None
    assert all(one.heaviest is None for one in case.updates)
    assert any(one.largest > 0 for one in case.updates)
    assert names(case) == ([name] if name == "truncated" else [])


def test_a_field_that_the_objective_does_not_have(run_of, tmp_path):
    """Its weights are not known either; what is wrong with the entry is said once."""
    with pytest.warns(UserWarning, match="no field 'strength'"):
        case = Case.of(with_objective(run_of("healthy"), tmp_path, name="dgpo", strength=2.0))
    assert case.objective is None
    assert all(one.heaviest is None for one in case.updates)


def test_a_run_and_its_folder_are_the_same(run_of):
    folder = run_of("truncated")
    assert diagnose(load(folder)) == diagnose(folder) == diagnose(str(folder))


def test_evaluation_is_not_training():
    log = Log.of([{"step": 1, "eval_reward": 3.0, "val-core/reward": 2.0}, {"step": 1, "reward": 1.0}])
    assert log["reward"].values == (1.0,)
    assert log["entropy"].values == ()


value = st.none() | st.floats(allow_nan=True, allow_infinity=True) | st.integers(-3, 3) | st.sampled_from([0.0, 1.0])
key = st.sampled_from([pattern.replace("*", "x") for patterns in KEYS.values() for pattern in patterns])


@given(st.lists(st.dictionaries(key, value, max_size=6), max_size=12), st.booleans())
def test_no_log_makes_a_rule_fail(rows, resumed):
    lines = [{**row, "step": step} for step, row in enumerate(rows)]
    event = [{"event": "begin", "step": len(rows) // 2}] if resumed else []
    config = {"max_grad_norm": 1.0, "logging_steps": 1, "beta": 0.0}
    for finding in diagnose(Case(log=Log.of([*lines, *event]), info={"config": config})):
        assert finding.evidence
