"""Numbers, shares, times and marked-up sentences as a person reads them on the page."""

import re
from datetime import datetime

from markupsafe import Markup, escape


def amount(value: float) -> str:
    """A number: 12,345 or 3.72."""
    if isinstance(value, int) or value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def percent(share: float) -> str:
    """A share: 0.2 %, 12 %; never 0 % of something that is there, nor 100 % of less than all."""
    if 0 < share < 0.001:
        return "< 0.1 %"
    if 0.995 <= share < 1:
        return f"{min(100 * share, 99.9):.1f} %"
    return f"{100 * share:.1f} %" if 0 < share < 0.1 else f"{100 * share:.0f} %"


def duration(seconds: float) -> str:
    """A time: 4.2 s, 41 s, 5 min 12 s, 34 min, 3 h 20 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{whole} s"
    if whole < 600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 3570:
        return f"{round(seconds / 60)} min"
    whole = round(seconds / 60) * 60
    return f"{whole // 3600:,} h {whole % 3600 // 60} min"


def moment(text: str | None) -> str | None:
    """An ISO time as `5 March 2026, 14:02`; any other text as it is."""
    try:
        at = datetime.fromisoformat(text) if text else None
    except ValueError:
        return text
    return f"{at.day} {at:%B %Y, %H:%M}" if at else None


def ticks(text: str) -> Markup:
    """`text` escaped, with what stands between backticks set as code."""
    return Markup(re.sub(r"`([^`]*)`", r"<code>\1</code>", str(escape(text))))
