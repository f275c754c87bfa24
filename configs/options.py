"""The page of all configuration fields, from their declarations: `python -m configs.options > docs/options.md`."""

from dataclasses import fields

from configs.default import PARTS
from configs.renamed import REMOVED, RENAMED

HEAD = """# Every option

Set a field as `--config.<part>.<field>=value`. The defaults shown are the published configuration, which
`main.py` uses. `PCsampling_demo_svd.py` starts from
[configs/ve/cpu_demo.py](../configs/ve/cpu_demo.py), with the sampler `cascade`.
This page is written by `python -m configs.options > docs/options.md`.
"""


def page() -> str:
    """Markdown: a table for each part of the configuration."""
    lines = [HEAD]
    for part in dict.fromkeys(settings.part for settings in PARTS):
        lines += [f"## {part}", "", "| field | default | range | meaning |", "| --- | --- | --- | --- |"]
        for settings in PARTS:
            if settings.part == part:
                lines += [_row(one) for one in fields(settings)]
        lines.append("")
    lines += ["## eval", "", "| field | meaning |", "| --- | --- |"]
    lines += ["| `path` | scan file or folder for `--mode=eval`; empty: the built-in heart phantom |"]
    lines += ["| `checkpoint_global`, `checkpoint_local` | empty: those trained under `--workdir` |", ""]
    lines += ["## Fields of earlier versions", "", "| field | now |", "| --- | --- |"]
    lines += [f"| `{old}` | `{new}` (accepted with a warning) |" for old, new in RENAMED.items()]
    lines += [f"| `{old}` | removed: {reason} |" for old, reason in REMOVED.items()]
    return "\n".join(lines) + "\n"


def _row(one) -> str:
    limits, default = one.metadata, one.default
    shown = "empty" if default == "" else f"`{default}`"
    low = f"≥ {limits['least']}" if limits["least"] is not None else ""
    low = f"> {limits['above']}" if limits["above"] is not None else low
    high = f"≤ {limits['most']}" if limits["most"] is not None else ""
    allowed = ", ".join(filter(None, (low, high)))
    if limits["choices"]:
        allowed = ", ".join(f"`{choice}`" for choice in limits["choices"] if choice)
    meaning = limits["meaning"].replace("|", "\\|")
    return f"| `{one.name}` | {shown} | {allowed} | {meaning} |"


if __name__ == "__main__":
    print(page(), end="")
