"""Lengths of time in seconds."""

from __future__ import annotations

from typing import Final

DAY_SECONDS: Final = 86_400
