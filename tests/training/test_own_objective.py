"""An instance of an objective that is not registered: in a configuration, in training, and of the script that runs."""

from __future__ import annotations

import json
import pickle
import runpy
from dataclasses import dataclass

import pytest
from torch import Tensor
from transformers import HfArgumentParser

from dgpo import TokenBatch
from dgpo.objectives import Objective
from dgpo.training import DGPOConfig, DGPOTrainer

PATH = f"{__name__}:Capped"


@dataclass(frozen=True, kw_only=True)
class Capped(Objective):
    """w = min(r, cap)."""

    cap: float = 2.0

    def weight(self, tokens: TokenBatch) -> Tensor:
        return tokens.ratio.clamp(max=self.cap)


def make(**options):
    return DGPOConfig("unused", bf16=False, use_cpu=True, steps_per_generation=4, **options)


def test_a_configuration_keeps_its_import_path_and_fields():
    config = make(objective=Capped(cap=1.5))
    assert (config.objective, config.objective_kwargs) == (PATH, {"cap": 1.5})
    assert config.make_objective() == Capped(cap=1.5)
    as_json = json.loads(json.dumps(config.to_dict(), default=str))
    assert (as_json["objective"], as_json["objective_kwargs"]) == (PATH, {"cap": 1.5})
    assert pickle.loads(pickle.dumps(config)).make_objective() == Capped(cap=1.5)
    flags = ["--output_dir", "unused", "--objective", PATH, "--objective_kwargs", '{"cap": 1.5}', "--bf16", "false"]
    (parsed,) = HfArgumentParser([DGPOConfig]).parse_args_into_dataclasses([*flags, "--use_cpu", "true"])
    assert parsed.make_objective() == config.make_objective()
    assert make(objective=f"{__name__}.Capped:cap=1.5").objective == PATH


def test_what_is_refused():
    @dataclass(frozen=True, kw_only=True)
    class Inside(Capped):
        pass

    class Undecorated(Capped):
        pass

    with pytest.raises(ValueError, match="expected a class at the top level of a module or script"):
        make(objective=Inside())
    with pytest.raises(ValueError, match="objective_kwargs must not be set beside it"):
        make(objective=Capped(), objective_kwargs={"cap": 3})
    with pytest.raises(ValueError, match="objective = <object.*is of type object; expected a name, a mapping"):
        make(objective=object())


def test_it_trains(build):
    trainer = build(DGPOTrainer, objective=Capped(cap=1.0), max_steps=2)
    trainer.train()
    rows = [row for row in trainer.state.log_history if "objective/weight/max" in row]
    assert rows
    assert max(row["objective/weight/max"] for row in rows) <= 1 + 1e-6


@dataclass(frozen=True, kw_only=True)
class NotFinite(Objective):
    """w = log(r - 1): NaN below a ratio of 1, and -inf at 1."""

    def weight(self, tokens: TokenBatch) -> Tensor:
        return (tokens.ratio - 1).log()


@pytest.mark.parametrize("fused", [False, True])
def test_a_weight_that_is_not_finite_stops_before_the_first_update(build, fused):
    trainer = build(DGPOTrainer, objective=NotFinite(), fused_loss=fused, max_steps=2)
    before = trainer.model.get_input_embeddings().weight.detach().clone()
    with pytest.raises(ValueError, match=r"NotFinite.weight returned -inf at A = .*, r = 1 \(row 0, column 0;"):
        trainer.train()
    assert trainer.model.get_input_embeddings().weight.equal(before)


SCRIPT = """
from dataclasses import dataclass
from dgpo.objectives import Objective
from dgpo.training import DGPOConfig

@dataclass(frozen=True, kw_only=True)
class Mine(Objective):
    cap: float = 2.0

    def weight(self, tokens):
        return tokens.ratio.clamp(max=self.cap)

config = DGPOConfig("unused", objective=Mine(cap=3.0), bf16=False, use_cpu=True, steps_per_generation=4)
again = config.make_objective()
same = again == Mine(cap=3.0)
"""


def test_a_class_of_the_running_script_is_named_main(tmp_path):
    """As `python script.py`: the name says where it is, and no other process finds it under that name."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    found = runpy.run_path(str(script), run_name="__main__")
    config = found["config"]
    assert (config.objective, config.objective_kwargs) == ("__main__:Mine", {"cap": 3.0})
    assert found["same"]
    with pytest.raises(ValueError, match="cannot import the objective '__main__:Mine'"):
        config.make_objective()
