"""Chain names: one canonical spelling, and every spelling a candle table may use for it."""

from __future__ import annotations

from typing import Final

__all__ = ["canonical_chain", "chain_spellings"]

# canonical name -> other names of the same chain, compared without regard to case
_ALIASES: Final[dict[str, tuple[str, ...]]] = {
    "solana": ("sol",),
    "ethereum": ("eth",),
    "bsc": ("bnb",),
    "base": (),
}
_CANONICAL: Final = {name: chain for chain, aliases in _ALIASES.items() for name in (chain, *aliases)}


def canonical_chain(name: str) -> str:
    """The canonical name of a chain: `SOL`, `Solana` and `sol` are `solana`; an unknown one is lower-cased."""
    lowered = name.strip().lower()
    return _CANONICAL.get(lowered, lowered)


def chain_spellings(chain: str) -> list[str]:
    """Every spelling of a chain to look for in a table, sorted.

    A list of exact values rather than `lower(chain)`, so that a primary key on chain stays usable.
    """
    canonical = canonical_chain(chain)
    names = {chain.strip(), canonical, *_ALIASES.get(canonical, ())}
    return sorted({spelled for name in names for spelled in (name, name.lower(), name.upper(), name.capitalize())})
