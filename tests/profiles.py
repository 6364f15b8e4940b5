"""How much runs, and when: a few of each kind by day, all before a change lands, long runs at night.

    pytest                                by day: minutes, on a laptop; the same examples everywhere
    pytest --hypothesis-profile=ci        every case that stands in the tests; more examples, new each time
    pytest --hypothesis-profile=nightly   a hundred times as many examples, and what takes minutes each

Nothing runs by day alone. A red run by day is the work of a change or a machine, not of luck; what nobody
has tried yet is looked for in CI and at night.
"""

from hypothesis import HealthCheck, settings


def register():
    settings.register_profile(
        "default",
        deadline=None,
        max_examples=15,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    settings.register_profile("ci", settings.get_profile("default"), max_examples=30, derandomize=False)
    settings.register_profile("nightly", settings.get_profile("ci"), max_examples=3000)
    settings.load_profile("default")


def is_day():
    return settings.get_current_profile_name() == "default"


def is_night():
    return settings.get_current_profile_name() == "nightly"


def by_day(few, every):
    """`few` of all cases by day; `few` is a part of `every`, so that nothing runs by day alone."""
    few, every = list(few), list(every)
    strange = [case for case in few if case not in every]
    if strange:
        raise ValueError(f"few has {strange}, which are not in every={every}")
    return few if is_day() else every
