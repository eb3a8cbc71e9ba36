"""The pages themselves: templates of this folder filled in."""

import re
from pathlib import Path

import jinja2

from experiment.report.numbers import gain, percent, points, shown, signed

NO_BREAK = "\N{NO-BREAK SPACE}"


def render(template: str, **context) -> str:
    """A template filled in. A percentage and its sign are kept on one line."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters |= {"shown": shown, "signed": signed, "points": points, "gain": gain, "percent": percent}
    return re.sub(r"(?<=[\d–]) %", f"{NO_BREAK}%", environment.get_template(template).render(context))
