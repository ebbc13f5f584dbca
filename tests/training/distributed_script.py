"""Trains scenarios one after another; run by the tests alone, and by torchrun or `accelerate launch` on several ranks.

    python distributed_script.py MODEL OUT '{"NAME": {OPTIONS}, ...}'

Leaves OUT/NAME.pt (parameters), OUT/NAME.json (the log), OUT/NAME-ranks.json (what every rank was and saw) and
OUT/NAME-model (the saved model).
"""

import json
import math
import os
import sys
from collections import Counter
from contextlib import nullcontext
from functools import cache
from pathlib import Path

import torch
import trl.trainer.grpo_trainer as trl_grpo
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, gather_object
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from dgpo.tasks import Addition
from dgpo.training import DGPOConfig, DGPOTrainer

addition = cache(Addition().dataset)
LETTERS = "0123456789+= "
GROUP = 4


def scripted(prompts, trainer):
    """Completions that depend on the prompt and on how often it came up in this call, of 1 to 6 tokens."""
    tokenizer, seen = trainer.processing_class, Counter()
    prompt_ids, completion_ids, logprobs = [], [], []
    for prompt in prompts:
        number, seen[prompt] = seen[prompt], seen[prompt] + 1
        key = sum(map(ord, prompt)) + 7 * number
        text = "".join(LETTERS[(key * (i + 3)) % len(LETTERS)] for i in range(1 + key % 6))
        prompt_ids.append(tokenizer(prompt)["input_ids"])
        completion_ids.append(tokenizer(text)["input_ids"])
        # NaN: a token that the sampler could not score
        logprobs.append([math.nan if prompt in trainer.unscored else -4.0, *[-4.5] * (len(text) - 1)])
    sampled = trainer.args.correction is not None
    return {"prompt_ids": prompt_ids, "completion_ids": completion_ids, "logprobs": logprobs if sampled else None}


def even_groups_first(batch):
    """TRL shuffles per rank, at random; so ordered, an update has the same responses on any number of ranks."""
    rows = torch.arange(len(batch["advantages"])).view(-1, GROUP)
    order = torch.cat([rows[0::2], rows[1::2]]).flatten()
    return {key: value[order] if getattr(value, "ndim", 0) else value for key, value in batch.items()}


class Watched(DGPOTrainer):
    """Remembers of every micro-batch whether any of its responses had an advantage, and passes for log-probs."""

    def __init__(self, *args, unscored, **kwargs):
        super().__init__(*args, **kwargs)
        self.unscored = unscored
        self.informative = []
        self.log_prob_passes = 0

    def _prepare_inputs(self, generation_batch):
        inputs = super()._prepare_inputs(generation_batch)
        if self.model.training:
            self.informative.append(bool((inputs["advantages"] != 0).any()))
        return inputs


def counted(original):
    def forward(self, model, inputs):
        self.log_prob_passes += 1
        return original(self, model, inputs)

    return forward


DGPOTrainer._forward = counted(DGPOTrainer._forward)  # a subclass with its own would be heard, and nothing fused


