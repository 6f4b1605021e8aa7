"""Probe: how large and how fast is it, on this machine?"""

from __future__ import annotations

import numpy as np
import torch

from striate.engine.latency import latency
from striate.engine.macs import count_macs
from striate.examine.finding import Advice, Chart, CheckRecord, Figure, Finding, Series
from striate.examine.subject import Subject

__all__ = ["probe"]

_QUESTION = "How large and how fast is it here?"


def probe(subject: Subject) -> Finding:
    """Measure parameters, multiply-adds, latency by batch size, and the first answer's time."""
    model = subject.model
    device = model.mean.device
    parameters = sum(parameter.numel() for parameter in model.network.parameters())
    stored = sum(value.numel() * value.element_size() for value in model.network.state_dict().values())
    one = subject.pixels[:1].to(device)
    macs = count_macs(model, one) or None  # None: an operator without a count

    sizes = (1, 4) if subject.quick else (1, 2, 4, 8, 16)
    repeats = 9 if subject.quick else 15
    per_image: list[tuple[float, float, float]] = []
    for size in sizes:
        subject.say(f"latency at batch {size}")
        batch = one.expand(size, -1, -1, -1).contiguous()
        seconds = latency(model, batch, repeats=max(5, repeats // max(1, size // 4)))
        per_image.append(tuple(1000 * np.quantile(seconds, (0.5, 0.1, 0.9)) / size))
    median, low, high = per_image[0]
    best = int(np.argmin([item[0] for item in per_image]))

    threads = torch.get_num_threads()
    where = f"{threads} CPU threads" if device.type == "cpu" else torch.cuda.get_device_name(device)
    spread = (high - low) / median
    figures = [
        Figure(name="Parameters", value=parameters),
        Figure(name="Stored size", value=stored / 2**20, unit="MiB", note="state dict in its own precision"),
        Figure(name="Multiply-adds", value=macs and macs / 1e9, unit="G", note="one image"),
        Figure(name="Latency, one image", value=median, low=low, high=high, unit="ms", note="median, 10th to 90th %"),
        Figure(
            name="Best throughput",
            value=1000 / per_image[best][0],
            unit="images/s",
            note=f"at batch {sizes[best]}, {where}",
        ),
    ]
    chart = Chart(
        title="Time per image by batch size",
        x_label="images in a batch",
        y_label="ms per image",
        alt=f"Milliseconds per image fall or rise from {median:.1f} at batch 1 to {per_image[-1][0]:.1f} at batch "
        f"{sizes[-1]}.",
        series=[
            Series(
                name="median",
                x=[float(number) for number in range(len(sizes))],
                y=[item[0] for item in per_image],
                low=[item[1] for item in per_image],
                high=[item[2] for item in per_image],
            )
        ],
        x_ticks=[str(size) for size in sizes],
    )
    return Finding(
        probe="speed",
        question=_QUESTION,
        status="done",
        level="info",
        headline=f"{parameters:,} parameters; one image takes {median:.3g} ms on {where}, "
        f"and batches of {sizes[best]} are the most efficient ({1000 / per_image[best][0]:.0f} images/s).",
        reading=[
            "Latency is measured, not derived: on a CPU the count of multiply-adds is a poor guide to time.",
        ],
        figures=figures,
        charts=[chart],
        checks=[
            CheckRecord(
                name="quiet machine",
                passed=bool(spread < 0.5),
                value=float(spread),
                bound=0.5,
                statement=f"The middle 80 % of the single-image times span {100 * spread:.0f} % of their median"
                + (" (bound 50 %)." if spread < 0.5 else "; something else was running, so measure again."),
            )
        ],
        advice=[
            Advice(text=f"For many images on this machine, use batches of {sizes[best]}.")
            if sizes[best] > 1
            else Advice(text="Single images are already the most efficient batch here.")
        ],
        limits=["Energy, other machines, lower precision and compiled graphs."],
    )
