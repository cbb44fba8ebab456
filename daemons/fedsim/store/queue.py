"""The order in which pending tasks are claimed: in turns among their users, so that many tasks of one delay no other.

A user's n-th pending task has turn n, plus the number of the user's tasks that are being prepared or run. Of equal
turns the user comes first whose latest start is longer ago.
"""

from __future__ import annotations

from sqlalchemy import Select, case, func, select

from fedsim.store.records import TaskState
from fedsim.store.schema import tasks

_ACTIVE = (TaskState.STARTING, TaskState.RUNNING)


def pending_in_order(most_of_user: int | None = None) -> Select[tuple[int]]:
    """The numbers of the pending tasks in the order in which they are claimed, without those that are to be stopped.

    Args:
        most_of_user: leave out the tasks of users who have this many tasks that are being prepared or run.
    """
    per_user = (
        select(
            tasks.c.user_id,
            func.sum(case((tasks.c.state.in_(_ACTIVE), 1), else_=0)).label("active"),
            func.max(tasks.c.started_at).label("started_at"),
        )
        .group_by(tasks.c.user_id)
        .subquery()
    )
    turn = func.row_number().over(partition_by=tasks.c.user_id, order_by=tasks.c.number)
    waiting = (
        select(tasks.c.number, tasks.c.user_id, turn.label("turn"))
        .where(tasks.c.state == TaskState.PENDING, tasks.c.stop_requested.is_(False))
        .subquery()
    )
    query = (
        select(waiting.c.number)
        .join(per_user, per_user.c.user_id == waiting.c.user_id)
        .order_by(waiting.c.turn + per_user.c.active, func.coalesce(per_user.c.started_at, 0.0), waiting.c.number)
    )
    return query if most_of_user is None else query.where(per_user.c.active < most_of_user)
