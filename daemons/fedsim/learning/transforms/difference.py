"""The codec that sends what has changed."""

from __future__ import annotations

from fedsim.learning.block_array import BlockArray
from fedsim.learning.examples import FloatArray
from fedsim.learning.transforms import Form, Sending, Transform
from fedsim.plugins import gettext_noop
from fedsim.update import PARAMETERS, Update


class Difference(Transform):
    """Sends the difference of the parameters to the received global model; as many bytes, but smaller numbers.

    Other arrays of a strategy are sent as they are. The sum on the server is rounded to float32 once more.
    """

    title = gettext_noop("difference – what has changed since the global model")
    gives = Form.DENSE

    def on_client(self, update: Update, sending: Sending) -> Update:
        """Parameters - received, computed where it is read."""
        trained, received = update.arrays[PARAMETERS], sending.received
        difference = BlockArray.of(len(received), lambda start, stop: trained[start:stop] - received[start:stop])
        return update.with_arrays({**update.arrays, PARAMETERS: difference})

    def on_server(self, update: Update, received: FloatArray) -> Update:
        """Received + difference, computed where it is read."""
        difference = update.arrays[PARAMETERS]
        restored = BlockArray.of(len(received), lambda start, stop: received[start:stop] + difference[start:stop])
        return update.with_arrays({**update.arrays, PARAMETERS: restored})
