"""Experiments that are made once."""

from __future__ import annotations

from pathlib import Path

import pytest
from sepx_models import CAUSAL_RNN, RE_SEPFORMER, SKIM, TF_MOE, make_experiment


@pytest.fixture(scope="session")
def tf_moe_exp(tmp_path_factory) -> Path:
    return make_experiment(tmp_path_factory.mktemp("tf_moe"), TF_MOE)


@pytest.fixture(scope="session")
def skim_exp(tmp_path_factory) -> Path:
    return make_experiment(tmp_path_factory.mktemp("skim"), SKIM)


@pytest.fixture(scope="session")
def rnn_exp(tmp_path_factory) -> Path:
    return make_experiment(tmp_path_factory.mktemp("rnn"), CAUSAL_RNN)


@pytest.fixture(scope="session")
def causal_exp(tmp_path_factory) -> Path:
    return make_experiment(tmp_path_factory.mktemp("causal"), RE_SEPFORMER)
