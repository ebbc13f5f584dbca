"""Run by test_two_processes.py, alone and under torchrun: 4 off-policy updates on scripted completions."""

import json
import os
import sys
from collections import Counter

import torch
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM, AutoTokenizer

from dgpo.tasks import Addition
from dgpo.training import DGPOConfig, DGPOTrainer

LETTERS = "0123456789+= "


def scripted(prompts, trainer):
    """Completions that depend on the prompt and on how often it came up in this call, of 1 to 6 tokens."""
    tokenizer, seen = trainer.processing_class, Counter()
    prompt_ids, completion_ids = [], []
    for prompt in prompts:
        number, seen[prompt] = seen[prompt], seen[prompt] + 1
        key = sum(map(ord, prompt)) + 7 * number
        text = "".join(LETTERS[(key * (i + 3)) % len(LETTERS)] for i in range(1 + key % 6))
        prompt_ids.append(tokenizer(prompt)["input_ids"])
        completion_ids.append(tokenizer(text)["input_ids"])
    return {"prompt_ids": prompt_ids, "completion_ids": completion_ids, "logprobs": None}


def main(folder, out, options):
    unrewarded = options.pop("unrewarded", "")  # prompts that begin with one of these make groups without spread

    def reward(prompts, completions, **kwargs):
        values = [sum(map(ord, text)) % 11 / 10 for text in completions]
        return [0.0 if prompt[0] in unrewarded else value for prompt, value in zip(prompts, values, strict=True)]

    world = int(os.environ.get("WORLD_SIZE", "1"))
    config = DGPOConfig(
        output_dir=f"{out}-run",
        per_device_train_batch_size=8 // world,
        gradient_accumulation_steps=2,
        steps_per_generation=2,
        num_generations=4,
        num_iterations=2,
        max_completion_length=6,
        max_steps=4,
        optim="sgd",
        learning_rate=0.2,
        lr_scheduler_type="constant",
        max_grad_norm=1e9,  # clipping would hide a wrong scale
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        logging_steps=1,
        seed=3,
        **options,
    )
    trainer = DGPOTrainer(
        AutoModelForCausalLM.from_pretrained(folder),
        reward,
        config,
        train_dataset=Addition().dataset("train").select(range(16)),
        processing_class=AutoTokenizer.from_pretrained(folder),
        rollout_func=scripted,
    )
    trainer.train()
    assert trainer.accelerator.num_processes == world
    assert isinstance(trainer.model_wrapped, DistributedDataParallel) == (world > 1)
    parameters = {name: value.detach() for name, value in trainer.model.named_parameters()}
    for value in parameters.values():  # the ranks agree with each other
        total = trainer.accelerator.reduce(value.clone(), reduction="mean")
        torch.testing.assert_close(total, value)
    if trainer.accelerator.is_main_process:
        torch.save(parameters, f"{out}.pt")
        with open(f"{out}.json", "w") as file:
            json.dump(trainer.state.log_history, file)
    trainer.accelerator.wait_for_everyone()
    # gloo's threads can abort the interpreter's shutdown on a busy machine, after everything has been written
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))
