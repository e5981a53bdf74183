"""Errors that the user can correct, and the exit codes of the program."""

import difflib
import os
import re
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path

EXIT_CODES = {"finished": 0, "stopped_early": 0, "diverged": 1, "failed": 1, "interrupted": 75}
"""The exit code for each status that a run can end with."""

MASK = "***"
SECRET = r"(?:api_?key|(?:access|auth)_?token|password|passwd|pwd|secret)"  # ends of names
PASSWORD = re.compile(rf"(://[^\s:/@]*:)\S*(?=@)|({SECRET}=)[^\s&'\"]*", re.IGNORECASE)

# by what it was told in the environment: no such device, or no such value
JAX_REFUSES = re.compile(r"^(Unable to initialize|Unknown) backend|for environment 'JAX_|JAX flag")


# of XLA, of NumPy and of C++
NO_MEMORY = re.compile(r"RESOURCE_EXHAUSTED|out of memory|Unable to allocate|bad_alloc", re.I)
BYTES = re.compile(r"allocat\w*\D{0,20}?([\d.]+) ?(bytes|[KMGT]i?B)", re.I)
POWERS = " KMGT"  # of 1024, of what they say
SMALLER_BATCH = (
    "a smaller data.batch_size (data.batch_size=auto finds one; optim.accumulate makes up for it)"
)
LESS_MEMORY = (
    f"less is taken by {SMALLER_BATCH} or data.eval_batch_size, trainer.remat=true in a deep "
    "network, trainer.precision=bf16, or else a smaller model"
)


class UserError(Exception):
    """An error that the user can correct: the message says what, where and what to do.

    Entry points print the message without a traceback and exit with code 2.
    """


class Exit(BaseException):
    """Ends the program with an exit code; not an `Exception`, so Hydra does not report it."""

    def __init__(self, code: int):
        self.code = code


def masked(text: str) -> str:
    """Return a text without the passwords of URLs and other secrets: `postgresql://me:***@host/db`."""
    return PASSWORD.sub(lambda found: f"{found[1] or found[2]}{MASK}", text)


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those that it was raised from, each once."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        yield error
        seen.append(error)
        error = error.__cause__ or error.__context__


def unusable(key: str, path: object, error: OSError) -> UserError:
    """Return the error that says what the system says of a path that a key of the config names."""
    return UserError(f"{key}={path}: {os.strerror(error.errno or 0).lower()}")


def refusal_of_jax(error: BaseException) -> str | None:
    """Return why JAX does not begin, in two lines, if it is for what the environment tells it."""
    if isinstance(error, RuntimeError | ValueError) and JAX_REFUSES.search(str(error)):
        reason = str(error).splitlines()[0]
    elif isinstance(error, AssertionError) and error.__traceback__ is not None:
        # for CUDA without a GPU it has no words: it asserts that it has found a device
        raised = traceback.extract_tb(error.__traceback__)[-1]
        if (Path(raised.filename).stem, raised.name) != ("xla_bridge", "backends"):
            return None
        reason = "this machine has no such device"
    else:
        return None
    given = "; ".join(f"{k}={v}" for k, v in os.environ.items() if k.startswith("JAX_"))
    return f"JAX cannot begin: {reason}\nit was told {given}"


def out_of_memory(error: BaseException) -> str | None:
    """Return what to do, in two lines, about memory that a device or the machine has not got."""
    of_libraries = type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError")
    if not isinstance(error, MemoryError) and not of_libraries:
        return None
    if not isinstance(error, MemoryError) and not NO_MEMORY.search(str(error)):
        return None
    where, asked = "the device" if of_libraries else "this machine", "more"
    if found := BYTES.search(str(error)):
        unit = found[2][0].upper().replace("B", " ")
        asked = quantity(float(found[1]) * 1024 ** POWERS.index(unit), "B")
    return f"out of memory: {where} has no {asked} free\n{LESS_MEMORY}"


def quantity(value: float, unit: str = "") -> str:
    """Format with three digits and a prefix: `870`, `12.3 k`, `4.56 M`."""
    prefix, larger = "", iter("kMGTPE")
    while value >= 999.5:
        value, prefix = value / 1000, next(larger)
    digits = f"{value:#.3g}".rstrip(".") if prefix else f"{value:.0f}"
    return f"{digits} {prefix}{unit}".strip()


ALIASES = {
    "optim.learning_rate": "lr alpha step_size eta",
    "optim.weight_decay": "wd decay",
    "optim.clip_norm": "grad_clip gradient_clip_val max_grad_norm",
    "optim.accumulate": "accumulate_grad_batches gradient_accumulation_steps",
    "optim": "optimizer optimiser opt",
    "schedule": "scheduler lr_scheduler",
    "schedule.warmup": "warmup_steps warmup_epochs num_warmup_steps",
    "trainer.epochs": "epochs max_epochs num_epochs n_epochs num_train_epochs",
    "trainer.steps": "max_steps num_steps",
    "trainer.steps_per_epoch": "limit_train_batches",
    "trainer.eval_batches": "limit_val_batches",
    "trainer.patience": "early_stopping early_stopping_patience",
    "trainer.devices": "gpus device num_devices",
    "trainer.sharding": "strategy fsdp zero",
    "trainer.remat": "gradient_checkpointing activation_checkpointing",
    "data.batch_size": "bs train_batch_size per_device_train_batch_size auto_scale_batch_size",
    "data.workers": "num_workers",
    "data": "dataset datamodule",
    "model": "net network arch architecture backbone",
    "model.hidden": "hidden_dim hidden_dims hidden_size num_units",
    "model.pretrained": "pretrained weights init_from",
    "loss": "criterion loss_fn",
    "init": "initializer weight_init",
    "logger": "tracker wandb",
    "checkpoint": "ckpt ckpt_path",
    "resume": "ckpt_path resume_from_checkpoint",
    "hydra.run.dir": "out_dir output_dir save_dir logdir",
    "seed": "random_state random_seed manual_seed seed_everything",
    "debug=fast": "fast_dev_run",
    "n_trials": "trials num_trials num_samples run_cap",
    "goal": "direction",
    "method": "sampler",
    "early_terminate": "pruner pruning asha hyperband",
    "workers": "n_jobs num_agents",
}
"""Keys of the config and of a search, with what other programs call them."""


def suggest(name: str, valid: Iterable[str], count: int = 3) -> str:
    """Return the nearest valid names as `; did you mean 'a' or 'b'?`, or an empty string.

    That is what other programs' name for something stands for, the whole of a name whose end is
    given, or else what is spelt alike.
    """
    name, names = str(name), list(dict.fromkeys(map(str, valid)))
    last = name.rpartition(".")[2]
    meant = [key for key, others in ALIASES.items() if last in others.split()]
    near = [key for key in meant if key.partition("=")[0] in names]
    near = near or [key.rpartition(".")[2] for key in meant if key.rpartition(".")[2] in names]
    near = near or [one for one in names if "." not in name and one.endswith(f".{name}")]
    near = near or difflib.get_close_matches(name, names, n=count, cutoff=0.6)
    if not near and len(name) > 2:
        near = [one for one in names if one.startswith(name)]
    near = list(dict.fromkeys(near))[:count]
    return f"; did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
