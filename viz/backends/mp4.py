"""MP4: pictures as a film in H.264, which slides, phones and video sites play.

The encoder is FFmpeg's, which comes with PyAV (the extra `video`); it is imported when a film is made.

Read next: `viz/take_away.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from importlib.util import find_spec
from io import BytesIO

from PIL import Image

CODEC = "libx264"
QUALITY = "18"
"""x264's CRF: letters stay sharp."""


def can_film() -> bool:
    """Is the encoder installed?"""
    return find_spec("av") is not None


def mp4(pictures: Iterable[Image.Image], per_second: float) -> bytes:
    """The pictures, at least one and all of one size, as a film.

    Raises:
        ModuleNotFoundError: PyAV is not installed.
        ValueError: there is no picture.
    """
    import av

    drawn = BytesIO()
    with av.open(drawn, "w", format="mp4") as film:
        stream = None
        for picture in pictures:
            frame = av.VideoFrame.from_image(even(picture))
            if stream is None:
                stream = film.add_stream(CODEC, rate=Fraction(per_second), options={"crf": QUALITY})
                stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, "yuv420p"
            film.mux(stream.encode(frame))
        if stream is None:
            raise ValueError("a film needs at least one picture")
        film.mux(stream.encode(None))
    return drawn.getvalue()


def even(picture: Image.Image) -> Image.Image:
    """One column and row more where a side is odd: H.264 stores colour for two by two pixels."""
    width, height = picture.size
    if width % 2 == height % 2 == 0:
        return picture
    grown = Image.new("RGB", (width + width % 2, height + height % 2), picture.getpixel((0, 0)))
    grown.paste(picture, (0, 0))
    return grown
