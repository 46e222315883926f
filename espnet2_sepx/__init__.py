"""Efficient speech separation for ESPnet2's ``enh`` task.

    streams = espnet2_sepx.separate("talk.wav", model="exp/tf_moe_mini_8k")  # (speakers, samples)

Importing the package is cheap (standard library only). After installation ESPnet's own commands
know our names without any import; ``register()`` does the same by hand, say in a source tree.
"""

__version__ = "0.1.0"


def register() -> None:
    """Add our separators, losses and preprocessor to ESPnet's ``enh`` task; may be called twice.

    Raises:
        RuntimeError: ESPnet or another package already uses one of our names.
    """
    from espnet2_sepx.registration import register_all

    register_all()


def __getattr__(name: str) -> object:
    """``separate`` and ``load_separator``, which are imported when they are first used."""
    if name in ("separate", "load_separator"):
        from espnet2_sepx.infer import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
