"""Findings in words, each with its cure: a machine's cores and codecs, a channel, and how a page was asked for."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import av

from streaming.channels.report import ChannelReport
from streaming.media.hub import CODECS

OK, NOTE, PROBLEM = "ok", "note", "problem"
ENCODERS = {"vp8": "libvpx", "h264": "libx264"}
BF16_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")  # of /proc/cpuinfo


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    name: str
    state: str  # OK, NOTE for what some viewers or setups miss, or PROBLEM
    words: str
    cure: str | None = None


def examine_machine() -> list[Finding]:
    """Cores, bf16 and codecs of the machine."""
    return [_cores(), _bf16(), *map(_codec, CODECS)]


def examine_channel(report: ChannelReport) -> Finding:
    """The engine, its weights and its speed, as a channel reports them."""
    name = f"channel {report.id}"
    if report.width is None or report.state in ("failed", "stalled", "restarting"):
        words = f"{report.state}: {report.error or report.progress or 'the engine loads its weights'}"
        waits = report.state == "starting"
        cure = "wait until it is ready" if waits else "docs/DEBUGGING.md says what each reason means"
        return Finding(name, NOTE if waits else PROBLEM, words, cure)
    picture = f"preset {report.preset} makes {report.width}x{report.height} at {report.fps:g} frames a second"
    factor = report.realtime_factor
    if factor is not None and factor < 1:
        cure = "fewer --steps, a smaller preset, or a faster device"
        return Finding(name, PROBLEM, f"{picture}, but only {factor:.2f} s of video a second: frames repeat", cure)
    speed = "" if factor is None else f", {factor:.1f} s of video a second"
    return Finding(name, OK, picture + speed)


def examine_https(scheme: str, host: str) -> Finding:
    """How the page was asked for."""
    if scheme == "https":
        return Finding("https", OK, "this report came over HTTPS")
    if is_local(host):
        return Finding("https", OK, "HTTP on this machine itself, which browsers trust like HTTPS")
    words = "HTTP without TLS: a token and prompts can be read on the way, and pages on HTTPS cannot embed the video"
    return Finding(
        "https", NOTE, words, "give --tls-cert and --tls-key, or put a proxy with TLS before it: docs/PROXY.md"
    )


def is_local(host: str) -> bool:
    """True for names and addresses by which this machine alone reaches itself."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _cores() -> Finding:
    cores = len(os.sched_getaffinity(0))
    if cores < 2:
        return Finding("cores", NOTE, "one processor core: engine and server share it", "give it two")
    return Finding("cores", OK, f"{cores} processor cores")


def _bf16() -> Finding:
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    flags = {word for line in text.splitlines() if line.startswith(("flags", "Features")) for word in line.split()}
    found = [flag for flag in BF16_FLAGS if flag in flags]
    if found == ["avx512_bf16"] and "avx512_fp16" in flags:
        return Finding("bf16", OK, "the processor multiplies float32 faster than bfloat16, and computes in that")
    if found:
        return Finding("bf16", OK, f"the processor multiplies bfloat16 itself ({', '.join(found)})")
    return Finding("bf16", OK, "the processor has no bfloat16 instructions: it computes in float32, which takes longer")


def _codec(codec: str) -> Finding:
    try:
        av.Codec(ENCODERS[codec], "w")
    except ValueError:
        words = f"PyAV has no {ENCODERS[codec]}: viewers who can play nothing else see nothing"
        return Finding(codec, PROBLEM, words, "pip install --force-reinstall --no-deps 'av>=18,<19'")
    return Finding(codec, OK, f"is encoded by {ENCODERS[codec]}")


def lines(findings: Sequence[Finding]) -> Iterator[str]:
    """The findings for a terminal, problems last."""
    order = (OK, NOTE, PROBLEM)
    for finding in sorted(findings, key=lambda one: order.index(one.state)):
        yield f"{finding.state:8}{finding.name}: {finding.words}"
        if finding.cure is not None:
            yield f"{'':8}-> {finding.cure}"
