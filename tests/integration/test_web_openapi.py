"""The OpenAPI document is true: what schemathesis makes from it is answered as it says, and never with a 5xx."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from web_support import Browser, Site, make_site

from fedsim.store.records import TaskState, UserRole
from fedsim.web.api import ApiRoutes

CHECKS = [not_a_server_error, content_type_conformance, response_schema_conformance, status_code_conformance]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = make_site(tmp_path_factory.mktemp("openapi"), requests_per_minute=10**9)
    yield made
    made.store.close()


@pytest.fixture(scope="module")
def token(site: Site) -> str:
    """Of an administrator, who has a task in each state."""
    browser = site.user("root", UserRole.ADMIN)
    site.node("node-1")
    site.node("node-2")
    for rounds, state in ((2, TaskState.COMPLETED), (4, TaskState.RUNNING), (3, None)):
        task = site.task("root", num_rounds=rounds, dataset="mnist")
        if state is not None:
            site.run_rounds(task, 2)
        if state is TaskState.COMPLETED:
            site.finish(task)
    return secret(browser)


def secret(browser: Browser) -> str:
    page = browser.post_form("/profile", "/profile/tokens", label="schemathesis").text
    return page.split('id="secret">')[1].split("<")[0]


def test_every_route_of_the_api_has_a_contract(site: Site) -> None:
    routes = ApiRoutes().routes()
    without = [route.path for route in routes if route.contract is None]
    assert without == ["/api/v1/openapi.json"]
    found = site.browser().get("/api/v1/openapi.json").json()
    operations = [(path, method) for path, item in found["paths"].items() for method in item]
    assert len(operations) == len(routes) - 1


def operations(site: Site) -> list[Any]:
    schema = schemathesis.openapi.from_wsgi("/api/v1/openapi.json", site.app)
    return [operation.ok() for operation in schema.get_all_operations()]


@pytest.mark.parametrize("examples", [6, pytest.param(600, marks=[pytest.mark.long, pytest.mark.timeout(1700)])])
def test_made_up_requests_are_answered_as_the_document_says(site: Site, token: str, examples: int) -> None:
    """With `examples` = 600 more than 10,000 requests, valid and invalid ones."""
    sent: dict[str, int] = {}

    for operation in operations(site):
        for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):
            cases = operation.as_strategy(generation_mode=mode)

            @settings(
                max_examples=examples // 2,
                deadline=None,
                database=None,
                phases=[Phase.explicit, Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(cases)
            def answered(case: Any) -> None:
                answer = case.call(headers={"Authorization": f"Bearer {token}"})
                sent[case.operation.label] = sent.get(case.operation.label, 0) + 1
                case.validate_response(answer, checks=CHECKS)

            answered()
    assert sum(sent.values()) > 10_000 if examples == 600 else len(sent) == len(operations(site))
