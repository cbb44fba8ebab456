"""The task form: from settings to what stands in its fields, and back."""

from __future__ import annotations

import secrets
from typing import Any

from fedsim import plugins
from fedsim.plugin_settings import PLUGIN_LISTS, PLUGIN_SETTINGS, options_setting
from fedsim.settings import TaskSettings
from fedsim.task_kinds import STATISTICS_SETTINGS
from fedsim.web.form_fields import CHOICES, form_fields, form_groups, option_groups
from fedsim.web.i18n import Text

# Hidden fields: the task from which the form was filled, and the submission's idempotency key.
SOURCE = "from"
SUBMISSION = "submission"
# The button that shows the partition instead of submitting the task.
PREVIEW = "preview"
# Prefix of the task form's fields that the log-in page carries along.
CARRIED_PREFIX = "kept."
MAX_TYPED_CHARACTERS = 500


def form_values(settings: TaskSettings) -> dict[str, str]:
    """The values of the form's fields for settings; options of plug-ins that are not chosen have their defaults."""
    values = settings.model_dump(mode="json")
    texts = {name: _plain(value) for name, value in values.items() if not isinstance(value, dict)}
    for setting, group in CHOICES.items():
        for plugin in plugins.describe(group):
            entry = f"{setting}.{plugin.name}" if setting in PLUGIN_LISTS else setting
            chosen = settings.options(entry) if settings.chosen_plugins.get(entry) == (group, plugin.name) else {}
            for option, schema in plugin.options.get("properties", {}).items():
                value = chosen.get(option, schema.get("default", ""))
                texts[f"{options_setting(setting)}.{plugin.name}.{option}"] = _plain(value)
    return texts


def labelled_settings(settings: TaskSettings) -> list[tuple[Text, str]]:
    """The settings as (label, value), with the options of the chosen plug-ins only."""
    texts = form_values(settings)
    rows = []
    for group in form_groups():
        for field in group.fields:
            if field.name == "title" or not (settings.trains or field.name in STATISTICS_SETTINGS):
                continue
            choice = texts[field.name]
            if choice or field.name not in PLUGIN_SETTINGS:
                rows.append((field.label, choice))
            if field.name in CHOICES:
                rows += [
                    (option.label, texts[option.name])
                    for options in option_groups(field.name)
                    if options.plugin in _names(field.name, choice)
                    for option in options.fields
                ]
    return rows


def settings_from(form: dict[str, str]) -> dict[str, Any]:
    """The settings of a submitted form, without surrounding spaces; fields that are missing keep their default.

    Only options of the chosen plug-ins are used.
    """
    settings: dict[str, Any] = {}
    for group in form_groups():
        for field in group.fields:
            if field.name not in form:
                continue
            if form.get("kind", "").strip() == "statistics" and field.name not in STATISTICS_SETTINGS:
                continue  # hidden in the form: it does not apply
            settings[field.name] = form[field.name].strip()
    for setting in CHOICES if settings.get("kind") != "statistics" else ():
        chosen = _names(setting, settings.get(setting, TaskSettings.model_fields[setting].default))
        key = options_setting(setting)
        typed = {
            options.plugin: {
                field.name.removeprefix(f"{key}.{options.plugin}."): form[field.name].strip()
                for field in options.fields
                if field.name in form
            }
            for options in option_groups(setting)
            if options.plugin in chosen
        }
        for plugin, values in typed.items():
            if values:
                settings[key] = {**settings.get(key, {}), plugin: values} if setting in PLUGIN_LISTS else values
    return settings


def _names(setting: str, typed: Any) -> tuple[str, ...]:
    """The plug-ins that a field of the form names."""
    if setting not in PLUGIN_LISTS:
        return (str(typed),)
    return tuple(part.strip() for part in typed.split(",")) if isinstance(typed, str) else tuple(typed)


def field_of_problem(name: str, values: dict[str, str]) -> str:
    """The form's field for a problem: `strategy_options.fedprox.mu` for `strategy_options.mu`."""
    outer, dot, option = name.partition(".")
    setting = outer.removesuffix("_options")
    if not dot or setting not in PLUGIN_SETTINGS:
        return name
    return f"{outer}.{values.get(setting, '').strip()}.{option}"


def typed_values(form: dict[str, str], prefix: str = "") -> dict[str, str]:
    """The input of a task form, to be shown again: only known fields, and limited in length."""
    names = [*(field.name for field in form_fields()), SOURCE, SUBMISSION]
    return {name: form[prefix + name][:MAX_TYPED_CHARACTERS] for name in names if prefix + name in form}


def new_submission() -> str:
    """A key with which repeated submissions of one form create only one task."""
    return secrets.token_urlsafe(16)


def _plain(value: Any) -> str:
    """A value as text, 600 instead of 600.0, with all digits; items with commas between them; None is empty."""
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)
