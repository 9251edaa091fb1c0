"""What the server does about audio without converting any."""

import base64
import subprocess
import sys

import pytest

from app.wire.audio import silence, spoken_in
from app.wire.dialect import bearer
from app.wire.formats import AudioFormat
from app.wire.openai import OpenAIRealtime

DIALECT = OpenAIRealtime("https://api.openai.com/v1", bearer(lambda: "sk-secret"))
PCM = [each for each in AudioFormat if each is not AudioFormat.G711]

LOADED = "print(any(name.split('.')[0] == 'numpy' for name in sys.modules))"
SERVER_WITH = """
import sys
import app.cli.main, app.main, app.wire.openai
from app.wire.audio import silence, spoken_in
from app.wire.dialect import bearer
from app.wire.formats import AudioFormat
dialect = app.wire.openai.OpenAIRealtime("https://api.openai.com/v1", bearer(lambda: "sk-secret"))
spoken_in(dialect, AudioFormat("{}")).append(silence(20))
"""


def test_silence_is_the_code_of_zero_for_as_long_as_was_asked() -> None:
    assert base64.b64decode(silence(20)) == b"\xff" * 160


def test_a_backend_that_takes_mu_law_is_spoken_to_by_its_own_dialect() -> None:
    assert spoken_in(DIALECT, AudioFormat.G711) is DIALECT


@pytest.mark.parametrize("audio_format", PCM)
def test_every_call_of_a_pcm_backend_gets_a_converter_of_its_own(audio_format: AudioFormat) -> None:
    assert spoken_in(DIALECT, audio_format) is not spoken_in(DIALECT, audio_format)


@pytest.mark.parametrize(
    ("audio_format", "loaded"), [(AudioFormat.G711, "False"), (AudioFormat.PCM16_24K, "True")]
)
def test_numpy_is_loaded_for_pcm_and_for_nothing_else(audio_format: AudioFormat, loaded: str) -> None:
    program = SERVER_WITH.format(audio_format) + LOADED
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == loaded
