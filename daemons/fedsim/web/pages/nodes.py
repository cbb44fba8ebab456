"""The page of the nodes: who is there, what they hold, what they allow."""

from __future__ import annotations

from fedsim.web.catalogue import read_catalogue
from fedsim.web.rendering import Renderer
from fedsim.web.request import WebRequest
from fedsim.web.routes import Route


class NodePages:
    """Who takes part."""

    def __init__(self, renderer: Renderer) -> None:
        self._page = renderer.page

    def routes(self) -> list[Route]:
        """What this page answers."""
        return [Route("GET", "/nodes", self.nodes)]

    def nodes(self, request: WebRequest) -> str:
        """Every node that ever announced itself; for htmx only the part that lives."""
        part = "_nodes.html" if request.header("HX-Request") else "nodes.html"
        return self._page(request, part, catalogue=read_catalogue(request.site))
