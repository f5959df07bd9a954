"""Passwords and tokens of a recipe, which stay out of everything that a run writes and prints."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

__all__ = [
    "MASK",
    "digests_of",
    "forbid_others",
    "mask_text",
    "mask_words",
    "masked",
    "masked_paths",
    "remember",
    "still_masked",
    "unmasked",
]

MASK = "***"
"""What stands in the place of a masked value."""

_KEY = re.compile(
    r"(?:^|[_.\-])(?:api_?key|access_?key(?:_?id)?|secret(?:_?(?:key|access_?key))?|private_?key|pass(?:word|wd|phrase)?"
    r"|pwd|credentials?|authorization|cookie|bearer|jwt|(?:api|access|auth|hf|hub|refresh)_?token)s?$"
    r"|(?:^|_)token$",
    re.IGNORECASE,
)
"""Keys whose value is a secret."""
_TEXT_TOKEN = re.compile(
    r"(?:^|_)(?:bos|eos|pad|unk|sep|cls|mask|image|audio|video|start|end|stop|special|eot|eod|fim|prefix|suffix)_?token$",
    re.IGNORECASE,
)
"""Keys about tokens of a text."""
_SPECIAL = re.compile(r"[<\[].*[>\]]", re.DOTALL)
"""A special token of a tokenizer, under a key that this module does not know."""
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_URL = re.compile(r"(?P<before>\b[a-zA-Z][\w+.\-]*:/{1,2}[^\s:/?#@'\"]*:)(?P<secret>[^\s/?#'\"]+)(?=@)")
_ALONE = re.compile(r"(?P<before>\b[a-zA-Z][\w+.\-]*:/{1,2})(?P<secret>[^\s:/?#@'\"]{20,})(?=@)")
"""A token in the place of the user, as in ``https://TOKEN@host``."""
_QUERY = re.compile(
    r"(?P<before>[?&](?:[\w\-]*(?:token|secret|password|passwd|signature|credential|api_?key)|sig|key|auth)=)"
    r"(?P<secret>[^&#\s'\"]+)",
    re.IGNORECASE,
)
_VARIABLE = re.compile(
    r"(?P<before>\b[A-Z][A-Z0-9_]*(?:TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_KEY)[A-Z0-9_]*=)(?P<secret>[^\s'\"]+)"
)
_KNOWN = re.compile(
    r"(?P<before>\b)(?P<secret>hf_[A-Za-z0-9]{20,}|sk-(?=[\w\-]*\d)[\w\-]{20,}|gh[opsu]_[A-Za-z0-9]{30,}"
    r"|github_pat_\w{30,}|glpat-[\w\-]{20,}|AKIA[0-9A-Z]{16}|xox[abpr]-[\w\-]{10,}"
    r"|eyJ[\w\-]{10,}\.[\w\-]{10,}\.[\w\-]*)"
)
"""Tokens that are known by how they begin."""
_PATTERNS = (_URL, _ALONE, _QUERY, _VARIABLE, _KNOWN)
_remembered: set[str] = set()
_SHORTEST = 8
"""Characters from which on a secret of the recipe is looked for in any message; shorter ones are in ordinary words."""

Path = tuple[str | int, ...]


def is_secret_key(key: str) -> bool:
    """Return whether the value of a key is a secret, by the key's name."""
    plain = _CAMEL.sub("_", key)
    return bool(_KEY.search(plain)) and not _TEXT_TOKEN.search(plain)


def mask_text(text: str) -> str:
    """Return a text without passwords in URLs, without tokens that are known by their form, and those of the recipe."""
    for secret in sorted(_remembered, key=len, reverse=True):
        text = text.replace(secret, MASK)
    for pattern in _PATTERNS:
        text = pattern.sub(lambda found: found["before"] + MASK, text)
    return text


def mask_words(words: Sequence[str]) -> list[str]:
    """Return the words of a command line, with the values of ``key=value`` masked where the key says so."""
    made = []
    for word in words:
        key, equals, _ = word.partition("=")
        made.append(f"{key}={MASK}" if equals and is_secret_key(key.rpartition(".")[2]) else mask_text(word))
    return made


def masked(value: Any, key: str = "") -> Any:
    """Return plain values with the secrets among them masked.

    Args:
        value: mappings, lists, numbers and texts.
        key: under which it stands.
    """
    secrets = dict(_secrets(value, (key,) if key else ()))
    return _replaced(value, (key,) if key else (), secrets)


