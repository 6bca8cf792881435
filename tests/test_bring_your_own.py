"""Everything that ``python tests/bring_your_own.py`` prints is right."""

import pytest
from own import cases


@pytest.mark.parametrize("one", cases(), ids=lambda one: f"{one.kind}: {one.given}"[:80])
def test_what_people_bring(one, tmp_path):
    got, fine = one.run(tmp_path)
    assert fine, f"{one.given}: got {got}, right is {one.right}"
