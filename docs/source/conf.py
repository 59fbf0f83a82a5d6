"""Sphinx configuration: the streaming pages on their own, built without network."""

import pymc

project = "PyMC streaming"
author = "The PyMC Developers"
copyright = "2026 - present, The PyMC Developers"
version = release = pymc.__version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.autosummary", "numpydoc", "myst_nb"]
autosummary_generate = True
autodoc_typehints = "none"  # types stand in the numpydoc sections
numpydoc_show_class_members = False
templates_path = ["_templates"]
exclude_patterns = ["_templates"]

# Notebooks are MyST markdown, without outputs: each build runs them, in a folder of their own.
nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 600  # seconds a cell
nb_merge_streams = True

html_theme = "pydata_sphinx_theme"
html_static_path = ["_static"]
html_theme_options = {"show_prev_next": False}
html_sidebars = {"**": []}
