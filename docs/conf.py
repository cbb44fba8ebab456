"""How Sphinx builds the documentation: `make docs`. Warnings are errors, and nothing is fetched from a network."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

from fedsim import __version__

project = "fedsim"
author = "The fedsim authors"
copyright = "2026, the fedsim authors"  # noqa: A001 - Sphinx names it
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "fedsim_docs"]
exclude_patterns = ["_ext"]
nitpicky = True
# Types of other projects, whose inventories would have to be fetched.
nitpick_ignore_regex = [("py:.*", r".*")]
autodoc_typehints = "description"
autodoc_member_order = "bysource"

myst_enable_extensions = ["colon_fence", "deflist", "attrs_inline"]
myst_heading_anchors = 4
suppress_warnings = ["myst.header"]  # an included file may begin with a lower heading

# There is no network where this is checked: external addresses are checked for their syntax by fedsim_docs.
linkcheck_ignore = [r"https?://.*"]

html_theme = "furo"
html_title = f"fedsim {version}"
html_static_path = ["_static"]
html_css_files = ["fedsim.css"]
html_copy_source = False
html_show_sourcelink = False
pygments_style = "friendly"
pygments_dark_style = "monokai"
