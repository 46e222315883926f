"""Registers our classes as soon as ESPnet's ``enh`` task is imported, in any process.

A ``.pth`` file in site-packages calls ``install`` when an interpreter starts (see setup.py). So
this module uses nothing but ``os`` and ``sys``, which are loaded by then, never raises, and does
its work only where ``espnet2.tasks.enh`` is imported. ``ESPNET2_SEPX_DISABLE=1`` switches it off.
"""

import os
import sys

TARGET = "espnet2.tasks.enh"
DISABLE_VARIABLE = "ESPNET2_SEPX_DISABLE"


class RegisterAfterImport:
    """A finder that lets the others find ``TARGET`` and has it registered right after it ran."""

    def __init__(self):
        self._searching = False

    def find_spec(self, fullname, path=None, target=None):
        """The import system's question; ``None`` (not mine) for every module but ``TARGET``."""
        if fullname != TARGET or self._searching:
            return None
        self._searching = True
        try:
            for finder in sys.meta_path:
                find_spec = getattr(finder, "find_spec", None)
                spec = None if find_spec is None else find_spec(fullname, path, target)
                if spec is not None:
                    _register_after_exec(spec)
                    return spec
        finally:
            self._searching = False
        return None


def _register_after_exec(spec):
    """Extend this one loader, which belongs to this one module, by our registration."""
    exec_module = getattr(spec.loader, "exec_module", None)
    if exec_module is None:
        return

    def exec_and_register(module):
        exec_module(module)
        _register()

    try:
        spec.loader.exec_module = exec_and_register
    except AttributeError:  # an exotic loader without room for attributes
        _complain(f"cannot extend {type(spec.loader).__name__}")


def _register():
    try:
        from espnet2_sepx.registration import register_all

        register_all()
    except Exception as error:  # a start-up hook must not take ESPnet down with it
        _complain(error)


def _complain(reason):
    print(
        f"espnet2_sepx: our names are not registered with ESPnet: {reason} "
        f"(see: python -m espnet2_sepx.bin.doctor; {DISABLE_VARIABLE}=1 silences this)",
        file=sys.stderr,
    )


def is_disabled():
    """Whether the environment switches the hook off."""
    return os.environ.get(DISABLE_VARIABLE, "") not in ("", "0")


def is_installed():
    """Whether the hook is in place in this interpreter."""
    return any(isinstance(finder, RegisterAfterImport) for finder in sys.meta_path)


def install():
    """Put the hook in place; once is enough, and more does no harm."""
    if is_disabled() or is_installed():
        return
    sys.meta_path.insert(0, RegisterAfterImport())
    if TARGET in sys.modules:
        _register()
