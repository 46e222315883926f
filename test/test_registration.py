"""Stock ESPnet knows our names: in this process, in a new one, and in a spawned child."""

import argparse
import subprocess
import sys
import textwrap

import pytest
import yaml

import espnet2_sepx
from espnet2_sepx.registration import TABLE


@pytest.fixture
def task(espnet_task):
    """The module ``espnet2.tasks.enh``."""
    return sys.modules[espnet_task.__module__]


def test_every_row_is_registered(task):
    for row in TABLE:
        ours = getattr(task, row.choices).get_class(row.name)
        assert (ours.__module__, ours.__name__) == (row.module, row.class_name)


def test_registering_again_changes_nothing(task):
    def state():
        choices = {row.choices: dict(getattr(task, row.choices).classes) for row in TABLE}
        build = task.EnhancementTask.build_preprocess_fn.__func__
        return choices, build, task.EnhancementTask.trainer

    before = state()
    espnet2_sepx.register()
    assert state() == before


def test_a_name_clash_is_an_error_and_registers_nothing(task, monkeypatch):
    taken = task.separator_choices.classes
    monkeypatch.setitem(taken, "tf_moe", taken["rnn"])
    monkeypatch.delitem(task.loss_wrapper_choices.classes, "aux")
    message = (
        "separator name 'tf_moe' is already taken by "
        "espnet2.enh.separator.rnn_separator.RNNSeparator"
    )
    with pytest.raises(RuntimeError, match=message):
        espnet2_sepx.register()
    assert taken["tf_moe"] is taken["rnn"]
    assert "aux" not in task.loss_wrapper_choices.classes


def test_a_class_that_espnet_cannot_use_is_refused(task, monkeypatch):
    monkeypatch.setattr(task.separator_choices, "base_type", dict)
    with pytest.raises(TypeError, match="TFMoESeparator must derive from"):
        espnet2_sepx.register()


def test_our_preprocessor_is_built_and_espnets_are_left_to_espnet(espnet_task):
    def build(name, **conf):
        args = argparse.Namespace(preprocessor=name, preprocessor_conf=conf)
        return espnet_task.build_preprocess_fn(args, train=False)

    assert type(build("sep_mix")).__name__ == "SeparationPreprocessor"
    assert type(build("enh")).__name__ == "EnhPreprocessor"
    assert build(None) is None
    with pytest.raises(ValueError, match="no_such is not supported"):
        build("no_such")


def test_our_trainer_replaces_only_espnets(task, monkeypatch):
    class Other(task.Trainer):
        pass

    assert task.EnhancementTask.trainer.__name__ == "ResumableTrainer"
    monkeypatch.setattr(task.EnhancementTask, "trainer", Other)
    espnet2_sepx.register()
    assert task.EnhancementTask.trainer is Other


def test_stock_enh_train_accepts_our_names():
    command = [sys.executable, "-W", "ignore", "-m", "espnet2.bin.enh_train", "--print_config"]
    command += ["--separator", "tf_moe", "--preprocessor", "sep_mix"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    config = yaml.safe_load(result.stdout[result.stdout.index("log_level:") :])  # after messages
    assert (config["separator"], config["preprocessor"]) == ("tf_moe", "sep_mix")


def test_stock_inference_and_a_spawned_child_know_our_names(tmp_path):
    """Neither the script nor the child imports our package."""
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            import multiprocessing
            from espnet2.bin.enh_inference import SeparateSpeech

            def known(_):
                from espnet2.tasks.enh import separator_choices
                return SeparateSpeech.__name__, "tf_moe" in separator_choices.classes

            if __name__ == "__main__":
                print("here", known(0))
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    print("child", *pool.map(known, [0]))
            """
        )
    )
    command = [sys.executable, "-W", "ignore", str(script)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "here ('SeparateSpeech', True)\n" in result.stdout, result.stderr
    assert "child ('SeparateSpeech', True)\n" in result.stdout
