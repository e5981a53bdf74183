"""The site: `make docs` builds it into build/docs."""

import sys
import tomllib
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import reference

reference.main()

project = "Experiments"
pyproject = (Path(__file__).parents[1] / "pyproject.toml").read_text()
version = release = tomllib.loads(pyproject)["project"]["version"]

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
nb_merge_streams = True
nb_execution_mode = "off"  # the tutorial shows what it is committed with, which a test repeats
myst_heading_anchors = 3
highlight_language = "bash"
autodoc_member_order = "bysource"
autodoc_typehints = "none"

html_theme = "furo"
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["wide.css"]
html_title = f"Experiments {release}"
