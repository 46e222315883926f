"""Our names in ESPnet's ``enh`` task: one row per class in ``TABLE``.

ESPnet looks classes up by name in ``ClassChoices`` objects of the module ``espnet2.tasks.enh``. The
rows are imported only here, when that module is loaded anyway. (This file is not ``register.py``
because ``espnet2_sepx.register`` is the public function.)
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import NamedTuple

TASK_MODULE = "espnet2.tasks.enh"
STREAMING_MODULE = "espnet2.bin.enh_inference_streaming"


class Row(NamedTuple):
    """One class: its ``ClassChoices``, its lower-case name there, and where it lives."""

    choices: str
    name: str
    module: str
    class_name: str


TABLE = (
    Row("encoder_choices", "conv_chunk", "espnet2_sepx.coders.conv_chunk", "ChunkConvEncoder"),
    Row("decoder_choices", "conv_chunk", "espnet2_sepx.coders.conv_chunk", "ChunkConvDecoder"),
    Row("separator_choices", "tf_moe", "espnet2_sepx.separators.tf_moe", "TFMoESeparator"),
    Row(
        "separator_choices",
        "re_sepformer",
        "espnet2_sepx.separators.re_sepformer",
        "RESepFormerSeparator",
    ),
    Row(
        "separator_choices", "sepformer", "espnet2_sepx.separators.sepformer", "SepFormerSeparator"
    ),
    Row("separator_choices", "spmamba", "espnet2_sepx.separators.spmamba", "SPMambaSeparator"),
    Row("separator_choices", "dsn", "espnet2_sepx.separators.dsn", "DSNSeparator"),
    Row("separator_choices", "s4m", "espnet2_sepx.separators.s4m", "S4MSeparator"),
    Row("criterion_choices", "aux_scalar", "espnet2_sepx.losses.auxiliary", "AuxScalar"),
    Row("criterion_choices", "dsn_complexity", "espnet2_sepx.losses.complexity", "DSNComplexity"),
    Row("loss_wrapper_choices", "aux", "espnet2_sepx.losses.auxiliary", "AuxSolver"),
    Row(
        "preprocessor_choices",
        "sep_mix",
        "espnet2_sepx.data.preprocessor",
        "SeparationPreprocessor",
    ),
)


def register_all() -> None:
    """Add every row of ``TABLE`` to ESPnet, or none of them; safe to call again.

    Raises:
        RuntimeError: a name is taken by a class that is not ours.
    """
    task = importlib.import_module(TASK_MODULE)
    classes = {row: _load(row) for row in TABLE}
    for row, ours in classes.items():
        _check_free(getattr(task, row.choices), row, ours)
    for row, ours in classes.items():
        getattr(task, row.choices).classes[row.name] = ours
    _build_our_preprocessors(task)
    _train_resumably(task)
    _let_streaming_run()


def _load(row: Row) -> type:
    return getattr(importlib.import_module(row.module), row.class_name)


def _check_free(choices, row: Row, ours: type) -> None:
    """Refuse to replace somebody else's class, and to add one that ESPnet could not use."""
    present = choices.classes.get(row.name)
    if present is not None and not _same_class(present, ours):
        raise RuntimeError(
            f"the {choices.name} name '{row.name}' is already taken by "
            f"{present.__module__}.{present.__qualname__}; install an espnet2_sepx made for this "
            "ESPnet version, or remove the other package that registers this name"
        )
    if choices.base_type is not None and not issubclass(ours, choices.base_type):
        raise TypeError(f"{row.module}.{row.class_name} must derive from {choices.base_type}")


def _same_class(one: type, other: type) -> bool:
    """Equal origin; the objects differ after ``importlib.reload``."""
    return (one.__module__, one.__qualname__) == (other.__module__, other.__qualname__)


def _build_our_preprocessors(task: ModuleType) -> None:
    """Teach ``EnhancementTask.build_preprocess_fn``, which compares literal names, to build ours.

    ESPnet's preprocessors take their options from many flags of the task; ours takes exactly what
    stands under ``preprocessor_conf``.
    """
    enhancement_task = task.EnhancementTask
    espnet_build = enhancement_task.build_preprocess_fn.__func__
    if getattr(espnet_build, "builds_sepx", False):
        return
    ours = {row.name for row in TABLE if row.choices == "preprocessor_choices"}

    def build_preprocess_fn(cls, args, train):
        name = getattr(args, "preprocessor", None)
        if name not in ours:
            return espnet_build(cls, args, train)
        return task.preprocessor_choices.get_class(name)(train=train, **args.preprocessor_conf)

    build_preprocess_fn.builds_sepx = True  # type: ignore[attr-defined]
    enhancement_task.build_preprocess_fn = classmethod(build_preprocess_fn)


def _train_resumably(task: ModuleType) -> None:
    """Let ``enh_train`` use our trainer in place of ESPnet's own; anybody else's stays."""
    from espnet2.train.trainer import Trainer

    from espnet2_sepx.trainer import ResumableTrainer

    if task.EnhancementTask.trainer is Trainer:
        task.EnhancementTask.trainer = ResumableTrainer


def _let_streaming_run() -> None:
    """Let ESPnet 202511's streaming command past its own type checker.

    It stores a ``Path`` in an argument declared ``str``, which typeguard refuses. We are called
    while that module (or ``__main__``, running it) imports the task, before it decorates its
    functions; so its name for the decorator can still be exchanged. Nothing else is touched.
    """
    for module in (sys.modules.get("__main__"), sys.modules.get(STREAMING_MODULE)):
        spec = getattr(module, "__spec__", None)
        if spec is not None and spec.name == STREAMING_MODULE and not hasattr(module, "inference"):
            setattr(module, "typechecked", lambda function: function)  # noqa: B010
