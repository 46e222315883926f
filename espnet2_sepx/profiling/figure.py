"""What one published convention counts of a model."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Figure:
    """MACs by module path of one convention, or why there are none."""

    by_module: dict[str, int] = field(default_factory=dict)
    problem: str | None = None

    @property
    def total(self) -> int | None:
        return None if self.problem else sum(self.by_module.values())


def reason(error: Exception) -> str:
    """An error as one line of limited length."""
    return " ".join(str(error).split())[:200] or type(error).__name__