def masked_paths(value: Any) -> list[str]:
    """Return the paths of what :func:`masked` masks, such as ``logger.api_key``."""
    return [_written(path) for path, _ in _secrets(value, ())]


def remember(value: Any) -> None:
    """Have :func:`mask_text` mask the secrets of a recipe wherever they are written."""
    for path, _ in _secrets(value, ()):
        text = str(_at(value, path))
        secrets = [text] if _is_under_key(path) else [found["secret"] for found in _found(text)]
        _remembered.update(secret for secret in secrets if len(secret) >= _SHORTEST)


def digests_of(value: Any, salt: str) -> dict[str, str]:
    """Return salted digests of what :func:`masked` masks, by path; equal for equal values."""
    return {_written(path): _digest(_at(value, path), salt) for path, _ in _secrets(value, ())}


def unmasked(before: Any, digests: Mapping[str, str], salt: str, now: Any) -> Any:
    """Return masked values of a run with those of this run in their place, where their digests are equal.

    Args:
        before: what :func:`masked` returned then.
        digests: what :func:`digests_of` returned then.
        salt: with which it was called.
        now: the values of this run.
    """
    same = {path: _at(now, path) for path, _ in _secrets(now, ())}
    known = {path: held for path, held in same.items() if digests.get(_written(path)) == _digest(held, salt)}
    return _replaced(before, (), known)


def still_masked(value: Any) -> list[str]:
    """Return the paths of secrets that are masked, as in a recipe that a run has kept."""
    found = [path for path, _ in _secrets(value, ()) if _at(value, path) == MASK]
    found += [path for path, text in _texts(value, ()) if any(p["secret"] == MASK for p in _found(text))]
    return [_written(path) for path in found]


def forbid_others() -> None:
    """Take from other users the right to write to what this process makes; the rights of the group stay."""
    os.umask(os.umask(0o077) | 0o002)


def _secrets(value: Any, path: Path) -> Iterator[tuple[Path, str]]:
    """Yield the place of each secret, and what is written in its place."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _secrets(inner, (*path, str(key)))
    elif isinstance(value, (list, tuple)):
        for number, inner in enumerate(value):
            yield from _secrets(inner, (*path, number))
    elif _is_under_key(path) and _is_secret(value, path):
        yield path, MASK
    elif isinstance(value, str) and (hidden := _masked_alone(value)) != value:
        yield path, hidden


def _texts(value: Any, path: Path) -> Iterator[tuple[Path, str]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _texts(inner, (*path, str(key)))
    elif isinstance(value, (list, tuple)):
        for number, inner in enumerate(value):
            yield from _texts(inner, (*path, number))
    elif isinstance(value, str):
        yield path, value


def _found(text: str) -> Iterator[re.Match[str]]:
    for pattern in _PATTERNS:
        yield from pattern.finditer(text)


def _is_secret(value: Any, path: Path) -> bool:
    """Return whether a value under a secret's key is one: a text, or the digits of a password."""
    if isinstance(value, str):
        return bool(value) and not _SPECIAL.fullmatch(value)
    return type(value) is int and bool(re.search("pass|pwd", str(path), re.IGNORECASE))


def _is_under_key(path: Path) -> bool:
    return any(isinstance(step, str) and is_secret_key(step) for step in path)


def _masked_alone(text: str) -> str:
    for pattern in _PATTERNS:
        text = pattern.sub(lambda found: found["before"] + MASK, text)
    return text


def _replaced(value: Any, path: Path, by: Mapping[Path, Any]) -> Any:
    if path in by:
        return by[path]
    if isinstance(value, Mapping):
        return {key: _replaced(inner, (*path, str(key)), by) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_replaced(inner, (*path, number), by) for number, inner in enumerate(value)]
    return value


def _at(value: Any, path: Path) -> Any:
    for step in path:
        value = (
            value[step] if isinstance(step, int) else next(inner for key, inner in value.items() if str(key) == step)
        )
    return value


def _written(path: Path) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).lstrip(".")


def _digest(value: Any, salt: str) -> str:
    # slow on purpose: a password may be short
    return hashlib.pbkdf2_hmac("sha256", repr(value).encode(), salt.encode(), 20_000).hex()
