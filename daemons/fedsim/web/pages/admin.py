"""The page for administrators: user accounts and their roles."""

from __future__ import annotations

import bottle

from fedsim.store.records import UserRole, UserState
from fedsim.web import accounts
from fedsim.web.api import user_of
from fedsim.web.errors import Fault, status_text
from fedsim.web.rendering import Renderer
from fedsim.web.request import WebRequest
from fedsim.web.responses import see_other
from fedsim.web.routes import Access, Route
from fedsim.web.views import ROLES, USER_STATES

# Action of the form -> the state or role that it sets.
_STATES = {"approve": UserState.ACTIVE, "enable": UserState.ACTIVE, "disable": UserState.DISABLED}
_ROLES = {"make-admin": UserRole.ADMIN, "make-user": UserRole.USER}


class AdminPages:
    """Accounts."""

    def __init__(self, renderer: Renderer) -> None:
        self._page = renderer.page

    def routes(self) -> list[Route]:
        """The routes."""
        return [
            Route("GET", "/admin/users", self.users, Access.ADMIN),
            Route("POST", "/admin/users/<user_id:int>", self.change, Access.ADMIN),
            Route("POST", "/admin/users/<user_id:int>/reset-password", self.reset_password, Access.ADMIN),
            Route("POST", "/admin/users/<user_id:int>/remove-second-factor", self.remove_second_factor, Access.ADMIN),
        ]

    def users(self, request: WebRequest) -> str:
        """All users, those who wait for approval first."""
        return self._show(request)

    def change(self, request: WebRequest, user_id: int) -> bottle.HTTPResponse:
        """Approve, disable or enable a user, or change the role."""
        verb = request.form.get("action", "")
        if verb not in _STATES.keys() | _ROLES.keys():
            raise Fault(400, status_text(400))
        accounts.change_user(
            request.store,
            user_of(request, user_id),
            by=request.authenticated_user,
            state=_STATES.get(verb),
            role=_ROLES.get(verb),
            now=request.now,
        )
        return see_other("/admin/users")

    def reset_password(self, request: WebRequest, user_id: int) -> str:
        """Set a generated password, which is shown only once."""
        user = user_of(request, user_id)
        password = accounts.reset_password(request.store, user, by=request.authenticated_user, now=request.now)
        return self._show(request, name=user.name, password=password)

    def remove_second_factor(self, request: WebRequest, user_id: int) -> bottle.HTTPResponse:
        """Remove the second factor of a user who has lost it."""
        user, admin = user_of(request, user_id), request.authenticated_user
        accounts.set_second_factor(request.store, user, None, by=admin, now=request.now)
        return see_other("/admin/users")

    def _show(self, request: WebRequest, *, name: str = "", password: str = "") -> str:
        users = sorted(
            request.store.users.all(), key=lambda user: (user.state is not UserState.WAITING, user.name.casefold())
        )
        return self._page(
            request, "users.html", users=users, states=USER_STATES, roles=ROLES, reset_name=name, password=password
        )
