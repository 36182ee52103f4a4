"""An invoice as PDF, typeset by typst with a Chinese font that comes as a package; nothing of the system is needed."""

import json
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Final

import typst

from compute_hub.billing.documents.content import Content

_FONTS: Final = str(files("noto_cjk_sans_otc"))
_TEMPLATE: Final = str(Path(__file__).with_name("invoice.typ"))


def render_pdf(content: Content) -> bytes:
    """The PDF's bytes."""
    return typst.compile(
        _TEMPLATE,
        font_paths=[_FONTS],
        ignore_system_fonts=True,
        format="pdf",
        sys_inputs={"content": json.dumps(asdict(content), ensure_ascii=False)},
    )
