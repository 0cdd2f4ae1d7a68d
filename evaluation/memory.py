"""What a failed run would keep in memory while the sweep goes on."""

from __future__ import annotations

import gc
import sys
import traceback


def release(error: BaseException | None) -> None:
    """Let go of what a run held: a sweep's next run is in the same process.

    Args:
        error: that ended the run, or None. Hydra keeps it until the sweep ends, and its traceback would keep the model.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
