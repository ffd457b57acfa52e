"""The documentation as a site: ``make docs``.

The pages are plain reStructuredText, to be read where they lie as well: they link to each other and
to the project's files by relative paths. Here these become links of the site, to the page or to a
copy of the file.
"""

import sys
from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

from lazyfs import __version__

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS / "man"))

import build  # noqa: E402  # docs/man/build.py

project = "lazyfs"
version = release = __version__
highlight_language = "text"
nitpicky = True
smartquotes = False  # two hyphens are an option's
primary_domain = None  # nothing here is about Python: "class" is docutils' own

html_theme = "alabaster"
html_theme_options = {
    "description": "remote disk images as local files, fetched as they are read",
    "fixed_sidebar": True,
    "page_width": "66em",
    "show_relbars": True,
}
html_show_copyright = False
html_copy_source = False
html_show_sourcelink = False


class ManualPage(SphinxTransform):
    """lazyfs(1) with all options, as ``make man`` writes it."""

    default_priority = 700  # when docutils is done with the page

    def apply(self) -> None:
        if self.env.docname != "lazyfs.1":
            return
        build.complete(self.document)
        for note in [n for n in self.document.findall(nodes.paragraph) if "source" in n["classes"]]:
            note.parent.remove(note)


class RelativeLinks(SphinxTransform):
    """Links to files by their paths, as links of the site."""

    default_priority = 800  # when docutils has found out where its links lead

    def apply(self) -> None:
        for link in list(self.document.findall(nodes.reference)):
            path = link.get("refuri", "")
            if path and ":" not in path and not path.startswith("#"):
                link.replace_self(self._of_the_site(path, link))

    def _of_the_site(self, path: str, link: nodes.reference) -> nodes.Element:
        document = self.env.docname
        words = nodes.inline("", "", *link.children)
        page = (DOCS / document).parent.joinpath(path).resolve()
        if page.suffix == ".rst" and page.is_relative_to(DOCS):
            name = page.relative_to(DOCS).with_suffix("").as_posix()
            where = {"refdomain": "std", "reftype": "doc", "reftarget": f"/{name}"}
            how = {"refdoc": document, "refexplicit": True, "refwarn": True}
            return addnodes.pending_xref("", words, **where, **how)
        return addnodes.download_reference("", "", words, reftarget=path, refdoc=document)


def setup(app: Sphinx) -> dict[str, bool]:
    """What Sphinx calls."""
    app.add_transform(ManualPage)
    app.add_transform(RelativeLinks)
    return {"parallel_read_safe": True}
