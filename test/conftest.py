"""What all tests share: one thread, fixed seeds, and things too slow to set up twice."""

import os

# Before any test imports torch or NumPy, and inherited by the processes that tests start.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"

import random
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """Slow tests first, so that no processor waits for one that was begun last."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(autouse=True)
def fixed_seeds():
    """The same random numbers whatever ran before; torch only where it is loaded already."""
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder ``shared/data`` (real speech) beside the checkout; the test is skipped without it."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs real recordings in {folder}")
    return folder


@pytest.fixture(scope="session")
def espnet_task():
    """ESPnet's ``EnhancementTask`` with our names registered (its import takes seconds)."""
    import espnet2_sepx

    espnet2_sepx.register()
    from espnet2.tasks.enh import EnhancementTask

    return EnhancementTask
