"""The transform that changes nothing."""

from __future__ import annotations

from fedsim.learning.transforms import Form, Transform
from fedsim.plugins import gettext_noop


class IdentityTransform(Transform):
    """Changes nothing: for tests, and for measuring what the pipeline costs."""

    title = gettext_noop("identity – changes nothing")
    uses_received = False
    accepts = Form.ENCODED
