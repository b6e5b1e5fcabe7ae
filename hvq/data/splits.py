"""Which samples are held out where nothing says so: a share of them, by a hash of their names."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hvq.errors import DataError
from hvq.randomness import uniform


def held_out_by_hash(names: Sequence[str] | NDArray[np.int64], share: float, what: str) -> NDArray[np.bool_]:
    """Mask `[N]` of the samples that are held out: a sample stays on its side whatever others are added.

    The one of lowest hash always is held out.

    Args:
        names: what tells a sample from others: names, or numbers.
        share: of the samples, from 0 to below 1.
        what: the data, for errors.

    Raises:
        DataError: where there would be nothing to train on.

    >>> held_out_by_hash(np.arange(10), 0.3, "ten rows").sum()
    np.int64(2)
    """
    if len(names) < 2:
        raise DataError(f"{what} holds a single image; one to train on and one to hold out are needed")
    if isinstance(names, np.ndarray):
        hashes = uniform("validation", names)
    else:
        hashes = np.array([float(uniform("validation", name)) for name in names])
    held_out: NDArray[np.bool_] = hashes < share
    held_out[hashes.argmin()] = True
    if held_out.all():
        raise DataError(f"all images of {what} would be held out; lower data.validation_share from {share}")
    return held_out


def common_classes(train: Sequence[str], validation: Sequence[str], names: tuple[str, str]) -> tuple[str, ...]:
    """The classes of training images, once those of held-out ones are known to be among them.

    Args:
        train: of training images; none where they have none.
        validation: of held-out images.
        names: what both are called, for errors.

    Raises:
        DataError: where they disagree.
    """
    if not set(validation) <= set(train) or bool(train) != bool(validation):
        raise DataError(
            f"{names[1]} must have the same classes as {names[0]} ({', '.join(train) or 'none'}); "
            f"found {', '.join(validation) or 'none'}"
        )
    return tuple(train)


MOST_CLASSES = 2**20
"""More than any data set has; numbers beyond are no classes."""


def class_names(train: Sequence[str], validation: Sequence[str], names: tuple[str, str]) -> tuple[str, ...]:
    """The classes that labels in text stand for: numbers for themselves, names in alphabetical order.

    Args:
        train: label of each training image, empty where it has none.
        validation: of each held-out image.
        names: what both are called, for errors.

    Raises:
        DataError: where held-out images have classes of their own, or a number is too large to be a class.

    >>> class_names(["2", "0", ""], ["0"], ("a", "b")), class_names(["dog", "cat"], ["cat"], ("a", "b"))
    (('0', '1', '2'), ('cat', 'dog'))
    """
    texts = [sorted({text for text in some if text}) for some in (train, validation)]
    if all(text.isascii() and text.isdecimal() for some in texts for text in some):
        # Very long ones are not even taken for numbers.
        digits = max(len(text.lstrip("0")) for some in texts for text in some)
        largest = max(int(text) for some in texts for text in some) if digits <= 7 else MOST_CLASSES
        if largest >= MOST_CLASSES:
            raise DataError(
                f"{names[0]} must have names as classes, or numbers below {MOST_CLASSES:,}; one has {digits:,} digits"
            )
        return tuple(str(number) for number in range(largest + 1))
    return common_classes(texts[0], texts[1], names)


def class_numbers(texts: Sequence[str], classes: Sequence[str]) -> NDArray[np.int64]:
    """Labels in text as numbers of classes, int64 `[N]`; -1 where there is none.

    >>> class_numbers(["dog", "", "cat"], ["cat", "dog"]).tolist(), class_numbers(["01"], ["0", "1"]).tolist()
    ([1, -1, 0], [1])
    """
    numbers = {text: index for index, text in enumerate(classes)}

    def number(text: str) -> int:
        return numbers[text] if text in numbers else numbers[text.lstrip("0") or "0"]

    return np.array([number(text) if text else -1 for text in texts], np.int64)
