"""The page of the nodes: their state, data sets and rules."""

from __future__ import annotations

from fedsim.web.catalogue import read_catalogue
from fedsim.web.rendering import Renderer
from fedsim.web.request import WebRequest
from fedsim.web.routes import Route


class NodePages:
    """The page of the nodes."""

    def __init__(self, renderer: Renderer) -> None:
        self._page = renderer.page

    def routes(self) -> list[Route]:
        """The routes."""
        return [Route("GET", "/nodes", self.nodes)]

    def nodes(self, request: WebRequest) -> str:
        """All nodes that ever announced themselves; for htmx only the live part."""
        part = "_nodes.html" if request.header("HX-Request") else "nodes.html"
        return self._page(request, part, catalogue=read_catalogue(request.site))
