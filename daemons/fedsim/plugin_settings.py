"""The settings that name plug-ins, and how their options are given: `strategy_options.mu` is `mu` of the strategy's."""

from __future__ import annotations

from typing import Any

from fedsim import plugins

# setting -> the group of the plug-in that it names; its options are in `<setting>_options`.
PLUGIN_SETTINGS = {
    "model": plugins.MODELS,
    "partition": plugins.PARTITIONS,
    "sampler": plugins.SAMPLERS,
    "objective": plugins.OBJECTIVES,
    "optimizer": plugins.OPTIMIZERS,
    "schedule": plugins.SCHEDULES,
    "strategy": plugins.STRATEGIES,
    "aggregation": plugins.STRATEGIES,
    "server_step": plugins.STRATEGIES,
    "screening": plugins.SCREENINGS,
    "attack": plugins.ATTACKS,
}
# setting -> the group of the plug-ins that it lists; the options of each are in `<setting>_options`, by its name.
PLUGIN_LISTS = {"transforms": plugins.TRANSFORMS}
TASK_GROUPS = tuple(dict.fromkeys((*PLUGIN_SETTINGS.values(), *PLUGIN_LISTS.values())))
"""The groups of plug-ins that tasks choose from."""


def plugin_group(setting: str) -> str:
    """The group of the plug-in that a setting, or an entry such as `transforms.clip`, names."""
    return (PLUGIN_SETTINGS | PLUGIN_LISTS)[setting.partition(".")[0]]


def options_setting(setting: str) -> str:
    """The setting that holds the options of the plug-in named by `setting`."""
    return f"{setting}_options"


def nested_options(settings: dict[str, Any], problems: dict[str, str]) -> dict[str, Any]:
    """`strategy_options.mu` as a key becomes `mu` in the dictionary `strategy_options`."""
    for outer in map(options_setting, PLUGIN_LISTS):
        given = settings.get(outer, {})
        if isinstance(given, dict):  # `{clip.norm: 1}` is `{clip: {norm: 1}}`
            dotted = {key: value for key, value in given.items() if "." in str(key) and not isinstance(value, dict)}
            settings |= {f"{outer}.{key}": value for key, value in dotted.items()}
            if dotted:
                settings[outer] = {key: value for key, value in given.items() if key not in dotted}
    for key in [key for key in settings if "." in str(key)]:
        outer, _, inner = key.partition(".")
        entry, _, option = inner.rpartition(".")
        if outer in map(options_setting, PLUGIN_LISTS) and entry:
            by_name = settings.setdefault(outer, {})
            options = by_name.get(entry, {}) if isinstance(by_name, dict) else None
            if not isinstance(options, dict) or option in options:
                problems[key] = f"is given twice: in {outer} as well"
            else:
                settings[outer] = by_name | {entry: options | {option: settings.pop(key)}}
            continue
        if outer not in {options_setting(setting) for setting in PLUGIN_SETTINGS}:
            continue
        options = settings.setdefault(outer, {})
        if not isinstance(options, dict) or inner in options:
            problems[key] = f"is given twice: in {outer} as well"
        else:
            settings[outer] = options | {inner: settings.pop(key)}
    return settings
