# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import errno
import os

from ignite.engine import Engine
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from monai_kdsam.handlers import TensorBoardLog


def test_a_full_disk_ends_the_events_and_not_the_training(tmp_path, caplog):
    engine = Engine(lambda engine, batch: {"loss": float(batch)})
    log = TensorBoardLog(log_dir=str(tmp_path), output_transform=lambda output: output)
    log.attach(engine)
    written, write = [], log._writer.add_scalar

    def write_three(*values):
        if len(written) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(values)
        write(*values)

    log._writer.add_scalar = write_three
    engine.run([5, 6, 7, 8], max_epochs=2)
    assert engine.state.iteration == 8
    assert [record.message for record in caplog.records if "TensorBoard" in record.message] == [
        "TensorBoard's events end here, the run goes on: [Errno 28] No space left on device."
    ]
    log._writer.close()
    (tag,) = (events := EventAccumulator(str(tmp_path)).Reload()).Tags()["scalars"]
    assert [event.value for event in events.Scalars(tag)] == [5, 6, 7]
