"""The page of the task form, used for submission and after a log-in that interrupted it."""

from __future__ import annotations

import bottle

from fedsim.settings import TaskSettings
from fedsim.task_kinds import STATISTICS_SETTINGS
from fedsim.web import form_fields, forms
from fedsim.web.catalogue import read_catalogue
from fedsim.web.errors import Fault, Problems
from fedsim.web.i18n import Text
from fedsim.web.initial_models import known_files
from fedsim.web.partitions import ShownPartition
from fedsim.web.rendering import Renderer
from fedsim.web.request import WebRequest
from fedsim.web.responses import page_response


def show_task_form(
    renderer: Renderer,
    request: WebRequest,
    values: dict[str, str],
    *,
    fault: Fault | None = None,
    notice: Text | None = None,
    partition: ShownPartition | None = None,
) -> bottle.HTTPResponse:
    """Show the form with `values`, which need not be valid; missing ones have their default. Below is a `partition`."""
    problems: Problems = fault.problems if fault else {}
    known = {field.name for field in form_fields.form_fields()}
    source = values.get(forms.SOURCE, "")
    filled = forms.form_values(TaskSettings.model_validate({})) | values
    problems = {forms.field_of_problem(name, filled): text for name, text in problems.items()}
    page = renderer.page(
        request,
        "task_form.html",
        groups=form_fields.form_groups(),
        option_groups=form_fields.option_groups,
        plugin_settings=form_fields.CHOICES,
        statistics_settings=STATISTICS_SETTINGS,
        values=filled,
        problems=problems,
        all_fields=form_fields.form_fields(),
        other_problems={name: text for name, text in problems.items() if name not in known},
        error=fault.text if fault else None,
        notice=notice,
        partition=partition,
        catalogue=read_catalogue(request.site),
        source=source if source.isascii() and source.isdigit() else "",
        submission=values.get(forms.SUBMISSION) or forms.new_submission(),
        cohort=_cohort(filled),
        initial_files=known_files(request.config.models),
    )
    return page_response(page, fault)


def _cohort(values: dict[str, str]) -> int | None:
    """The number of clients in each round; None if the values are invalid."""
    try:
        wanted = {name: values[name] for name in ("num_clients", "fraction_train")}
        settings = TaskSettings.model_validate(wanted)
    except ValueError:
        return None
    return settings.cohort_size
