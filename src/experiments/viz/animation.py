"""Pictures of one thing over the course of training as an animation."""

from pathlib import Path

SECONDS = 0.25  # that a picture is shown; the last one longer


def animate(folder: Path, name: str) -> Path | None:
    """Joins `<name>_<step>.png` in `folder` to `<name>.gif`; None where there are none."""
    from PIL import Image  # takes a while to import, and few runs have pictures to join

    frames = [Image.open(path).convert("P") for path in sorted(folder.glob(f"{name}_[0-9]*.png"))]
    if not frames:
        return None
    path = folder / f"{name}.gif"
    first, *rest = frames
    durations = [round(1000 * SECONDS)] * len(rest) + [2000]
    first.save(path, save_all=True, append_images=rest, duration=durations, loop=0)
    return path