def train(folder, out, name, options):
    world = int(os.environ.get("WORLD_SIZE", "1"))
    unrewarded = options.pop("unrewarded", "")  # prompts that begin with one of these make groups without spread
    idle = options.pop("idle", False)  # half of the ranks have only such groups, in either generation another half
    unscored = options.pop("unscored", False)  # the sampler leaves out log-probs on half of the ranks
    untied = options.pop("untied", False)
    sampled = options.pop("sampled", False)  # by the model, in place of the script
    resume = options.pop("resume", None)  # a checkpoint, below OUT
    steps = options.setdefault("steps_per_generation", 2)
    data = addition("train").select(range(16))
    groups = 8 * steps // GROUP  # of a generation, over all ranks
    silent = {*range(groups // 2), *range(groups + groups // 2, 2 * groups)} if idle else set()
    silent_prompts = {data[index]["prompt"] for index in silent}
    torch.manual_seed(0)  # an output head of its own is not in the folder
    model = AutoModelForCausalLM.from_pretrained(folder, **({"tie_word_embeddings": False} if untied else {}))

    def reward(prompts, completions, **kwargs):
        values = [sum(map(ord, text)) % 11 / 10 for text in completions]
        return [
            0.0 if prompt in silent_prompts or prompt[0] in unrewarded else value
            for prompt, value in zip(prompts, values, strict=True)
        ]

    if options.get("deepspeed"):
        import deepspeed

        # an all-reduce in shared memory, which would be compiled now, in more than a minute
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if options.get("fsdp"):
        # on a CPU accelerate falls back to DDP without a word; told that these are GPUs, it shards as it does there
        AcceleratorState._reset_state(reset_partial_state=True)
        PartialState(cpu=True).distributed_type = DistributedType.MULTI_GPU
        options["accelerator_config"] = {"use_configured_state": True}
    config = DGPOConfig(
        output_dir=f"{out}/{name}-run",
        per_device_train_batch_size=8 // world,
        gradient_accumulation_steps=2,
        num_generations=GROUP,
        max_completion_length=6,
        learning_rate=0.2,
        lr_scheduler_type="constant",
        bf16=False,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        logging_steps=1,
        shuffle_dataset=False,
        seed=3,
        **{
            "gradient_checkpointing": False,
            "num_iterations": 3,
            "max_steps": 6,
            "save_strategy": "no",
            "optim": "sgd",
            "max_grad_norm": 1e9,  # clipping would hide a wrong scale
            **options,
        },
    )
    trainer = Watched(
        model,
        reward,
        config,
        train_dataset=data,
        processing_class=AutoTokenizer.from_pretrained(folder),
        rollout_func=None if sampled else scripted,
        unscored={data[index]["prompt"] for index in range(groups // 2)} if unscored else set(),
    )
    trainer.train(resume_from_checkpoint=resume and f"{out}/{resume}")
    trainer.save_model(f"{out}/{name}-model")
    facts = {
        "world": trainer.accelerator.num_processes,
        "wrapper": [cls.__name__ for cls in type(trainer.model_wrapped).__mro__],
        "sharded": sum(isinstance(p, DTensor) or hasattr(p, "ds_tensor") for p in trainer.model.parameters()),
        "fused": trainer._step_loss.heads.fused,
        "log_prob_passes": trainer.log_prob_passes,
        "informative": trainer.informative,
    }
    if hasattr(trainer.model_wrapped, "zero_optimization_stage"):
        facts["zero_stage"] = trainer.model_wrapped.zero_optimization_stage()
    leave(trainer, facts, out, name)


def leave(trainer, facts, out, name):
    """The files; every rank has to have the same parameters."""
    accelerator = trainer.accelerator
    with gathered(trainer.model):
        parameters = {key: whole(value) for key, value in trainer.model.named_parameters()}
    for value in parameters.values():
        torch.testing.assert_close(accelerator.reduce(value.clone(), reduction="mean"), value)
    ranks = gather_object([facts])
    if accelerator.is_main_process:
        torch.save(parameters, f"{out}/{name}.pt")
        Path(out, f"{name}.json").write_text(json.dumps(trainer.state.log_history))
        Path(out, f"{name}-ranks.json").write_text(json.dumps(ranks))
    accelerator.wait_for_everyone()


def gathered(model):
    if not any(hasattr(parameter, "ds_tensor") for parameter in model.parameters()):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(list(model.parameters()))


def whole(parameter):
    parameter = parameter.detach()
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter.clone()


def main(folder, out, scenarios):
    trl_grpo.shuffle_sequence_dict = even_groups_first
    Path(out).mkdir(exist_ok=True)
    for name, options in scenarios.items():
        train(folder, out, name, options)
    # gloo's threads can abort the interpreter's shutdown on a busy machine, after everything has been written
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))
