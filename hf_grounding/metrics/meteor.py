"""How many words of a caption match a reference by form, stem, synonym or paraphrase? METEOR 1.5 (WMT 2014), in Java.

There is no exact METEOR in Python, so this runs the jar of the optional package `pycocoevalcap`, as the COCO toolkit
does. Java takes seconds to read its paraphrases; one process is therefore started at the first call and kept.
"""

from __future__ import annotations

import atexit
import os
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice
from typing import IO, Any

from ._captions import Caption, Tokens, read_captions
from ._java import LOCALE, check_jar, java_executable, java_failure, toolkit_folder

SEPARATOR = " ||| "  # of the fields of a line to or from Java


def meteor(
    predictions: Sequence[Caption], references: Sequence[Sequence[Caption]], *, timeout: float = 600.0
) -> dict[str, Any]:
    r"""METEOR as the COCO toolkit computes it: version 1.5, English, normalised text, the best reference of an image.

    Args:
        predictions, references: As in `bleu`.
        timeout (`float`): Seconds that Java may take, its start included.

    Returns:
        `dict` with "meteor" in [0, 1], which the jar computes from the sums over all images (not a mean over images);
        "per_image", one value each; "count", the images.

    Raises:
        JavaMetricUnavailable: If Java or `pycocoevalcap` is missing.
        RuntimeError: If Java fails; shows what it wrote.
        TimeoutError: If it takes longer than `timeout`. The next call starts it anew, after either error.
        ValueError: As in `bleu`.
    """
    hypotheses, read = read_captions(predictions, references)
    # A forked process must not talk to its parent's Java, so each has its own.
    process = _processes.setdefault(os.getpid(), MeteorProcess())
    corpus, per_image = process.score(hypotheses, read, timeout=timeout)
    return {"meteor": corpus, "per_image": per_image, "count": len(per_image)}


class MeteorProcess:
    r"""METEOR's Java process: started when it first scores, used again, started anew if it has died.

    `meteor` keeps one for the whole program; this is for a process that should end earlier. Threads may share it.

        >>> with MeteorProcess() as process:
        ...     corpus, per_image = process.score([["a", "man"]], [[["the", "man"], ["a", "person"]]])
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._java: subprocess.Popen[bytes] | None = None
        self._stderr: IO[bytes] | None = None

    def __enter__(self) -> MeteorProcess:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def score(
        self, predictions: list[Tokens], references: list[list[Tokens]], *, timeout: float = 600.0
    ) -> tuple[float, list[float]]:
        r"""METEOR of the corpus, and of each image.

        Args:
            predictions: Tokens of one caption per image.
            references: For each image the tokens of its captions.
            timeout (`float`): Seconds for all of them.

        Raises:
            JavaMetricUnavailable, RuntimeError, TimeoutError: As in `meteor`.
        """
        lines = (
            ["SCORE", *map(_sentence, captions), _sentence(prediction)]
            for prediction, captions in zip(predictions, references, strict=True)
        )
        # An empty prediction still ends in a separator and a space; without the space Java would drop the field.
        questions = "".join(SEPARATOR.join(fields) + "\n" for fields in lines)
        with self._lock:
            java, stderr = self._running()
            expired, answered = threading.Event(), False

            def expire() -> None:
                expired.set()
                java.kill()

            timer = threading.Timer(timeout, expire)
            timer.daemon = True
            timer.start()
            try:
                statistics = _ask(java, stderr, questions, len(predictions))
                scores = _ask(java, stderr, SEPARATOR.join(["EVAL", *statistics]) + "\n", len(predictions) + 1)
                answered = True
            except RuntimeError:
                if expired.is_set():
                    raise TimeoutError(
                        f"METEOR of {len(predictions)} captions took Java more than `timeout` = {timeout:g} seconds; "
                        "it was stopped."
                    ) from None
                raise
            finally:
                timer.cancel()
                # Half-read answers would be taken for those of the next call.
                if expired.is_set() or not answered:
                    self.close()
        *per_image, corpus = map(float, scores)
        return corpus, per_image

    def close(self) -> None:
        """Ends the process, if there is one."""
        java, self._java = self._java, None
        stderr, self._stderr = self._stderr, None
        if java is not None:
            java.kill()
            java.wait()
            for stream in (java.stdin, java.stdout, stderr):
                # Closing writes what was left to write, to a process that is no more.
                with suppress(OSError):
                    if stream is not None:
                        stream.close()

    def _running(self) -> tuple[subprocess.Popen[bytes], IO[bytes]]:
        """The process and the file its errors go to; starts it if it is not running."""
        if self._java is None or self._stderr is None or self._java.poll() is not None:
            self.close()
            java = java_executable("METEOR")
            folder = toolkit_folder("METEOR", "meteor")
            jar = check_jar("METEOR", folder / "meteor-1.5.jar")
            check_jar("METEOR", folder / "data" / "paraphrase-en.gz")
            command = [java, "-Xmx2G", *LOCALE, "-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm"]
            # A file, as a pipe that nobody reads would fill up and block Java.
            stderr = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `close`)
            self._java = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr)
            self._stderr = stderr
        return self._java, self._stderr


_processes: dict[int, MeteorProcess] = {}  # of each process id, as a fork inherits its parent's


@atexit.register
def _close_at_exit() -> None:
    if os.getpid() in _processes:
        _processes[os.getpid()].close()


def _sentence(tokens: Tokens) -> str:
    """The tokens on one line, without what would be taken for a separator."""
    return " ".join(" ".join(map(str, tokens)).replace(SEPARATOR.strip(), "").split())


def _ask(java: subprocess.Popen[bytes], stderr: IO[bytes], questions: str, count: int) -> list[str]:
    """Writes lines and reads `count` lines of answers; `RuntimeError` if Java ends before, or finds an error."""
    assert java.stdin is not None
    assert java.stdout is not None
    # Beside the reading: Java answers each line at once, and waits when nobody reads its answers.
    writer = threading.Thread(target=_write, args=(java.stdin, questions.encode(errors="replace")), daemon=True)
    writer.start()
    answers = [line.decode().strip() for line in islice(java.stdout, count)]
    if len(answers) < count:
        problem = f"Java ended (exit code {java.wait()}) after {len(answers)} of {count} answers"
        raise java_failure("METEOR", problem, stderr)
    writer.join()
    for answer in answers:
        if answer.startswith("Error"):
            raise java_failure("METEOR", f"Java answered '{answer}'", stderr)
    return answers


def _write(stdin: IO[bytes], lines: bytes) -> None:
    # If Java has ended, the missing answers tell.
    with suppress(OSError, ValueError):
        stdin.write(lines)
        stdin.flush()
