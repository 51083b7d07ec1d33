from __future__ import annotations

import pytest

from lake_pipeline.core.chains import canonical_chain, chain_spellings


@pytest.mark.parametrize(
    ("canonical", "names"),
    [
        ("solana", ["solana", "SOL", "Solana", "sol", "SOLANA", " sol "]),
        ("ethereum", ["ethereum", "ETH", "eth", "Ethereum"]),
        ("bsc", ["bsc", "BNB", "Bsc", "bnb", "BSC"]),
        ("base", ["base", "Base", "BASE"]),
        ("exchange", ["exchange", "Exchange"]),
    ],
)
def test_every_name_of_a_chain_is_its_canonical_one(canonical: str, names: list[str]) -> None:
    assert {canonical_chain(name) for name in names} == {canonical}


@pytest.mark.parametrize(
    ("chain", "spellings"),
    [
        ("solana", {"solana", "SOL", "Solana", "sol"}),
        ("ETH", {"ethereum", "ETH", "eth"}),
        ("bsc", {"bsc", "BNB", "Bsc"}),
        ("base", {"base", "BASE", "Base"}),
        ("Polygon", {"polygon", "POLYGON", "Polygon"}),
    ],
)
def test_the_spellings_to_look_for_include_the_usual_ones_and_no_other_chain(chain: str, spellings: set[str]) -> None:
    found = chain_spellings(chain)
    assert spellings <= set(found)
    assert found == sorted(set(found))
    assert {canonical_chain(name) for name in found} == {canonical_chain(chain)}
