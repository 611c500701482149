"""Configuration of Sphinx: `make docs` builds these pages, and a warning is an error."""

import os
import sys
from pathlib import Path

import topk_np

sys.path.insert(0, str(Path(__file__).parent))  # mathml.py

# The notebooks' small products gain nothing from threads.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

project = "topk_np"
author = "the topk_np authors"
copyright = "the topk_np authors, MIT licence"
release = topk_np.__version__

extensions = [
    "mathml",
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_build", "data", "templates"]
default_role = "autolink"  # `name` in a docstring: a link if it is one of ours

myst_enable_extensions = ["amsmath", "dollarmath"]
myst_heading_anchors = 3
# notebooks/run.py leaves here what it ran; what is not there is run.
nb_execution_mode = "cache"
nb_execution_cache_path = str(Path(__file__).parent / "_build" / ".jupyter_cache")
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True

templates_path = ["templates"]
autosummary_generate = True
autosummary_filename_map = {  # plan and classifier have pages too, and some disks ignore case
    "topk_np.Plan": "topk_np.Plan-class",
    "topk_np.training.Classifier": "topk_np.training.Classifier-class",
}
autodoc_typehints = "none"  # the docstrings say shapes as well
autodoc_member_order = "bysource"
autodoc_mock_imports = ["jax", "torch"]  # for topk_np.interop, whose docstrings need neither
napoleon_google_docstring = False
napoleon_use_rtype = False

html_math_renderer = "mathml"
html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["extra.css"]
html_title = "topk_np"


def drop_aliases(app, what, name, obj, options, lines):
    """Leave a named tuple's field without text where there is none but its number."""
    if lines and lines[0].startswith("Alias for field number"):
        lines.clear()


def setup(app):
    app.connect("autodoc-process-docstring", drop_aliases)
